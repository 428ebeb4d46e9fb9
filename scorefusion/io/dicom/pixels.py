"""Pixels of DICOM files, decoded by pydicom and its plugins once what they claim was checked."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scorefusion.errors import BadInput
from scorefusion.io.dicom.decoder import Decoder, decode_here
from scorefusion.io.dicom.file import DAMAGED, read_pixels, reading, room_of
from scorefusion.io.dicom.frames import Frame
from scorefusion.optional import need

_TAGS = (
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    "PixelData",
)
_DEFLATE_RATIO, _RLE_RATIO = 1032, 64
_JPEG_SIZES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_JPEG_BARE = {0x01, *range(0xD0, 0xD9)}


def check_pixels(frames: Sequence[Frame]) -> None:
    """Find out before anything is allocated whether a file can hold its frames and they can be decoded.

    Args:
        frames: all frames of one file.

    Raises:
        BadInput: for a truncated file, or a compression that nothing here decodes, naming the package.
    """
    path, syntax = frames[0].file, frames[0].header.file_meta.TransferSyntaxUID
    with reading(path):
        promised = _promised(frames)
        room = size = room_of(path)
    if syntax.is_encapsulated:
        _check_decoder(path, syntax)
        room = size * _RLE_RATIO if _is_rle(syntax) else promised
    elif syntax.is_deflated:
        room = size * _DEFLATE_RATIO
    if promised > room:
        problem = f"is truncated: its header promises {promised:,} bytes of pixels, the file has {size:,}"
        raise BadInput(path, problem, DAMAGED)


def decoded(frames: Sequence[Frame], decoder: Decoder) -> Iterator[tuple[Frame, np.ndarray]]:
    """Every frame of one file with its pixels as they are stored, ``[rows, columns]``, one at a time.

    Args:
        frames: all frames of one file.
        decoder: of compressed pixels.

    Raises:
        BadInput: for pixels that are missing, truncated or cannot be decoded.
    """
    path, promised, shape = frames[0].file, _promised(frames), frames[0].shape
    data = read_pixels(path, _TAGS, promised)
    syntax = data.file_meta.TransferSyntaxUID
    _check(path, data, frames)
    if not syntax.is_encapsulated:
        images = decode_here(path, data)
    elif _is_rle(syntax):
        images = decode_here(path, data, decoding_plugin="pydicom")
    else:
        del data
        images = decoder.decode(path, _TAGS, promised, shape)
    for frame in sorted(frames, key=lambda frame: frame.index):
        image = next(images, None)
        if image is None or image.shape != shape:
            found = "nothing" if image is None else image.shape
            raise BadInput(path, f"decodes to {found}, not to {shape} pixels", DAMAGED)
        yield frame, image
    if next(images, None) is not None:
        raise BadInput(path, f"decodes to more than {len(frames)} frames", DAMAGED)


def _check(path: Path, data: Any, frames: Sequence[Frame]) -> None:
    """Look at the pixels before anything decodes them."""
    with reading(path):
        pixels, promised = data.get("PixelData"), _promised(frames)
        if not isinstance(pixels, bytes) or not pixels:
            raise BadInput(path, "has no PixelData", DAMAGED)
        if data.file_meta.TransferSyntaxUID.is_encapsulated:
            _check_codestreams(path, pixels, frames)
        elif len(pixels) < promised:
            problem = f"is truncated: {promised:,} bytes of pixels are promised, {len(pixels):,} are there"
            raise BadInput(path, problem, DAMAGED)


def _is_rle(syntax: Any) -> bool:
    """Whether pydicom decodes it itself."""
    return syntax.name.startswith("RLE")


def _promised(frames: Sequence[Frame]) -> int:
    return len(frames) * math.prod(frames[0].shape) * frames[0].stored.itemsize


def _check_decoder(path: Path, syntax: Any) -> None:
    try:
        decoder = need("pydicom.pixels", "reading DICOM").get_decoder(syntax)
    except NotImplementedError:
        problem = f"is compressed as {syntax.name}, which pydicom does not decode"
        raise BadInput(path, problem, "Decompress it first, by gdcmconv --raw or dcmdjpeg.") from None
    if not decoder.is_available:
        missing = "; ".join(decoder.missing_dependencies).replace("requires gdcm", "requires python-gdcm")
        problem = f"is compressed as {syntax.name}, for which no decoder is installed"
        raise BadInput(path, problem, f"Install one of these with pip: {missing}.")


def _check_codestreams(path: Path, pixels: bytes, frames: Sequence[Frame]) -> None:
    """See that what a decoder will be given is of the size the header says, so that it allocates no more."""
    generate = need("pydicom.encaps", "reading DICOM").generate_frames
    count = 0
    for stream in generate(pixels, number_of_frames=len(frames)):
        count += 1
        size = codestream_size(stream)
        if size is not None and size != frames[0].shape:
            rows, columns = frames[0].shape
            theirs, ours = f"{size[1]} × {size[0]}", f"{columns} × {rows}"
            problem = f"holds a compressed image of {theirs} pixels, its header says {ours}"
            raise BadInput(path, problem, DAMAGED)
    if count != len(frames):
        raise BadInput(path, f"is truncated: {len(frames)} frames are promised, {count} are there", DAMAGED)


def codestream_size(stream: bytes) -> tuple[int, int] | None:
    """(rows, columns) as a JPEG, JPEG-LS or JPEG 2000 stream gives them; None for another, such as RLE."""
    if stream[:2] == b"\xff\xd8":
        return _jpeg_size(stream)
    start = stream.find(b"\xff\x4f\xff\x51") if stream[4:8] == b"jP  " else 0
    if stream[start : start + 4] == b"\xff\x4f\xff\x51":
        right, down, left, top = (
            int.from_bytes(stream[start + at : start + at + 4], "big") for at in (8, 12, 16, 20)
        )
        return down - top, right - left
    return None


def _jpeg_size(stream: bytes) -> tuple[int, int] | None:
    place = 2
    while place + 9 <= len(stream):
        if stream[place] != 0xFF:
            return None
        marker = stream[place + 1]
        if marker == 0xFF:
            place += 1
        elif marker in _JPEG_BARE:
            place += 2
        elif marker in _JPEG_SIZES:
            rows, columns = (int.from_bytes(stream[place + at : place + at + 2], "big") for at in (5, 7))
            return rows, columns
        else:
            place += 2 + max(2, int.from_bytes(stream[place + 2 : place + 4], "big"))
    return None
