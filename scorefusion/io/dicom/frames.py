"""The kind of a DICOM object, and its images and their positions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scorefusion.errors import BadInput
from scorefusion.io.dicom.carry import CARRIED, ENHANCED
from scorefusion.io.dicom.file import PRIVATE, pydicom, read_header, reading

_CLASSIC_MR = "1.2.840.10008.5.1.4.1.1.4"
_FAMILIES = {
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.2.1": "CT",
    "1.2.840.10008.5.1.4.1.1.2.2": "CT",
    _CLASSIC_MR: "MR",
    "1.2.840.10008.5.1.4.1.1.4.1": "MR",
    "1.2.840.10008.5.1.4.1.1.4.4": "MR",
    "1.2.840.10008.5.1.4.1.1.128": "PT",
    "1.2.840.10008.5.1.4.1.1.130": "PT",
    "1.2.840.10008.5.1.4.1.1.128.1": "PT",
    "1.2.840.10008.5.1.4.1.1.7": "OT",
}
"""SOP classes that are read: CT, MR and PET Image Storage, classic, enhanced and legacy converted, and
Secondary Capture Image Storage, which research tools write."""

DICOMDIR = "1.2.840.10008.1.3.10"
"""Media Storage Directory Storage: an index of files."""

OBJECT_TAGS = (
    *("SOPClassUID", "Modality", "ImageType", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel"),
    *("PhotometricInterpretation", "BitsAllocated", "ModalityLUTSequence", *PRIVATE),
)
"""What :func:`obstacle` needs."""

_OWN = ("SOPInstanceUID", "FrameOfReferenceUID", "InstanceNumber", "SeriesNumber", "SeriesDescription")
_PLACE = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness")
_VALUES = ("RescaleSlope", "RescaleIntercept", "BitsStored", "PixelRepresentation", "GantryDetectorTilt")
_GROUPS = ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")
_TRAITS = {
    "EchoTime": "",
    "EffectiveEchoTime": "MREchoSequence",
    "InversionTime": "",
    "FlipAngle": "MRTimingAndRelatedParametersSequence",
    "DiffusionBValue": "MRDiffusionSequence",
    "ConvolutionKernel": "CTReconstructionSequence",
    "StackID": "FrameContentSequence",
    "FrameOfReferenceUID": "",
    "PhotometricInterpretation": "",
    "AcquisitionNumber": "",
    "TemporalPositionIdentifier": "",
    "TemporalPositionIndex": "FrameContentSequence",
    "TriggerTime": "",
}
"""What distinguishes images at one position, each with its functional group in an enhanced object."""

_TAGS = tuple(
    dict.fromkeys((*OBJECT_TAGS, *_OWN, *_PLACE, *_VALUES, *_GROUPS, *_TRAITS, *CARRIED, *ENHANCED))
)
_PLACELESS = "Export it with its geometry, or convert it to NIfTI with a tool that knows this scanner."


@dataclass(frozen=True, eq=False)
class Frame:
    """One image of a series.

    Attributes:
        file: its file.
        index: its number among the file's frames, from 0.
        sop_class: SOPClassUID of the file.
        sop_instance: SOPInstanceUID of the file.
        number: InstanceNumber of the file plus ``index``.
        shape: (rows, columns).
        position: float64 ``[3]``, centre of the first pixel in LPS+ millimetres.
        orientation: float64 ``[2, 3]``, unit vectors along a row and down a column.
        spacing: millimetres from row to row and from column to column.
        thickness: SliceThickness in millimetres; None if it is not given.
        slope: values are stored ones times ``slope`` plus ``intercept``.
        intercept: see ``slope``.
        stored: the type of the stored pixels.
        traits: what distinguishes images at one position, such as EchoTime.
        header: the attributes that a derived series takes over, and the functional groups.
    """

    file: Path
    index: int
    sop_class: str
    sop_instance: str
    number: int
    shape: tuple[int, int]
    position: np.ndarray
    orientation: np.ndarray
    spacing: tuple[float, float]
    thickness: float | None
    slope: float
    intercept: float
    stored: np.dtype
    traits: dict[str, str]
    header: Any

    def macro(self, name: str) -> Any:
        """Return a functional group of this frame or of all frames; a classic object's header itself."""
        return _macro(self.header, self.index, name)

    @property
    def within(self) -> str:
        """Such as ``frame 2`` of a multi-frame object; else empty."""
        return f"frame {self.index + 1}" if frame_count(self.header) > 1 else ""

    @property
    def label(self) -> str:
        """The file's name, with the frame where it has several."""
        return f"{self.file.name} {self.within}".rstrip()


