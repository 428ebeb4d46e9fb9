"""FreeSurfer's volumes."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from scorefusion.errors import BadInput
from scorefusion.io.compressed import DAMAGED, bad_input, check_room, codec_for, read_exactly, read_first
from scorefusion.io.header import Format, check_shape, nifti_header, nifti_image, plain_voxels

_START = 284
_TYPES = {0: "u1", 1: ">i4", 3: ">f4", 4: ">i2", 10: ">u2"}
_WRITTEN = {"u1": "u1", "i1": "i2", "i2": "i2", "u2": "i4", "i4": "i4"}


class Mgh(Format):
    """MGH with voxels of uint8, int16, int32 or float32; other types are written as one of these."""

    name, endings, single = "MGH", (".mgz", ".mgh"), ".mgz"
    unoriented = "has no orientation (its goodRASFlag is not set)"

    def read_header(self, path: Path, max_voxels: int) -> Any:
        """Return the header."""
        shape, dtype, affine, zooms, *_ = self._parts(path, max_voxels)
        return nifti_header(shape, dtype, affine, zooms)

    def read(self, path: Path, max_voxels: int) -> Any:
        """Return the image."""
        shape, _, affine, zooms, length, codec = self._parts(path, max_voxels)
        with bad_input(path, "cannot be read as MGH"), np.errstate(all="ignore"):  # of a damaged header
            image = nib.MGHImage.from_bytes(read_exactly(path, length, codec))
            values = np.asanyarray(image.dataobj).reshape(shape)
        return nifti_image(values, affine, zooms)

    def write(self, image: Any, path: Path, level: int) -> None:
        """Write one file."""
        values, affine = plain_voxels(image)
        content = nib.MGHImage(values.astype(_WRITTEN.get(values.dtype.str[1:], "f4")), affine).to_bytes()
        codec = None if path.name.lower().endswith(".mgh") else codec_for(".gz")
        with path.open("wb") as file, codec.writer(file, level) if codec else file as stream:
            stream.write(content)

    def _parts(self, path: Path, max_voxels: int) -> tuple[Any, ...]:
        """Return shape, type, affine (None if unknown), voxel size, bytes to the last voxel, compression."""
        head, codec = read_first(path, _START)
        if len(head) < _START or struct.unpack(">i", head[:4])[0] != 1:
            raise BadInput(path, "is not an MGH file", "Give a .mgz or .mgh file of FreeSurfer.")
        *shape, code = struct.unpack(">5i", head[4:24])
        known = check_shape(path, shape if shape[3] != 1 else shape[:3], max_voxels)
        if code not in _TYPES:
            raise BadInput(path, f"its header names a type of voxels that is not known, {code}", DAMAGED)
        dtype = np.dtype(_TYPES[code])
        length = _START + int(np.prod(known, dtype=object)) * dtype.itemsize
        check_room(path, length, codec)
        (flag,) = struct.unpack(">h", head[28:30])
        numbers = np.array(struct.unpack(">15f", head[30:90]), dtype=np.float64)
        zooms, cosines, centre = numbers[:3], numbers[3:12].reshape(3, 3).T, numbers[12:]
        affine = np.eye(4)
        with np.errstate(all="ignore"):
            affine[:3, :3] = cosines * zooms
            affine[:3, 3] = centre - affine[:3, :3] @ (np.array(known) / 2)
        return known, dtype, affine if flag > 0 else None, zooms, length, codec
