"""The kind of a DICOM object, and its images and their positions."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scorefusion.errors import BadInput
from scorefusion.io.dicom.carry import CARRIED, ENHANCED
from scorefusion.io.dicom.file import PRIVATE, pydicom, read_header, reading

_STORAGE = "1.2.840.10008.5.1.4.1.1."
_CLASSIC_MR = f"{_STORAGE}4"
FAMILIES = {
    f"{_STORAGE}{ending}": name
    for name, endings in {"CT": "2 2.1 2.2", "MR": "4 4.1 4.4", "PT": "128 130 128.1", "OT": "7"}.items()
    for ending in endings.split()
}
"""SOP classes that are read: CT, MR and PET Image Storage, classic, enhanced and legacy converted, and
Secondary Capture Image Storage, which research tools write."""

DICOMDIR = "1.2.840.10008.1.3.10"  #: Media Storage Directory Storage: an index of files
OBJECT_TAGS = """
    SOPClassUID Modality ImageType Rows Columns NumberOfFrames SamplesPerPixel PhotometricInterpretation
    BitsAllocated ModalityLUTSequence
""".split()
OBJECT_TAGS += [*PRIVATE]
"""What :func:`obstacle` needs."""

_GROUPS = ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")
_TRAITS = {
    "": """
        EchoTime InversionTime FrameOfReferenceUID PhotometricInterpretation AcquisitionNumber
        TemporalPositionIdentifier TriggerTime
    """,
    "MREchoSequence": "EffectiveEchoTime",
    "MRTimingAndRelatedParametersSequence": "FlipAngle",
    "MRDiffusionSequence": "DiffusionBValue",
    "CTReconstructionSequence": "ConvolutionKernel",
    "FrameContentSequence": "StackID TemporalPositionIndex",
}
"""What distinguishes images at one position, by the functional group of an enhanced object."""

_TAGS = """
    SOPInstanceUID InstanceNumber SeriesNumber SeriesDescription ImagePositionPatient ImageOrientationPatient
    PixelSpacing SliceThickness RescaleSlope RescaleIntercept BitsStored PixelRepresentation
    GantryDetectorTilt
""".split()
_TAGS += [*OBJECT_TAGS, *_GROUPS, *" ".join(_TRAITS.values()).split(), *CARRIED, *ENHANCED]
_PLACELESS = "Export it with its geometry, or convert it to NIfTI with a tool that knows this scanner."


@dataclass(frozen=True, eq=False)
class Frame:
    """One image of a series."""

    file: Path
    index: int  # its number among the file's frames, from 0
    sop_class: str  # SOPClassUID
    sop_instance: str  # SOPInstanceUID
    number: int  # InstanceNumber of the file plus ``index``
    shape: tuple[int, int]  # (rows, columns)
    position: np.ndarray  # float64 ``[3]``, centre of the first pixel in LPS+ millimetres
    orientation: np.ndarray  # float64 ``[2, 3]``, unit vectors along a row and down a column
    spacing: tuple[float, float]  # millimetres from row to row and from column to column
    thickness: float | None  # SliceThickness in millimetres; None if it is not given
    slope: float  # values are stored ones times ``slope`` plus ``intercept``
    intercept: float  # see ``slope``
    stored: np.dtype  # the type of the stored pixels
    traits: dict[str, str]  # what distinguishes images at one position, such as EchoTime
    header: Any  # the attributes that a derived series takes over, and the functional groups

    @property
    def within(self) -> str:
        """Such as ``frame 2`` of a multi-frame object; else empty."""
        return f"frame {self.index + 1}" if frame_count(self.header) > 1 else ""

    @property
    def label(self) -> str:
        """The file's name, with the frame where it has several."""
        return f"{self.file.name} {self.within}".rstrip()


def frames_of(path: Path, max_voxels: int) -> list[Frame]:
    """Read the images of one file, without their pixels; refuse what cannot be part of a volume."""
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


def frame_count(header: Any) -> int:
    """Return NumberOfFrames; 1 where there is none."""
    return int(header.get("NumberOfFrames") or 1)


def obstacle(header: Any) -> str:
    """Return why an object cannot be part of a volume; empty if the ``OBJECT_TAGS`` give no reason."""
    kind = sop_class(header)
    if kind not in FAMILIES:
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
    measures = macro(header, index, "PixelMeasuresSequence")
    thickness = measures.get("SliceThickness") if measures is not None else None
    row, column = _numbers(path, measures, "PixelSpacing", 2)
    if not (row > 0 and column > 0):
        raise BadInput(path, f"has an impossible PixelSpacing ({row:g}, {column:g})", _PLACELESS)
    rescale = macro(header, index, "PixelValueTransformationSequence")
    slope, intercept = (
        default if rescale is None or rescale.get(keyword) is None else float(rescale.get(keyword))
        for keyword, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0))
    )
    if not (math.isfinite(slope) and math.isfinite(intercept) and slope):
        problem = f"has an impossible rescaling (RescaleSlope {slope:g}, RescaleIntercept {intercept:g})"
        raise BadInput(path, problem, "Export it again.")
    position = _numbers(path, macro(header, index, "PlanePositionSequence"), "ImagePositionPatient", 3)
    cosines = _numbers(path, macro(header, index, "PlaneOrientationSequence"), "ImageOrientationPatient", 6)
    axes = cosines.reshape(2, 3)
    lengths = np.linalg.norm(axes, axis=1)
    if np.abs(lengths - 1).max() > 1e-2 or abs(float(axes[0] @ axes[1])) > 1e-2:
        problem = f"has an ImageOrientationPatient of no right angle ({', '.join(f'{c:g}' for c in cosines)})"
        raise BadInput(path, problem, _PLACELESS)
    traits = {"ImageType": "\\".join(_image_type(header))}
    for name, keywords in _TRAITS.items():
        group = macro(header, index, name) if name else header
        for keyword in keywords.split():
            value = None if group is None else group.get(keyword)
            if value is not None and value != "":
                traits[keyword] = f"{float(value):.6g}" if isinstance(value, float) else str(value)
    signed = int(header.get("PixelRepresentation") or 0)
    return Frame(
        file=path,
        index=index,
        sop_class=sop_class(header),
        sop_instance=str(header.get("SOPInstanceUID") or ""),
        number=int(header.get("InstanceNumber") or 0) + index,
        shape=(int(header.Rows), int(header.Columns)),
        position=position,
        orientation=axes / lengths[:, None],
        spacing=(float(row), float(column)),
        thickness=None if thickness is None else float(thickness),
        slope=slope,
        intercept=intercept,
        stored=np.dtype(f"{'i' if signed else 'u'}{int(header.BitsAllocated) // 8}"),
        traits=traits,
        header=header,
    )


def macro(header: Any, index: int, name: str) -> Any:
    """Return a functional group of a frame or of all frames; a classic object's header itself."""
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
