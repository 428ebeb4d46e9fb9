"""What a NIfTI file's header promises, checked before a single voxel is allocated."""

from __future__ import annotations

import math
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError
from nibabel.spm2analyze import Spm2AnalyzeHeader

from scorefusion.errors import BadInput
from scorefusion.io.compressed import DAMAGED, Codec, check_room, codec_of, read_first
from scorefusion.io.placeholders import check_fetched

MAX_VOXELS = 2**30
"""The most voxels a volume may have, in or out, unless the caller says otherwise: 4 GiB in float32."""

_MAGIC = {348: (b"n+1\0", b"ni1\0"), 540: (b"n+2\0", b"ni2\0")}
_NOT_NIFTI = "Give a NIfTI file (.nii or .nii.gz)."
_CONVERSIONS = {
    (".mif", ".mif.gz", ".mih"): "Convert it: mrconvert {file} {stem}.nii.gz",
    (".head", ".brik", ".brik.gz"): "Convert it: 3dAFNItoNIFTI -prefix {stem}.nii.gz {file}",
    (".mnc", ".mnc.gz"): "Convert it: mnc2nii {file} {stem}.nii",
    (".par", ".rec"): "Convert it: parrec2nii --compressed {file}",
    (".dcm", ".ima"): "Give its folder, and a folder for the output, or convert it: dcm2niix {folder}",
    (".nii.xz",): "Decompress it: xz -dk {file}",
    (".zip", ".tar", ".tar.gz", ".tgz", ".7z"): "Unpack it, and give what is inside.",
}
"""Endings of volumes that are not read, and what makes one of them that is."""


@dataclass(frozen=True)
class Promise:
    """What the header says is in the file.

    Attributes:
        version: 1 or 2; 0 for Analyze 7.5.
        pair: whether the voxels are in a second file, .img.
        codec: how the file of the voxels is compressed; None if it is not.
        length: bytes from the start of the (uncompressed) file to the end of its voxels; of a pair, of its
            .img.
        header: the header as nibabel reads it.
        file: the file of the header.
        voxels: the file of the voxels.
    """

    version: int
    pair: bool
    codec: Codec | None
    length: int
    header: Any
    file: Path
    voxels: Path


def check_header(path: Path, max_voxels: int = MAX_VOXELS) -> Promise:
    """Read the first bytes of a file and see that it can be a volume.

    Raises:
        BadInput: if there is no such file, it is empty, damaged, no NIfTI, not one 3D volume, or its header
            promises more than ``max_voxels`` or more than a file of its size can hold.
    """
    check_fetched(path)
    source = _pair_member(path, "img", "hdr")
    if not source.exists():
        raise BadInput(path, "does not exist", "Check the name.")
    if not source.is_file():
        raise BadInput(path, "is not a file", _NOT_NIFTI)
    if source != path:
        check_fetched(source)
    head, codec = read_first(source, 540)
    if not source.stat().st_size:
        raise BadInput(path, "is empty (0 bytes)", DAMAGED)
    header, pair = _parse(path, head)
    check_shape(path, [int(n) for n in header["dim"][1 : 1 + int(header["dim"][0])]], max_voxels)
    version = 2 if isinstance(header, Nifti2Header) else int(isinstance(header, Nifti1Header))
    length = _length(path, header)
    check_voxel_type(path, header.get_data_dtype())
    voxels = source
    if pair:
        voxels = _voxel_file(source, path)
        check_fetched(voxels)
        codec = codec_of(voxels)
    check_room(voxels, length, codec)
    return Promise(version, pair, codec, length, header, source, voxels)


def _pair_member(path: Path, ending: str, other: str) -> Path:
    """The other file of a pair, in the spelling that exists; ``path`` where it has another ending."""
    match = re.fullmatch(rf"(.+)\.({ending})(\.gz)?", path.name, re.I)
    if match is None:
        return path
    other = other.upper() if match[2].isupper() else other
    names = [f"{match[1]}.{other}{match[3] or ''}", f"{match[1]}.{other}{'' if match[3] else '.gz'}"]
    return next((path.with_name(name) for name in names if os.path.lexists(path.with_name(name))), path)


def _voxel_file(header: Path, path: Path) -> Path:
    voxels = _pair_member(header, "hdr", "img")
    if voxels == header:
        stem = re.sub(r"\.hdr(\.gz)?$", "", header.name, flags=re.I)
        raise BadInput(
            path, f"its voxels are missing: there is no {stem}.img", "Put that file into the folder."
        )
    return voxels