def frames_of(path: Path, max_voxels: int) -> list[Frame]:
    """Read the images of one file, without their pixels.

    Raises:
        BadInput: for an object that cannot be part of a volume, has no position, or claims more than
            ``max_voxels``.
    """
    header = read_header(path, _TAGS)
    with reading(path):
        if problem := obstacle(header):
            raise BadInput(path, problem, "Take it out, or name another series.")
        rows, columns, count = int(header.Rows), int(header.Columns), frame_count(header)
        if count < 1 or rows * columns * count > max_voxels:
            problem = f"claims {count:,} frames of {columns:,} × {rows:,} pixels, more than {max_voxels:,}"
            raise BadInput(path, problem, "Crop or resample it first.")
        groups = header.get(_GROUPS[0])
        if groups is None and count > 1:
            problem = f"holds {count} frames and no place for each (no {_GROUPS[0]})"
            raise BadInput(path, problem, _PLACELESS)
        if groups is not None and len(groups) != count:
            problem = f"claims {count} frames and describes {len(groups)}"
            raise BadInput(path, problem, "Copy or export it again.")
        return [_frame(path, header, index) for index in range(count)]


def sop_class(header: Any) -> str:
    """Return the SOP class of an object, or of the file's meta information where the object has none."""
    return str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or "")


def family(uid: str) -> str | None:
    """Return ``CT``, ``MR``, ``PT`` or ``OT`` for a SOP class that is read, else None."""
    return _FAMILIES.get(uid)


def frame_count(header: Any) -> int:
    """Return NumberOfFrames; 1 where there is none."""
    return int(header.get("NumberOfFrames") or 1)


def obstacle(header: Any) -> str:
    """Return why an object cannot be part of a volume; empty if its header gives no reason.

    Args:
        header: a Dataset with ``OBJECT_TAGS`` and its ``file_meta``.
    """
    kind = sop_class(header)
    if family(kind) is None:
        return f"is no CT, MR or PET image but of SOP class {pydicom('uid').UID(kind).name or 'unknown'}"
    if "LOCALIZER" in _image_type(header):
        return "is a localizer"
    if is_mosaic(header):
        tiles = f" of {_tiles(header)} tiles" if _tiles(header) else ""
        return f"is a Siemens mosaic{tiles}, all slices of a volume in one image: convert it with dcm2niix"
    if not header.get("Rows") or not header.get("Columns"):
        return "has no Rows and Columns, so no image"
    photometric = str(header.get("PhotometricInterpretation") or "")
    if int(header.get("SamplesPerPixel") or 1) != 1 or not photometric.startswith("MONOCHROME"):
        return f"is a colour image ({photometric or 'no PhotometricInterpretation'})"
    if header.get("BitsAllocated") not in (8, 16, 32):
        return f"has pixels of {header.get('BitsAllocated')} bits, not of 8, 16 or 32"
    if header.get("ModalityLUTSequence"):
        return "has its values in a Modality LUT instead of RescaleSlope and RescaleIntercept"
    return ""


def is_mosaic(header: Any) -> bool:
    """Return whether a classic MR object is a mosaic by ImageType or by Siemens' NumberOfImagesInMosaic.

    Enhanced objects of some scanners carry the word although each of their frames is a slice.
    """
    if sop_class(header) != _CLASSIC_MR or frame_count(header) > 1:
        return False
    return "MOSAIC" in _image_type(header) or _tiles(header) > 1


