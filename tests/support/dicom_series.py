"""Small DICOM series for tests: classic MR and CT, enhanced MR; every attribute can be changed."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

CT, MR, ENHANCED_MR = (f"1.2.840.10008.5.1.4.1.1.{ending}" for ending in ("2", "4", "4.1"))

_TURN = np.array([[0.8, 0.6, 0.0], [-0.48, 0.64, 0.6], [0.36, -0.48, 0.8]])
ORIENTATIONS = {
    "axial": np.array([[1.0, 0, 0], [0, 1, 0]]),
    "sagittal": np.array([[0.0, 1, 0], [0, 0, -1]]),
    "oblique": _TURN[:2],
    "coronal, turned over": np.array([[-1.0, 0, 0], [0, 0, -1]]),
}

Change = Callable[[Dataset, int], None]


def uid(*parts: object) -> str:
    """The UID of whatever has this name, valid and always the same."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}"


def texture(shape: tuple[int, int, int] = (5, 7, 6), seed: int = 0) -> np.ndarray:
    """Stored pixels ``[slices, rows, columns]``, uint16 of 12 bits: a bright block on black."""
    pixels = np.random.default_rng(seed).integers(200, 4000, shape).astype(np.uint16)
    pixels[:, :1] = pixels[:, :, -1:] = 0
    return pixels


def slice_of(
    pixels: np.ndarray,
    k: int,
    *,
    kind: str = MR,
    name: str = "a",
    orientation: np.ndarray = ORIENTATIONS["axial"],
    origin: tuple[float, float, float] = (-31.25, 17.5, -40.0),
    spacing: tuple[float, float, float] = (2.5, 0.75, 1.25),
    step: int = 1,
) -> Dataset:
    """One slice with all that its SOP class asks for.

    Args:
        pixels: ``[rows, columns]``.
        k: its number, from 0.
        kind: ``MR`` or ``CT``.
        name: of the series; others have other UIDs, in one study.
        orientation: unit vectors along a row and down a column.
        origin: of slice 0.
        spacing: millimetres from slice to slice, row to row, column to column.
        step: 1 where numbers rise along the normal, -1 where they fall.
    """
    image = Dataset()
    image.SOPClassUID, image.SOPInstanceUID = kind, uid(name, k)
    image.SpecificCharacterSet = "ISO_IR 192"
    image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL" if kind == CT else "M"]
    image.StudyInstanceUID, image.SeriesInstanceUID = uid("study"), uid("series", name)
    image.FrameOfReferenceUID, image.PositionReferenceIndicator = uid("frame"), ""
    image.PatientName, image.PatientID = "Müller^Ödön", "PID-4711"
    image.PatientBirthDate, image.PatientSex = "19700102", "O"
    image.StudyDate, image.StudyTime, image.StudyID = "20200304", "101112", "77"
    image.AccessionNumber, image.ReferringPhysicianName = "ACC1", "Who^Doctor"
    image.Modality = "CT" if kind == CT else "MR"
    image.SeriesNumber, image.InstanceNumber, image.AcquisitionNumber = 3, k + 1, 1
    image.SeriesDescription, image.Manufacturer, image.PatientPosition = f"series {name}", "Maker", "HFS"
    image.ImageOrientationPatient = [float(c) for c in orientation.reshape(-1)]
    normal = np.cross(*orientation) * step
    image.ImagePositionPatient = [float(c) for c in np.array(origin) + k * spacing[0] * normal]
    image.PixelSpacing, image.SliceThickness = [spacing[1], spacing[2]], spacing[0]
    if kind == CT:
        image.KVP, image.RescaleIntercept, image.RescaleSlope = 120, -1024, 1
        image.RescaleType = "HU"
    else:
        image.ScanningSequence, image.SequenceVariant, image.ScanOptions = "GR", "SP", "FS"
        image.MRAcquisitionType, image.RepetitionTime, image.EchoTime = "3D", 9.5, 4.6
        image.EchoTrainLength, image.FlipAngle, image.MagneticFieldStrength = 1, 10, 3
    image.Rows, image.Columns = pixels.shape
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 12, 11
    image.PixelRepresentation = 0
    image.PixelData = np.ascontiguousarray(pixels, np.uint16).tobytes()
    return image


def enhanced_of(pixels: np.ndarray, **options: Any) -> Dataset:
    """An Enhanced MR object with a frame for every ``[k]`` of ``pixels``, places told frame by frame."""
    image = slice_of(pixels[0], 0, **options)
    image.SOPClassUID, image.NumberOfFrames = ENHANCED_MR, len(pixels)
    measures, turn, values = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = image.PixelSpacing, image.SliceThickness
    turn.ImageOrientationPatient = image.ImageOrientationPatient
    values.RescaleSlope, values.RescaleIntercept, values.RescaleType = 2, -5, "US"
    timing, echo, shared = Dataset(), Dataset(), Dataset()
    timing.RepetitionTime, timing.FlipAngle, timing.EchoTrainLength = 9.5, 10, 1
    echo.EffectiveEchoTime = 4.6
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [turn]
    shared.PixelValueTransformationSequence = [values]
    shared.MRTimingAndRelatedParametersSequence, shared.MREchoSequence = [timing], [echo]
    image.SharedFunctionalGroupsSequence = [shared]
    image.PerFrameFunctionalGroupsSequence = []
    for k in range(len(pixels)):
        place, group = Dataset(), Dataset()
        place.ImagePositionPatient = slice_of(pixels[k], k, **options).ImagePositionPatient
        group.PlanePositionSequence = [place]
        image.PerFrameFunctionalGroupsSequence.append(group)
    image.EchoPulseSequence, image.ResonantNucleus = "GRADIENT", "1H"
    image.AcquisitionDateTime = "20200304101500.5"
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(image, keyword)
    for keyword in ("RepetitionTime", "EchoTime", "EchoTrainLength", "FlipAngle", "ScanningSequence"):
        delattr(image, keyword)
    image.PixelData = np.ascontiguousarray(pixels, np.uint16).tobytes()
    return image


def save(image: Dataset, path: Path, syntax: UID = ExplicitVRLittleEndian) -> Path:
    """Write an object with its file meta information; folders above it are made."""
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = syntax
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save_as(path, enforce_file_format=True)
    return path


def write_series(
    folder: Path, pixels: np.ndarray | None = None, *, change: Change | None = None, **options: Any
) -> list[Path]:
    """Write a classic series, its files named at odds with their order and without an ending.

    Args:
        folder: into which.
        pixels: ``[slices, rows, columns]``; :func:`texture` when None.
        change: called with each slice and its number before it is written.
        options: as for :func:`slice_of`.
    """
    pixels = texture() if pixels is None else pixels
    paths = []
    for k, plane in enumerate(pixels):
        image = slice_of(plane, k, **options)
        if change is not None:
            change(image, k)
        paths.append(save(image, folder / f"IM{(k * 7 + 3) % 11:02d}"))
    return paths