def check_shape(name: str | Path, shape: list[int], max_voxels: int) -> tuple[int, int, int]:
    """See that a header's dimensions are those of one 3D volume of bearable size.

    Returns:
        (x, y, z) in the file's own order.

    Raises:
        BadInput: naming the dimensions.
    """
    text = " × ".join(str(n) for n in shape)
    if any(n < 1 for n in shape):
        raise BadInput(name, f"its header gives impossible dimensions, {text}", DAMAGED)
    if len(shape) > 3 and any(n > 1 for n in shape[3:]):
        raise BadInput(
            name, f"holds several frames ({text}); one 3D volume is expected", "Extract one frame first."
        )
    if len(shape) < 3 or min(shape[:3]) < 2:
        raise BadInput(name, f"is not three-dimensional ({text})", "Give a 3D volume.")
    if math.prod(shape) > max_voxels:
        raise BadInput(
            name, f"its header promises {text} voxels, more than {max_voxels:,}", "Crop or resample it first."
        )
    return shape[0], shape[1], shape[2]


def check_voxel_type(name: str | Path, dtype: np.dtype) -> None:
    """Check that voxels are single real numbers.

    Raises:
        BadInput: naming what they are, and what to save instead.
    """
    if dtype.names is not None:
        colours = "".join(dtype.names)
        fix = "Save one channel, or the mean of red, green and blue, as a grey volume first."
        raise BadInput(name, f"holds colours ({colours}), not one number for each voxel", fix)
    if dtype.kind == "c":
        fix = "Save its magnitude first, such as numpy.abs of its voxels."
        raise BadInput(name, f"holds complex numbers ({dtype}), not real numbers", fix)
    if dtype.kind not in "iuf":
        raise BadInput(name, f"holds {dtype} voxels, not real numbers", "Convert it to floats first.")


def check_contrast(name: str | Path, values: np.ndarray) -> None:
    """Check that voxels differ.

    Raises:
        BadInput: naming their one value.
    """
    if values.min() == values.max():
        value = float(values.flat[0])
        raise BadInput(name, f"is constant: every voxel is {value:g}", "Give a volume with contrast.")


def _parse(path: Path, head: bytes) -> tuple[Any, bool]:
    """The header object, unchecked, and whether the voxels are in an .img file."""
    for order in ("<", ">"):
        length = int(np.frombuffer(head[:4].ljust(4, b"\0"), order + "i4")[0])
        if length in _MAGIC and len(head) >= length:
            magic = head[344:348] if length == 348 else head[4:8]
            if magic in _MAGIC[length]:
                kind = Nifti1Header if length == 348 else Nifti2Header
                header = kind(head[:length], endianness=order, check=False)
                if not 1 <= int(header["dim"][0]) <= 7:
                    raise BadInput(path, f"its header gives {int(header['dim'][0])} dimensions", DAMAGED)
                return header, magic.startswith(b"ni")
            if length == 348 and re.search(r"\.(hdr|img)(\.gz)?$", path.name, re.I):
                analyze = Spm2AnalyzeHeader(head[:348], endianness=order, check=False)
                if not 1 <= int(analyze["dim"][0]) <= 7:
                    raise BadInput(path, f"its header gives {int(analyze['dim'][0])} dimensions", DAMAGED)
                return analyze, True
    match = re.fullmatch(r"(.+)\.img(\.gz)?", path.name, re.I)
    if match is not None:
        header_file = _pair_member(path, "img", "hdr")
        if header_file != path:
            raise BadInput(header_file, "is not a NIfTI or Analyze header", DAMAGED)
        problem = f"is not a NIfTI file, and its header {match[1]}.hdr is missing"
        raise BadInput(path, problem, "Put the header into the same folder.")
    raise BadInput(path, "is not a NIfTI file", _conversion(path) or _NOT_NIFTI)


def _conversion(path: Path) -> str:
    """The command that makes a NIfTI file of one of another format, by its ending; empty if none is known."""
    for endings, fix in _CONVERSIONS.items():
        ending = next((ending for ending in endings if path.name.lower().endswith(ending)), None)
        if ending is not None:
            stem, folder = str(path)[: -len(ending)], str(path.parent)
            file, stem, folder = (shlex.quote(text) for text in (str(path), stem, folder))
            return fix.format(file=file, stem=stem, folder=folder).rstrip(".") + "."
    return ""


def _length(path: Path, header: Any) -> int:
    offset = float(header["vox_offset"])
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError):
        problem = f"its header names a type of voxels that does not exist, {int(header['datatype'])}"
        raise BadInput(path, problem, DAMAGED) from None
    if not (math.isfinite(offset) and 0 <= offset < 2**40):
        raise BadInput(path, f"its header places the voxels at byte {offset:g}", DAMAGED)
    count = math.prod(int(n) for n in header["dim"][1 : 1 + int(header["dim"][0])])
    return int(offset) + count * int(dtype.itemsize)
