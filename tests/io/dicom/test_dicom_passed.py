"""Each file in a folder of slices is used, named in a warning, or refused by name."""

from __future__ import annotations

import gzip
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from scorefusion import Pipeline
from scorefusion.errors import BadInput
from scorefusion.io.dicom import DicomScan, PassedOver, find_series, matching, read_dicom_series, summaries
from tests.support.batches import nobody
from tests.support.dicom_series import (
    CT,
    ENHANCED_MR,
    enhanced_of,
    save,
    slice_of,
    texture,
    uid,
    write_series,
)
from tests.support.tiny import tiny_model

PIXELS = texture((6, 7, 6))


def bare(data: bytes) -> bytes:
    """A file's data elements alone, without preamble, mark and meta information."""
    return data[min(data.index(mark) for mark in (b"\x08\0\x05\0", b"\0\x08\0\x05") if mark in data) :]


FORMS: dict[str, tuple[Any, Callable[[bytes], bytes]]] = {
    "mark first": (ExplicitVRLittleEndian, lambda data: data[128:]),
    "meta first": (ExplicitVRLittleEndian, lambda data: data[132:]),
    "meta first, implicit": (ImplicitVRLittleEndian, lambda data: data[132:]),
    "elements alone": (ExplicitVRLittleEndian, bare),
    "elements alone, implicit": (ImplicitVRLittleEndian, bare),
    "elements alone, big endian": (ExplicitVRBigEndian, bare),
    "a preamble without meta": (ImplicitVRLittleEndian, lambda data: data[:132] + bare(data)),
    "gzip": (ExplicitVRLittleEndian, gzip.compress),
    "gzip of elements alone": (ImplicitVRLittleEndian, lambda data: gzip.compress(bare(data))),
    "a preamble that begins as gzip": (ExplicitVRLittleEndian, lambda data: b"\x1f\x8b" + data[2:]),
}


def own_order(scan: DicomScan) -> np.ndarray:
    """``[k, j, i]``."""
    return scan.to_own_order(scan.values).transpose(2, 1, 0)


@pytest.mark.parametrize("count", [2, 6])
@pytest.mark.parametrize("form", FORMS)
def test_slices_in_every_form_are_used(tmp_path: Path, form: str, count: int) -> None:
    """Two of six slices, the first and one between, or all; the names say nothing."""
    syntax, change = FORMS[form]
    names = ("IM1.jpg.gz", "b.txt", "c", "d.dcm", "e.DCM.gz", "f.1.2")
    for k, plane in enumerate(PIXELS):
        image, path = slice_of(plane, k), tmp_path / names[k]
        if k not in (0, 3) and count == 2:
            save(image, path)
            continue
        if syntax == ExplicitVRBigEndian:
            image.PixelData = plane.astype(">u2").tobytes()
        path.write_bytes(change(save(image, path, syntax).read_bytes()))
    scan = read_dicom_series(tmp_path)
    np.testing.assert_array_equal(own_order(scan), PIXELS)
    assert scan.warnings == () and len(scan.frames) == 6


def other(kind: str, modality: str, **values: Any) -> Callable[[Path], Any]:
    """Writes an object of a SOP class, in a series of its own."""

    def write(path: Path) -> None:
        image = slice_of(PIXELS[0], 0, name="other")
        image.SOPClassUID, image.Modality = kind, modality
        for keyword, value in values.items():
            setattr(image, keyword, value)
        save(image, path)

    return write


def index(path: Path) -> None:
    image = slice_of(PIXELS[0], 0, name="index")
    del image.SeriesInstanceUID
    image.SOPClassUID = "1.2.840.10008.1.3.10"
    save(image, path)


