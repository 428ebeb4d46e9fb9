"""What a DICOM object is, by its header: slices of a volume, or what stands in the way."""

from __future__ import annotations

from typing import Any

from scorefusion.io.dicom.file import PRIVATE

_CLASSIC_MR = "1.2.840.10008.5.1.4.1.1.4"
_SLICES = {
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.2.1": "CT",
    "1.2.840.10008.5.1.4.1.1.2.2": "CT",
    "1.2.840.10008.5.1.4.1.1.4": "MR",
    "1.2.840.10008.5.1.4.1.1.4.1": "MR",
    "1.2.840.10008.5.1.4.1.1.4.4": "MR",
    "1.2.840.10008.5.1.4.1.1.128": "PT",
    "1.2.840.10008.5.1.4.1.1.130": "PT",
    "1.2.840.10008.5.1.4.1.1.128.1": "PT",
    "1.2.840.10008.5.1.4.1.1.7": "OT",
}
"""SOP classes that are read, and of what: CT, MR and PET Image Storage, classic, enhanced and legacy
converted, and Secondary Capture Image Storage, which research tools write."""

DICOMDIR = "1.2.840.10008.1.3.10"
"""Media Storage Directory Storage: an index of files, not one of them."""

KIND_TAGS = (
    "SOPClassUID",
    "Modality",
    "ImageType",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "ModalityLUTSequence",
    *PRIVATE,
)
"""What :func:`obstacle` looks at."""


def sop_class(header: Any) -> str:
    """The SOP class of an object, from the file's meta information where the object itself does not say."""
    return str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or "")


def family(uid: str) -> str | None:
    """``CT``, ``MR``, ``PT`` or ``OT`` for a SOP class that is read, else None."""
    return _SLICES.get(uid)


def obstacle(header: Any) -> str:
    """Why an object cannot be part of a volume; empty where nothing is known against it.

    Args:
        header: a Dataset with ``KIND_TAGS`` and its ``file_meta``.
    """
    from pydicom.uid import UID

    kind = sop_class(header)
    if family(kind) is None:
        return f"is no CT, MR or PET image but of SOP class {UID(kind).name or 'unknown'}"
    if "LOCALIZER" in image_type(header):
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
    """Whether a classic MR object is a mosaic by ImageType or by Siemens' NumberOfImagesInMosaic.

    Enhanced objects of some scanners carry the word although each of their frames is a slice.
    """
    if sop_class(header) != _CLASSIC_MR or frame_count(header) > 1:
        return False
    return "MOSAIC" in image_type(header) or _tiles(header) > 1


def _tiles(header: Any) -> int:
    """Siemens' NumberOfImagesInMosaic, (0019,100a); 0 where it is missing or another maker's attribute."""
    creator = header.get(PRIVATE["SiemensCreator"])
    element = header.get(PRIVATE["NumberOfImagesInMosaic"])
    if element is None or (creator is not None and "SIEMENS" not in str(creator.value).upper()):
        return 0
    value = element.value
    try:
        return int.from_bytes(value, "little") if isinstance(value, bytes) else int(value or 0)
    except (TypeError, ValueError):
        return 0


def image_type(header: Any) -> list[str]:
    """The values of ImageType."""
    values = header.get("ImageType") or []
    return [values] if isinstance(values, str) else [str(value) for value in values]


def frame_count(header: Any) -> int:
    """NumberOfFrames; 1 where there is none."""
    return int(header.get("NumberOfFrames") or 1)
