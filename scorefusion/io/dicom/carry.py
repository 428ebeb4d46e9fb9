"""What a derived series takes over from its source, what of it identifies nobody, and UIDs and pseudonyms."""

import hashlib
import hmac
import math
import uuid
from collections.abc import Iterable, MutableSequence
from dataclasses import dataclass
from typing import Any

from scorefusion.io.dicom.file import pydicom

_COMMON = """
    PatientName PatientID IssuerOfPatientID PatientBirthDate PatientBirthTime PatientSex PatientAge
    PatientSize PatientWeight PatientIdentityRemoved DeidentificationMethod DeidentificationMethodCodeSequence
    StudyInstanceUID StudyDate StudyTime ReferringPhysicianName StudyID AccessionNumber StudyDescription
    Modality ProtocolName BodyPartExamined Laterality PatientPosition
    Manufacturer InstitutionName StationName ManufacturerModelName DeviceSerialNumber SoftwareVersions
    FrameOfReferenceUID PositionReferenceIndicator
    AcquisitionDate AcquisitionTime AcquisitionNumber ContentDate ContentTime PhotometricInterpretation
    BurnedInAnnotation RecognizableVisualFeatures LossyImageCompression LossyImageCompressionRatio
    LossyImageCompressionMethod ContrastBolusAgent ContrastBolusRoute ContrastBolusVolume
""".split()
"""Of the patient, study, series, equipment, frame of reference, image and contrast agent, line by line."""

_MR = """
    ScanningSequence SequenceVariant ScanOptions MRAcquisitionType SequenceName RepetitionTime EchoTime
    EchoTrainLength EchoNumbers InversionTime FlipAngle NumberOfAverages ImagingFrequency ImagedNucleus
    MagneticFieldStrength PixelBandwidth ReceiveCoilName
""".split()
_CT = """
    ScanOptions KVP DataCollectionDiameter ReconstructionDiameter TableHeight RotationDirection ExposureTime
    XRayTubeCurrent Exposure FilterType ConvolutionKernel RescaleType
""".split()
_OF_THE_OTHER = {"MR": set(_CT) - set(_MR), "CT": set(_MR) - set(_CT)}

CARRIED = tuple(dict.fromkeys((*_COMMON, *_MR, *_CT)))
"""All that a derived series may take over; nothing else of a source, private attributes least of all."""

ENHANCED = """
    EchoPulseSequence InversionRecovery EchoPlanarPulseSequence ResonantNucleus AcquisitionDateTime
""".split()
"""How enhanced objects describe an acquisition outside their functional groups."""

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

NUMBERS = """
    RepetitionTime EchoTime EchoTrainLength EchoNumbers InversionTime FlipAngle NumberOfAverages
    ImagingFrequency MagneticFieldStrength PixelBandwidth KVP DataCollectionDiameter ReconstructionDiameter
    TableHeight ExposureTime XRayTubeCurrent Exposure LossyImageCompressionRatio
""".split()
"""The numbers that stay when a series is de-identified."""


def carry(source: Any, modality: str, *, deidentify: bool) -> Any:
    """Return a new Dataset with what a derived image takes over from an image of its source.

    Left out are values that DICOM does not allow in their attribute and the acquisition's attributes of the
    other modality (``CT`` or ``MR``); with ``deidentify``, all but ``NUMBERS`` and ``CODES``.
    """
    carried = pydicom("dataset").Dataset()
    for keyword in CARRIED:
        if keyword in _OF_THE_OTHER[modality] or keyword not in source:
            continue
        try:
            element = source[keyword]
            if element.VR != pydicom("datadict").dictionary_VR(keyword):
                continue
            for value in _values(element.value) if element.VR != "SQ" else ():
                pydicom("valuerep").validate_value(element.VR, str(value), pydicom("config").RAISE)
        except Exception:
            continue
        if element.value and (not deidentify or _identifies_nobody(keyword, element.value)):
            setattr(carried, keyword, element.value)
    return carried


@dataclass(frozen=True)
class Names:
    """UIDs and pseudonyms as functions of what they replace, so the same source gets the same ones again."""

    hide: bool = False  # whether the source's own UIDs are replaced
    secret: str = ""  # without it, whoever has a source's UIDs can work out the replaced ones

    def new(self, *parts: str) -> str:
        """Return a UID (``2.25.`` and a UUID, PS3.5 B.2) that depends on ``parts`` and the secret alone."""
        return f"2.25.{uuid.UUID(bytes=self._digest(*parts)[:16], version=5).int}"

    def kept(self, uid: str) -> str:
        """Return a UID of the source, or the one that replaces it."""
        return self.new("source", uid) if self.hide else uid

    def patient(self, patient: str, study: str) -> str:
        """Return a pseudonym: of the patient where there is a secret, else of the study.

        There are few enough patient numbers to try them one by one, so that without a secret none is used.
        """
        parts = ("patient", patient) if self.secret and patient else ("study", study)
        return f"SF-{self._digest(*parts).hex()[:16].upper()}"

    def _digest(self, *parts: str) -> bytes:
        text = "\0".join(parts).encode("utf-8", "surrogateescape")
        return hmac.new(self.secret.encode("utf-8"), text, hashlib.sha256).digest()


def decimals(numbers: Iterable[float]) -> list[Any]:
    """Return the nearest numbers that DICOM's decimal strings of 16 characters can hold."""
    decimal = pydicom("valuerep").DSfloat
    return [decimal(float(number), auto_format=True) for number in numbers]


def _values(value: Any) -> list[Any]:
    return list(value) if isinstance(value, MutableSequence) else [value]


def _identifies_nobody(keyword: str, value: Any) -> bool:
    values = _values(value)
    if keyword in CODES:
        return bool(values) and all(str(value) in CODES[keyword] for value in values)
    return keyword in NUMBERS and all(isinstance(v, int | float) and math.isfinite(v) for v in values)
