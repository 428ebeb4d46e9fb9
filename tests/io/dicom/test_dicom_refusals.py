"""What is no volume is refused: one line that names the file, what was found and what to do."""

from __future__ import annotations

import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from scorefusion.errors import BadInput
from scorefusion.io.dicom import read_dicom_series
from tests.support.dicom_series import (
    CT,
    ORIENTATIONS,
    enhanced_of,
    save,
    slice_of,
    texture,
    uid,
    write_series,
)

Change = Callable[[Any, int], None]


def setting(keyword: str, value: Any, at: int | None = None) -> Change:
    """A change of one attribute, of all slices or of one."""

    def change(image: Any, k: int) -> None:
        if at in (None, k):
            setattr(image, keyword, value)

    return change


def deleting(keyword: str, at: int | None = None) -> Change:
    def change(image: Any, k: int) -> None:
        if at in (None, k):
            delattr(image, keyword)

    return change


def moved(by: Callable[[int], tuple[float, float, float]]) -> Change:
    def change(image: Any, k: int) -> None:
        position = np.array(image.ImagePositionPatient, float) + by(k)
        image.ImagePositionPatient = [float(c) for c in position]

    return change


def lut(image: Any, k: int) -> None:
    image.ModalityLUTSequence = [Dataset()]


def colour(image: Any, k: int) -> None:
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PlanarConfiguration = 3, "RGB", 0
    image.BitsAllocated, image.BitsStored, image.HighBit = 8, 8, 7
    image.PixelData = bytes(3 * 42)


def taller(image: Any, k: int) -> None:
    if k == 3:
        image.Rows, image.PixelData = 8, image.PixelData + bytes(12)


def packed(image: Any, k: int) -> None:
    image.BitsAllocated, image.PixelData = 12, image.PixelData[:63]


