"""What a header says of a scan's slices, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from scorefusion.degradations import SliceStack
from scorefusion.errors import BadInput, ScoreFusionError
from scorefusion.io import Scan, read_scan
from scorefusion.io.nifti import sidecar_of
from scorefusion.pipeline.slices import Slices, slices_of

TYPICAL = SliceStack()


def scan(folder: Path, edges: tuple[float, float, float], turn: float = 0.0, sidecar: Any = None) -> Scan:
    """A scan of voxels (x, y, z) mm, turned about x by so many degrees."""
    c, s = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ np.diag(edges)
    values = np.random.default_rng(0).uniform(1, 100, (6, 7, 8)).astype(np.float32)
    nib.save(nib.Nifti1Image(values, affine), folder / "a.nii.gz")
    if sidecar is not None:
        (folder / "a.json").write_text(json.dumps(sidecar))
    return read_scan(folder / "a.nii.gz")


def found(volume: Scan, **options: Any) -> Slices:
    return slices_of(volume, TYPICAL, options)


@pytest.mark.parametrize(
    ("edges", "axis", "count"),
    [((0.9, 0.9, 5.5), 0, 6), ((0.9, 4.0, 0.9), 1, 4), ((3.0, 1.0, 1.0), 2, 3), ((1.0, 1.0, 1.6), 0, 2)],
)
@pytest.mark.parametrize("turn", [0.0, 20.0])
def test_the_thick_axis_may_be_any(
    tmp_path: Path, edges: tuple[float, float, float], axis: int, count: int, turn: float
) -> None:
    slices = found(scan(tmp_path, edges, turn))
    assert (slices.axis, slices.measurement.step, slices.axes[0]) == (axis, count, axis)
    assert sorted(slices.axes) == [0, 1, 2] and slices.measurement.width == 1
    assert slices.step == pytest.approx(max(edges), rel=1e-5)
    assert slices.spacing == pytest.approx(max(edges) / count, rel=1e-5)
    assert len(slices.assumed) == 2 and "how thick" in slices.assumed[0] and "box" in slices.assumed[1]
    assert json.loads(json.dumps(slices.recorded()))["SlicesPerInputSlice"] == count


def test_bids_sidecars_inherit_from_the_folders_above(tmp_path: Path) -> None:
    folder = tmp_path / "sub-01" / "anat"
    folder.mkdir(parents=True)
    values = np.arange(144, dtype=np.float32).reshape(6, 6, 4)
    image = nib.Nifti1Image(values, np.diag([1.0, 1.0, 5.0, 1.0]))
    nib.save(image, folder / "sub-01_acq-x_T2w.nii.gz")
    for name, thickness in {"T2w": 4.5, "acq-x_T2w": 4.0, "acq-y_T2w": 3.0, "T1w": 2.0}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"SliceThickness": thickness, name: True}))
    file = folder / "sub-01_acq-x_T2w.nii.gz"
    assert sidecar_of(file) == {}, "no dataset"
    (tmp_path / "dataset_description.json").write_text("{}")
    assert sidecar_of(file) == {"SliceThickness": 4.0, "T2w": True, "acq-x_T2w": True}
    assert found(read_scan(file)).thickness == pytest.approx(4.0)
    (folder / "sub-01_acq-x_T2w.json").write_text('{"SliceThickness": 4.25}')
    assert sidecar_of(file)["SliceThickness"] == 4.25


def test_thickness_comes_from_options_then_the_sidecar(tmp_path: Path) -> None:
    volume = scan(tmp_path, (1.0, 1.0, 5.0), sidecar={"SliceThickness": 4, "EchoTime": 0.1})
    assert found(volume).measurement.width == pytest.approx(0.8)
    assert found(volume).thickness_from == "SliceThickness"
    assert found(volume, thickness=4.5).measurement.width == pytest.approx(0.9)
    assert found(volume, gap=0.5).thickness == pytest.approx(4.5)
    given = found(volume, thickness=4.0, gap=1.0, profile="gaussian", spacing=1.25)
    assert (given.measurement.step, given.measurement.profile, given.assumed) == (4, "gaussian", ())
    assert "4 mm (as given), 5 mm apart" in str(given)


def test_the_step_of_leaning_slices_is_along_their_normal(tmp_path: Path) -> None:
    """As a tilted gantry's are: the affine is sheared, and thickness is measured along the normal."""
    affine = scan(tmp_path, (1.0, 1.0, 5.0), turn=20.0).affine
    assert not found(scan(tmp_path, (1.0, 1.0, 5.0), turn=20.0)).warnings
    affine[:3, 2] += np.tan(np.deg2rad(15)) * 5 * affine[:3, 1]
    values = np.random.default_rng(0).uniform(1, 100, (6, 7, 8)).astype(np.float32)
    nib.save(nib.Nifti1Image(values, affine), tmp_path / "a.nii.gz")
    slices = found(read_scan(tmp_path / "a.nii.gz"), thickness=5.0)
    assert slices.step == pytest.approx(5.0, rel=1e-5) and slices.measurement.blocks == (5, 1, 1)
    assert any("lean by 15°" in text for text in slices.warnings)


