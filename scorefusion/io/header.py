"""What a NIfTI file's header promises, checked before a single voxel is allocated."""

from __future__ import annotations

import gzip
import math
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError

from scorefusion.errors import BadInput, out_of_memory

MAX_VOXELS = 2**30
"""The most voxels a volume may have, in or out, unless the caller says otherwise: 4 GiB in float32."""

_GZIP, _DEFLATE_RATIO, _CHUNK = b"\x1f\x8b", 1032, 2**22
_BEYOND = 2**26
"""Bytes that may follow a volume inside a gzip file; one that goes on and on is a bomb."""

_MAGIC = {348: (b"n+1\0", b"ni1\0"), 540: (b"n+2\0", b"ni2\0")}
_NOT_NIFTI = "Give a NIfTI file (.nii or .nii.gz)."
_DAMAGED = "Copy or download it again."


@dataclass(frozen=True)
class Promise:
    """What the header says is in the file.

    Attributes:
        version: 1 or 2.
        pair: whether the voxels are in a second file, .img.
        compressed: whether the file is gzip-compressed.
        length: bytes from the start of the (uncompressed) file to the end of its voxels; of a pair, of its
            .img.
        header: the header as nibabel reads it.
    """

    version: int
    pair: bool
    compressed: bool
    length: int
    header: Any


def check_header(path: Path, max_voxels: int = MAX_VOXELS) -> Promise:
    """Read the first bytes of a file and see that it can be a volume.

    Raises:
        BadInput: if there is no such file, it is empty, damaged, no NIfTI, not one 3D volume, or its header
            promises more than ``max_voxels`` or more than a file of its size can hold.
    """
    source = _pair_member(path, "img", "hdr")
    if not source.exists():
        raise BadInput(path, "does not exist", "Check the name.")
    if not source.is_file():
        raise BadInput(path, "is not a file", _NOT_NIFTI)
    try:
        size = source.stat().st_size
        with source.open("rb") as file:
            compressed = file.read(2) == _GZIP
        head = _first_bytes(source, compressed)
    except OSError as error:
        if out_of_memory(error):
            raise
        reason = error.strerror or error
        raise BadInput(path, f"cannot be read ({reason})", "Check its permissions.") from None
    if not size:
        raise BadInput(path, "is empty (0 bytes)", _DAMAGED)
    header, pair = _parse(path, head)
    check_shape(path, [int(n) for n in header["dim"][1 : 1 + int(header["dim"][0])]], max_voxels)
    length = _length(path, header)
    voxels = _voxel_file(source, path) if pair else source
    if pair:
        size, compressed = voxels.stat().st_size, voxels.suffix.lower() == ".gz"
    room = (size * _DEFLATE_RATIO) if compressed else size
    if length > room:
        promised = f"its header promises {length:,} bytes"
        if compressed:
            raise BadInput(path, f"{promised}, a gzip file of {size:,} holds at most {room:,}", _DAMAGED)
        raise BadInput(
            path, f"is truncated: {promised}, {voxels.name if pair else 'the file'} has {size:,}", _DAMAGED
        )
    return Promise(2 if isinstance(header, Nifti2Header) else 1, pair, compressed, length, header)


def _pair_member(path: Path, ending: str, other: str) -> Path:
    """The other file of a pair, in the spelling that exists; ``path`` where it has another ending."""
    match = re.fullmatch(rf"(.+)\.({ending})(\.gz)?", path.name, re.I)
    if match is None:
        return path
    other = other.upper() if match[2].isupper() else other
    names = [f"{match[1]}.{other}{match[3] or ''}", f"{match[1]}.{other}{'' if match[3] else '.gz'}"]
    return next((path.with_name(name) for name in names if path.with_name(name).is_file()), path)


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
        raise BadInput(name, f"its header gives impossible dimensions, {text}", _DAMAGED)
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


def read_voxel_bytes(path: Path, promise: Promise) -> bytes:
    """Read as much of a single-file NIfTI as its header promises; a gzip file is read to its checksum.

    Raises:
        BadInput: for a truncated or damaged file.
    """
    try:
        if not promise.compressed:
            with path.open("rb") as file:
                return file.read(promise.length)
        with gzip.open(path, "rb") as stream:
            data = stream.read(promise.length)
            beyond = 0
            while beyond <= _BEYOND and (more := stream.read(_CHUNK)):
                beyond += len(more)
    except (EOFError, zlib.error, OSError) as error:
        if out_of_memory(error):
            raise
        raise _damaged_gzip(path, error) from None
    if beyond > _BEYOND:
        problem = f"goes on for more than {_BEYOND:,} bytes after the {promise.length:,} its header promises"
        raise BadInput(path, problem, _DAMAGED)
    if len(data) < promise.length:
        problem = f"is truncated: its header promises {promise.length:,} bytes, it holds {len(data):,}"
        raise BadInput(path, problem, _DAMAGED)
    return data


def _first_bytes(path: Path, compressed: bool) -> bytes:
    if not compressed:
        with path.open("rb") as file:
            return file.read(540)
    try:
        with gzip.open(path, "rb") as stream:
            return stream.read(540)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged_gzip(path, error) from None


def _damaged_gzip(path: Path, error: Exception) -> BadInput:
    return BadInput(path, f"is a truncated or damaged gzip file ({error})", _DAMAGED)


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
                    raise BadInput(path, f"its header gives {int(header['dim'][0])} dimensions", _DAMAGED)
                return header, magic.startswith(b"ni")
    match = re.fullmatch(r"(.+)\.img(\.gz)?", path.name, re.I)
    if match is not None:
        problem = f"is not a NIfTI file, and its header {match[1]}.hdr is missing"
        raise BadInput(path, problem, "Put the header into the same folder.")
    raise BadInput(path, "is not a NIfTI file", _NOT_NIFTI)


def _length(path: Path, header: Any) -> int:
    offset = float(header["vox_offset"])
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError):
        problem = f"its header names a type of voxels that does not exist, {int(header['datatype'])}"
        raise BadInput(path, problem, _DAMAGED) from None
    if not (math.isfinite(offset) and 0 <= offset < 2**40):
        raise BadInput(path, f"its header places the voxels at byte {offset:g}", _DAMAGED)
    count = math.prod(int(n) for n in header["dim"][1 : 1 + int(header["dim"][0])])
    return int(offset) + count * int(dtype.itemsize)
