"""The images of a DICOM file, each with its place: a classic object is one, an enhanced one holds many."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scorefusion.errors import BadInput
from scorefusion.io.dicom.carry import CARRIED, ENHANCED
from scorefusion.io.dicom.file import read_header, reading
from scorefusion.io.dicom.kind import KIND_TAGS, frame_count, image_type, obstacle, sop_class

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
_TAGS = tuple(dict.fromkeys((*KIND_TAGS, *_OWN, *_PLACE, *_VALUES, *_GROUPS, *_TRAITS, *CARRIED, *ENHANCED)))

_PLACELESS = "Export it with its geometry, or convert it to NIfTI with a tool that knows this scanner."


@dataclass(frozen=True, eq=False)
class Frame:
    """One image of a series.

    Attributes:
        file: where it is.
        index: which of the file's frames, from 0.
        sop_class: SOPClassUID of the file.
        sop_instance: SOPInstanceUID of the file.
        number: InstanceNumber of the file plus ``index``.
        shape: (rows, columns).
        position: float64 ``[3]``, centre of the first pixel in millimetres (to the left, back and head).
        orientation: float64 ``[2, 3]``, unit vectors along a row and down a column.
        spacing: millimetres from row to row and from column to column.
        thickness: SliceThickness in millimetres; None where it is not told.
        slope: values are stored ones times ``slope`` plus ``intercept``.
        intercept: see ``slope``.
        stored: the type of the stored pixels.
        traits: what tells images at one place apart, such as EchoTime.
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
        """The functional group of this frame, or of all; the object itself where it is classic."""
        return _macro(self.header, self.index, name)


def frames_of(path: Path, max_voxels: int) -> list[Frame]:
    """The images of one file, by their headers.

    Raises:
        BadInput: for an object that cannot be part of a volume, or says nothing of its place, or claims more
            than ``max_voxels``.
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


def _frame(path: Path, header: Any, index: int) -> Frame:
    measures = _macro(header, index, "PixelMeasuresSequence")
    values = _macro(header, index, "PixelValueTransformationSequence")
    place = _macro(header, index, "PlanePositionSequence")
    turn = _macro(header, index, "PlaneOrientationSequence")
    thickness = measures.get("SliceThickness") if measures is not None else None
    row, column = _numbers(path, measures, "PixelSpacing", 2)
    if not (row > 0 and column > 0):
        raise BadInput(path, f"has an impossible PixelSpacing ({row:g}, {column:g})", _PLACELESS)
    slope, intercept = _rescale(path, values)
    signed = int(header.get("PixelRepresentation") or 0)
    return Frame(
        file=path,
        index=index,
        sop_class=sop_class(header),
        sop_instance=str(header.get("SOPInstanceUID") or ""),
        number=int(header.get("InstanceNumber") or 0) + index,
        shape=(int(header.Rows), int(header.Columns)),
        position=_numbers(path, place, "ImagePositionPatient", 3),
        orientation=_orientation(path, _numbers(path, turn, "ImageOrientationPatient", 6)),
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
    for place in (own[index], *(shared or [])[:1]):
        if found := place.get(name):
            return found[0]
    return None


def _numbers(path: Path, place: Any, keyword: str, count: int) -> np.ndarray:
    values = None if place is None else place.get(keyword)
    if values is None or values == "":
        raise BadInput(path, f"has no {keyword}", _PLACELESS)
    numbers = np.array(values, dtype=np.float64).reshape(-1)
    if len(numbers) != count or not np.isfinite(numbers).all() or np.abs(numbers).max() > 1e6:
        raise BadInput(path, f"has an impossible {keyword} ({values})", _PLACELESS)
    return numbers


def _orientation(path: Path, cosines: np.ndarray) -> np.ndarray:
    turn = cosines.reshape(2, 3)
    lengths = np.linalg.norm(turn, axis=1)
    if np.abs(lengths - 1).max() > 1e-2 or abs(float(turn[0] @ turn[1])) > 1e-2:
        problem = f"has an ImageOrientationPatient of no right angle ({', '.join(f'{c:g}' for c in cosines)})"
        raise BadInput(path, problem, _PLACELESS)
    return turn / lengths[:, None]


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
    traits = {"ImageType": "\\".join(image_type(header))}
    for keyword, macro in _TRAITS.items():
        place = _macro(header, index, macro) if macro else header
        value = None if place is None else place.get(keyword)
        if value is not None and value != "":
            traits[keyword] = f"{float(value):.6g}" if isinstance(value, float) else str(value)
    return traits
