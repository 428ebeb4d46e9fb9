"""One DICOM file, read within bounds: whatever its bytes say, memory stays near the file's own size."""

from __future__ import annotations

import gzip
import io
import mmap
import os
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from scorefusion.errors import BadInput, ScoreFusionError, out_of_memory
from scorefusion.optional import need

MAX_HEADER = 2**25
"""The most bytes that may stand before the pixels; an enhanced object of 10,000 frames has about as many."""
MAX_ITEMS = 2**18
"""The most sequence items in there; each becomes an object of its own."""

DAMAGED = "Copy or export it again, or take it out of the folder."

PRIVATE = {"SiemensCreator": 0x00190010, "NumberOfImagesInMosaic": 0x0019100A}
"""Tags of the private attributes that may be read, by the names used here."""

_MARK, _MARK_AT = b"DICM", 128
_GZIP, _DEFLATE_RATIO = b"\x1f\x8b", 1032
_HEAD = 1024
_PIXELS = (0x7FE00010, 0x7FE00009, 0x7FE00008)
_ITEMS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
_SHORT = b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split()
_LONG = b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split()
_SYNTAXES = {
    (True, True): "1.2.840.10008.1.2",
    (False, True): "1.2.840.10008.1.2.1",
    (False, False): "1.2.840.10008.1.2.2",
}
"""The transfer syntax of data elements by (implicit VR, little endian)."""
_POINTERS = {
    b"version https://git-lfs": "is a pointer of Git LFS to a file that is not fetched (git lfs pull)",
    b"/annex/objects/": "is a pointer of git-annex to a file that is not fetched (git annex get)",
}


def is_dicom(path: Path) -> bool:
    """Whether a path leads to a DICOM file by its content, with or without preamble, or one in gzip.

    Raises:
        BadInput: if it cannot be read.
    """
    return not why_not_dicom(path)


def why_not_dicom(path: Path) -> str:
    """Why a path does not lead to a DICOM file, such as ``is empty (0 bytes)``; empty where it does.

    Raises:
        BadInput: if it cannot be read.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            return "is not a regular file"
        with path.open("rb") as file:
            head = file.read(_HEAD)
        if _is_packed(head):
            head = zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(head, _HEAD)
    except FileNotFoundError:
        annexed = path.is_symlink() and "annex/objects" in Path(os.readlink(path)).as_posix()
        return "is a link that leads nowhere" + " (git annex get fetches its file)" * annexed
    except zlib.error:
        return "is a damaged gzip file"
    except OSError as error:
        raise _unreadable(path, error) from None
    if not status.st_size:
        return "is empty (0 bytes)"
    if _start(head) is not None:
        return ""
    return next((told for mark, told in _POINTERS.items() if head.startswith(mark)), "is not a DICOM file")


def room_of(path: Path) -> int:
    """The most bytes that a file can hold: its size, or what gzip can make of it."""
    with path.open("rb") as file:
        packed = _is_packed(file.read(_HEAD))
        return os.fstat(file.fileno()).st_size * (_DEFLATE_RATIO if packed else 1)


def _is_packed(head: bytes) -> bool:
    return head.startswith(_GZIP) and not head[_MARK_AT:].startswith(_MARK)


def _start(head: bytes) -> int | None:
    """Where a file's data elements begin; None if it is not DICOM."""
    if head[_MARK_AT:].startswith(_MARK):
        return _MARK_AT + len(_MARK)
    if head.startswith(_MARK):
        return len(_MARK)
    return None if _encoding(head) is None else 0


def _encoding(head: bytes) -> tuple[bool, bool] | None:
    """(implicit VR, little endian) of data elements at the start of ``head``; None if there are none."""
    return next(
        (encoding for encoding in ((False, True), (True, True), (False, False)) if _holds(head, *encoding)),
        None,
    )


def _holds(head: bytes, implicit: bool, little: bool) -> bool:
    """Whether ``head`` begins with two data elements of the first groups of an object, in rising order."""
    order, place, last = "<" if little else ">", 0, -1
    for first in (True, False):
        if place + 12 > len(head):
            return False
        group, element, length = struct.unpack_from(f"{order}HHI", head, place)
        tag, vr, size = group << 16 | element, head[place + 4 : place + 6], 8
        if vr in _SHORT and not implicit:
            length = struct.unpack_from(f"{order}H", head, place + 6)[0]
        elif vr in _LONG and not implicit:
            length, size = struct.unpack_from(f"{order}I", head, place + 8)[0], 12
        elif not implicit:
            return False
        if tag <= last or (first and group not in (2, 4, 8)) or (not first and group > 0x20):
            return False
        if first and (length % 2 or length > len(head)):
            return False
        last, place = tag, place + size + length
    return True


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
        if out_of_memory(error):
            raise
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
                if _is_packed(file.read(_HEAD)):
                    with gzip.open(path, "rb") as stream:
                        plain = stream.read(bound)
                        if len(plain) < bound:
                            stream.read(1)  # an error where the file is cut
                    return _parse(path, io.BytesIO(plain), keywords, bound, pixels)
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
    head = data.read(_HEAD)
    start = _start(head) or 0
    meta = dataset.Dataset()
    data.seek(start)
    if head[start : start + 2] == b"\x02\x00":
        meta = read_dataset(data, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    if not meta.get("TransferSyntaxUID"):
        place = data.tell()
        guessed = _encoding(data.read(_HEAD))
        data.seek(place)
        if guessed is not None:
            meta.TransferSyntaxUID = _SYNTAXES[guessed]
    syntax = need("pydicom.uid", "reading DICOM").UID(str(meta.get("TransferSyntaxUID", "")))
    if not syntax:
        raise BadInput(path, "names no transfer syntax and holds no data elements that show it", DAMAGED)
    if not syntax.is_transfer_syntax or syntax.is_private:
        problem = f"is in a transfer syntax that is not DICOM's own ({str(syntax)[:64]!r})"
        raise BadInput(path, problem, "Convert it to Explicit VR Little Endian first.")
    body = data
    if syntax.is_deflated:
        body = io.BytesIO(_inflated(path, data.read(), bound, whole=pixels))
    _check_items(path, body)
    found = read_dataset(
        body,
        syntax.is_implicit_VR,
        syntax.is_little_endian,
        stop_when=None if pixels else _at_pixels,
        specific_tags=[PRIVATE.get(keyword) or tags.tag_for_keyword(keyword) for keyword in keywords],
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
