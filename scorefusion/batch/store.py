"""Volumes on the disk: the same bytes for the same voxels, hashed as they are written."""

from __future__ import annotations

import gzip
import hashlib
import io
from pathlib import Path
from typing import Any, BinaryIO

from scorefusion.io.atomic import written_beside


def store_image(image: Any, path: Path, level: int = 1) -> tuple[int, str]:
    """Write a NIfTI image beside ``path`` and rename it. No time and no name goes into the file.

    Args:
        image: a nibabel image.
        path: ends in ``.nii.gz`` for compression.
        level: of gzip, 0 to 9.

    Returns:
        The file's bytes, and their sha256.

    Raises:
        BadInput: if it cannot be written, from the system's error.
    """
    with written_beside(path) as beside, beside.open("wb") as file:
        sink = _Hashed(file)
        if path.name.lower().endswith(".gz"):
            with gzip.GzipFile("", "wb", level, sink, mtime=0) as stream:
                image.to_stream(stream)
        else:
            # A stream that can be sought is needed here, and a header is changed after the voxels.
            sink.write(image.to_bytes())
        result = sink.count, sink.digest.hexdigest()
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
