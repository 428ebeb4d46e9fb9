"""One DICOM file, read within bounds: whatever its bytes say, memory stays near the file's own size."""

from __future__ import annotations

import io
import mmap
import os
import stat
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from scorefusion.errors import BadInput, ScoreFusionError
from scorefusion.optional import need

MAX_HEADER = 2**25
"""The most bytes that may stand before the pixels; an enhanced object of 10,000 frames has about as many."""
MAX_ITEMS = 2**18
"""The most sequence items in there; each becomes an object of its own."""

DAMAGED = "Copy or export it again, or take it out of the folder."

_MARK, _MARK_AT = b"DICM", 128
_PIXELS = (0x7FE00010, 0x7FE00009, 0x7FE00008)
_ITEMS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")


def is_dicom(path: Path) -> bool:
    """Whether a path leads to a regular file with the mark ``DICM`` at byte 128.

    Raises:
        BadInput: if it cannot be read.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        with path.open("rb") as file:
            return file.read(_MARK_AT + 4)[_MARK_AT:] == _MARK
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _unreadable(path, error) from None


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever pydicom raises of a file's content inside the block becomes a BadInput that names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ScoreFusionError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:160] or type(error).__name__
        raise BadInput(path, f"is a damaged DICOM file ({said})", DAMAGED) from None


def read_header(path: Path, keywords: Sequence[str]) -> Any:
    """Read some attributes of a file; no pixel is read.

    Args:
        path: a file for which :func:`is_dicom` holds.
        keywords: the attributes that are wanted; sequences come with all that they hold.

    Returns:
        A pydicom Dataset with its ``file_meta``, apart from the file.

    Raises:
        BadInput: for a damaged file, or one whose header is beyond all bounds.
    """
    return _read(path, keywords, MAX_HEADER, pixels=False)


def read_pixels(path: Path, keywords: Sequence[str], promised: int) -> Any:
    """Read some attributes of a file and its undecoded pixels.

    Args:
        path: as for :func:`read_header`.
        keywords: as for :func:`read_header`; the pixels' are among them.
        promised: bytes that the pixels may take at most; a deflated file is inflated so far and no further.

    Raises:
        BadInput: as for :func:`read_header`.
    """
    return _read(path, keywords, MAX_HEADER + promised, pixels=True)


def _read(path: Path, keywords: Sequence[str], bound: int, pixels: bool) -> Any:
    with reading(path):
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                # A map gives no more bytes than there are, however many an element claims.
                length = size if pixels else min(size, MAX_HEADER)
                with closing(mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ)) as data:
                    return _parse(path, data, keywords, bound, pixels)
        except OSError as error:
            if error.errno is None:
                raise ValueError(str(error)) from None
            raise _unreadable(path, error) from None


def _parse(path: Path, data: Any, keywords: Sequence[str], bound: int, pixels: bool) -> Any:
    read_dataset = need("pydicom.filereader", "reading DICOM").read_dataset
    dataset, tags = need("pydicom.dataset", "reading DICOM"), need("pydicom.datadict", "reading DICOM")
    data.seek(_MARK_AT + len(_MARK))
    meta = read_dataset(data, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    syntax = need("pydicom.uid", "reading DICOM").UID(str(meta.get("TransferSyntaxUID", "")))
    if not syntax.is_transfer_syntax or syntax.is_private:
        problem = f"is in a transfer syntax that is not DICOM's own ({str(syntax)[:64]!r})"
        raise BadInput(path, problem, "Convert it to Explicit VR Little Endian first.")
    body = data
    if syntax.is_deflated:
        body = io.BytesIO(_inflated(path, data[data.tell() :], bound, whole=pixels))
    _check_items(path, body)
    found = read_dataset(
        body,
        syntax.is_implicit_VR,
        syntax.is_little_endian,
        stop_when=None if pixels else _at_pixels,
        specific_tags=[tags.tag_for_keyword(keyword) for keyword in keywords],
    )
    for element in found.elements():
        if element.tag not in _PIXELS and 0 < len(getattr(element, "value", b"") or b"") < _length(element):
            raise ValueError("it ends within its header")
    found.file_meta = dataset.FileMetaDataset(meta)
    return found


def _length(element: Any) -> int:
    """Bytes that an element as it was read should have; 0 where it does not say."""
    length = getattr(element, "length", 0)
    return 0 if length == 0xFFFFFFFF else length


def _at_pixels(tag: int, vr: str | None, length: int) -> bool:
    return tag in _PIXELS


def _inflated(path: Path, data: bytes, bound: int, whole: bool) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    plain = inflater.decompress(data, bound)
    if not inflater.eof and not inflater.unconsumed_tail:
        raise ValueError("its deflated data end early")
    if whole and not inflater.eof and inflater.decompress(inflater.unconsumed_tail, 1):
        problem = f"inflates to more than the {bound:,} bytes that its header accounts for"
        raise BadInput(path, problem, DAMAGED)
    return plain


def _check_items(path: Path, data: Any) -> None:
    """Refuse a header of millions of items, eight bytes that become an object of a kilobyte each."""
    place, count = data.tell(), 0
    head = data.read(MAX_HEADER)
    if len(head) > 8 * MAX_ITEMS:
        count = sum(head.count(mark) for mark in _ITEMS)
    if count > MAX_ITEMS:
        raise BadInput(path, f"holds more than {MAX_ITEMS:,} sequence items", DAMAGED)
    data.seek(place)


def _unreadable(path: Path, error: OSError) -> BadInput:
    return BadInput(path, f"cannot be read ({error.strerror or error})", "Check its permissions.")
