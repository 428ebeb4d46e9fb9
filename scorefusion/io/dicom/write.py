"""Write a translation as a DICOM series derived from the one it was computed from."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scorefusion._version import __version__
from scorefusion.errors import BadInput, ScoreFusionError
from scorefusion.io.atomic import folder_written_beside
from scorefusion.io.dicom.carry import Names, carry, decimals
from scorefusion.io.dicom.file import PathLike, is_dicom, pydicom, read_header, reading
from scorefusion.io.dicom.frames import FAMILIES, Frame, macro
from scorefusion.io.dicom.read import DicomScan
from scorefusion.io.header import LPS
from scorefusion.io.nifti import corner_distance, fine_affine

if TYPE_CHECKING:
    from scorefusion.pipeline import Translation

_SOP_CLASSES = {"CT": "1.2.840.10008.5.1.4.1.1.2", "MR": "1.2.840.10008.5.1.4.1.1.4"}
_SLICE_NAMES = {"CT": "AXIAL", "MR": "OTHER"}
_EMPTY = """
    PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime StudyID ReferringPhysicianName
    AccessionNumber Manufacturer PatientPosition Laterality PositionReferenceIndicator AcquisitionNumber
""".split()
"""What must be present, with or without a value (type 2)."""
_EMPTY_OF = {
    "MR": ("ScanOptions", "MRAcquisitionType", "RepetitionTime", "EchoTime", "EchoTrainLength"),
    "CT": ("KVP",),
}
_MEASURED = """
    InversionTime EchoNumbers FlipAngle SequenceName NumberOfAverages ScanOptions RepetitionTime EchoTime
    EchoTrainLength ScanningSequence SequenceVariant
""".split()
_METHOD = "scorefusion: only geometry, pixels, acquisition kept"

_CLASSIC = {
    "MRTimingAndRelatedParametersSequence": "RepetitionTime FlipAngle EchoTrainLength",
    "MREchoSequence": "EffectiveEchoTime",
    "MRAveragesSequence": "NumberOfAverages",
    "MRImagingModifierSequence": "TransmitterFrequency PixelBandwidth",
    "CTXRayDetailsSequence": "KVP FilterType",
    "CTAcquisitionDetailsSequence": "DataCollectionDiameter TableHeight RotationDirection",
    "CTReconstructionSequence": "ReconstructionDiameter ConvolutionKernel",
    "FrameAnatomySequence": "BodyPartExamined",
    "PixelValueTransformationSequence": "RescaleType",
}
_RENAMED = {"EffectiveEchoTime": "EchoTime", "TransmitterFrequency": "ImagingFrequency"}
"""Attributes in an enhanced object's functional groups, and those that a classic object names differently."""
_PULSES = {"SPIN": ["SE"], "GRADIENT": ["GR"], "BOTH": ["SE", "GR"]}

_WINDOW = (0.5, 99.5)  # percentiles
_SAMPLED = 100  # voxels along each axis that the window is taken from


@dataclass(frozen=True)
class Rescaling:
    """How a volume is stored: values are stored 16-bit integers times ``slope`` plus ``intercept``."""

    slope: float  # exactly what its shortest decimal text of at most 16 characters says
    intercept: float  # likewise
    dtype: np.dtype  # int16 or uint16
    center: float  # of the window, in values
    width: float  # of the window

    def stored(self, values: np.ndarray) -> np.ndarray:
        """Return integers for ``values`` of any shape, rounded to the nearest."""
        limits = np.iinfo(self.dtype)
        steps = np.rint((values.astype(np.float64) - self.intercept) / self.slope)
        return steps.clip(limits.min, limits.max).astype(self.dtype)


