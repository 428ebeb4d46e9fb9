"""Orientation from the valid one of two forms, numbers beyond float32, and header fields that do not last."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from scorefusion.errors import BadInput
from scorefusion.io import fine_affine, make_image, read_grid, read_scan, save_image
from tests.support.batches import names, translate, write_model
from tests.support.tiny import AFFINE

VOXELS = np.random.default_rng(0).integers(0, 900, (5, 6, 7)).astype(np.int16)
QFORM = np.array([[0.0, -2.0, 0, 9], [1.5, 0, 0, -4], [0, 0, 3.0, 2], [0, 0, 0, 1]])
SFORM = QFORM + np.array([[0, 0, 0, 5.0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])


def written(path: Path, change: Callable[[Any], None], kind: type = nib.Nifti1Image) -> Path:
    """A file with a good qform (code 1) and sform (code 2), its header changed byte by byte."""
    image = kind(VOXELS, None)
    image.header.set_qform(QFORM, 1)
    image.header.set_sform(SFORM, 2)
    blob = bytearray(image.to_bytes())
    size = image.header.sizeof_hdr
    header = type(image.header)(bytes(blob[:size]), check=False)
    change(header)
    blob[:size] = header.binaryblock
    path.write_bytes(blob)
    return path


def rows(matrix: np.ndarray) -> Callable[[Any], None]:
    def change(header: Any) -> None:
        for name, row in zip("xyz", matrix, strict=True):
            header[f"srow_{name}"] = row

    return change


BROKEN = {
    "zero": np.zeros((3, 4)),
    "nan": np.full((3, 4), np.nan),
    "inf": np.where(SFORM[:3] > 2.5, np.inf, SFORM[:3]),
    "plane": SFORM[:3] * [1, 1, 0, 1],
    "twice": SFORM[:3][:, [0, 0, 2, 3]],
    "nan origin": SFORM[:3] + [0, 0, 0, np.nan],
}


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_sform_gives_way_to_the_qform(tmp_path: Path, broken: str, kind: type) -> None:
    file = written(tmp_path / "a.nii", rows(BROKEN[broken]), kind)
    for assume in (False, True):
        scan = read_scan(file, assume_affine=assume)
        np.testing.assert_allclose(scan.affine, QFORM, atol=1e-6)
        assert not scan.affine_assumed and scan.warnings == ("its sform is not valid; the qform is used",)
        x, y, z = read_grid(file, assume_affine=assume).affine[:3, 3]
        np.testing.assert_allclose([x, y, z], scan.ras_affine[:3, 3], atol=1e-6)
    header = make_image(scan, scan.to_own_order(scan.values)).header
    np.testing.assert_allclose(header.get_best_affine(), QFORM, atol=1e-6)
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)


def test_a_broken_qform_gives_way_to_the_sform(tmp_path: Path) -> None:
    def change(header: Any) -> None:
        header["quatern_b"] = 3

    scan = read_scan(written(tmp_path / "a.nii", change), assume_affine=True)
    np.testing.assert_allclose(scan.affine, SFORM)
    assert not scan.warnings and not scan.affine_assumed
    header = make_image(scan, scan.to_own_order(scan.values)).header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (2, 0)


def test_an_sform_in_memory_is_replaced_too() -> None:
    image = nib.Nifti1Image(VOXELS, None)
    image.header.set_qform(QFORM, 1)
    image.header.set_sform(np.zeros((4, 4)), 1)
    np.testing.assert_allclose(read_scan(image, assume_affine=True).affine, QFORM, atol=1e-6)


def test_two_broken_forms_are_refused_and_may_be_assumed(tmp_path: Path) -> None:
    def change(header: Any) -> None:
        rows(np.zeros((3, 4)))(header)
        header["quatern_c"] = np.nan

    file = written(tmp_path / "a.nii", change)
    for read in (read_scan, read_grid):
        with pytest.raises(BadInput, match="singular affine.*--assume-affine"):
            read(file)
    scan = read_scan(file, assume_affine=True)
    assert scan.affine_assumed and "assumed" in scan.warnings[0]


@pytest.mark.parametrize("excess", [1e-7, 4e-7, 1e-6, 1e-4, 5e-3])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_rounded_quaternion_is_shortened(tmp_path: Path, excess: float, kind: type) -> None:
    turn = np.diag([-1.5, 2, -2.5, 1.0])  # half a turn: the quaternion's own length is 1
    skew = nib.quaternions.quat2mat([0, 0.6, 0.0, 0.8])

    for rotation, vector in ((turn, [0, 1, 0]), (skew, [0.6, 0, 0.8])):

        def change(header: Any, vector: list[float] = vector) -> None:
            header["sform_code"] = 0
            header["pixdim"][:4] = 1, 1.5, 2, 2.5
            for name, value in zip("bcd", vector, strict=True):
                header[f"quatern_{name}"] = value * np.sqrt(1 + excess)

        file = written(tmp_path / "a.nii", change, kind)
        expected = rotation[:3, :3] if rotation is turn else rotation * [1.5, 2, 2.5]
        scan = read_scan(file)
        np.testing.assert_allclose(scan.affine[:3, :3], expected, atol=2e-3 if excess > 1e-3 else 2e-6)
        save_image(make_image(scan, scan.to_own_order(scan.values)), tmp_path / "b.nii")
        np.testing.assert_allclose(nib.load(tmp_path / "b.nii").header.get_qform(), scan.affine, atol=1e-5)
        read_grid(file)


def test_a_damaged_quaternion_is_refused(tmp_path: Path) -> None:
    def change(header: Any) -> None:
        header["sform_code"], header["quatern_b"] = 0, 1.2

    file = written(tmp_path / "a.nii", change)
    for read in (read_scan, read_grid):
        with pytest.raises(BadInput, match="damaged qform .*quaternion is longer than 1.*--assume-affine"):
            read(file)
    scan = read_scan(file, assume_affine=True)
    assert scan.affine_assumed and "assumed" in scan.warnings[0]
    save_image(make_image(scan, scan.to_own_order(scan.values)), tmp_path / "b.nii")
    np.testing.assert_allclose(nib.load(tmp_path / "b.nii").affine, scan.affine, atol=1e-6)


@pytest.mark.parametrize(("sform", "qform", "used"), [(17, 1, "s"), (0, 200, "q"), (6, 6, "s"), (-1, 1, "q")])
def test_a_form_of_an_undefined_code_is_used(tmp_path: Path, sform: int, qform: int, used: str) -> None:
    def change(header: Any) -> None:
        header["sform_code"], header["qform_code"] = sform, qform

    file = written(tmp_path / "a.nii", change)
    for assume in (False, True):
        scan = read_scan(file, assume_affine=assume)
        np.testing.assert_allclose(scan.affine, SFORM if used == "s" else QFORM, atol=1e-6)
        assert not scan.affine_assumed
        grid = read_grid(file, assume_affine=assume)
        np.testing.assert_allclose(grid.affine, scan.ras_affine, atol=1e-6)
    save_image(make_image(scan, scan.to_own_order(scan.values)), tmp_path / "b.nii")
    np.testing.assert_allclose(nib.load(tmp_path / "b.nii").affine, scan.affine, atol=1e-6)


def test_zero_qfac_counts_as_one_for_both_readers(tmp_path: Path) -> None:
    def change(header: Any) -> None:
        header["sform_code"], header["pixdim"][0] = 0, 0

    file = written(tmp_path / "a.nii", change)
    np.testing.assert_allclose(read_scan(file).affine, QFORM, atol=1e-6)
    assert read_grid(file).shape == (6, 5, 7)


@pytest.mark.parametrize("axis", (1, 2, 3))
def test_a_voxel_size_of_zero_is_not_taken_for_a_millimetre(tmp_path: Path, axis: int) -> None:
    def change(header: Any) -> None:
        header["sform_code"], header["pixdim"][axis] = 0, 0

    file = written(tmp_path / "a.nii", change)
    for read in (read_scan, read_grid):
        for assume in (False, True):
            with pytest.raises(BadInput, match="no usable voxel size.*Set pixdim"):
                read(file, assume_affine=assume)

    def with_sform(header: Any) -> None:
        header["pixdim"][axis] = 0

    np.testing.assert_allclose(read_scan(written(tmp_path / "b.nii", with_sform)).affine, SFORM, atol=1e-6)


def test_a_batch_reports_which_form_was_used(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    written(tmp_path / "in" / "a.nii", rows(np.zeros((3, 4))))
    events = translate(write_model(tmp_path / "tiny"), tmp_path / "in", "-o", tmp_path / "out")
    assert names(events, "item-done") == ["a.nii"]
    (done,) = (event for event in events if event["event"] == "item-done")
    assert "its sform is not valid; the qform is used" in done["warnings"]
    image = nib.load(tmp_path / "out" / "a.nii.gz")
    np.testing.assert_allclose(image.affine, fine_affine(QFORM, 2), atol=1e-5)


def scaled(values: np.ndarray, dtype: str, slope: float = 1.0) -> bytes:
    """A file whose stored type and scaling are these."""
    header = nib.Nifti1Header(endianness=">" if dtype.startswith(">") else "<")
    header.set_data_dtype(dtype)
    image = nib.Nifti1Image(values.astype(dtype), AFFINE, header)
    blob = bytearray(image.to_bytes())
    order = image.header.endianness
    blob[112:120] = np.array([slope, 0], f"{order}f4").tobytes()
    return bytes(blob)


BASE = np.random.default_rng(1).random((4, 5, 6)) * 100
NUMBERS: dict[str, tuple[Any, str, str]] = {
    "float64 of 1e300": (scaled(BASE * 1e298, "f8"), "beyond .1e.30, up to", "Divide its voxels by 1e297"),
    "float64 of 1e39": (scaled(BASE * 1e38, "f8"), "too large for float32", "Divide its voxels by 1e37"),
    "negative": (scaled(-BASE * 1e98, "f8"), "too large for float32", "Divide its voxels by 1e97"),
    "a missing value": (scaled(np.where(BASE < 9, -1.7e308, BASE), "f8"), "too large", "missing data"),
    "float64 of 1e-198": (scaled(BASE * 1e-200, "f8"), "differ by .*e-199", "Multiply its voxels by 1e20"),
    "float32 of 1e-40": (scaled(BASE * 1e-42, "f4"), "too little for float32", "Multiply its voxels by 1e4"),
    "a huge slope": (scaled(BASE, "i2", 1e38), "scl_slope is 1e.38", "Divide its voxels by 1e37"),
    "a tiny slope": (scaled(BASE, "i2", 1e-40), "scl_slope is", "Multiply its voxels"),
    "a small difference": (scaled(1e6 + BASE * 1e-9, "f8"), "around 1e.06", "Subtract 1000000"),
    "large int64": (scaled(2**60 + BASE.astype("i8"), "i8"), "differ by at most", "Subtract"),
    "large uint64": (scaled(np.uint64(2**63) + BASE.astype("u8"), "u8"), "differ by at most", "Subtract"),
    "complex": (nib.Nifti1Image(BASE.astype("c8"), AFFINE), "complex numbers", "numpy.abs"),
    "colours": (
        nib.Nifti1Image(np.zeros((4, 5, 6), [(c, "u1") for c in "RGB"]), AFFINE),
        r"holds colours \(RGB\), not one number",
        "Save one channel",
    ),
    "colours with opacity": (
        nib.Nifti1Image(np.zeros((4, 5, 6), [(c, "u1") for c in "RGBA"]), AFFINE),
        r"holds colours \(RGBA\)",
        "grey volume",
    ),
}  # fmt: skip


@pytest.mark.parametrize("nan", ["error", "zero"])
@pytest.mark.parametrize("case", NUMBERS)
def test_numbers_that_float32_cannot_hold_are_named(tmp_path: Path, case: str, nan: str) -> None:
    image, problem, fix = NUMBERS[case]
    content = image if isinstance(image, bytes) else image.to_bytes()
    (tmp_path / "a.nii").write_bytes(content)
    for source in (nib.Nifti1Image.from_bytes(content), tmp_path / "a.nii"):
        with pytest.raises(BadInput, match=problem) as caught:
            read_scan(source, nan=nan)
        assert fix in caught.value.fix and "NaN" not in str(caught.value)
        assert "constant" not in str(caught.value)


@pytest.mark.parametrize(
    ("dtype", "slope", "factor"),
    [("f8", 1, 1e20), ("f8", 1, 1e-20), (">f8", 1, 3), (">i2", 0.5, 1), ("i8", 1, 1), ("u8", 1, 1),
     ("i4", 1, 1e6), ("u1", -2, 1), ("i2", 0, 1), ("i2", np.nan, 1), ("i2", np.inf, 1)],
)  # fmt: skip
def test_numbers_that_it_can_hold_are_read(dtype: str, slope: float, factor: float) -> None:
    stored = (BASE * factor).astype(dtype)
    scan = read_scan(nib.Nifti1Image.from_bytes(scaled(stored, dtype, slope)))
    expected = stored.astype(np.float64) * (slope if np.isfinite(slope) and slope else 1)
    np.testing.assert_allclose(scan.to_own_order(scan.values), expected, rtol=2e-7)


def in_memory(values: np.ndarray) -> Any:
    return nib.Nifti1Image(values, AFFINE, dtype=values.dtype)


def test_nan_is_counted_apart_from_what_is_too_large(tmp_path: Path) -> None:
    values = np.where(BASE < 5, np.nan, BASE)
    with pytest.raises(BadInput, match=f"holds {np.isnan(values).sum()} voxels that are NaN.*--nan zero"):
        read_scan(in_memory(values))
    with pytest.raises(BadInput, match="too large for float32"):
        read_scan(in_memory(np.where(BASE > 95, 1e300, values)), nan="zero")
    everything = read_scan(in_memory(values), nan="zero").values
    assert np.count_nonzero(everything == 0) == np.isnan(values).sum()


def test_a_scaling_without_a_number_is_named(tmp_path: Path) -> None:
    blob = bytearray(nib.Nifti1Image(VOXELS, AFFINE).to_bytes())
    blob[112:120] = np.array([2, np.nan], "<f4").tobytes()
    (tmp_path / "a.nii").write_bytes(blob)
    with pytest.raises(BadInput, match="intercept"):
        read_scan(tmp_path / "a.nii")


def test_int64_limits_do_not_wrap() -> None:
    scan = read_scan(in_memory(BASE.astype("i8")))
    image = make_image(scan, np.full((4, 5, 6), 1e19), dtype="input")
    assert np.asarray(image.dataobj).min() > 2**62


def test_fields_that_do_not_hold_for_a_result_are_cleared() -> None:
    image = nib.Nifti1Image(VOXELS[..., None], AFFINE)
    header = image.header
    header.set_intent("vector", name="displacement")
    header["intent_p1"], header["cal_max"], header["cal_min"] = 3, 900, 10
    header["aux_file"], header["descrip"] = b"colours.lut", b"TE=3"
    header.set_dim_info(0, 1, 2)
    header["slice_code"], header["slice_end"], header["slice_duration"] = 1, 6, 0.1
    header.set_xyzt_units("mm", "sec")
    scan = read_scan(image)
    own = scan.to_own_order(scan.values)
    same = make_image(scan, own).header
    fine = make_image(scan, np.kron(own, np.ones((2, 2, 2))), factor=2).header
    for result in (same, fine):
        assert result.get_intent() == ("none", (), "") and float(result["intent_p1"]) == 0
        assert [result[name].item() for name in ("cal_min", "cal_max", "aux_file")] == [0, 0, b""]
        assert result["descrip"].item() == b"TE=3" and result.get_xyzt_units() == ("mm", "sec")
    assert same.get_dim_info() == (0, 1, 2) and int(same["slice_end"]) == 6
    assert fine.get_dim_info() == (None, None, None) and int(fine["slice_end"]) == 0
    assert float(fine["slice_duration"]) == int(fine["slice_code"]) == 0


@pytest.mark.parametrize(("ending", "case"), [*itertools.product(["", ".gz"], [str.lower, str.upper])])
def test_either_file_of_a_pair_is_read(tmp_path: Path, ending: str, case: Callable[[str], str]) -> None:
    if ending and case is str.upper:
        pytest.skip("nibabel knows compressed pairs by lower case alone")
    nib.save(nib.Nifti1Pair(VOXELS, AFFINE), tmp_path / f"a.img{ending}")
    for part in ("hdr", "img"):
        (tmp_path / f"a.{part}{ending}").rename(tmp_path / f"a.{case(part)}{ending}")
    for part in ("hdr", "img"):
        scan = read_scan(tmp_path / f"a.{case(part)}{ending}")
        np.testing.assert_array_equal(scan.to_own_order(scan.values), VOXELS)
        read_grid(tmp_path / f"a.{case(part)}{ending}")


def test_half_a_pair_names_what_is_missing(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Pair(VOXELS, AFFINE), tmp_path / "a.img")
    (tmp_path / "a.img").write_bytes((tmp_path / "a.img").read_bytes()[:-9])
    for read in (read_scan, read_grid):
        with pytest.raises(BadInput, match="a.img: is truncated"):
            read(tmp_path / "a.hdr")
    whole = (tmp_path / "a.hdr").read_bytes()
    (tmp_path / "a.hdr").write_bytes(b"no header" * 40)
    with pytest.raises(BadInput, match="a.hdr: is not a NIfTI or Analyze header"):
        read_scan(tmp_path / "a.img")
    (tmp_path / "a.hdr").write_bytes(whole)
    (tmp_path / "a.hdr").rename(tmp_path / "b.hdr")
    for name, missing in (("a.img", "a.hdr is missing"), ("b.hdr", "there is no b.img")):
        with pytest.raises(BadInput, match=missing):
            read_scan(tmp_path / name)