REFUSALS: dict[str, tuple[Change, str]] = {
    "gantry tilt": (moved(lambda k: (0, 0.4 * k, 0)), r"aside of the normal.*a tilted gantry \(9\.09°\)"),
    "out of line": (moved(lambda k: (3.0 * (k == 2), 0, 0)), "slices out of line"),
    "missing slice": (
        moved(lambda k: (0, 0, 2.5 * (k > 2))),
        r"lies 5 mm from IM06, others 2.5 mm: 1 slice missing",
    ),
    "missing slices": (moved(lambda k: (0, 0, 7.5 * (k > 2))), "3 slices missing"),
    "uneven": (moved(lambda k: (0, 0, 0.8 * (k > 2))), "an uneven spacing"),
    "same place": (
        moved(lambda k: (0, 0, -2.5 * (k == 3))),
        "IM06: lies where IM02 does, two slices at one place; they differ in nothing",
    ),
    "all at one place": (moved(lambda k: (0, 0, -2.5 * k)), "two slices at 4 places"),
    "sizes": (taller, r"has 6 × 7 pixels, IM02 has 6 × 8\. Its series mixes sizes"),
    "orientations": (
        setting("ImageOrientationPatient", [0, 1, 0, 0, 0, -1], at=2),
        "lies in another plane than IM02. Its series mixes orientations",
    ),
    "pixel sizes": (setting("PixelSpacing", [0.75, 1.3], at=2), "mixes pixel sizes"),
    "number formats": (setting("PixelRepresentation", 1, at=2), "mixes pixel formats"),
    "echoes": (setting("EchoTime", 90, at=2), r"has EchoTime 90, IM03 has 4\.6\. Its series mixes contrasts"),
    "phase among magnitude": (
        setting("ImageType", ["ORIGINAL", "PRIMARY", "P"], at=2),
        r"has ImageType ORIGINAL\\PRIMARY\\P",
    ),
    "spaces": (setting("FrameOfReferenceUID", uid("other"), at=2), "has FrameOfReferenceUID"),
    "inverted": (
        setting("PhotometricInterpretation", "MONOCHROME1", at=2),
        "PhotometricInterpretation MONOCHROME1",
    ),
    "localizer": (setting("ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"]), "is a localizer"),
    "a localizer among": (
        setting("ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"], at=1),
        "1 of its 5 files: is a localizer",
    ),
    "colour": (colour, r"is a colour image \(RGB\)"),
    "palette": (setting("PhotometricInterpretation", "PALETTE COLOR"), "is a colour image"),
    "look-up table": (lut, "Modality LUT"),
    "RT structures": (setting("SOPClassUID", "1.2.840.10008.5.1.4.1.1.481.3"), "RT Structure Set Storage"),
    "a report": (setting("SOPClassUID", "1.2.840.10008.5.1.4.1.1.88.11"), "Basic Text SR Storage"),
    "a segmentation": (setting("SOPClassUID", "1.2.840.10008.5.1.4.1.1.66.4"), "Segmentation Storage"),
    "unknown class": (setting("SOPClassUID", "1.2.3.4"), "SOP class 1.2.3.4"),
    "no position": (deleting("ImagePositionPatient", at=2), "IM06: has no ImagePositionPatient. Export it"),
    "no orientation": (deleting("ImageOrientationPatient"), "has no ImageOrientationPatient"),
    "no pixel spacing": (deleting("PixelSpacing"), "has no PixelSpacing"),
    "empty pixel spacing": (setting("PixelSpacing", None), "has no PixelSpacing"),
    "two numbers for a place": (setting("ImagePositionPatient", [1, 2]), "impossible ImagePositionPatient"),
    "far away": (setting("ImagePositionPatient", [1, 2, 1e9]), "impossible ImagePositionPatient"),
    "flat pixels": (setting("PixelSpacing", [0, 1]), "impossible PixelSpacing"),
    "no right angle": (setting("ImageOrientationPatient", [1, 0, 0, 0.7, 0.7, 0]), "no right angle"),
    "slope 0": (setting("RescaleSlope", 0), "impossible rescaling"),
    "beyond float32": (setting("RescaleSlope", "1e300"), "beyond those of float32"),
    "frames without places": (setting("NumberOfFrames", 2), "holds 2 frames and no place for each"),
    "no frames": (setting("NumberOfFrames", -1), "claims -1 frames"),
    "12-bit packing": (packed, "has pixels of 12 bits"),
    "no rows": (deleting("Rows"), "has no Rows and Columns"),
    "no pixels": (deleting("PixelData", at=4), "IM09: .*truncated|IM09: has no PixelData"),
    "rows beyond bytes": (setting("Rows", 60000), "IM02: is truncated: its header promises 720,000 bytes"),
    "volume beyond bounds": (setting("Rows", 65535), "holds more than 1,000,000 voxels"),
    "no series": (deleting("SeriesInstanceUID", at=4), "IM09: is an image without SeriesInstanceUID"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refused(tmp_path: Path, case: str) -> None:
    change, message = REFUSALS[case]
    write_series(tmp_path, change=change)
    bound = 1_000_000 if case == "volume beyond bounds" else 2**30
    with pytest.raises(BadInput, match=message) as error:
        read_dicom_series(tmp_path, max_voxels=bound)
    assert str(error.value).startswith(str(tmp_path)) and "\n" not in str(error.value)
    assert error.value.fix.endswith(".")


def test_rounded_positions_are_accepted(tmp_path: Path) -> None:
    """Two decimals of a millimetre: slices 0.625 apart are written 0.62 and 0.63 apart."""

    def change(image: Any, k: int) -> None:
        image.ImagePositionPatient = [0, 0, round(0.625 * k + 0.0001, 2)]

    write_series(tmp_path, texture((20, 7, 6)), change=change)
    assert read_dicom_series(tmp_path).affine[2, 2] == pytest.approx(0.625, abs=1e-3)


def test_a_tilt_that_is_only_told_is_none(tmp_path: Path) -> None:
    """Scanners that resample write the gantry's angle into upright images; the positions decide."""
    write_series(tmp_path, kind=CT, change=setting("GantryDetectorTilt", 12))
    assert read_dicom_series(tmp_path).shape == (6, 7, 5)


def test_one_slice_a_copy_and_two_echoes(tmp_path: Path) -> None:
    files = write_series(tmp_path)
    with pytest.raises(BadInput, match="holds 1 slice; a volume has several"):
        read_dicom_series(files[0])
    shutil.copy(files[1], tmp_path / "zcopy")
    with pytest.raises(BadInput, match=r"zcopy: is a copy of IM10\. Remove one"):
        read_dicom_series(tmp_path)
    (tmp_path / "zcopy").unlink()
    for k, plane in enumerate(texture()):
        echo = slice_of(plane, k)
        echo.SOPInstanceUID, echo.EchoTime = uid("second echo", k), 80
        save(echo, tmp_path / f"echo{k}")
    with pytest.raises(BadInput, match=r"two slices at 5 places of its series; they differ in EchoTime \("):
        read_dicom_series(tmp_path)


def test_time_points_of_an_enhanced_object(tmp_path: Path) -> None:
    image = enhanced_of(texture((4, 7, 6)))
    for k, group in enumerate(image.PerFrameFunctionalGroupsSequence):
        content = Dataset()
        content.TemporalPositionIndex, content.StackID = k // 2 + 1, "1"
        group.FrameContentSequence = [content]
        group.PlanePositionSequence[0].ImagePositionPatient = [0, 0, 2.5 * (k % 2)]
    save(image, tmp_path / "dynamic")
    with pytest.raises(
        BadInput, match=r"dynamic: frame 3 lies where dynamic frame 1 does.*TemporalPositionIndex \(1, 2\)"
    ):
        read_dicom_series(tmp_path)


def test_an_enhanced_object_with_too_few_descriptions(tmp_path: Path) -> None:
    image = enhanced_of(texture())
    image.PerFrameFunctionalGroupsSequence = list(image.PerFrameFunctionalGroupsSequence)[:4]
    save(image, tmp_path / "x")
    with pytest.raises(BadInput, match="claims 5 frames and describes 4"):
        read_dicom_series(tmp_path)


def test_a_constant_volume(tmp_path: Path) -> None:
    write_series(tmp_path, np.full((3, 4, 5), 7))
    with pytest.raises(BadInput, match="is constant: every voxel is 7"):
        read_dicom_series(tmp_path)
    assert read_dicom_series(tmp_path, constant=True).values.max() == 7


@pytest.mark.parametrize("rows", [32767, 65535])
def test_what_a_header_claims_is_not_allocated(tmp_path: Path, rows: int) -> None:
    def change(image: Any, k: int) -> None:
        image.Rows = image.Columns = rows

    write_series(tmp_path, change=change)
    tracemalloc.start()
    with pytest.raises(BadInput):
        read_dicom_series(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_a_file_of_nothing_but_items(tmp_path: Path) -> None:
    """A few megabytes that would become gigabytes of objects."""
    file = write_series(tmp_path)[0]
    data = file.read_bytes()
    place = data.index(b"\x28\x00\x02\x00US")
    bomb = b"\x20\x00\x00\x92SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\0\0\0\0" * 300_000
    file.write_bytes(data[:place] + bomb + b"\xfe\xff\xdd\xe0\0\0\0\0" + data[place:])
    with pytest.raises(BadInput, match="holds more than 262,144 sequence items"):
        read_dicom_series(tmp_path)


def test_sequences_nested_without_end(tmp_path: Path) -> None:
    file = write_series(tmp_path)[0]
    data = file.read_bytes()
    place = data.index(b"\x28\x00\x02\x00US")
    nest = b"\x20\x00\x11\x91SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 5000
    file.write_bytes(data[:place] + nest + data[place:])
    with pytest.raises(BadInput, match="is a damaged DICOM file"):
        read_dicom_series(tmp_path)


def test_without_pydicom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    real = importlib.import_module

    def without(name: str, package: str | None = None) -> Any:
        if name.startswith("pydicom"):
            raise ModuleNotFoundError("No module named 'pydicom'")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ValueError, match=r"pip install 'scorefusion\[dicom\]'"):
        read_dicom_series(tmp_path)


def test_orientations_of_the_tests_are_right_angled() -> None:
    for turn in ORIENTATIONS.values():
        np.testing.assert_allclose(turn @ turn.T, np.eye(2), atol=1e-12)


@pytest.mark.parametrize("where", ["frames in turn", "frames at one place", "two files"])
def test_contrasts_in_one_file_are_told_apart_by_frame(tmp_path: Path, where: str) -> None:
    """A file cannot be put into two folders: the advice is another than for files."""
    image = enhanced_of(texture((4, 7, 6)))
    shared = image.SharedFunctionalGroupsSequence[0]
    for k, group in enumerate(image.PerFrameFunctionalGroupsSequence):
        group.MREchoSequence = [Dataset()]
        group.MREchoSequence[0].EffectiveEchoTime = 3.0 + 4 * (k % 2)
        if where == "frames at one place":
            group.PlanePositionSequence[0].ImagePositionPatient = [0, 0, 2.5 * (k // 2)]
    del shared.MREchoSequence
    if where == "two files":
        write_series(tmp_path / "s", change=setting("EchoTime", 90, at=2))
    else:
        save(image, tmp_path / "s" / "object")
    with pytest.raises(BadInput) as error:
        read_dicom_series(tmp_path)
    line, apart = str(error.value), "into a folder of its own" in error.value.fix
    assert apart == (where == "two files") and ("dcm2niix" in line) != apart, line
    expected = {
        "frames in turn": "object: frame 2 has EffectiveEchoTime 7, object frame 1 has 3",
        "frames at one place": "object: frame 2 lies where object frame 1 does",
    }
    assert expected.get(where, "has EchoTime 90") in line


@pytest.mark.parametrize("cut", [150, 170, 200, 300])
def test_a_file_cut_short_in_its_meta_information(tmp_path: Path, cut: int) -> None:
    """It is damaged, not in a foreign transfer syntax."""
    file = write_series(tmp_path / "s")[2]
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(BadInput, match=r"Copy or export it again") as error:
        read_dicom_series(tmp_path)
    assert Path(error.value.file) == file and "Convert it" not in str(error.value)