STORAGE = "1.2.840.10008.5.1.4.1.1."
SIDE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (Path.touch, r"is empty \(0 bytes\)"),
    "text": (lambda path: path.write_text("no scan"), "is not a DICOM file"),
    "a picture": (lambda path: path.write_bytes(b"\xff\xd8\xff\xe0" + bytes(500)), "is not a DICOM file"),
    "zeros": (lambda path: path.write_bytes(bytes(4000)), "is not a DICOM file"),
    "half a preamble": (lambda path: path.write_bytes(bytes(100)), "is not a DICOM file"),
    "small numbers": (lambda path: path.write_bytes(bytes(range(256)) * 9), "is not a DICOM file"),
    "AppleDouble": (
        lambda path: path.write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X" + bytes(99)),
        "is not a DICOM",
    ),
    "a link to nothing": (lambda path: path.symlink_to("nowhere"), "is a link that leads nowhere"),
    "an annexed file": (
        lambda path: path.symlink_to("../.git/annex/objects/xx/MD5E-s1--0.dcm"),
        "is a link that leads nowhere \\(git annex get",
    ),
    "a pointer of git-annex": (
        lambda path: path.write_text("/annex/objects/MD5E-s1--0.dcm\n"),
        "git annex get",
    ),
    "a pointer of Git LFS": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        "git lfs pull",
    ),
    "damaged gzip": (lambda path: path.write_bytes(b"\x1f\x8b\x08" + bytes(50)), "is a damaged gzip file"),
    "gzip of text": (lambda path: path.write_bytes(gzip.compress(b"text" * 99)), "is not a DICOM file"),
    "a folder's link": (lambda path: path.symlink_to(path.parent), "is a link to a folder"),
    "an index": (index, r"is an index of other files \(DICOMDIR\)"),
    "a report": (other(f"{STORAGE}88.11", "SR"), "Basic Text SR Storage"),
    "a presentation state": (other(f"{STORAGE}11.1", "PR"), "Grayscale Softcopy Presentation State"),
    "structures": (other(f"{STORAGE}481.3", "RTSTRUCT"), "RT Structure Set Storage"),
    "a scout": (other(f"{STORAGE}4", "MR", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "is a localizer"),
    "a screenshot": (
        other(f"{STORAGE}7", "OT", SamplesPerPixel=3, PhotometricInterpretation="RGB"),
        "is a colour image",
    ),
    "a mosaic": (
        other(f"{STORAGE}4", "MR", ImageType=["ORIGINAL", "PRIMARY", "MOSAIC"]),
        "is a Siemens mosaic",
    ),
}


@pytest.mark.parametrize("case", SIDE)
def test_what_is_not_used_is_named(tmp_path: Path, case: str) -> None:
    write, reason = SIDE[case]
    write_series(tmp_path / "in", PIXELS)
    write(tmp_path / "in" / "sidé")
    scan = read_dicom_series(tmp_path / "in")
    np.testing.assert_array_equal(own_order(scan), PIXELS)
    (warning,) = scan.warnings
    assert re.match(rf"1 file was not used: sidé \(.*{reason}", warning), warning


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_named_not_opened(tmp_path: Path) -> None:
    write_series(tmp_path, PIXELS)
    os.mkfifo(tmp_path / "pipe")
    assert read_dicom_series(tmp_path).warnings == ("1 file was not used: pipe (is not a regular file)",)


def test_many_are_counted(tmp_path: Path) -> None:
    """A line per reason, twelve names each; names cannot break the line."""
    write_series(tmp_path / "a", PIXELS)
    for number in range(14):
        (tmp_path / "a" / f"{number:02d}.txt").write_text("text")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "red\x1b[31m\nline").touch()
    texts, empty = read_dicom_series(tmp_path).warnings
    assert texts.startswith("14 files were not used: a/00.txt, a/01.txt,") and "a/12.txt" not in texts
    assert texts.endswith("a/11.txt and 2 more (is not a DICOM file)")
    assert empty == "1 file was not used: b/red[31mline (is empty (0 bytes))"
    passed: list[PassedOver] = []
    (found,) = find_series(tmp_path, passed=passed)
    assert len(passed) == 15 and len(found.passed) == 14, "those of the series' own folders"
    assert summaries(passed, tmp_path) == [texts, empty]


def test_the_pipeline_and_a_missing_series_name_them_too(tmp_path: Path) -> None:
    write_series(tmp_path / "in", PIXELS)
    (tmp_path / "in" / "empty").touch()
    pipeline = Pipeline(tiny_model(), device="cpu", dtype="float32")
    result = pipeline(tmp_path / "in", steps=1, strategy="average")
    assert result.warnings == ("1 file was not used: empty (is empty (0 bytes))",)
    again = pipeline(read_dicom_series(tmp_path / "in"), steps=1, strategy="average")
    np.testing.assert_array_equal(result.volume, again.volume)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "notes").write_text("text")
    with pytest.raises(BadInput, match=r"holds no DICOM file \(1 file was not used: notes \(is not a DICOM"):
        pipeline(str(tmp_path / "none"))


def cut(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])


def same_place(folder: Path) -> None:
    image = slice_of(PIXELS[2], 2)
    image.SOPInstanceUID = uid("another")
    save(image, folder / "twin")


def report_within(folder: Path) -> None:
    image = slice_of(PIXELS[0], 9)
    image.SOPClassUID = f"{STORAGE}88.11"
    save(image, folder / "within")