def choose_rescaling(volume: np.ndarray, *, slope: float, intercept: float, dtype: np.dtype) -> Rescaling:
    """Return the source's own rescaling, which is how finely it was measured, if it covers all values.

    Else the range is divided into at most 65,535 steps of two significant decimal digits.
    """
    low, high = float(volume.min()), float(volume.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ScoreFusionError("the volume holds NaN or infinities, which DICOM integers cannot say")
    sampled = volume[tuple(slice(None, None, -(-n // _SAMPLED)) for n in volume.shape)]
    bottom, top = (float(value) for value in np.percentile(sampled, _WINDOW))
    window = {"center": (bottom + top) / 2, "width": max(top - bottom, 1.0)}
    ends = sorted(np.rint((np.array([low, high], np.float64) - intercept) / slope).tolist())
    names = {"i": ("int16", "uint16"), "u": ("uint16", "int16")}.get(dtype.kind, ())
    for kind in map(np.dtype, names):
        if np.iinfo(kind).min <= ends[0] and ends[1] <= np.iinfo(kind).max:
            return Rescaling(slope, intercept, kind, **window)
    # Below a ten-millionth of the values, steps are finer than float32, and the intercept's text too long.
    finest = max((high - low) / 65534, max(abs(low), abs(high)) * 1e-7) or 1.0
    step = Context(prec=2, rounding=ROUND_CEILING).create_decimal(finest)
    start = (Decimal(low) / step).to_integral_value(ROUND_FLOOR) * step
    return Rescaling(float(step), float(start), np.dtype(np.uint16), **window)


@dataclass(frozen=True, eq=False)
class Derivation:
    """What all images of a derived series have in common."""

    translation: Translation
    sources: list[DicomScan]  # the source series, that of the grid first
    names: Names  # how UIDs are made
    series_uid: str  # of the derived series
    modality: str  # ``CT`` or ``MR``
    rescaling: Rescaling  # how values are stored
    explanation: str  # DerivationDescription
    description: str | None  # SeriesDescription, or None

    @property
    def factor(self) -> int:
        """How much finer the grid is along the normal."""
        return self.sources[0].own_factors(self.translation.factor)[2]


def derived_image(derivation: Derivation, k: int) -> Any:
    """Return slice ``k`` of the volume as a classic CT or MR image, without file meta information."""
    names, frames, modality = derivation.names, derivation.sources[0].frames, derivation.modality
    translation, frame = derivation.translation, frames[k // derivation.factor]
    image = carry(classic_header(frame), modality, deidentify=names.hide)
    rising = frames[0].number <= frames[-1].number
    image.SpecificCharacterSet = "ISO_IR 192"
    image.SOPClassUID = _SOP_CLASSES[modality]
    image.InstanceNumber = k + 1 if rising else translation.volume.shape[2] - k
    image.SOPInstanceUID = names.new("instance", derivation.series_uid, str(image.InstanceNumber))
    image.ImageType = ["DERIVED", "SECONDARY", _SLICE_NAMES[modality]]
    _add_identity(image, derivation, frame)
    if modality == "MR":
        if translation.target not in ("", *translation.conditions[:1]):
            # No scanner measured this contrast: not these times and angles, but "research mode".
            for keyword in (keyword for keyword in _MEASURED if keyword in image):
                delattr(image, keyword)
        image.ScanningSequence = image.get("ScanningSequence") or "RM"
        image.SequenceVariant = image.get("SequenceVariant") or "NONE"
    for keyword in (*_EMPTY, *_EMPTY_OF[modality]):
        if keyword not in image:
            setattr(image, keyword, None)
    _add_slice(image, derivation, frame, k)
    _add_origin(image, derivation, frame)
    return image


def classic_header(frame: Frame) -> Any:
    """Return the header of a frame with what classic objects' attributes describe; of a classic one as is."""
    if frame.header.get("SharedFunctionalGroupsSequence") is None:
        return frame.header
    header = pydicom("dataset").Dataset()
    header.update(frame.header)
    for name, keywords in _CLASSIC.items():
        group = macro(frame.header, frame.index, name)
        for keyword in keywords.split() if group is not None else ():
            value = group.get(keyword)
            if value is not None:
                value = decimals([value])[0] if isinstance(value, float) else value
                setattr(header, _RENAMED.get(keyword, keyword), value)
    if pulses := _PULSES.get(str(frame.header.get("EchoPulseSequence") or "")):
        planar = frame.header.get("EchoPlanarPulseSequence") == "YES"
        recovery = frame.header.get("InversionRecovery") == "YES"
        header.ScanningSequence = [*pulses, *["IR"] * recovery, *["EP"] * planar]
    if frame.header.get("ResonantNucleus"):
        header.ImagedNucleus = frame.header.ResonantNucleus
    when = str(frame.header.get("AcquisitionDateTime") or "")
    if len(when) >= 14:
        header.AcquisitionDate = when[:8]
        header.AcquisitionTime = when[8:].partition("+")[0].partition("-")[0]
    return header


def _add_identity(image: Any, derivation: Derivation, frame: Frame) -> None:
    names, header, source = derivation.names, frame.header, derivation.sources[0].series_uid
    study = str(header.get("StudyInstanceUID") or names.new("study", source))
    space = str(header.get("FrameOfReferenceUID") or f"of series {source}")
    known = "FrameOfReferenceUID" in image or names.hide
    image.StudyInstanceUID = names.kept(study)
    image.FrameOfReferenceUID = names.kept(space) if known else names.new("frame of reference", space)
    image.SeriesInstanceUID = derivation.series_uid
    image.SeriesNumber = 1000 + int(header.get("SeriesNumber") or 0) % 1_000_000
    image.Modality = derivation.modality
    own = "" if names.hide else str(header.get("SeriesDescription") or "")
    name = f"scorefusion {derivation.translation.model}".strip()
    image.SeriesDescription = (derivation.description or f"{name} {own}".strip())[:64].strip()
    if names.hide:
        patient = f"{header.get('IssuerOfPatientID') or ''}\0{header.get('PatientID') or ''}"
        image.PatientID = names.patient(patient.strip("\0"), study)
        image.PatientName = f"Anonymous^{image.PatientID}"
        image.PatientIdentityRemoved, image.DeidentificationMethod = "YES", _METHOD
        image.LongitudinalTemporalInformationModified = "REMOVED"


def _add_slice(image: Any, derivation: Derivation, frame: Frame, k: int) -> None:
    affine = LPS @ derivation.translation.affine
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    row, column, normal = (affine[:3, :3] / lengths).T
    position = affine[:3, 3] + k * affine[:3, 2]
    # Finer slices divide the space of the source's; on the source's own grid they are as thick as those.
    thickness = frame.thickness if derivation.factor == 1 and frame.thickness else lengths[2]
    image.ImagePositionPatient = decimals(position)
    image.ImageOrientationPatient = decimals((*row, *column))
    image.PixelSpacing = decimals((lengths[1], lengths[0]))
    image.SliceThickness, image.SpacingBetweenSlices = decimals((thickness, lengths[2]))
    image.SliceLocation = decimals((position @ normal,))[0]
    rescaling = derivation.rescaling
    stored = np.ascontiguousarray(rescaling.stored(derivation.translation.volume[:, :, k]).T)
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
    names = derivation.names
    image.DerivationDescription = derivation.explanation
    image.ContributingEquipmentSequence = [
        _item(
            PurposeOfReferenceCodeSequence=_code("109102", "Processing Equipment"),
            Manufacturer="scorefusion",
            SoftwareVersions=__version__,
            ManufacturerModelName=(derivation.translation.model or "unnamed")[:64],
        )
    ]
    references: dict[str, list[Any]] = defaultdict(list)
    normal = np.cross(*frame.orientation)
    for scan in derivation.sources:
        near = min(scan.frames, key=lambda other: abs(float((other.position - frame.position) @ normal)))
        if near.sop_instance:
            instance = {"ReferencedSOPClassUID": near.sop_class}
            instance["ReferencedSOPInstanceUID"] = names.kept(near.sop_instance)
            references[names.kept(scan.series_uid)].append(instance)
    if references:
        image.ReferencedSeriesSequence = [
            _item(SeriesInstanceUID=uid, ReferencedInstanceSequence=[_item(**item) for item in items])
            for uid, items in references.items()
        ]
        purpose = "121322", "Source image for image processing operation"
        image.SourceImageSequence = [
            _item(**item, PurposeOfReferenceCodeSequence=_code(*purpose))
            for items in references.values()
            for item in items
        ]


def _item(**attributes: Any) -> Any:
    item = pydicom("dataset").Dataset()
    for keyword, value in attributes.items():
        setattr(item, keyword, value)
    return item


def _code(value: str, meaning: str) -> list[Any]:
    return [_item(CodeValue=value, CodingSchemeDesignator="DCM", CodeMeaning=meaning)]


_APART = 1e-3  # mm
_IGNORE = 0  # pydicom's IGNORE: do not warn

IMPLEMENTATION = "2.25.299046374138190811285474829350154103"
"""ImplementationClassUID of the files written here, by which they are recognised."""


@dataclass(frozen=True)
class WrittenSeries:
    """What was written."""

    folder: Path  # where it was written
    series_uid: str  # SeriesInstanceUID
    files: int  # the number of files
    slope: float  # RescaleSlope; a stored value differs from the volume's by at most half of it
    intercept: float  # RescaleIntercept


def save_dicom_series(
    translation: Translation,
    folder: PathLike,
    source: DicomScan | Sequence[DicomScan] | None = None,
    *,
    deidentify: bool = False,
    secret: str = "",
    description: str | None = None,
) -> WrittenSeries:
    """Write a translation as classic single-frame MR or CT images, derived from its source series.

    The folder is written under another name and renamed. UIDs depend on those of the source, on how the
    volume was computed and on its voxels, not on a clock: the same translation gives the same bytes.

    Args:
        translation: of a :class:`DicomScan`.
        folder: the output folder; a series written here before is replaced, any other must be empty.
        source: the series that were translated, that of the grid first; the translation's own by default.
        deidentify: keep only geometry, modality and numbers and codes of the acquisition; UIDs and the
            patient's number become pseudonyms.
        secret: key of the pseudonyms, so that nobody else can work them out; also links a patient's studies
            to each other.
        description: SeriesDescription; None for the model's name before the source's.

    Raises BadInput for a source that is no DICOM series of CT or MR, or whose pixels show burned-in text that
    must not leave; for a folder that holds something else, lies in the source's or cannot be written; for a
    translation on another grid. ScoreFusionError without pydicom.
    """
    sources = _sources(translation, source)
    final = _check_folder(Path(folder), sources)
    scan = sources[0]
    names = Names(hide=deidentify, secret=secret)
    volume, modality = translation.volume, _modality(scan, deidentify)
    rescaling = choose_rescaling(volume, slope=scan.slope, intercept=scan.intercept, dtype=scan.dtype)
    explanation = _explanation(translation, rescaling)
    # All that decides the files' content: two series with one UID are the same bytes.
    identity = [scan.series_uid for scan in sources]
    identity += [f"{frame.sop_instance} {frame.index}" for scan in sources for frame in scan.frames]
    voxels = hashlib.sha256()
    for k in range(volume.shape[2]):
        voxels.update(rescaling.stored(volume[:, :, k]).tobytes())
    identity += [explanation, repr(description), repr(deidentify), voxels.hexdigest()]
    uid = names.new("series", *identity)
    derivation = Derivation(translation, sources, names, uid, modality, rescaling, explanation, description)
    with folder_written_beside(final) as beside:
        for k in range(volume.shape[2]):
            with reading(scan.frames[k // derivation.factor].file):
                image = derived_image(derivation, k)
            image.file_meta = meta = pydicom("dataset").FileMetaDataset()
            meta.TransferSyntaxUID = pydicom("uid").ExplicitVRLittleEndian
            meta.ImplementationClassUID, meta.ImplementationVersionName = IMPLEMENTATION, "SCOREFUSION"
            image.save_as(beside / f"{int(image.InstanceNumber):05d}.dcm", enforce_file_format=True)
    return WrittenSeries(final, uid, volume.shape[2], rescaling.slope, rescaling.intercept)


def _sources(translation: Translation, source: DicomScan | Sequence[DicomScan] | None) -> list[DicomScan]:
    given = translation.source if source is None else source
    sources: list[Any] = [*given] if isinstance(given, Sequence) else [given]
    for scan in sources:
        if not isinstance(scan, DicomScan):
            problem = "is no DICOM series, and a DICOM series can only be derived from one"
            raise BadInput(scan.name, problem, "Translate a DICOM series, or save a NIfTI file.")
        for frame in scan.frames:
            with reading(frame.file):
                study = str(frame.header.get("StudyInstanceUID") or "")
            for uid in (study, scan.series_uid, frame.sop_instance):
                if uid and not pydicom("uid").UID(uid, validation_mode=_IGNORE).is_valid:
                    problem = f"has an impossible UID ({uid!r}), which a derived series would refer to"
                    raise BadInput(frame.file, problem, "Correct it, or save a NIfTI file.")
    if not sources:
        raise ScoreFusionError("a derived series needs the series it is derived from; 'source' is empty")
    first = sources[0]
    factors = first.own_factors(translation.factor)
    shape = tuple(n * factor for n, factor in zip(first.shape, factors, strict=True))
    apart = corner_distance(fine_affine(first.affine, factors), translation.affine, shape)
    if translation.volume.shape != shape or apart > _APART:
        problem = f"has another grid than the translation of {translation.source.name}"
        fix = "Give the series that was translated, the first condition's first."
        raise BadInput(first.name, problem, fix)
    return sources


def _check_folder(folder: Path, sources: Sequence[DicomScan]) -> Path:
    final = folder.resolve()
    for scan in sources:
        searched = scan.folder.resolve()
        inside = searched.is_dir() and final.is_relative_to(searched)
        if inside or any(frame.file.resolve().is_relative_to(final) for frame in scan.frames):
            problem = f"holds the input or lies in its folder ({scan.folder})"
            raise BadInput(folder, problem, "Choose a folder beside it.")
    if not final.exists():
        return folder
    if not final.is_dir():
        raise BadInput(folder, "is a file", "Name a folder for the series.")
    for path in final.iterdir():
        if not path.is_dir() and is_dicom(path):
            meta = read_header(path, ("SOPInstanceUID",)).file_meta
            if str(meta.get("ImplementationClassUID", "")) == IMPLEMENTATION:
                continue
        problem = f"holds other files ({path.name}), which would be lost"
        raise BadInput(folder, problem, "Choose a new folder.")
    return folder


def _modality(scan: DicomScan, deidentify: bool) -> str:
    kinds = {FAMILIES.get(frame.sop_class) for frame in scan.frames}
    modality = kinds.pop() if len(kinds) == 1 else None
    if modality not in ("CT", "MR"):
        problem = f"is a series of {modality or 'several kinds'}; derived ones are written of CT and MR"
        raise BadInput(scan.name, problem, "Save a NIfTI file instead.")
    if deidentify and any(frame.header.get("BurnedInAnnotation") == "YES" for frame in scan.frames):
        problem = "has text burned into its pixels (BurnedInAnnotation YES)"
        problem += ", which de-identifying leaves there"
        raise BadInput(scan.name, problem, "Remove it from the pixels first.")
    return modality


def _explanation(translation: Translation, rescaling: Rescaling) -> str:
    """Return how the volume was computed, in at most 1024 ASCII characters."""
    finer = " x ".join(str(n) for n in translation.factor)
    grid = f"{finer} (z, y, x) voxels for each of the source" if max(translation.factor) > 1 else "same grid"
    contrast = f" ({', '.join(translation.conditions)} to {translation.target})" if translation.target else ""
    samples = "1 sample" if translation.samples == 1 else f"mean of {translation.samples} samples"
    model = f"{translation.model or 'unnamed'}{contrast}"
    text = (
        f"Synthesised by scorefusion {__version__}, model {model}: {grid}; strategy {translation.strategy}, "
        f"solver {translation.solver}, {translation.evaluations} evaluations, {samples}, "
        f"seed {translation.seed}, {translation.dtype}. Each slice was computed from the whole source; the "
        f"image referenced lies where it does. Values rounded to steps of {rescaling.slope:.10g}. "
        f"Not for diagnosis."
    )
    return text.encode("ascii", "replace").decode()[:1024]
