"""Compressed files: recognised by their first bytes, read no further than needed, written without a time."""

from __future__ import annotations

import bz2
import gzip
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from scorefusion.errors import BadInput, ScoreFusionError, out_of_memory
from scorefusion.optional import need

DAMAGED = "Copy or download it again."
BEYOND = 2**26
"""Bytes that may follow a volume inside a compressed file; one that goes on and on is a bomb."""

_CHUNK = 2**22


@dataclass(frozen=True)
class Codec:
    """A compression of files."""

    name: str  # for messages
    ending: str  # of its files
    magic: bytes  # their first bytes
    ratio: int = 0  # the most bytes that one byte of a file may hold; 0 if there is no such bound

    def reader(self, path: Path) -> Any:
        """Open a binary stream of a file's uncompressed content."""
        if self.ending == ".gz":
            return gzip.open(path, "rb")
        return bz2.BZ2File(path) if self.ending == ".bz2" else _zstd().ZstdFile(path, "rb")

    def writer(self, file: Any, level: int = 1) -> Any:
        """Open a binary stream into an open file; ``level`` from 0 to 9."""
        if self.ending == ".gz":
            return gzip.GzipFile("", "wb", level, file, mtime=0)
        if self.ending == ".bz2":
            return bz2.BZ2File(file, "wb", compresslevel=max(1, level))
        return _zstd().ZstdFile(file, "wb", level=level)

    def check(self) -> None:
        """Raise :class:`ScoreFusionError` if the module that it needs is missing."""
        if self.ending == ".zst":
            _zstd()


CODECS = (
    Codec("gzip", ".gz", b"\x1f\x8b", 1032),
    Codec("bzip2", ".bz2", b"BZh"),
    Codec("zstd", ".zst", b"\x28\xb5\x2f\xfd"),
)


def codec_for(name: str) -> Codec | None:
    """Return how a file of this name is to be compressed; None if it is not."""
    return next((codec for codec in CODECS if name.lower().endswith(codec.ending)), None)


@contextmanager
def bad_input(name: str | Path, problem: str, fix: str = DAMAGED) -> Iterator[None]:
    """Turn errors inside the block into a BadInput, ``problem`` with the error's message in parentheses.

    Errors that the user can cause pass, and so do those of memory.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, ScoreFusionError) or out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[-200:] or type(error).__name__
        raise BadInput(name, f"{problem} ({reason})", fix) from None


@contextmanager
def reading(path: Path, codec: Codec | None) -> Iterator[BinaryIO]:
    """Yield a binary stream of a file's uncompressed content; errors inside the block become BadInput too."""
    damaged = "cannot be read" if codec is None else f"is a truncated or damaged {codec.name} file"
    with bad_input(path, damaged, "Check its permissions." if codec is None else DAMAGED):
        try:
            with path.open("rb") if codec is None else codec.reader(path) as stream:
                yield stream
        except OSError as error:
            if error.errno is None or out_of_memory(error):
                raise
            problem = f"cannot be read ({error.strerror or error})"
            raise BadInput(path, problem, "Check its permissions.") from None


def read_first(path: Path, count: int) -> tuple[bytes, Codec | None]:
    """Return at most ``count`` bytes of a file's uncompressed content, and its compression."""
    with reading(path, None) as stream:
        magic = stream.read(4)
    codec = next((codec for codec in CODECS if magic.startswith(codec.magic)), None)
    with reading(path, codec) as stream:
        return stream.read(count), codec


def read_exactly(path: Path, length: int, codec: Codec | None) -> bytes:
    """Return the first ``length`` bytes of a file's content; a compressed file is read to its checksum."""
    beyond = 0
    with reading(path, codec) as stream:
        data = stream.read(length)
        while codec is not None and beyond <= BEYOND and (more := stream.read(_CHUNK)):
            beyond += len(more)
    if beyond > BEYOND:
        problem = f"goes on for more than {BEYOND:,} bytes after the {length:,} its header promises"
        raise BadInput(path, problem, DAMAGED)
    if len(data) < length:
        problem = f"is truncated: its header promises {length:,} bytes, it holds {len(data):,}"
        raise BadInput(path, problem, DAMAGED)
    return data


def check_room(path: Path, length: int, codec: Codec | None) -> None:
    """Check that a file is large enough for what its header promises, before that is allocated."""
    size = path.stat().st_size
    if codec is not None and codec.ratio and length > size * codec.ratio:
        problem = f"its header promises {length:,} bytes, a {codec.name} file of {size:,} holds at most"
        raise BadInput(path, f"{problem} {size * codec.ratio:,}", DAMAGED)
    if codec is None and length > size:
        problem = f"is truncated: its header promises {length:,} bytes, the file has {size:,}"
        raise BadInput(path, problem, DAMAGED)


def _zstd() -> Any:
    module = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    return need(module, "reading and writing .zst files")
