"""Reading and writing of volumes: orientation, affine, scaling, header fields, atomic writing."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scorefusion.errors import BadInput, ScoreFusionError
from scorefusion.io import (
    check_output,
    check_same_grid,
    fine_affine,
    make_image,
    read_scan,
    save_image,
    written_beside,
)

OBLIQUE = np.array(
    [[0.9, -0.2, 0.1, -20.0], [0.25, 1.1, -0.15, 10.0], [-0.1, 0.2, 1.8, 5.0], [0.0, 0.0, 0.0, 1.0]]
)


def block_means(array: np.ndarray, r: int) -> np.ndarray:
    i, j, k = (n // r for n in array.shape)
    return array.reshape(i, r, j, r, k, r).mean(axis=(1, 3, 5))


def oriented_affines() -> list[np.ndarray]:
    affines = []
    for order in itertools.permutations(range(3)):
        for signs in ((1, 1, 1), (-1, 1, -1), (-1, -1, -1)):
            turn = np.eye(4)
            turn[:3, :3] = np.diag(signs)[:, list(order)]
            affines.append(OBLIQUE @ turn)
    return affines


@pytest.mark.parametrize("affine", oriented_affines(), ids=lambda a: "".join(nib.aff2axcodes(a)))
def test_every_orientation_is_ras_inside_and_its_own_outside(affine: np.ndarray) -> None:
    data = np.random.default_rng(0).random((4, 5, 6), dtype=np.float32)
    image = nib.Nifti1Image(data, affine)
    scan = read_scan(image)
    canonical = nib.as_closest_canonical(image)
    np.testing.assert_array_equal(scan.values, np.asarray(canonical.dataobj).transpose(2, 1, 0))
    np.testing.assert_allclose(scan.ras_affine, canonical.affine, atol=1e-12)
    np.testing.assert_array_equal(scan.to_own_order(scan.values), data)


@pytest.mark.parametrize("affine", oriented_affines()[::4], ids=lambda a: "".join(nib.aff2axcodes(a)))
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_the_output_grid_has_the_input_as_block_means(affine: np.ndarray, factor: int) -> None:
    """A volume that is linear in millimetres keeps its meaning: value and place agree on both grids."""

    def ramp(where: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        index = np.stack([*np.indices(shape, dtype=np.float64), np.ones(shape)])
        return np.tensordot(np.array([1.0, 2.0, 3.0, 0.0]) @ where, index, axes=1)

    coarse = ramp(affine, (3, 4, 5))
    scan = read_scan(nib.Nifti1Image(coarse.astype(np.float32), affine))
    fine_ras_affine = fine_affine(scan.ras_affine, factor)
    fine_xyz = ramp(fine_ras_affine, tuple(factor * n for n in scan.values.shape[::-1]))
    own = scan.to_own_order(fine_xyz.transpose(2, 1, 0))
    image = make_image(scan, own, factor=factor)
    np.testing.assert_allclose(ramp(image.affine, image.shape), own, atol=1e-9)
    np.testing.assert_allclose(block_means(own, factor), coarse, atol=1e-9)


def test_fine_affine_by_hand() -> None:
    affine = np.diag([2.0, 4.0, 8.0, 1.0])
    np.testing.assert_array_equal(fine_affine(affine, 4) @ [0, 0, 0, 1], [-0.75, -1.5, -3.0, 1])
    np.testing.assert_array_equal(fine_affine(affine, 4) @ [3, 3, 3, 1], [0.75, 1.5, 3.0, 1])


@pytest.mark.parametrize("cls", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["int16", "uint8", "float32", "float64"])
def test_reads_versions_types_and_one_frame(cls: type, ending: str, dtype: str, tmp_path: Path) -> None:
    data = np.arange(60).reshape(3, 4, 5, 1).astype(dtype)
    nib.save(cls(data, OBLIQUE), tmp_path / f"a{ending}")
    scan = read_scan(tmp_path / f"a{ending}")
    assert scan.shape == (3, 4, 5) and scan.values.dtype == np.float32 and scan.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(scan.to_own_order(scan.values), data[..., 0])


def test_slope_and_intercept_are_applied_and_can_be_written_back(tmp_path: Path) -> None:
    stored = np.arange(-30, 30).reshape(3, 4, 5).astype(np.int16)
    image = nib.Nifti1Image(stored, OBLIQUE)
    image.header.set_slope_inter(0.5, 100.0)
    nib.save(image, tmp_path / "a.nii")
    scan = read_scan(tmp_path / "a.nii")
    own = scan.to_own_order(scan.values)
    np.testing.assert_array_equal(own, stored * 0.5 + 100)

    save_image(make_image(scan, own + 0.1), tmp_path / "float.nii")
    back = nib.load(tmp_path / "float.nii")
    assert back.get_data_dtype() == np.float32 and (back.dataobj.slope, back.dataobj.inter) == (1.0, 0.0)
    np.testing.assert_allclose(back.get_fdata(), own + 0.1, rtol=1e-6)

    save_image(make_image(scan, own + 0.1, dtype="input"), tmp_path / "int.nii")
    back = nib.load(tmp_path / "int.nii")
    assert back.get_data_dtype() == np.int16 and (back.dataobj.slope, back.dataobj.inter) == (0.5, 100.0)
    np.testing.assert_array_equal(back.get_fdata(), own)


def test_integers_are_limited_not_wrapped() -> None:
    scan = read_scan(nib.Nifti1Image(np.arange(60).reshape(3, 4, 5).astype(np.uint8), np.eye(4)))
    image = make_image(scan, np.linspace(-10, 300, 60).reshape(3, 4, 5), dtype="input")
    assert np.asarray(image.dataobj).min() == 0 and np.asarray(image.dataobj).max() == 255


def test_header_fields_of_the_output(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.random.default_rng(0).random((3, 4, 5)), OBLIQUE)
    rigid = nib.affines.from_matvec(np.diag([1.0, 1.0, 2.0]), [1, 2, 3])
    image.header.set_qform(rigid, code=1)
    image.header.set_sform(OBLIQUE, code=4)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = b"a description"
    image.header["slice_end"] = 4
    nib.save(image, tmp_path / "a.nii")
    scan = read_scan(tmp_path / "a.nii")
    save_image(make_image(scan, np.zeros((12, 16, 20), np.float32), factor=4), tmp_path / "b.nii.gz")
    header = nib.load(tmp_path / "b.nii.gz").header
    assert (int(header["qform_code"]), int(header["sform_code"])) == (1, 4)
    np.testing.assert_allclose(header.get_sform(), fine_affine(OBLIQUE, 4), atol=1e-5)
    np.testing.assert_allclose(header.get_qform(), fine_affine(rigid, 4), atol=1e-5)
    np.testing.assert_allclose(header.get_zooms(), [0.25, 0.25, 0.5])
    assert header.get_xyzt_units() == ("mm", "sec")
    assert bytes(header["descrip"]).startswith(b"a description") and int(header["slice_end"]) == 0


def test_assumed_affine_is_centred_and_written_down() -> None:
    image = nib.Nifti1Image(np.arange(60, dtype=np.float32).reshape(3, 4, 5), None)
    image.header.set_zooms((1, 2, 3))
    scan = read_scan(image, assume_affine=True)
    np.testing.assert_array_equal(scan.affine @ [1, 1.5, 2, 1], [0, 0, 0, 1])
    np.testing.assert_array_equal(np.diag(scan.affine), [1, 2, 3, 1])
    header = make_image(scan, scan.to_own_order(scan.values)).header
    assert (int(header["qform_code"]), int(header["sform_code"])) == (0, 2)


def test_nan_as_zero() -> None:
    data = np.ones((3, 3, 3), np.float32)
    data[0, 0, 0], data[1, 1, 1] = np.nan, np.inf
    with pytest.raises(BadInput, match="2 voxels that are NaN or infinite"):
        read_scan(nib.Nifti1Image(data, np.eye(4)))
    values = read_scan(nib.Nifti1Image(data, np.eye(4)), nan="zero").values
    assert values[0, 0, 0] == values[1, 1, 1] == 0 and values.sum() == 25
    with pytest.raises(ScoreFusionError, match="unknown treatment of NaN"):
        read_scan(nib.Nifti1Image(data, np.eye(4)), nan="keep")


def test_damaged_checksum_is_found(tmp_path: Path) -> None:
    file = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random((9, 9, 9)), np.eye(4)), file)
    blob = bytearray(file.read_bytes())
    blob[-6] ^= 0xFF
    file.write_bytes(blob)
    with pytest.raises(BadInput, match="damaged gzip"):
        read_scan(file)


def test_other_image_formats_in_memory() -> None:
    image = nib.MGHImage(np.arange(60, dtype=np.float32).reshape(3, 4, 5), OBLIQUE)
    np.testing.assert_allclose(read_scan(image).affine, OBLIQUE)


def test_same_grid_names_both_files(tmp_path: Path) -> None:
    data = np.random.default_rng(0).random((3, 4, 5))
    moved = OBLIQUE.copy()
    moved[0, 3] += 1
    turned = OBLIQUE @ np.array([[-1.0, 0, 0, 2], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    for name, array, affine in (("a", data, OBLIQUE), ("b", data[:, :, 1:], OBLIQUE), ("c", data, moved)):
        nib.save(nib.Nifti1Image(array, affine), tmp_path / f"{name}.nii")
    a, b, c = (read_scan(tmp_path / f"{name}.nii") for name in "abc")
    flipped = read_scan(nib.Nifti1Image(data[::-1], turned))
    check_same_grid(a, flipped)
    with pytest.raises(BadInput, match=r"b.nii: has 3 × 4 × 4 voxels .*a.nii needs 3 × 4 × 5"):
        check_same_grid(a, b)
    with pytest.raises(BadInput, match=r"c.nii: lies elsewhere than .*a.nii"):
        check_same_grid(a, c)
    fine = read_scan(nib.Nifti1Image(np.kron(data, np.ones((2, 2, 2))), fine_affine(OBLIQUE, 2)))
    check_same_grid(a, fine, 2)


def test_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    final = tmp_path / "a.nii"
    with pytest.raises(KeyboardInterrupt), written_beside(final) as beside:
        beside.write_bytes(b"half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    final = tmp_path / "a.nii"
    final.write_bytes(b"old")
    with pytest.raises(BadInput, match="a.nii: could not be written .No space left"):
        with written_beside(final) as beside:
            beside.write_bytes(b"half")
            raise OSError(28, "No space left on device")
    assert final.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_check_output_finds_problems_and_leaves_no_trace(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    link = tmp_path / "link.nii"
    (tmp_path / "in.nii").write_text("")
    link.hardlink_to(tmp_path / "in.nii")
    cases = {
        tmp_path / "a.mgz": "wrong ending",
        tmp_path / "none" / "a.nii": "does not exist",
        tmp_path / "file" / "a.nii": "is not a folder",
        tmp_path / "in.nii": "is an input",
        link: "is an input",
    }
    for path, problem in cases.items():
        with pytest.raises(BadInput, match=problem):
            check_output(path, (".nii", ".nii.gz"), [tmp_path / "in.nii"])
    before = sorted(tmp_path.iterdir())
    assert check_output(tmp_path / "a.nii.gz", (".nii", ".nii.gz")) == tmp_path / "a.nii.gz"
    assert sorted(tmp_path.iterdir()) == before
