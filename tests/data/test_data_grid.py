"""Volumes of a subject on one grid: checked, or brought there by interpolation."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.interpolate import RegularGridInterpolator

from scorefusion.data import DatasetConfig, Subject, read_subject
from scorefusion.data.dataset import check_grids
from scorefusion.errors import BadInput
from scorefusion.io.nifti import Scan, make_image, read_scan, save_image
from tests.support.look_alikes import AFFINE, SHAPE, write

FINE = np.array([[0.0, 0.7, 0, -3], [0.8, 0, 0.1, -4], [0, -0.1, 0.9, -5], [0, 0, 0, 1]])
RESAMPLE = DatasetConfig(root="", on_misaligned="resample")


def subject(**files: Path) -> Subject:
    return Subject("s", "s", files)


def save(path: Path, values: np.ndarray, affine: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(values, affine), path)
    return path


def places(scan: Scan) -> np.ndarray:
    """The millimetres of each voxel of a scan, ``[D, H, W, 3]``."""
    z, y, x = np.indices(scan.values.shape, dtype=np.float64)
    return np.stack([x, y, z, np.ones_like(x)], axis=-1) @ scan.ras_affine.T[:, :3]


def test_another_orientation_of_one_grid_is_aligned(tmp_path: Path) -> None:
    first = write(tmp_path / "t1.nii.gz")
    turned = nib.load(first).as_reoriented(np.array([[2, 1], [0, -1], [1, -1]]))
    nib.save(turned, tmp_path / "t2.nii.gz")
    files = subject(t1=first, t2=tmp_path / "t2.nii.gz")
    check_grids(files, ("t1", "t2"))
    scans = read_subject(files)
    np.testing.assert_array_equal(scans["t1"].values, scans["t2"].values)


def test_the_tolerance_is_millimetres_at_the_corners(tmp_path: Path) -> None:
    moved = AFFINE.copy()
    moved[2, 3] += 0.03
    files = subject(t1=write(tmp_path / "a.nii"), t2=write(tmp_path / "b.nii", affine=moved))
    with pytest.raises(BadInput, match=r"corners are 0\.03 mm apart"):
        check_grids(files, ("t1", "t2"))
    with pytest.raises(BadInput, match=r"b\.nii: lies on another grid than a\.nii \(corners are 0\.03 mm"):
        read_subject(files)
    wider = DatasetConfig(root="", tolerance=0.04)
    check_grids(files, ("t1", "t2"), wider)
    assert set(read_subject(files, ("t2", "t1"), wider)) == {"t1", "t2"}


@pytest.mark.parametrize(("interpolation", "method"), [("linear", "linear"), ("cubic", "cubic")])
def test_resampling_agrees_with_an_independent_interpolation(
    tmp_path: Path, interpolation: str, method: str
) -> None:
    """RegularGridInterpolator in float64, away from the edges, where both have all their neighbours."""
    shape = (24, 26, 22)
    x, y, z = np.meshgrid(*(np.linspace(0, 3, n) for n in shape), indexing="ij")
    values = (np.sin(x) * np.cos(1.3 * y) + 0.3 * np.sin(2 * z) + 2).astype(np.float32)
    save(tmp_path / "t2.nii.gz", values, FINE)
    onto = np.diag([1.1, 1.3, 1.2, 1.0])
    onto[:3, 3] = FINE[:3] @ np.array([5, 5, 5, 1])
    files = subject(t1=write(tmp_path / "t1.nii.gz", affine=onto), t2=tmp_path / "t2.nii.gz")
    config = RESAMPLE.model_copy(update={"interpolation": interpolation})
    scans = read_subject(files, ("t1", "t2"), config)
    source = read_scan(tmp_path / "t2.nii.gz")
    assert scans["t2"].values.shape == scans["t1"].values.shape
    index = np.concatenate([places(scans["t1"]), np.ones((*scans["t1"].values.shape, 1))], axis=-1)
    index = (index @ np.linalg.inv(source.ras_affine).T)[..., 2::-1]
    far = np.logical_and(index > 4, index < np.array(source.values.shape) - 5).all(axis=-1)
    assert far.sum() > 100
    axes = [np.arange(n) for n in source.values.shape]
    truth = RegularGridInterpolator(axes, source.values.astype(np.float64), method=method)(index[far])
    # Cubic splines differ by the condition at the ends; four voxels inside it has died away to 1e-3.
    np.testing.assert_allclose(scans["t2"].values[far], truth, atol=1e-5 if method == "linear" else 2e-3)


def test_resampling_onto_the_same_grid_changes_nothing(tmp_path: Path) -> None:
    """Rounding must not lose the outermost voxels."""
    moved = AFFINE.copy()
    moved[0, 3] += 1e-5
    files = subject(t1=write(tmp_path / "a.nii"), t2=write(tmp_path / "b.nii", affine=moved, seed=1))
    config = RESAMPLE.model_copy(update={"tolerance": 0.0})
    with pytest.raises(BadInput):
        read_subject(files, (), config.model_copy(update={"on_misaligned": "refuse"}))
    result = read_subject(files, ("t1", "t2"), config)["t2"]
    np.testing.assert_allclose(result.values, read_scan(tmp_path / "b.nii").values, atol=1e-4)


def test_outside_its_field_of_view_a_volume_has_its_least_value(tmp_path: Path) -> None:
    moved = AFFINE.copy()
    moved[0, 3] += 3  # three voxels to the right: the first three on the left are not covered
    ct = save(tmp_path / "ct.nii", np.linspace(-1000, 500, 504, dtype=np.float32).reshape(SHAPE), moved)
    scan = read_subject(subject(t1=write(tmp_path / "t1.nii"), ct=ct), ("t1", "ct"), RESAMPLE)["ct"]
    assert (scan.values[:, :, :3] == -1000).all() and (scan.values[1:, :, 3:] > -1000).all()


def test_labels_take_the_nearest_voxel(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).choice(np.array([0, 2, 7], np.uint8), size=(12, 13, 11))
    save(tmp_path / "seg.nii.gz", labels, FINE)
    files = subject(t1=write(tmp_path / "t1.nii.gz"), labels=tmp_path / "seg.nii.gz")
    values = read_subject(files, (), RESAMPLE.model_copy(update={"interpolation": "cubic"}))["labels"].values
    assert set(np.unique(values)) == {0, 2, 7}
    source = read_scan(tmp_path / "seg.nii.gz")
    where = np.concatenate([places(read_scan(files.files["t1"])), np.ones((7, 9, 8, 1))], axis=-1)
    index = (where @ np.linalg.inv(source.ras_affine).T)[..., 2::-1]
    nearest = np.rint(index).astype(int)
    # Not where the nearest is a toss-up, or outside.
    sure = (abs(index - nearest) < 0.45).all(-1)
    sure &= np.logical_and(nearest >= 0, nearest < np.array(source.values.shape)).all(-1)
    assert sure.sum() > 100
    np.testing.assert_array_equal(values[sure], source.values[tuple(nearest[sure].T)])


def test_a_resampled_scan_is_written_on_the_first_ones_grid(tmp_path: Path) -> None:
    files = subject(t1=write(tmp_path / "t1.nii.gz"), t2=write(tmp_path / "t2.nii.gz", (12, 13, 11), FINE))
    scans = read_subject(files, ("t1", "t2"), RESAMPLE)
    scan = scans["t2"]
    save_image(make_image(scan, scan.to_own_order(scan.values)), tmp_path / "out.nii.gz")
    image = nib.load(tmp_path / "out.nii.gz")
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-6)
    np.testing.assert_array_equal(read_scan(tmp_path / "out.nii.gz").values, scan.values)


def test_grids_that_do_not_overlap_are_refused(tmp_path: Path) -> None:
    far = AFFINE.copy()
    far[2, 3] += 500
    for contrast in ("t2", "labels"):
        values = np.random.default_rng(0).integers(0, 3, SHAPE).astype(np.float32)
        other = save(tmp_path / f"{contrast}.nii", values, far)
        files = subject(t1=write(tmp_path / "t1.nii"), **{contrast: other})
        with pytest.raises(BadInput, match=rf"{contrast}\.nii: does not overlap .*t1\.nii: 8 × 9 × 7 voxels"):
            read_subject(files, ("t1", contrast), RESAMPLE)


def test_labels_may_be_empty_but_must_be_whole(tmp_path: Path) -> None:
    files = subject(
        t1=write(tmp_path / "t1.nii"), labels=save(tmp_path / "l.nii", np.zeros(SHAPE, np.uint8), AFFINE)
    )
    assert not read_subject(files)["labels"].values.any()
    with pytest.raises(BadInput, match="holds labels that are not whole numbers"):
        read_subject(subject(t1=files.files["t1"], labels=write(tmp_path / "half.nii")))


def test_nan_counts_as_zero_on_request(tmp_path: Path) -> None:
    files = subject(t1=write(tmp_path / "t1.nii", nan=True))
    with pytest.raises(BadInput, match="NaN"):
        read_subject(files)
    assert np.isfinite(read_subject(files, (), DatasetConfig(root="", nan="zero"))["t1"].values).all()
