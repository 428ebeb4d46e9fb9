"""Images painted of label maps: numbers, crops, ranges, and what does not change."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scorefusion.cli import app
from scorefusion.data.synth import LabelCrops, LabelMap, Painting, label_files, paint, read_label_map
from scorefusion.data.synth.contrasts import Body, brightness
from scorefusion.data.synth.structures import structure, tissue
from scorefusion.errors import BadInput, ScoreFusionError

ROOT = Path(__file__).parents[2]
PLAIN = Painting(
    voxel=(1.0, 1.0), zoom=0, turn=0, bend=0, sequence=0, texture=0, lesions=0, vessels=0, stripped=0, cut=0,
    partial=(1e-3, 1e-3), resolution=(0.5, 0.5), noise=0,
)  # fmt: skip


def head(edge: int = 40) -> np.ndarray:
    """Shells of skin, fluid, cortex and white matter, with other numbers on the right half."""
    z, y, x = np.indices((edge,) * 3) - (edge - 1) / 2
    radius = np.sqrt(z**2 + y**2 + x**2)
    values = np.select(
        [radius < 0.2 * edge, radius < 0.3 * edge, radius < 0.36 * edge, radius < 0.45 * edge],
        [2, 3, 24, 515],
    )
    right = x > 0
    values[right & (values == 2)], values[right & (values == 3)] = 41, 42
    return values.astype(np.int16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b", "a"):
        nib.save(nib.Nifti1Image(head(), np.diag([1.0, 1.0, 1.0, 1.0])), tmp_path / f"{name}.nii.gz")
    (tmp_path / "notes.txt").write_text("not a map")
    return tmp_path


def test_numbers_of_freesurfer_are_joined() -> None:
    assert [structure(n) for n in (41, 42, 2, 251, 1005, 2011, 3001, 4035, 11101, 515)] == [
        2, 3, 2, 2, 3, 3, 2, 2, 3, 515,
    ]  # fmt: skip
    assert [tissue(n) for n in (0, 2, 3, 4, 515)] == ["air", "wm", "gm", "csf", "outside"]


def test_a_map_is_read_cropped_and_compact(folder: Path) -> None:
    assert [file.name for file in label_files(folder)] == ["a.nii.gz", "b.nii.gz"]
    labels = read_label_map(folder / "a.nii.gz")
    assert labels.numbers == (0, 2, 3, 24, 515) and labels.tissues == ("air", "wm", "gm", "csf", "outside")
    assert labels.values.dtype == np.uint8 and labels.values.shape == (36, 36, 36)
    whole = np.array([structure(int(n)) for n in range(600)])[head()]
    assert np.array_equal(np.array(labels.numbers)[labels.values], whole[2:-2, 2:-2, 2:-2])


def test_what_is_no_label_map_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no label maps"):
        label_files(tmp_path)
    for values, problem in (
        (head() + 0.5, "whole numbers"),
        (head() - 3.0, "whole numbers"),
        (head() * 100.0, "FreeSurfer's end"),
        (head() % 2 * 0 + np.arange(40) * 10, "structures"),
    ):
        file = tmp_path / "bad.nii.gz"
        values = np.asarray(values, np.float32)
        if problem == "structures":
            values = np.arange(40**3, dtype=np.float32).reshape(40, 40, 40) % 900 + 256
        nib.save(nib.Nifti1Image(values, np.eye(4)), file)
        with pytest.raises(BadInput, match=problem):
            read_label_map(file)


def test_a_plain_image_holds_one_brightness_for_each_structure(folder: Path) -> None:
    labels = read_label_map(folder / "a.nii.gz")
    image = paint(labels, (24, 20, 16), np.random.default_rng(1), PLAIN)
    assert image.shape == (24, 20, 16) and image.dtype == np.float32
    flat = (np.abs(np.diff(image, axis=0)) < 0.02).mean()
    assert flat > 0.75, "but for shading, structures are flat"
    painted = paint(labels, (24, 20, 16), np.random.default_rng(1))
    assert not np.array_equal(painted, image)
    assert np.array_equal(painted, paint(labels, (24, 20, 16), np.random.default_rng(1)))


def test_brightness_is_random_and_half_the_time_a_sequences() -> None:
    numbers = (0, 2, 3, 24, 515)
    drawn = np.stack([brightness(numbers, np.random.default_rng(k), 1.0) for k in range(200)])
    assert drawn.min() >= 0 and drawn.max() <= 1.0 and (drawn[:, 1:].max(axis=1) > 0.99).all()
    white, grey, fluid = drawn[:, 1], drawn[:, 2], drawn[:, 3]
    order = {tuple(np.argsort(row)) for row in np.stack([white, grey, fluid], axis=1)}
    assert {(2, 1, 0), (0, 1, 2)} <= order, "T1-like and T2-like images are both drawn"
    free = np.stack([brightness(numbers, np.random.default_rng(k), 0.0) for k in range(200)])
    assert abs(np.corrcoef(free[:, 1], free[:, 2])[0, 1]) < 0.2


def test_crops_are_of_all_heads_and_any_size(folder: Path) -> None:
    crops = LabelCrops(label_files(folder))
    for size in ((24, 24, 24), (40, 6, 32), (5, 30, 30)):
        (image,) = crops.draw(size, np.random.default_rng(3))
        assert image.shape == size and np.isfinite(image).all() and -1.01 <= image.min() <= image.max() < 4
    assert image.std() > 0.05


def test_a_set_of_painted_heads_goes_on_where_it_was(folder: Path, tmp_path: Path) -> None:
    arguments = ["phantom", "-o", str(tmp_path / "set"), "--labels", str(folder), "--spacing", "2", "--quiet"]
    app([*arguments, "-n", "1"], standalone_mode=False)
    first = (tmp_path / "set/sub-000/sub-000_image.nii.gz").stat().st_mtime_ns
    app([*arguments, "-n", "2"], standalone_mode=False)
    assert (tmp_path / "set/sub-000/sub-000_image.nii.gz").stat().st_mtime_ns == first
    image, labels = (
        nib.load(tmp_path / f"set/sub-001/sub-001_{kind}.nii.gz") for kind in ("image", "labels")
    )
    assert image.shape == labels.shape and image.header.get_zooms() == (2.0, 2.0, 2.0)
    numbers = np.unique(np.asarray(labels.dataobj))
    assert set(numbers) <= {0, 2, 3, 24, 515} and len(numbers) > 2
    assert np.asarray(image.dataobj).max() > 200
    with pytest.raises(SystemExit):
        app([*arguments[:-3], "--spacing", "3", "-n", "1"])


def test_contrasts_of_one_body_are_those_of_their_sequences() -> None:
    numbers = (0, 2, 3, 24, 515)
    names = ("t1", "t2", "pd", "flair")
    orders = []
    for k in range(50):
        random = np.random.default_rng(k)
        body = Body(names, random)
        drawn = body.brightness(numbers, random)
        assert drawn.shape == (4, 5) and drawn.dtype == np.float32 and 0 <= drawn.min() <= drawn.max() <= 1.0
        assert np.allclose(drawn[:, 1:].max(axis=1), 1)
        (t1, t2, pd, flair) = drawn[:, 1:4]  # white, grey, fluid
        assert t1[1] > t1[2] and t2[1] < t2[2] and flair[2] < 0.7 * flair[:2].min()
        orders.append((t1[0] > t1[1], t2[0] < t2[1], pd[0] < pd[1]))
        change = body.texture()
        assert change[0] < 0 < change[1], "more water: darker in T1, brighter in T2"
        random = np.random.default_rng(k)
        assert np.array_equal(Body(names, random).brightness(numbers, random), drawn)
    assert np.mean(orders, axis=0).min() > 0.85, "people differ, and parameters of sequences"


def test_images_of_one_crop_differ_in_contrast_alone(folder: Path) -> None:
    labels = read_label_map(folder / "a.nii.gz")
    plain = replace(PLAIN, vary=0.0)
    images = paint(labels, (24, 20, 16), np.random.default_rng(1), plain, contrasts=("t2", "t1"))
    assert images.shape == (2, 24, 20, 16) and images.dtype == np.float32
    edges = [np.abs(np.diff(image, axis=2)) > 0.05 for image in images]
    assert edges[0].sum() > 50 and (edges[0] & edges[1]).sum() > 0.9 * max(edge.sum() for edge in edges)
    rich = Painting(voxel=(1.0, 1.0), texture=0.06, lesions=1.0, vessels=1.0, noise=0)
    for k in range(3):
        pair = paint(labels, (24, 20, 16), np.random.default_rng(k), rich, contrasts=("t1", "t1"))
        assert pair.shape[0] == 2 and np.isfinite(pair).all()


@pytest.mark.parametrize("upright", [True, False])
def test_upright_crops_keep_the_order_of_axes(upright: bool) -> None:
    values = np.ones((30, 30, 30), np.uint8)
    values[:, 3 < np.arange(30) % 8] = 2
    labels = LabelMap("layers", values, (0, 4, 14), (1.0, 1.0, 1.0))
    along = set()
    for k in range(20):
        image = paint(labels, (12, 12, 12), np.random.default_rng(k), replace(PLAIN, upright=upright))
        along.add(int(np.argmax([(np.abs(np.diff(image, axis=axis)) > 0.05).sum() for axis in range(3)])))
    assert along == ({1} if upright else {0, 1, 2})


def test_crops_of_several_contrasts(folder: Path) -> None:
    crops = LabelCrops(label_files(folder), contrasts=("t2", "t1", "flair"))
    images = crops.draw((16, 20, 24), np.random.default_rng(0))
    assert images.shape == (3, 16, 20, 24)
    assert np.array_equal(images, crops.draw((16, 20, 24), np.random.default_rng(0)))
    with pytest.raises(ScoreFusionError, match="unknown contrast of label maps 'dwi'"):
        LabelCrops(label_files(folder), contrasts=("t1", "dwi"))


def test_packed_maps_give_the_same_images(folder: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    command = [sys.executable, str(ROOT / "tools" / "small_labels.py"), str(folder), "-o"]
    subprocess.run([*command, str(small)], check=True)
    assert [file.name for file in label_files(small)] == ["a.nii.gz", "b.nii.gz"]
    maps = [read_label_map(at / "a.nii.gz") for at in (folder, small)]
    assert maps[0].numbers == maps[1].numbers and maps[0].spacing == maps[1].spacing
    assert np.array_equal(maps[0].values, maps[1].values)
    images = [paint(each, (20, 24, 22), np.random.default_rng(0)) for each in maps]
    assert np.array_equal(*images)
    refused = subprocess.run([*command, str(folder)], capture_output=True, text=True)
    assert refused.returncode == 2 and "name another folder" in refused.stderr
