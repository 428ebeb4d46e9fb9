"""One image of a derived series: what it takes from its source, where it lies, how it came about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from scorefusion._version import __version__
from scorefusion.io.dicom.carry import carry
from scorefusion.io.dicom.decimals import decimals
from scorefusion.io.dicom.enhanced import classic_header
from scorefusion.io.dicom.frames import Frame
from scorefusion.io.dicom.names import Names
from scorefusion.io.dicom.read import DicomScan
from scorefusion.io.dicom.stored import Rescaling
from scorefusion.optional import need

_SOP_CLASSES = {"CT": "1.2.840.10008.5.1.4.1.1.2", "MR": "1.2.840.10008.5.1.4.1.1.4"}
_SLICE_NAMES = {"CT": "AXIAL", "MR": "OTHER"}
_EMPTY = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "ReferringPhysicianName",
    "AccessionNumber",
    "Manufacturer",
    "PatientPosition",
    "Laterality",
    "PositionReferenceIndicator",
    "AcquisitionNumber",
)
"""What must be there, with or without a value (type 2)."""
_EMPTY_OF = {
    "MR": ("ScanOptions", "MRAcquisitionType", "RepetitionTime", "EchoTime", "EchoTrainLength"),
    "CT": ("KVP",),
}
_MEASURED = ("InversionTime", "EchoNumbers", "FlipAngle", "SequenceName", "NumberOfAverages")
_METHOD = "scorefusion: only geometry, pixels, acquisition kept"


@dataclass(frozen=True, eq=False)
class Derivation:
    """What all images of a derived series have in common.

    Attributes:
        scan: the source on whose grid, or on a finer one, they lie.
        also: the other sources.
        names: how UIDs are made.
        series_uid: of the derived series.
        modality: ``CT`` or ``MR``.
        affine: float64 ``[4, 4]``, (i, j, k) of the volume to millimetres, RAS+.
        factors: how much finer the grid is along the source's own (i, j, k).
        rescaling: how values are stored.
        told: DerivationDescription.
        description: SeriesDescription, or None.
        model: name of the model.
        same_contrast: whether the volume is of the contrast that the source's acquisition made.
    """

    scan: DicomScan
    also: tuple[DicomScan, ...]
    names: Names
    series_uid: str
    modality: str
    affine: np.ndarray
    factors: tuple[int, int, int]
    rescaling: Rescaling
    told: str
    description: str | None
    model: str
    same_contrast: bool


def derived_image(derivation: Derivation, values: np.ndarray, k: int, count: int) -> Any:
    """A classic CT or MR image, without file meta information.

    Args:
        derivation: of the series.
        values: float32 ``[i, j]``, slice ``k`` of the volume in the source's own order.
        k: its number along the normal, from 0.
        count: slices in all.
    """
    names, scan = derivation.names, derivation.scan
    frame = scan.frames[k // derivation.factors[2]]
    image = carry(classic_header(frame), derivation.modality, nobody=names.hide)
    rising = scan.frames[0].number <= scan.frames[-1].number
    image.SpecificCharacterSet = "ISO_IR 192"
    image.SOPClassUID = _SOP_CLASSES[derivation.modality]
    image.InstanceNumber = k + 1 if rising else count - k
    image.SOPInstanceUID = names.new("instance", derivation.series_uid, str(image.InstanceNumber))
    image.ImageType = ["DERIVED", "SECONDARY", _SLICE_NAMES[derivation.modality]]
    _add_identity(image, derivation, frame)
    _add_acquisition(image, derivation)
    _add_place(image, derivation, frame, k)
    _add_pixels(image, derivation, values)
    _add_origin(image, derivation, frame)
    return image


def _add_identity(image: Any, derivation: Derivation, frame: Frame) -> None:
    names, header = derivation.names, frame.header
    study = str(header.get("StudyInstanceUID") or names.new("study", derivation.scan.series_uid))
    space = str(header.get("FrameOfReferenceUID") or f"of series {derivation.scan.series_uid}")
    known = "FrameOfReferenceUID" in image or names.hide
    image.StudyInstanceUID = names.kept(study)
    image.FrameOfReferenceUID = names.kept(space) if known else names.new("frame of reference", space)
    image.SeriesInstanceUID = derivation.series_uid
    image.SeriesNumber = 1000 + int(header.get("SeriesNumber") or 0) % 1_000_000
    image.Modality = derivation.modality
    own = "" if names.hide else str(header.get("SeriesDescription") or "")
    name = f"scorefusion {derivation.model}".strip()
    image.SeriesDescription = (derivation.description or f"{name} {own}".strip())[:64].strip()
    if names.hide:
        patient = f"{header.get('IssuerOfPatientID') or ''}\0{header.get('PatientID') or ''}"
        image.PatientID = names.patient(patient.strip("\0"), study)
        image.PatientName = f"Anonymous^{image.PatientID}"
        image.PatientIdentityRemoved, image.DeidentificationMethod = "YES", _METHOD
        image.LongitudinalTemporalInformationModified = "REMOVED"
    for keyword in _EMPTY:
        if keyword not in image:
            setattr(image, keyword, None)


def _add_acquisition(image: Any, derivation: Derivation) -> None:
    if derivation.modality == "MR":
        if not derivation.same_contrast:
            # No scanner measured this contrast: not these times and angles, but "research mode".
            for keyword in (*_MEASURED, *_EMPTY_OF["MR"], "ScanningSequence", "SequenceVariant"):
                if keyword != "MRAcquisitionType" and keyword in image:
                    delattr(image, keyword)
        if not image.get("ScanningSequence"):
            image.ScanningSequence = "RM"
        if not image.get("SequenceVariant"):
            image.SequenceVariant = "NONE"
    for keyword in _EMPTY_OF[derivation.modality]:
        if keyword not in image:
            setattr(image, keyword, None)


def _add_place(image: Any, derivation: Derivation, frame: Frame, k: int) -> None:
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ derivation.affine
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    row, column, normal = (affine[:3, :3] / lengths).T
    position = affine[:3, 3] + k * affine[:3, 2]
    factor = derivation.factors[2]
    # Finer slices share the room between the source's; on the source's own grid they are as thick as those.
    thickness = frame.thickness if factor == 1 and frame.thickness else lengths[2]
    image.ImagePositionPatient = decimals(position)
    image.ImageOrientationPatient = decimals((*row, *column))
    image.PixelSpacing = decimals((lengths[1], lengths[0]))
    image.SliceThickness, image.SpacingBetweenSlices = decimals((thickness, lengths[2]))
    image.SliceLocation = decimals((position @ normal,))[0]


def _add_pixels(image: Any, derivation: Derivation, values: np.ndarray) -> None:
    rescaling = derivation.rescaling
    stored = np.ascontiguousarray(rescaling.stored(values).T)
    image.Rows, image.Columns = stored.shape
    image.SamplesPerPixel, image.BitsAllocated, image.BitsStored, image.HighBit = 1, 16, 16, 15
    if "PhotometricInterpretation" not in image:
        image.PhotometricInterpretation = "MONOCHROME2"
    image.PixelRepresentation = int(rescaling.dtype.kind == "i")
    if derivation.modality == "CT" or (rescaling.slope, rescaling.intercept) != (1.0, 0.0):
        image.RescaleIntercept, image.RescaleSlope = decimals((rescaling.intercept, rescaling.slope))
        if "RescaleType" not in image:
            image.RescaleType = "HU" if derivation.modality == "CT" else "US"
    image.WindowCenter, image.WindowWidth = decimals((rescaling.center, rescaling.width))
    image.add_new("PixelData", "OW", stored.astype(stored.dtype.newbyteorder("<")).tobytes())


def _add_origin(image: Any, derivation: Derivation, frame: Frame) -> None:
    """What it was derived from, by whom and how."""
    dataset, names = need("pydicom.dataset", "writing DICOM").Dataset, derivation.names
    image.DerivationDescription = derivation.told
    equipment = dataset()
    equipment.PurposeOfReferenceCodeSequence = [_code("109102", "Processing Equipment")]
    equipment.Manufacturer, equipment.SoftwareVersions = "scorefusion", __version__
    equipment.ManufacturerModelName = (derivation.model or "unnamed")[:64]
    image.ContributingEquipmentSequence = [equipment]
    references: dict[str, list[Any]] = {}
    normal = np.cross(*frame.orientation)
    for scan in (derivation.scan, *derivation.also):
        near = min(scan.frames, key=lambda one: abs(float((one.position - frame.position) @ normal)))
        if near.sop_instance:
            item = dataset()
            item.ReferencedSOPClassUID = near.sop_class
            item.ReferencedSOPInstanceUID = names.kept(near.sop_instance)
            references.setdefault(names.kept(scan.series_uid), []).append(item)
    series = []
    sources = []
    for uid, items in references.items():
        whole = dataset()
        whole.SeriesInstanceUID, whole.ReferencedInstanceSequence = uid, items
        series.append(whole)
        for item in items:
            source = dataset()
            source.update(item)
            source.PurposeOfReferenceCodeSequence = [
                _code("121322", "Source image for image processing operation")
            ]
            sources.append(source)
    if series:
        image.ReferencedSeriesSequence, image.SourceImageSequence = series, sources


def _code(value: str, meaning: str) -> Any:
    code = need("pydicom.dataset", "writing DICOM").Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
    return code
