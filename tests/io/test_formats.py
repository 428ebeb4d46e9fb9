"""Volumes in every format: geometry, values and units both ways; truncated, hostile and second files."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import random
import struct
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from backports import zstd
from typer.testing import CliRunner

from scorefusion import Pipeline
from scorefusion.batch.files import hash_file, stamp_of, store_image
from scorefusion.cli import app
from scorefusion.errors import BadInput, ScoreFusionError
from scorefusion.io import (
    FORMATS,
    LISTED,
    READABLE,
    WRITABLE,
    check_volume_output,
    formats,
    header,
    make_image,
    other_formats,
    read_grid,
    read_scan,
    save_image,
)
from tests.support.batches import names, refused, translate, write_model, write_scan
from tests.support.look_alikes import find_subjects_at
from tests.support.tiny import AFFINE, tiny_image

VALUES = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)
_COSINES = np.linalg.qr(np.array([[1.0, 0.2, 0.1], [-0.3, 1.0, 0.2], [0.1, -0.1, 1.0]]))[0]
SINGLE = [ending for ending in WRITABLE]
DETACHED = (".nhdr", ".mhd")


def affine_for(order: tuple[int, ...], signs: tuple[int, ...]) -> np.ndarray:
    """An oblique affine whose axes have this order and these directions."""
    affine = np.eye(4)
    turn = np.diag(signs)[:, list(order)]
    affine[:3, :3] = _COSINES @ turn * [0.7, 1.1, 3.3]
    affine[:3, 3] = -101.25, 33.5, 12.0625
    return affine


FLIPS = [affine_for((0, 1, 2), signs) for signs in itertools.product((1, -1), repeat=3)]
TURNS = [affine_for(order, (1, -1, 1)) for order in itertools.permutations(range(3))]


def judge(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels ``[i, j, k]`` and the affine to RAS+ millimetres by the library that others use."""
    if path.name.endswith((".nrrd", ".mha", ".nhdr", ".mhd")):
        image = sitk.ReadImage(str(path))
        affine = np.eye(4)
        affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
        affine[:3, 3] = image.GetOrigin()
        return sitk.GetArrayFromImage(image).transpose(2, 1, 0), np.diag([-1.0, -1, 1, 1]) @ affine
    if path.name.endswith(".zst"):
        image = nib.Nifti1Image.from_bytes(zstd.decompress(path.read_bytes()))
    else:
        image = nib.load(path)
    return np.asanyarray(image.dataobj), image.affine


@pytest.mark.parametrize("ending", SINGLE)
@pytest.mark.parametrize("affine", [*FLIPS, *TURNS], ids=lambda a: "".join(nib.aff2axcodes(a)))
def test_what_is_written_is_read_by_others_and_by_us(tmp_path: Path, ending: str, affine: np.ndarray) -> None:
    scan = read_scan(nib.Nifti1Image(VALUES, affine))
    file = save_image(make_image(scan, VALUES), tmp_path / f"a{ending}")
    corners = np.array([[0, 0, 0, 1], [4, 5, 6, 1.0]]).T
    values, own = judge(file)
    np.testing.assert_array_equal(values, VALUES)
    np.testing.assert_allclose(own @ corners, affine @ corners, atol=1e-5)
    back = read_scan(file)
    np.testing.assert_array_equal(back.to_own_order(back.values), VALUES)
    np.testing.assert_allclose(back.affine @ corners, affine @ corners, atol=1e-5)
    np.testing.assert_allclose(read_grid(file).affine, back.ras_affine, atol=1e-5)
    assert back.dtype == np.float32 and not back.warnings


