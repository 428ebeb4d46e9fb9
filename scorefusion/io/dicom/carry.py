"""Which attributes of a source series its derived series takes over, and which of them name nobody."""

from __future__ import annotations

import math
from collections.abc import MutableSequence
from typing import Any

from scorefusion.optional import need

PATIENT = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientBirthTime",
    "PatientSex",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
)
STUDY = (
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
    "StudyDescription",
)
SERIES = ("Modality", "ProtocolName", "BodyPartExamined", "Laterality", "PatientPosition")
EQUIPMENT = (
    "Manufacturer",
    "InstitutionName",
    "StationName",
    "ManufacturerModelName",
    "DeviceSerialNumber",
    "SoftwareVersions",
)
FRAME_OF_REFERENCE = ("FrameOfReferenceUID", "PositionReferenceIndicator")
IMAGE = (
    "AcquisitionDate",
    "AcquisitionTime",
    "AcquisitionNumber",
    "ContentDate",
    "ContentTime",
    "PhotometricInterpretation",
    "BurnedInAnnotation",
    "RecognizableVisualFeatures",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
)
CONTRAST = ("ContrastBolusAgent", "ContrastBolusRoute", "ContrastBolusVolume")
MR = (
    "ScanningSequence",
    "SequenceVariant",
    "ScanOptions",
    "MRAcquisitionType",
    "SequenceName",
    "RepetitionTime",
    "EchoTime",
    "EchoTrainLength",
    "EchoNumbers",
    "InversionTime",
    "FlipAngle",
    "NumberOfAverages",
    "ImagingFrequency",
    "ImagedNucleus",
    "MagneticFieldStrength",
    "PixelBandwidth",
    "ReceiveCoilName",
)
CT = (
    "ScanOptions",
    "KVP",
    "DataCollectionDiameter",
    "ReconstructionDiameter",
    "TableHeight",
    "RotationDirection",
    "ExposureTime",
    "XRayTubeCurrent",
    "Exposure",
    "FilterType",
    "ConvolutionKernel",
    "RescaleType",
)

ENHANCED = (
    "EchoPulseSequence",
    "InversionRecovery",
    "EchoPlanarPulseSequence",
    "ResonantNucleus",
    "AcquisitionDateTime",
)
"""What enhanced objects say of an acquisition in other words, beside their functional groups."""

CARRIED = tuple(
    dict.fromkeys((*PATIENT, *STUDY, *SERIES, *EQUIPMENT, *FRAME_OF_REFERENCE, *IMAGE, *CONTRAST, *MR, *CT))
)
"""All that a derived series may take over; nothing else of a source, private attributes least of all."""

CODES = {
    "Modality": {"CT", "MR"},
    "PatientPosition": {f"{way}{side}" for way in ("HF", "FF") for side in ("P", "S", "DR", "DL")},
    "PhotometricInterpretation": {"MONOCHROME1", "MONOCHROME2"},
    "ScanningSequence": {"SE", "IR", "GR", "EP", "RM"},
    "SequenceVariant": {"SK", "MTC", "SS", "TRSS", "SP", "MP", "OSP", "TOF", "NONE"},
    "MRAcquisitionType": {"2D", "3D"},
    "ImagedNucleus": {"1H"},
    "RotationDirection": {"CW", "CC"},
    "RescaleType": {"HU"},
    "LossyImageCompression": {"00", "01"},
    "RecognizableVisualFeatures": {"YES", "NO"},
}
"""The coded attributes that stay when a series is de-identified, and the only values of them that do."""

NUMBERS = (
    "RepetitionTime",
    "EchoTime",
    "EchoTrainLength",
    "EchoNumbers",
    "InversionTime",
    "FlipAngle",
    "NumberOfAverages",
    "ImagingFrequency",
    "MagneticFieldStrength",
    "PixelBandwidth",
    "KVP",
    "DataCollectionDiameter",
    "ReconstructionDiameter",
    "TableHeight",
    "ExposureTime",
    "XRayTubeCurrent",
    "Exposure",
    "LossyImageCompressionRatio",
)
"""The numbers that stay when a series is de-identified."""


def carry(source: Any, modality: str, *, nobody: bool) -> Any:
    """A new Dataset with what a derived image takes over from one of its source.

    Values that DICOM does not allow where they stand are left out.

    Args:
        source: the header of a classic object, or :func:`~scorefusion.io.dicom.enhanced.classic_header`'s.
        modality: ``CT`` or ``MR``, whose attributes of acquisition are taken.
        nobody: take only numbers and codes of ``NUMBERS`` and ``CODES``.
    """
    dataset, values = need("pydicom.dataset", "writing DICOM"), need("pydicom.valuerep", "writing DICOM")
    settings, tags = need("pydicom.config", "writing DICOM"), need("pydicom.datadict", "writing DICOM")
    carried, other = dataset.Dataset(), {"MR": set(CT) - set(MR), "CT": set(MR) - set(CT)}[modality]
    for keyword in CARRIED:
        if keyword in other or keyword not in source:
            continue
        try:
            element = source[keyword]
            if element.VR != tags.dictionary_VR(keyword):
                continue
            if element.VR != "SQ":
                for value in _each(element.value):
                    values.validate_value(element.VR, str(value), settings.RAISE)
        except Exception:
            continue
        if element.value and (not nobody or _names_nobody(keyword, element.value)):
            setattr(carried, keyword, element.value)
    return carried


def _each(value: Any) -> list[Any]:
    return list(value) if isinstance(value, MutableSequence) else [value]


def _names_nobody(keyword: str, value: Any) -> bool:
    values = _each(value)
    if keyword in CODES:
        return bool(values) and all(str(each) in CODES[keyword] for each in values)
    if keyword in NUMBERS:
        return all(isinstance(each, int | float) and math.isfinite(each) for each in values)
    return False
