"""One DICOM file, read within bounds: whatever its bytes say, memory stays near the file's own size."""

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

from scorefusion.errors import BadInput
from scorefusion.io.header import bad_input, readable
from scorefusion.optional import need

PathLike = str | os.PathLike[str]

MAX_HEADER = 2**25  #: the most bytes before the pixels, about those of an enhanced object of 10,000 frames
MAX_ITEMS = 2**18  #: the most sequence items in a header; each becomes a Python object
DAMAGED = "Copy or export it again, or take it out of the folder."

PRIVATE = {"SiemensCreator": 0x00190010, "NumberOfImagesInMosaic": 0x0019100A}
"""Tags of the private attributes that may be read, by the names used here."""

_MARK, _MARK_AT = b"DICM", 128
_GZIP, DEFLATE_RATIO = b"\x1f\x8b", 1032
_HEAD = 1024
_PIXELS = (0x7FE00010, 0x7FE00009, 0x7FE00008)
_ITEMS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
_SHORT = b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split()
_LONG = b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split()
_SYNTAXES: dict[tuple[bool, bool] | None, str] = {
    (True, True): "1.2.840.10008.1.2",
    (False, True): "1.2.840.10008.1.2.1",
    (False, False): "1.2.840.10008.1.2.2",
}
"""The transfer syntax of data elements by (implicit VR, little endian)."""
_POINTERS = {
    b"version https://git-lfs": "is a pointer of Git LFS to a file that is not fetched (git lfs pull)",
    b"/annex/objects/": "is a pointer of git-annex to a file that is not fetched (git annex get)",
}


def pydicom(module: str) -> Any:
    """Import a module of pydicom, such as ``dataset``, or raise an error that names the extra."""
    return need(f"pydicom.{module}", "reading and writing DICOM")


def is_dicom(path: Path) -> bool:
    """Return whether a path leads to a DICOM file by its content, with or without preamble or gzip."""
    return not why_not_dicom(path)


def why_not_dicom(path: Path) -> str:
    """Return why a path does not lead to a DICOM file, such as ``is empty (0 bytes)``; empty if it does."""
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
        problem = f"cannot be read ({error.strerror or error})"
        raise BadInput(path, problem, "Check its permissions.") from None
    if not status.st_size:
        return "is empty (0 bytes)"
    if _start(head) is not None:
        return ""
    pointers = (reason for mark, reason in _POINTERS.items() if head.startswith(mark))
    return next(pointers, "is not a DICOM file")


def capacity(path: Path) -> int:
    """Return the most bytes that a file can hold: its size, or what gzip can make of it."""
    with path.open("rb") as file:
        packed = _is_packed(file.read(_HEAD))
        return os.fstat(file.fileno()).st_size * (DEFLATE_RATIO if packed else 1)


def _is_packed(head: bytes) -> bool:
    return head.startswith(_GZIP) and not head[_MARK_AT:].startswith(_MARK)


def _start(head: bytes) -> int | None:
    """Return where a file's data elements begin; None if it is not DICOM."""
    if head[_MARK_AT:].startswith(_MARK):
        return _MARK_AT + len(_MARK)
    if head.startswith(_MARK):
        return len(_MARK)
    return None if _encoding(head) is None else 0


def _encoding(head: bytes) -> tuple[bool, bool] | None:
    """Return (implicit VR, little endian) of the data elements at the start of ``head``; None without any."""
    encodings = ((False, True), (True, True), (False, False))
    return next((encoding for encoding in encodings if _has_elements(head, *encoding)), None)


def _has_elements(head: bytes, implicit: bool, little: bool) -> bool:
    """Return whether ``head`` begins with two data elements of an object's first groups, in rising order."""
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
    """Turn whatever pydicom raises inside the block into a BadInput that names the file."""
    with warnings.catch_warnings(), bad_input(path, "is a damaged DICOM file", DAMAGED):
        warnings.simplefilter("ignore")
        yield


def read_header(path: Path, keywords: Sequence[str]) -> Any:
    """Return a Dataset of the named attributes and its ``file_meta``; no pixel is read."""
    return _read(path, keywords, MAX_HEADER, pixels=False)


def read_pixels(path: Path, keywords: Sequence[str], promised: int) -> Any:
    """Return a Dataset of the named attributes, also of at most ``promised`` bytes of undecoded pixels."""
    return _read(path, keywords, MAX_HEADER + promised, pixels=True)


def _read(path: Path, keywords: Sequence[str], bound: int, pixels: bool) -> Any:
    with reading(path), readable(path), path.open("rb") as file:
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


def _parse(path: Path, data: Any, keywords: Sequence[str], bound: int, pixels: bool) -> Any:
    dataset, read_dataset = pydicom("dataset"), pydicom("filereader").read_dataset
    head = data.read(_HEAD)
    start = _start(head) or 0
    meta = dataset.Dataset()
    data.seek(start)
    if head[start : start + 2] == b"\x02\x00":
        meta = read_dataset(data, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    if not meta.get("TransferSyntaxUID"):
        place = data.tell()
        meta.TransferSyntaxUID = _SYNTAXES.get(_encoding(data.read(_HEAD)), "")
        data.seek(place)
    syntax = pydicom("uid").UID(str(meta.get("TransferSyntaxUID", "")))
    if not syntax:
        raise BadInput(path, "names no transfer syntax and holds no data elements that show it", DAMAGED)
    if not syntax.is_transfer_syntax or syntax.is_private:
        problem = f"is in a transfer syntax that is not DICOM's own ({str(syntax)[:64]!r})"
        raise BadInput(path, problem, "Convert it to Explicit VR Little Endian first.")
    body = data
    if syntax.is_deflated:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        body = io.BytesIO(inflater.decompress(data.read(), bound))
        if not inflater.eof and not inflater.unconsumed_tail:
            raise ValueError("its deflated data end early")
        if pixels and not inflater.eof and inflater.decompress(inflater.unconsumed_tail, 1):
            problem = f"inflates to more than the {bound:,} bytes that its header accounts for"
            raise BadInput(path, problem, DAMAGED)
    place, header = body.tell(), body.read(MAX_HEADER)
    # Millions of items, each of eight bytes, would become objects of a kilobyte each.
    if len(header) > 8 * MAX_ITEMS and sum(header.count(mark) for mark in _ITEMS) > MAX_ITEMS:
        raise BadInput(path, f"holds more than {MAX_ITEMS:,} sequence items", DAMAGED)
    body.seek(place)
    tag_of = pydicom("datadict").tag_for_keyword
    tags = [PRIVATE.get(keyword) or tag_of(keyword) for keyword in keywords]
    implicit, little = syntax.is_implicit_VR, syntax.is_little_endian
    stop = None if pixels else lambda tag, vr, length: tag in _PIXELS
    header = read_dataset(body, implicit, little, stop_when=stop, specific_tags=tags)
    for element in header.elements():
        length = getattr(element, "length", 0)  # of an element as it was read; 0xFFFFFFFF where undefined
        defined = element.tag not in _PIXELS and length != 0xFFFFFFFF
        if defined and 0 < len(getattr(element, "value", b"") or b"") < length:
            raise ValueError("it ends within its header")
    header.file_meta = dataset.FileMetaDataset(meta)
    return header