def test_rounding_in_a_header_does_not_count(tmp_path: Path) -> None:
    """An affine in float32 has no step of 5 mm, and slices that touch are means of blocks all the same."""
    third = np.float64(np.float32(10 / 3))
    touching = found(scan(tmp_path, (1.0, 1.0, third), turn=20.0, sidecar={"SliceThickness": 3.333}))
    assert touching.measurement.blocks == (3, 1, 1) and touching.thickness == 3.333
    (tmp_path / "a.json").unlink()
    assert found(scan(tmp_path, (0.7, 0.7, 1.5 * 0.7 - 1e-6))).measurement.step == 2
    assert found(scan(tmp_path, (0.7, 0.7, 12 * 0.7 + 1e-6))).measurement.step == 8
    for said in (True, "4", -4, 0, None, [4]):
        other = found(scan(tmp_path, (1.0, 1.0, 5.0), sidecar={"SliceThickness": said}))
        assert other.thickness_from == "assumed", said


@pytest.mark.parametrize(
    ("edges", "problem"),
    [
        ((1.0, 1.0, 1.4), "is not thick-sliced.*1.4 times"),
        ((1.0, 1.0, 1.0), "is not thick-sliced"),
        ((1.0, 4.0, 5.0), "coarse along two axes"),
        ((0.5, 0.5, 7.0), "14 in-plane voxels apart"),
    ],
)
def test_scans_of_other_shapes_are_refused(
    tmp_path: Path, edges: tuple[float, float, float], problem: str
) -> None:
    with pytest.raises(BadInput, match=rf"a\.nii\.gz.*{problem}"):
        found(scan(tmp_path, edges))


def test_contradictions_are_named(tmp_path: Path) -> None:
    volume = scan(tmp_path, (1.0, 1.0, 5.0), sidecar={"SliceThickness": 0.5})
    with pytest.raises(BadInput, match="slices of 0.5 mm.*--thickness"):
        found(volume)
    for options, text in (
        ({"thickness": 4.0, "gap": 2.0}, "make 6 mm"),
        ({"gap": 6.0}, "cannot be"),
        ({"thickness": 20.0}, "slices of 20 mm.*from 1.25 to 10 mm"),
        ({"spacing": 0.2}, "would make 25"),
        ({"spacing": 4.0}, "would make 1.25"),
    ):
        with pytest.raises(ScoreFusionError, match=text):
            found(volume, **options)


def test_far_slices_become_as_many_as_were_learnt(tmp_path: Path) -> None:
    slices = found(scan(tmp_path, (0.5, 0.5, 4.5)))
    assert slices.measurement.step == 8 and any(
        "the most that were learnt" in text for text in slices.warnings
    )
    thin = found(scan(tmp_path, (1.0, 1.0, 5.0), sidecar={"SliceThickness": 2.0}))
    assert any("outside what the model has learnt" in text for text in thin.warnings)
