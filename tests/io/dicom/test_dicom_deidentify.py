"""De-identified series: nothing of a person, a place or a day that the source held is in their bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset

from scorefusion.errors import BadInput
from scorefusion.io.dicom import read_dicom_series, save_dicom_series
from scorefusion.io.dicom.carry import CARRIED, NUMBERS
from scorefusion.pipeline import Pipeline
from tests.support.dicom_series import CT, MR, enhanced_of, save, slice_of, texture, uid, write_series
from tests.support.tiny import tiny_model

MARKS: dict[str, Any] = {
    **dict.fromkeys(("LO", "SH", "ST", "LT", "UT", "UC", "UR", "PN", "CS", "AE"), "MARKER"),
    "DA": "18990403",
    "TM": "034455.667",
    "DT": "18990403034455.667",
    "AS": "077Y",
    "DS": "771.23456",
    "IS": "77123456",
    "UI": "2.25.7712345677123456",
    "OB": b"MARKER",
    "UN": b"MARKER",
}
NEEDED = {
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID",
    "SpecificCharacterSet", "Modality", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
    "SliceThickness", "RescaleSlope", "RescaleIntercept", "PhotometricInterpretation", "NumberOfFrames",
    "InstanceNumber", "SeriesNumber", "BurnedInAnnotation", "ModalityLUTSequence", "PixelData",
    "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence",
}  # fmt: skip
FOUND = [b"MARKER", b"18990403", b"034455", b"077Y", b"7712345", b"Named", b"ODD"]


def planted(image: Dataset, depth: int = 0) -> None:
    """Marks in every attribute that DICOM knows of the types above, in sequences and in private ones too."""
    for tag, (vr, _, _, retired, keyword) in DicomDictionary.items():
        group = tag >> 16
        if not keyword or keyword in NEEDED or group < 8 or group >= 0x5000:
            continue
        kind = vr.partition(" ")[0]
        if kind in MARKS and not (depth and tag % 7):
            image.add_new(tag, kind, "3" if keyword in NUMBERS else MARKS[kind])
        elif kind == "SQ" and not depth and not retired:
            item = Dataset()
            item.PatientName, item.TextValue = "Named^In Sequence", "MARKER"
            image.add_new(tag, kind, [item])
    image.add_new(0x00330010, "LO", "MARKER MAKER")
    image.add_new(0x00331001, "PN", "Named^Privately")
    inner = Dataset()
    inner.add_new(0x00330010, "LO", "MARKER MAKER")
    inner.add_new(0x00331002, "UT", "MARKER")
    inner.PatientID = "ODD-MARKER"
    image.add_new(0x00331003, "SQ", [inner])
    if not depth:
        planted(inner, 1)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(tiny_model(), device="cpu", dtype="float32")


def uids(image: Dataset) -> set[str]:
    """Every UID in an object that is not DICOM's own."""
    found = set()
    for element in image.iterall():
        if element.VR == "UI" and not str(element.value).startswith("1.2.840.10008."):
            found.add(str(element.value))
    return found


@pytest.mark.parametrize("kind", [MR, CT, "enhanced"], ids=["MR", "CT", "enhanced"])
def test_no_value_of_the_source_is_left(tmp_path: Path, kind: str, pipeline: Pipeline) -> None:
    made = []
    if kind == "enhanced":
        image = enhanced_of(texture((3, 7, 6)))
        planted(image)
        for group in image.PerFrameFunctionalGroupsSequence:
            planted(group, 1)
        made.append(image)
    for k, plane in enumerate(texture((3, 7, 6)) if not made else ()):
        image = slice_of(plane, k, kind=kind)
        planted(image)
        made.append(image)
    for k, image in enumerate(made):
        save(image, tmp_path / f"in/{k}")
    assert len(list(made[0])) > 3500 and all(
        keyword in made[0] for keyword in CARRIED if keyword not in NEEDED
    )
    marked = b"".join(path.read_bytes() for path in (tmp_path / "in").iterdir())
    assert all(mark in marked for mark in FOUND)

    result = pipeline(read_dicom_series(tmp_path / "in"))
    save_dicom_series(result, tmp_path / "out", deidentify=True)
    sources = set().union(*(uids(image) for image in made))
    assert uid("study") in sources and len(sources) >= 4
    for path in (tmp_path / "out").iterdir():
        data = path.read_bytes()
        assert not [mark for mark in [*FOUND, *(name.encode() for name in sources)] if mark in data]
        image = pydicom.dcmread(path)
        assert image.PatientIdentityRemoved == "YES" and image.DeidentificationMethod
        assert not [element for element in image.iterall() if element.tag.is_private]
        assert not image.PatientBirthDate and not image.StudyDate and not image.AccessionNumber
        assert image.FrameOfReferenceUID != uid("frame") and image.ImagePositionPatient and image.PixelSpacing


def test_numbers_and_codes_of_the_acquisition_stay(tmp_path: Path, pipeline: Pipeline) -> None:
    write_series(tmp_path / "in")
    save_dicom_series(pipeline(read_dicom_series(tmp_path / "in")), tmp_path / "out", deidentify=True)
    image = pydicom.dcmread(tmp_path / "out/00001.dcm")
    assert (image.EchoTime, image.RepetitionTime, image.FlipAngle) == (4.6, 9.5, 10)
    assert (image.ScanningSequence, image.MRAcquisitionType, image.PatientPosition) == ("GR", "3D", "HFS")
    assert not image.ScanOptions and not image.Manufacturer


def test_pseudonyms(tmp_path: Path, pipeline: Pipeline) -> None:
    """Two studies of one patient: linked only by a secret, and by another one differently."""

    def other_study(image: Any, k: int) -> None:
        image.StudyInstanceUID = uid("another study")

    write_series(tmp_path / "a", name="a")
    write_series(tmp_path / "b", name="b", change=other_study)
    named: dict[tuple[str, str], Any] = {}
    for folder in "ab":
        result = pipeline(read_dicom_series(tmp_path / folder))
        for secret in ("", "one", "two"):
            out = tmp_path / f"out-{folder}{secret}"
            save_dicom_series(result, out, deidentify=True, secret=secret)
            named[folder, secret] = pydicom.dcmread(out / "00001.dcm")
    patients = {key: image.PatientID for key, image in named.items()}
    assert patients["a", "one"] == patients["b", "one"] and patients["a", "two"] == patients["b", "two"]
    assert len(set(patients.values())) == 4
    spaces = {key: image.FrameOfReferenceUID for key, image in named.items()}
    assert spaces["a", ""] == spaces["b", ""] and len(set(spaces.values())) == 3
    assert len({image.StudyInstanceUID for image in named.values()}) == 6


def test_text_in_the_pixels_is_not_let_through(tmp_path: Path, pipeline: Pipeline) -> None:
    def change(image: Any, k: int) -> None:
        image.BurnedInAnnotation = "YES" if k == 3 else "NO"

    write_series(tmp_path / "in", change=change)
    result = pipeline(read_dicom_series(tmp_path / "in"))
    with pytest.raises(BadInput, match="text burned into its pixels"):
        save_dicom_series(result, tmp_path / "out", deidentify=True)
    assert not (tmp_path / "out").exists()
    save_dicom_series(result, tmp_path / "out")
