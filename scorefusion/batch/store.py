"""Volumes on the disk: the same bytes for the same voxels, hashed as they are written."""

from __future__ import annotations

import gzip
import hashlib
import io
from pathlib import Path
from typing import Any, BinaryIO

from scorefusion.batch.identity import hash_file
from scorefusion.io.atomic import written_beside
from scorefusion.io.formats import format_of


def store_image(image: Any, path: Path, level: int = 1) -> tuple[int, str]:
    """Write an image beside ``path`` and rename it. No time and no name goes into the file.

    Args:
        image: a nibabel image.
        path: its ending chooses the format.
        level: of compression, 0 to 9.

    Returns:
        The file's bytes, and their sha256.

    Raises:
        BadInput: if it cannot be written, from the system's error.
    """
    if not path.name.lower().endswith(".nii.gz"):
        return _store_other(image, path, level)
    with written_beside(path) as beside, beside.open("wb") as file:
        sink = _Hashed(file)
        with gzip.GzipFile("", "wb", level, sink, mtime=0) as stream:
            image.to_stream(stream)
        result = sink.count, sink.digest.hexdigest()
    return result


def _store_other(image: Any, path: Path, level: int) -> tuple[int, str]:
    with written_beside(path) as beside:
        format_of(path).write(image, beside, level)
        result = beside.stat().st_size, hash_file(beside)
    return result


class _Hashed(io.RawIOBase):
    """Passes on what is written, counted and hashed."""

    def __init__(self, file: BinaryIO):
        self.file, self.count, self.digest = file, 0, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self.file.write(view)
        self.digest.update(view)
        self.count += view.nbytes
        return view.nbytes
