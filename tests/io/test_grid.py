"""Grids from headers agree with those of the volumes as they are read."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scorefusion.errors import BadInput
from scorefusion.io import corner_distance, read_grid, read_scan

OBLIQUE = np.array([[0.9, -0.2, 0.1, -20], [0.25, 1.1, -0.15, 10], [-0.1, 0.2, 1.8, 5], [0, 0, 0, 1.0]])


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1)])
def test_a_grid_from_a_header_is_that_of_the_volume(
    tmp_path: Path, order: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    turn = np.eye(4)
    turn[:3, :3] = np.diag(signs)[:, list(order)]
    data = np.random.default_rng(0).random((4, 5, 6), dtype=np.float32)
    nib.save(nib.Nifti1Image(data, OBLIQUE @ turn), tmp_path / "a.nii.gz")
    grid, scan = read_grid(tmp_path / "a.nii.gz"), read_scan(tmp_path / "a.nii.gz")
    assert grid.shape == scan.values.shape[::-1]
    np.testing.assert_allclose(grid.affine, scan.ras_affine, atol=1e-6)
    np.testing.assert_allclose(grid.voxel, np.linalg.norm(scan.ras_affine[:3, :3], axis=0), rtol=1e-6)
    assert nib.aff2axcodes(grid.affine) == ("R", "A", "S")


def test_corner_distance_of_a_shift_and_of_a_stretch() -> None:
    moved = np.eye(4)
    moved[:3, 3] = 3, 0, 4
    assert corner_distance(np.eye(4), moved, (5, 6, 7)) == pytest.approx(5)
    assert corner_distance(np.eye(4), np.diag([1.1, 1, 1, 1]), (11, 6, 7)) == pytest.approx(1)


def test_an_affine_is_assumed_on_request_only(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.ones((4, 5, 6), np.float32), None)
    image.header.set_zooms((1, 2, 3))
    nib.save(image, tmp_path / "a.nii")
    with pytest.raises(BadInput, match="has no affine"):
        read_grid(tmp_path / "a.nii")
    assert read_grid(tmp_path / "a.nii", assume_affine=True).voxel == (1, 2, 3)


def test_a_damaged_quaternion_is_named(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.ones((4, 5, 6), np.float32), np.eye(4))
    image.header["sform_code"], image.header["qform_code"], image.header["quatern_b"] = 0, 1, 3
    (tmp_path / "a.nii").write_bytes(image.header.binaryblock + bytes(4 + image.get_fdata().nbytes))
    with pytest.raises(BadInput, match=r"a\.nii: has a damaged qform"):
        read_grid(tmp_path / "a.nii")


def test_an_empty_label_map_is_read_on_request_only(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.uint8), np.eye(4)), tmp_path / "seg.nii.gz")
    with pytest.raises(BadInput, match="is constant"):
        read_scan(tmp_path / "seg.nii.gz")
    assert not read_scan(tmp_path / "seg.nii.gz", constant=True).values.any()