def scout_within(folder: Path) -> None:
    image = slice_of(PIXELS[0], 9)
    image.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    save(image, folder / "within")


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "last slice cut": (lambda folder: cut(folder / "IM05", -9), "IM05: is truncated"),
    "last slice cut in its header": (
        lambda folder: cut(folder / "IM05", 500),
        "IM05: is a damaged DICOM file",
    ),
    "cut gzip": (
        lambda folder: (folder / "IM05").write_bytes(gzip.compress((folder / "IM05").read_bytes(), 0)[:-200]),
        "IM05: is a damaged DICOM file",
    ),
    "gzip of a cut slice": (
        lambda folder: (folder / "IM05").write_bytes(gzip.compress((folder / "IM05").read_bytes()[:-9])),
        "IM05: is truncated",
    ),
    "elements cut": (
        lambda folder: (folder / "IM05").write_bytes(bare((folder / "IM05").read_bytes())[:400]),
        "IM05: is a damaged DICOM file|IM05: is an image without",
    ),
    "a copy": (lambda folder: shutil.copy(folder / "IM02", folder / "copy"), "is a copy of"),
    "same place": (same_place, "twin: lies where IM06 does, two slices at one place"),
    "a gap": (lambda folder: (folder / "IM06").unlink(), "1 slice missing"),
    "a report in the series": (report_within, r"1 of its 7 files: is no CT.*SR Storage \(within\)"),
    "a scout in the series": (scout_within, r"1 of its 7 files: is a localizer \(within\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_spoils_a_volume_is_refused_by_name(tmp_path: Path, case: str) -> None:
    spoil, message = REFUSED[case]
    write_series(tmp_path, PIXELS)
    spoil(tmp_path)
    with pytest.raises(BadInput, match=message) as error:
        read_dicom_series(tmp_path)
    assert "\n" not in str(error.value)


def test_a_refusal_names_what_may_be_missing(tmp_path: Path) -> None:
    """A slice between that became empty: that one is missing, and this file was not used."""
    file = write_series(tmp_path, PIXELS)[2]
    file.write_bytes(b"")
    with pytest.raises(BadInput, match=rf"1 slice missing \(1 file was not used: {file.name} \(is empty"):
        read_dicom_series(tmp_path)


def test_a_file_that_may_not_be_read(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("shared")
    for above in (folder, *folder.parents):
        if above.name.startswith(("shared", "popen", "pytest")):
            above.chmod(0o755)
    file = write_series(folder, PIXELS)[2]
    file.chmod(0)
    with nobody(), pytest.raises(BadInput, match=f"{file.name}: cannot be read"):
        read_dicom_series(folder)


def mosaic(image: Any, k: int, *, tiles: int = 0, word: bool = True) -> None:
    """Siemens' attributes of a mosaic; positions drift by 0.37 mm."""
    image.ImagePositionPatient = [0, 0, 0.37 * k]
    if word:
        image.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
    if tiles:
        block = image.private_block(0x0019, "SIEMENS MR HEADER", create=True)
        block.add_new(0x0A, "US", tiles)


@pytest.mark.parametrize("count", [1, 2, 6])
@pytest.mark.parametrize(("tiles", "word"), [(36, True), (0, True), (36, False)])
@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian], ids=["explicit", "implicit"]
)
def test_mosaics_are_refused(tmp_path: Path, count: int, tiles: int, word: bool, syntax: Any) -> None:
    for k, plane in enumerate(texture((count, 24, 24))):
        image = slice_of(plane, k)
        mosaic(image, k, tiles=tiles, word=word)
        save(image, tmp_path / str(k), syntax)
    said = "is a Siemens mosaic of 36 tiles, all slices" if tiles else "is a Siemens mosaic, all slices"
    with pytest.raises(BadInput, match=f"{said} of a volume in one image: convert it with dcm2niix"):
        read_dicom_series(tmp_path)
    (found,) = find_series(tmp_path)
    assert found.slices == count and found.problem


def enhanced_with_the_word(folder: Path) -> None:
    image = enhanced_of(PIXELS)
    image.ImageType = ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]
    assert image.SOPClassUID == ENHANCED_MR
    save(image, folder / "enhanced")


def single_tiles(folder: Path) -> None:
    def change(image: Any, k: int) -> None:
        image.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", 1)

    write_series(folder, PIXELS, change=change)


def another_makers(folder: Path) -> None:
    def change(image: Any, k: int) -> None:
        image.private_block(0x0019, "GEMS_ACQU_01", create=True).add_new(0x0A, "SS", 36)

    write_series(folder, PIXELS, change=change)


def of_a_ct(folder: Path) -> None:
    def change(image: Any, k: int) -> None:
        image.ImageType = ["DERIVED", "SECONDARY", "AXIAL", "MOSAIC"]

    write_series(folder, PIXELS, kind=CT, change=change)


@pytest.mark.parametrize("write", [enhanced_with_the_word, single_tiles, another_makers, of_a_ct])
def test_what_only_looks_like_a_mosaic_is_read(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path)
    assert read_dicom_series(tmp_path).shape == (6, 7, 6)