@pytest.mark.parametrize("ending", DETACHED)
@pytest.mark.parametrize("compressed", [True, False])
def test_headers_with_a_second_file_are_read(tmp_path: Path, ending: str, compressed: bool) -> None:
    save_image(nib.Nifti1Image(VALUES, FLIPS[5]), tmp_path / "a.nrrd")
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "a.nrrd")), str(tmp_path / f"b{ending}"), compressed)
    scan = read_scan(tmp_path / f"b{ending}")
    np.testing.assert_array_equal(scan.to_own_order(scan.values), VALUES)
    np.testing.assert_allclose(scan.affine, FLIPS[5], atol=1e-6)
    (further,) = formats.companions(tmp_path / f"b{ending}")
    before = stamp_of(tmp_path / f"b{ending}"), hash_file(tmp_path / f"b{ending}")
    content = further.read_bytes()
    further.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert stamp_of(tmp_path / f"b{ending}") != before[0] and hash_file(tmp_path / f"b{ending}") != before[1]
    further.write_bytes(content[: len(content) // (40 if compressed else 2)])
    with pytest.raises(BadInput, match="truncated|cannot be read"):
        read_scan(tmp_path / f"b{ending}")
    further.unlink()
    with pytest.raises(BadInput, match=f"voxels are missing: there is no {further.name}"):
        read_scan(tmp_path / f"b{ending}")
    with pytest.raises(BadInput, match=r"End its name in \.(nrrd|mha)"):
        check_volume_output(tmp_path / f"c{ending}")


@pytest.mark.parametrize("ending", [".mgz", ".mgh", ".nrrd", ".mha"])
@pytest.mark.parametrize(("units", "factor"), [("mm", 1), ("meter", 1000), ("micron", 1e-3)])
def test_millimetres_are_written_whatever_the_unit_was(
    tmp_path: Path, ending: str, units: str, factor: float
) -> None:
    image = nib.Nifti1Image(VALUES, FLIPS[1])
    image.header.set_xyzt_units(units)
    save_image(image, tmp_path / f"a{ending}")
    np.testing.assert_allclose(
        judge(tmp_path / f"a{ending}")[1][:3], factor * FLIPS[1][:3], rtol=1e-6, atol=1e-5
    )


@pytest.mark.parametrize("ending", [".mgz", ".nrrd", ".mha", ".nii.zst"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8"])
def test_stored_types(tmp_path: Path, ending: str, dtype: str) -> None:
    stored = (np.abs(VALUES) * 60).astype(dtype)
    source = nib.Nifti1Image(stored, AFFINE)
    scan = read_scan(source)
    save_image(make_image(scan, stored, dtype="input"), tmp_path / f"a{ending}")
    values, _ = judge(tmp_path / f"a{ending}")
    np.testing.assert_allclose(values, stored, rtol=1e-7)
    if ending != ".mgz":
        assert values.dtype == np.dtype(dtype)
    source.header.set_slope_inter(0.5, 10)
    scaled = nib.Nifti1Image.from_bytes(source.to_bytes())
    expected = read_scan(scaled)
    save_image(
        make_image(expected, expected.to_own_order(expected.values), dtype="input"), tmp_path / f"b{ending}"
    )
    back = read_scan(tmp_path / f"b{ending}")
    np.testing.assert_allclose(back.values, expected.values, rtol=1e-6, atol=0.51)


def test_a_translation_in_each_format_is_the_same(tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny")
    pipeline = Pipeline(model, device="cpu", dtype="float32")
    plain = pipeline(tiny_image())
    for ending in SINGLE:
        save_image(tiny_image(), tmp_path / f"in{ending}")
        result = pipeline(tmp_path / f"in{ending}")
        np.testing.assert_array_equal(result.volume, plain.volume)
        result.save(tmp_path / f"out{ending}")
        values, affine = judge(tmp_path / f"out{ending}")
        np.testing.assert_array_equal(values, plain.volume)
        np.testing.assert_allclose(affine, plain.affine, atol=1e-5)


def test_single_files_folders_tables_and_bids(tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny")
    root = tmp_path / "in"
    root.mkdir()
    endings = (".mgz", ".nrrd", ".mha", ".nii.bz2", ".nii.zst")
    for number, ending in enumerate(endings):
        save_image(tiny_image(), root / f"s{number}{ending}")
    nib.save(nib.Nifti1Pair(np.asarray(tiny_image().dataobj), AFFINE), root / "s8.img")
    events = translate(model, root, "-o", tmp_path / "out", "--ending", ".mgz")
    assert names(events, "item-done") == [*(f"s{n}{e}" for n, e in enumerate(endings)), "s8.hdr"]
    bits = {judge(file)[0].astype("<f4").tobytes() for file in (tmp_path / "out").glob("*.mgz")}
    assert len(bits) == 1 and len(list((tmp_path / "out").glob("*.mgz"))) == 6
    assert names(translate(model, root, "-o", tmp_path / "out", "--ending", ".mgz"), "item-kept") == names(
        events, "item-done"
    )
    (tmp_path / "t.csv").write_text("subject,t1\na,in/s1.nrrd\nb,in/s8.img\n")
    events = translate(model, tmp_path / "t.csv", "-o", tmp_path / "table", "--ending", ".nii.zst")
    assert names(events, "item-done") == ["a", "b"]
    assert judge(tmp_path / "table" / "b.nii.zst")[0].astype("<f4").tobytes() in bits
    bids = tmp_path / "bids" / "sub-1" / "anat"
    bids.mkdir(parents=True)
    save_image(tiny_image(), bids / "sub-1_T1w.nii.zst")
    events = translate(model, tmp_path / "bids", "-o", tmp_path / "b", "--ending", ".mha")
    assert events[0]["source"] == "bids"
    assert judge(tmp_path / "b/sub-1/anat/sub-1_desc-scorefusion_T1w.mha")[0].astype("<f4").tobytes() in bits
    single = [
        "translate",
        str(root / "s1.nrrd"),
        "-o",
        str(tmp_path / "x.mgz"),
        "--model",
        str(model),
        "--dtype",
    ]
    result = CliRunner().invoke(app, [*single, "float32", "--device", "cpu"])
    assert result.exit_code == 0 and judge(tmp_path / "x.mgz")[0].astype("<f4").tobytes() in bits
    assert "unknown ending '.nhdr'" in refused(model, root, "-o", tmp_path / "n", "--ending", ".nhdr")


def test_layouts_list_every_format(tmp_path: Path) -> None:
    for name in ("s1/t1.mgz", "s1/t2.nrrd", "s2/t1.mha", "s2/t2.nii.zst"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save_image(tiny_image(), tmp_path / name)
    found = find_subjects_at(tmp_path, ("t1", "t2"), voxels=True)
    assert [subject.name for subject in found.subjects] == ["s1", "s2"] and not found.ignored


@pytest.mark.parametrize("ending", SINGLE)
def test_stored_bytes_do_not_depend_on_name_and_time(tmp_path: Path, ending: str) -> None:
    image = nib.Nifti1Image(VALUES, AFFINE)
    first, second = (store_image(image, tmp_path / f"{name}{ending}", 1) for name in ("a", "bb"))
    assert first == second == ((tmp_path / f"a{ending}").stat().st_size, hash_file(tmp_path / f"a{ending}"))


def analyze(path: Path) -> None:
    image = nib.AnalyzeImage(VALUES, None)
    image.header.set_zooms((1, 2, 3))
    nib.save(image, path.with_suffix(".img"))


def mgh_without_orientation(path: Path) -> None:
    blob = bytearray(nib.MGHImage(VALUES, AFFINE).to_bytes())
    blob[28:30] = struct.pack(">h", 0)
    path.write_bytes(gzip.compress(blob))


RAW = VALUES.tobytes(order="F")


def nrrd_text(path: Path, *lines: str, voxels: bytes = RAW) -> None:
    head = ["NRRD0004", "type: float", "dimension: 3", "sizes: 5 6 7", "endian: little", "encoding: raw"]
    path.write_bytes("\n".join([*head, *lines, "", ""]).encode() + voxels)


def meta_text(
    path: Path, *lines: str, data: str = "LOCAL", voxels: bytes = VALUES.tobytes(order="F")
) -> None:
    head = ["ObjectType = Image", "NDims = 3", "BinaryData = True", "BinaryDataByteOrderMSB = False", *lines]
    tail = ["DimSize = 5 6 7", "ElementType = MET_FLOAT", f"ElementDataFile = {data}", ""]
    path.write_bytes("\n".join([*head, *tail]).encode() + voxels)


UNORIENTED: dict[str, tuple[str, Callable[[Path], None]]] = {
    "Analyze header": ("a.hdr", analyze),
    "Analyze voxels": ("a.img", analyze),
    "MGH": ("a.mgz", mgh_without_orientation),
    "NRRD": ("a.nrrd", lambda path: nrrd_text(path, "spacings: 1 2 3")),
    "NRRD of an unknown space": (
        "a.nrrd",
        lambda path: nrrd_text(
            path, "space: scanner-xyz", "space directions: (1,0,0) (0,2,0) (0,0,3)", "space origin: (0,0,0)"
        ),
    ),
    "MetaImage": ("a.mha", lambda path: meta_text(path, "ElementSpacing = 1 2 3")),
}


@pytest.mark.parametrize("case", UNORIENTED)
def test_an_unknown_orientation_has_to_be_assumed(tmp_path: Path, case: str) -> None:
    name, write = UNORIENTED[case]
    write(tmp_path / name)
    for read in (read_scan, read_grid):
        with pytest.raises(BadInput, match=r"(does not say how|has no orientation).*--assume-affine"):
            read(tmp_path / name)
    scan = read_scan(tmp_path / name, assume_affine=True)
    np.testing.assert_array_equal(scan.to_own_order(scan.values), VALUES)
    zooms = [1, 2, 3] if case != "MGH" else np.linalg.norm(AFFINE[:3, :3], axis=0)
    np.testing.assert_allclose(np.diag(scan.affine)[:3], zooms, rtol=1e-6)
    assert "assumed" in scan.warnings[0]


ORIENTED = "space: left-posterior-superior", "space directions: (1,0,0) (0,2,0) (0,0,3)"


@pytest.mark.parametrize(
    "name",
    ["../secret.raw", "/etc/passwd", "sub/../../secret.raw", "..\\secret.raw", "C:\\x.raw", "LIST",
     "x%03d.raw 1 3 1"],
)  # fmt: skip
def test_voxels_outside_the_folder_are_not_read(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret.raw").write_bytes(VALUES.tobytes())
    nrrd_text(folder / "a.nhdr", *ORIENTED, f"data file: {name}", voxels=b"")
    nrrd_text(folder / "b.nrrd", *ORIENTED, f"datafile: {name}", voxels=b"")
    meta_text(folder / "a.mhd", "TransformMatrix = 1 0 0 0 1 0 0 0 1", data=name, voxels=b"")
    meta_text(folder / "b.mha", "TransformMatrix = 1 0 0 0 1 0 0 0 1", data=name, voxels=b"")
    for file in ("a.nhdr", "b.nrrd", "a.mhd", "b.mha"):
        for read in (read_scan, read_grid):
            with pytest.raises(BadInput, match="outside its folder|voxels in several files"):
                read(folder / file)


def test_voxels_in_a_folder_below_are_read(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "v.raw").write_bytes(VALUES.tobytes(order="F"))
    nrrd_text(tmp_path / "a.nhdr", *ORIENTED, "data file: sub/v.raw", voxels=b"")
    meta_text(tmp_path / "a.mhd", "TransformMatrix = 1 0 0 0 1 0 0 0 1", data="sub/v.raw", voxels=b"")
    for name in ("a.nhdr", "a.mhd"):
        scan = read_scan(tmp_path / name)
        np.testing.assert_array_equal(scan.to_own_order(scan.values), VALUES)


@pytest.mark.parametrize("ending", [".nii.bz2", ".nii.zst", ".mgz", ".nrrd", ".mha"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.99])
def test_truncated_files_give_one_clear_error(tmp_path: Path, ending: str, share: float) -> None:
    file = save_image(nib.Nifti1Image(VALUES, AFFINE), tmp_path / f"a{ending}")
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(BadInput) as caught:
        read_scan(file)
    text = str(caught.value)
    assert str(file) in text and "\n" not in text and caught.value.fix and len(text) < 400


@pytest.mark.parametrize(("compress", "encoding"), [(zlib.compress, "zlib"), (bz2.compress, "bz2")])
def test_what_follows_a_volume_is_not_held(
    tmp_path: Path, compress: Callable[[bytes], bytes], encoding: str
) -> None:
    content, packed = bytes(range(100)), compress(bytes(range(100)) + bytes(2**25))
    file = tmp_path / "a.bz2"
    file.write_bytes(bz2.compress(content + bytes(2**25)))
    _, codec = header.read_first(file, 1)
    tracemalloc.start()
    try:
        assert header.read_exactly(file, 100, codec) == content
        assert other_formats._decoded(io.BytesIO(packed), 100, encoding) == content
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("ending", "compress"), [(".nii.bz2", bz2.compress), (".nii.zst", zstd.compress)])
def test_bombs_are_bounded(tmp_path: Path, ending: str, compress: Callable[[bytes], bytes]) -> None:
    small = nib.Nifti1Image(VALUES, AFFINE).to_bytes()
    (tmp_path / f"long{ending}").write_bytes(compress(small + bytes(2**27)))
    with pytest.raises(BadInput, match="goes on for more than"):
        read_scan(tmp_path / f"long{ending}")
    header = nib.Nifti1Header()
    header.set_data_shape((3000, 3000, 3000))
    header.set_sform(AFFINE, 1)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    (tmp_path / f"huge{ending}").write_bytes(compress(header.binaryblock + bytes(2**20)))
    for read in (read_scan, read_grid):
        with pytest.raises(BadInput, match="more than 1,073,741,824"):
            read(tmp_path / f"huge{ending}")


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.mgh", "a.mgz"])
def test_promises_beyond_the_file_are_refused_before_they_are_allocated(tmp_path: Path, name: str) -> None:
    for shape, problem in (((9000, 9000, 9000), "more than 1,073,741,824"), ((900, 900, 900), "promises")):
        if name == "a.nrrd":
            nrrd_text(tmp_path / name, *ORIENTED)
            text = "sizes: 5 6 7", f"sizes: {' '.join(map(str, shape))}"
        elif name == "a.mha":
            meta_text(tmp_path / name, "TransformMatrix = 1 0 0 0 1 0 0 0 1")
            text = "DimSize = 5 6 7", f"DimSize = {' '.join(map(str, shape))}"
        else:
            blob = bytearray(nib.MGHImage(VALUES, AFFINE).to_bytes())
            blob[4:16] = struct.pack(">3i", *shape)
            (tmp_path / name).write_bytes(gzip.compress(blob) if name.endswith("z") else blob)
            text = "", ""
        content = (tmp_path / name).read_bytes()
        if text[0]:
            (tmp_path / name).write_bytes(content.replace(*(part.encode() for part in text)))
        with pytest.raises(BadInput, match=problem):
            read_scan(tmp_path / name)


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.mgh", "a.hdr", "a.nii.zst", "a.nhdr", "a.mhd"])
def test_mutated_files_are_read_or_refused_in_one_line(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Eighty mutations of a header each: a volume of 210 voxels or a BadInput, and nothing on the streams."""
    file = tmp_path / name
    if name.endswith((".nhdr", ".mhd")):
        save_image(nib.Nifti1Image(VALUES, AFFINE), tmp_path / "b.nrrd")
        sitk.WriteImage(sitk.ReadImage(str(tmp_path / "b.nrrd")), str(file), False)
    elif name == "a.hdr":
        nib.save(nib.Nifti1Pair(VALUES, AFFINE), file)
    else:
        save_image(nib.Nifti1Image(VALUES, AFFINE), file)
    content, dice = file.read_bytes(), random.Random(name)
    capfd.readouterr()
    read = 0
    for _ in range(80):
        blob = bytearray(content)
        for _ in range(dice.randint(1, 4)):
            place = dice.randrange(min(len(blob), 400))
            change = dice.randrange(4)
            if change == 0:
                blob[place] = dice.randrange(256)
            elif change == 1:
                blob[place] ^= 1 << dice.randrange(8)
            elif change == 2:
                del blob[place : place + dice.randint(1, 9)]
            else:
                blob[place:place] = bytes(dice.choices(b"0123456789 -.\n:=\0\xff", k=dice.randint(1, 9)))
        file.write_bytes(blob)
        try:
            scan = read_scan(file, nan="zero", assume_affine=dice.random() < 0.5, max_voxels=2**16)
            read += 1
            assert np.isfinite(scan.values).all() and scan.values.ndim == 3
        except BadInput as error:
            assert "\n" not in str(error) and str(tmp_path) in str(error), error
        try:
            read_grid(file, max_voxels=2**16)
        except BadInput:
            pass
    assert read < 80 and "".join(capfd.readouterr()) == ""


@pytest.mark.parametrize(
    ("kind", "problem"),
    [("vector", "3 numbers for each voxel"), ("frames", "several frames"), ("flat", "not three-dimensional")],
)
def test_other_shapes_are_named(tmp_path: Path, kind: str, problem: str) -> None:
    if kind == "vector":
        image = sitk.GetImageFromArray(np.zeros((4, 5, 6, 3), np.float32), isVector=True)
    else:
        image = sitk.GetImageFromArray(
            np.zeros((3, 4, 5, 6) if kind == "frames" else (5, 6), np.float32), isVector=False
        )
    for ending in (".nrrd", ".mha"):
        sitk.WriteImage(image, str(tmp_path / f"a{ending}"))
        with pytest.raises(BadInput, match=problem):
            read_scan(tmp_path / f"a{ending}")


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("a b.mif", "mrconvert '.*a b.mif' '.*a b'.nii.gz"),
        ("a+orig.HEAD", "3dAFNItoNIFTI"),
        ("a.mnc", "mnc2nii"),
        ("a.PAR", "parrec2nii"),
        ("a.nii.xz", "xz -dk"),
        ("a.nii.zip", "Unpack"),
    ],
)
def test_other_formats_name_what_converts_them(tmp_path: Path, name: str, command: str) -> None:
    (tmp_path / name).write_bytes(b"something else" * 99)
    with pytest.raises(BadInput, match=command):
        read_scan(tmp_path / name)


@pytest.mark.parametrize(("ending", "extra"), [(".nii.zst", "zstd")])
def test_a_missing_package_is_named_before_any_work(
    tmp_path: Path, ending: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_image(nib.Nifti1Image(VALUES, AFFINE), tmp_path / f"a{ending}")
    monkeypatch.setitem(sys.modules, "backports.zstd", None)
    for call in (
        lambda: read_scan(tmp_path / f"a{ending}"),
        lambda: check_volume_output(tmp_path / f"b{ending}"),
    ):
        with pytest.raises(ScoreFusionError, match=rf"pip install 'scorefusion\[{extra}\]'"):
            call()


def test_the_registry_has_each_ending_once() -> None:
    every = [ending for form in FORMATS for ending in form.endings + form.detached]
    assert len(set(every)) == len(every) and set(every) == set(READABLE) and set(LISTED) < set(READABLE)


def test_bids_files_that_are_left_out_are_named(tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny")
    root = tmp_path / "in"
    odd = [f"sub-1/anat/sub-1_odd{n:02}.nii.gz" for n in range(14)]
    for name in ("sub-1/anat/sub-1_T1w.nii.gz", "sub-1/anat/sub-1_T2w.nii.gz", *odd):
        write_scan(root / name)
    (root / "dataset_description.json").write_text("{}")
    events = translate(model, root, "-o", tmp_path / "out")
    started = events[0]
    assert started["ignored"] == 15 and started["ignored_files"] == [
        *odd[:0],
        *sorted([*odd, "sub-1/anat/sub-1_T2w.nii.gz"]),
    ]
    (note,) = (event["text"] for event in events if event["event"] == "note")
    assert all(name in note for name in started["ignored_files"][:10]) and note.endswith("and 5 more")
    page = (tmp_path / "out" / "report.html").read_text()
    assert all(name in page for name in odd) and "15 files left out" in page
    (root / "sub-1/anat/sub-1_T1w.nii.gz").unlink()
    line = refused(model, root, "-o", tmp_path / "other")
    assert "left out: 15 files" in line and "sub-1_T2w.nii.gz" in line and "and 5 more" in line
    result = CliRunner().invoke(app, ["data", str(root), "--layout", "bids", "-q"])
    assert "14 other files are left out, by name:" in result.stdout and odd[13] in result.stdout
    for n in range(14, 30):
        write_scan(root / f"sub-1/anat/sub-1_odd{n:02}.nii.gz")
    result = CliRunner().invoke(app, ["data", str(root), "--layout", "bids", "-q"])
    assert "  and 10 more" in result.stdout


def mgh_with(path: Path, cosine: float) -> None:
    blob = bytearray(nib.MGHImage(VALUES, AFFINE).to_bytes())
    blob[42:46] = struct.pack(">f", cosine)
    path.write_bytes(gzip.compress(blob))


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e39", "1e300"])
@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.mgz"])
def test_directions_that_are_no_numbers_are_refused(tmp_path: Path, name: str, number: str) -> None:
    if name == "a.nrrd":
        nrrd_text(tmp_path / name, ORIENTED[0], f"space directions: ({number},0,0) (0,2,0) (0,0,3)")
    elif name == "a.mha":
        spacing = "ElementSpacing = 1 1 1"
        meta_text(tmp_path / name, f"TransformMatrix = {number} 0 0 0 1 0 0 0 1", spacing)
    else:
        with np.errstate(over="ignore"):
            mgh_with(tmp_path / name, float(np.float32(float(number))))
    for read in (read_scan, read_grid):
        with pytest.raises(BadInput, match="singular affine.*--assume-affine"):
            read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr", "a.mha", "a.mhd"])
@pytest.mark.parametrize("case", ["truncated", "no checksum", "flipped", "bomb"])
def test_damaged_compressed_voxels_are_not_called_unreadable(tmp_path: Path, name: str, case: str) -> None:
    packed = gzip.compress(RAW + (bytes(2**27) if case == "bomb" else b""))
    if case == "flipped":
        packed = packed[:300] + bytes(byte ^ 255 for byte in packed[300:310]) + packed[310:]
    elif case != "bomb":
        packed = packed[: -200 if case == "truncated" else -8]
    voxels, data = packed, "LOCAL"
    if name in ("a.nhdr", "a.mhd"):
        (tmp_path / "v.gz").write_bytes(packed)
        voxels, data = b"", "v.gz"
    if name in ("a.nrrd", "a.nhdr"):
        detached = ("data file: v.gz",) if data != "LOCAL" else ()
        nrrd_text(tmp_path / name, *ORIENTED, *detached, voxels=voxels)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content.replace(b"encoding: raw", b"encoding: gzip"))
    else:
        unit = "TransformMatrix = 1 0 0 0 1 0 0 0 1", "CompressedData = True"
        meta_text(tmp_path / name, *unit, data=data, voxels=voxels)
    with pytest.raises(BadInput, match="its voxels are truncated or damaged") as caught:
        read_scan(tmp_path / name)
    assert "Copy or download it again" in caught.value.fix


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("endian: little\n", "", "has no field 'endian'"),
        ("sizes: 5 6 7\n", "", "has no field 'sizes'"),
        ("type: float", "type: quux", "type of voxels is not known, 'quux'"),
    ],
)
def test_what_a_header_lacks_is_named(tmp_path: Path, old: str, new: str, problem: str) -> None:
    nrrd_text(tmp_path / "a.nrrd", *ORIENTED)
    content = (tmp_path / "a.nrrd").read_bytes()
    (tmp_path / "a.nrrd").write_bytes(content.replace(old.encode(), new.encode()))
    with pytest.raises(BadInput, match=problem):
        read_scan(tmp_path / "a.nrrd")


@pytest.mark.parametrize(
    ("unit", "factor"),
    [("mm", 1), ("um", 1e-3), ("microns", 1e-3), ("cm", 10), ("m", 1e3), ("", 1), ("?", 1)],
)
def test_distances_in_other_units(tmp_path: Path, unit: str, factor: float) -> None:
    nrrd_text(tmp_path / "a.nrrd", *ORIENTED, f'space units: "{unit}" "{unit}" "{unit}"')
    directions = "TransformMatrix = 1 0 0 0 1 0 0 0 1", "ElementSpacing = 1 2 3", "Offset = 4 5 6"
    meta_text(tmp_path / "a.mha", *directions, f"DistanceUnits = {unit}")
    for name, origin in (("a.nrrd", [0, 0, 0]), ("a.mha", [-4, -5, 6])):
        affine = np.diag([-1.0, -2, 3, 1])
        affine[:3, 3] = origin
        affine[:3] *= factor
        np.testing.assert_allclose(formats.read_image(tmp_path / name).affine, affine, rtol=1e-6)
        np.testing.assert_allclose(formats.read_header(tmp_path / name).get_sform(), affine, rtol=1e-6)


def test_unknown_units_are_refused(tmp_path: Path) -> None:
    nrrd_text(tmp_path / "a.nrrd", *ORIENTED, 'space units: "inch" "inch" "inch"')
    meta_text(tmp_path / "a.mha", "TransformMatrix = 1 0 0 0 1 0 0 0 1", "DistanceUnits = inch")
    for name in ("a.nrrd", "a.mha"):
        with pytest.raises(BadInput, match="distances in 'inch'.*millimetres"):
            read_scan(tmp_path / name)


@pytest.mark.parametrize("size", [-1, 0, 2000])
@pytest.mark.parametrize("name", ["a.mha", "a.mhd"])
def test_header_size_of_meta_image_is_that_of_the_file(tmp_path: Path, name: str, size: int) -> None:
    spacing = "TransformMatrix = 1 0 0 0 1 0 0 0 1", "ElementSpacing = 1 1 1", f"HeaderSize = {size}"
    detached = name == "a.mhd"
    meta_text(tmp_path / name, *spacing, data="v.raw" if detached else "LOCAL", voxels=b"")
    head = b"" if detached else (tmp_path / name).read_bytes()
    between = b"" if size == 0 else bytes(99) if size < 0 else bytes(size - len(head))
    (tmp_path / ("v.raw" if detached else name)).write_bytes(head + between + RAW)
    np.testing.assert_array_equal(judge(tmp_path / name)[0], VALUES)
    scan = read_scan(tmp_path / name)
    np.testing.assert_array_equal(scan.to_own_order(scan.values), VALUES)


def test_a_header_size_within_the_header_is_refused(tmp_path: Path) -> None:
    meta_text(tmp_path / "a.mha", "TransformMatrix = 1 0 0 0 1 0 0 0 1", "HeaderSize = 4")
    with pytest.raises(BadInput, match="HeaderSize 4, but the header has"):
        read_scan(tmp_path / "a.mha")