def _tiles(header: Any) -> int:
    """Return Siemens' NumberOfImagesInMosaic, (0019,100a); 0 if missing or another maker's attribute."""
    creator = header.get(PRIVATE["SiemensCreator"])
    element = header.get(PRIVATE["NumberOfImagesInMosaic"])
    if element is None or (creator is not None and "SIEMENS" not in str(creator.value).upper()):
        return 0
    value = element.value
    try:
        return int.from_bytes(value, "little") if isinstance(value, bytes) else int(value or 0)
    except (TypeError, ValueError):
        return 0


def _image_type(header: Any) -> list[str]:
    values = header.get("ImageType") or []
    return [values] if isinstance(values, str) else [str(value) for value in values]


def _frame(path: Path, header: Any, index: int) -> Frame:
    measures = _macro(header, index, "PixelMeasuresSequence")
    thickness = measures.get("SliceThickness") if measures is not None else None
    row, column = _numbers(path, measures, "PixelSpacing", 2)
    if not (row > 0 and column > 0):
        raise BadInput(path, f"has an impossible PixelSpacing ({row:g}, {column:g})", _PLACELESS)
    slope, intercept = _rescale(path, _macro(header, index, "PixelValueTransformationSequence"))
    place = _macro(header, index, "PlanePositionSequence")
    signed = int(header.get("PixelRepresentation") or 0)
    return Frame(
        file=path,
        index=index,
        sop_class=sop_class(header),
        sop_instance=str(header.get("SOPInstanceUID") or ""),
        number=int(header.get("InstanceNumber") or 0) + index,
        shape=(int(header.Rows), int(header.Columns)),
        position=_numbers(path, place, "ImagePositionPatient", 3),
        orientation=_orientation(path, _macro(header, index, "PlaneOrientationSequence")),
        spacing=(float(row), float(column)),
        thickness=None if thickness is None else float(thickness),
        slope=slope,
        intercept=intercept,
        stored=np.dtype(f"{'i' if signed else 'u'}{int(header.BitsAllocated) // 8}"),
        traits=_traits(header, index),
        header=header,
    )


def _macro(header: Any, index: int, name: str) -> Any:
    own, shared = header.get(_GROUPS[0]), header.get(_GROUPS[1])
    if own is None:
        return header
    groups = (group.get(name) for group in (own[index], *(shared or [])[:1]))
    return next((group[0] for group in groups if group), None)


def _numbers(path: Path, place: Any, keyword: str, count: int) -> np.ndarray:
    values = None if place is None else place.get(keyword)
    if values is None or values == "":
        raise BadInput(path, f"has no {keyword}", _PLACELESS)
    numbers = np.array(values, dtype=np.float64).reshape(-1)
    if len(numbers) != count or not np.isfinite(numbers).all() or np.abs(numbers).max() > 1e6:
        raise BadInput(path, f"has an impossible {keyword} ({values})", _PLACELESS)
    return numbers


def _orientation(path: Path, place: Any) -> np.ndarray:
    cosines = _numbers(path, place, "ImageOrientationPatient", 6)
    axes = cosines.reshape(2, 3)
    lengths = np.linalg.norm(axes, axis=1)
    if np.abs(lengths - 1).max() > 1e-2 or abs(float(axes[0] @ axes[1])) > 1e-2:
        problem = f"has an ImageOrientationPatient of no right angle ({', '.join(f'{c:g}' for c in cosines)})"
        raise BadInput(path, problem, _PLACELESS)
    return axes / lengths[:, None]


def _rescale(path: Path, values: Any) -> tuple[float, float]:
    slope, intercept = (
        default if values is None or values.get(keyword) is None else float(values.get(keyword))
        for keyword, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0))
    )
    if not (math.isfinite(slope) and math.isfinite(intercept) and slope):
        problem = f"has an impossible rescaling (RescaleSlope {slope:g}, RescaleIntercept {intercept:g})"
        raise BadInput(path, problem, "Export it again.")
    return slope, intercept


def _traits(header: Any, index: int) -> dict[str, str]:
    traits = {"ImageType": "\\".join(_image_type(header))}
    for keyword, macro in _TRAITS.items():
        place = _macro(header, index, macro) if macro else header
        value = None if place is None else place.get(keyword)
        if value is not None and value != "":
            traits[keyword] = f"{float(value):.6g}" if isinstance(value, float) else str(value)
    return traits