ROUNDED: dict[str, Callable[[Any, int], None]] = {
    "EchoTime": lambda image, k: setattr(image, "EchoTime", 3.0 if k % 2 else 3.0001),
    "a longer EchoTime": lambda image, k: setattr(image, "EchoTime", 92 + 0.01 * (k % 3)),
    "RepetitionTime": lambda image, k: setattr(image, "RepetitionTime", 2300.0 + 0.0004 * k),
    "FlipAngle": lambda image, k: setattr(image, "FlipAngle", 9.0 if k else 9.0000001),
    "InversionTime": lambda image, k: setattr(image, "InversionTime", 900.0 if k < 3 else 900.25),
    "ImageOrientationPatient": lambda image, k: setattr(
        image, "ImageOrientationPatient", [1, 1e-4 * (k % 2), 0, -1e-4 * (k % 2), 1, 0]
    ),
    "PixelSpacing": lambda image, k: setattr(image, "PixelSpacing", [0.75 + 1e-5 * (k % 2), 1.25 - 1e-5 * k]),
}


@pytest.mark.parametrize("case", ROUNDED)
def test_rounding_is_no_other_contrast(tmp_path: Path, case: str) -> None:
    write_series(tmp_path, PIXELS, change=ROUNDED[case])
    np.testing.assert_array_equal(own_order(read_dicom_series(tmp_path)), PIXELS)


APART = {
    "EchoTime": (3.0, 5.0),
    "InversionTime": (900.0, 1100.0),
    "FlipAngle": (9.0, 10.0),
}


@pytest.mark.parametrize("keyword", APART)
def test_other_contrasts_are_told_apart(tmp_path: Path, keyword: str) -> None:
    """At places of their own and at the same ones."""
    write_series(
        tmp_path / "mixed", PIXELS, change=lambda image, k: setattr(image, keyword, APART[keyword][k % 2])
    )
    with pytest.raises(BadInput, match=f"has {keyword} .*mixes contrasts"):
        read_dicom_series(tmp_path / "mixed")
    for value in APART[keyword]:
        for k, plane in enumerate(PIXELS):
            image = slice_of(plane, k)
            setattr(image, keyword, value)
            image.SOPInstanceUID = uid(keyword, value, k)
            save(image, tmp_path / "both" / f"{value}-{k}")
    low, high = (f"{value:g}" for value in APART[keyword])
    with pytest.raises(
        BadInput, match=rf"two slices at 6 places.*{keyword} \(({low}, {high}|{high}, {low})\)"
    ):
        read_dicom_series(tmp_path / "both")


def write_study(root: Path) -> dict[str, str]:
    """Three volumes and a scout of one description; UIDs by name."""
    kinds = {"a": (3, "t1_mprage"), "b": (4, "T2 space"), "c": (12, "t2 flair"), "d": (5, "t1_scout")}
    for name, (number, text) in kinds.items():

        def change(image: Dataset, k: int, name: str = name, number: int = number, text: str = text) -> None:
            image.SeriesNumber, image.SeriesDescription = number, text
            if name == "d":
                image.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

        write_series(root / name, texture(seed=number), name=name, change=change)
    return {name: uid("series", name) for name in kinds}


def test_a_series_is_chosen(tmp_path: Path) -> None:
    """By UID, its end, its number, a part of its description in any case."""
    uids = write_study(tmp_path)
    keys = {"a": ["3", "MPRAGE", "t1"], "b": ["4", "t2 space"], "c": ["12", "flair"]}
    for name, own in keys.items():
        for key in (*own, uids[name], uids[name][-6:], uids[name].split(".")[-1]):
            assert read_dicom_series(tmp_path, series=key).series_uid == uids[name], key
    with pytest.raises(BadInput, match=r"holds 2 series that match 't2': .*T2 space.*SeriesNumber 4.*flair"):
        read_dicom_series(tmp_path, series="t2")
    for key in ("scout", "5"):
        with pytest.raises(BadInput, match="holds no series that is a volume.*t1_scout.*is a localizer"):
            read_dicom_series(tmp_path, series=key)
    for key in ("99", "", "dwi", uids["a"][-3:]):
        with pytest.raises(BadInput, match=f"holds no series '{key}', only .*t1_mprage"):
            read_dicom_series(tmp_path, series=key)
    found = find_series(tmp_path)
    assert [series.number for series in matching(found, "2.25")] == [], "the beginning of a UID means nothing"


def test_several_series_are_named_with_the_way_on(tmp_path: Path) -> None:
    uids = write_study(tmp_path)
    with pytest.raises(BadInput, match="holds 3 series") as error:
        read_dicom_series(tmp_path)
    line = str(error.value)
    for name, number, text in (("a", 3, "t1_mprage"), ("b", 4, "T2 space"), ("c", 12, "t2 flair")):
        assert f"{uids[name]} (MR '{text}', 5 of 6 × 7), SeriesNumber {number}" in line
    assert "scout" not in line and "--series" in error.value.fix and "folder as the output" in error.value.fix
