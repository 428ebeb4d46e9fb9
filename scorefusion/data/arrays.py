"""Arrays on disk that are whole or not there, with a checksum beside each; shared by processes."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from scorefusion.errors import BadInput, out_of_memory
from scorefusion.io.atomic import written_beside

AGAIN = "Remove it; it will be made again."


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an array, and a ``.crc`` file with its checksum, size and time of change.

    The checksum comes first: whoever finds the array finds that, too.

    Args:
        path: ends in ``.npy``.
        array: any.

    Raises:
        BadInput: if it cannot be written.
    """
    with written_beside(path) as beside:
        np.save(beside, array)
        _note(path, _checksum(array), beside.stat())


def open_array(path: Path) -> np.ndarray:
    """Map an array that :func:`write_array` wrote.

    It is read and its checksum compared only if its size or time of change is not what was noted: after a
    copy, or when something wrote to it. (A checksum runs at 3.5 GB/s; what it costs is reading all of a store
    from the disk at every start.)

    Raises:
        BadInput: if it is not what was written.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        told, *stamp = path.with_suffix(".crc").read_text(encoding="utf-8").split()
        checksum, status = int(told, 16), path.stat()
    except (OSError, EOFError, ValueError) as error:
        if out_of_memory(error):
            raise
        raise BadInput(path, f"cannot be used ({error})", AGAIN) from None
    if stamp != _stamp(status):
        if _checksum(array) != checksum:
            raise BadInput(path, "is damaged: its checksum differs", AGAIN)
        _note(path, checksum, status)
    return array


@contextmanager
def locked(folder: Path, name: str, *, wait: bool) -> Iterator[bool]:
    """Hold a name that one process may hold at a time; the system frees it when the process ends, however.

    Args:
        folder: of the file ``lock``, of which each name is one byte.
        name: what is claimed.
        wait: for whoever holds it.

    Yields:
        Whether it is held; always where the system has no such locks.
    """
    try:
        import fcntl
    except ImportError:
        yield True
        return
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
    with open(folder / "lock", "ab") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, place)
            held = True
        except (BlockingIOError, PermissionError):
            held = False
        except OSError:  # a file system without locks
            held = True
        yield held


class Digests:
    """SHA-256 of files, each computed once: kept by path, size and time of change.

    Args:
        file: where they are kept.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            self.known: dict[str, list[str]] = dict(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            self.known = {}
        self.changed = False

    def of(self, path: Path) -> str:
        """The digest of a file.

        Raises:
            BadInput: if it cannot be read.
        """
        place = str(path.absolute())
        try:
            stamp = _stamp(path.stat())
            if self.known.get(place, [])[:2] != stamp:
                with path.open("rb") as file:
                    digest = hashlib.sha256()
                    while piece := file.read(1 << 22):
                        digest.update(piece)
                self.known[place] = [*stamp, digest.hexdigest()]
                self.changed = True
        except OSError as error:
            problem = f"cannot be read ({error.strerror})"
            raise BadInput(path, problem, "Name an existing training volume.") from None
        return self.known[place][2]

    def save(self) -> None:
        """Write what was computed anew."""
        if self.changed:
            with written_beside(self.file) as beside:
                beside.write_text(json.dumps(self.known), encoding="utf-8")
            self.changed = False


def remove_leftovers(path: Path) -> None:
    """Remove what writers that were killed left of an array; call it while its name is held."""
    for name in (path.name, path.with_suffix(".crc").name):
        for file in path.parent.glob(f".*.{name}"):
            file.unlink(missing_ok=True)


def _note(path: Path, checksum: int, status: os.stat_result) -> None:
    with written_beside(path.with_suffix(".crc")) as beside:
        beside.write_text(" ".join((f"{checksum:08x}", *_stamp(status))), encoding="utf-8")


def _stamp(status: os.stat_result) -> list[str]:
    return [str(status.st_size), str(status.st_mtime_ns)]


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data)
