"""File formats of volumes: one registry of what is read and written, by a file's ending."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from scorefusion.errors import BadInput, ScoreFusionError, out_of_memory
from scorefusion.io.atomic import check_output
from scorefusion.io.compressed import DAMAGED, check_room, codec_for, read_exactly, read_first
from scorefusion.io.header import MAX_VOXELS, check_header, check_shape
from scorefusion.io.placeholders import check_fetched
from scorefusion.io.quiet import image_of_bytes, image_of_pair
from scorefusion.io.text_headers import MetaImage, Nrrd
from scorefusion.io.volumes import nifti_header, nifti_image, plain_voxels


@dataclass(frozen=True)
class Nifti:
    """NIfTI-1 and -2 in one file, plain or compressed, and whatever has another ending."""

    name: str = "NIfTI"
    endings: tuple[str, ...] = (".nii.gz", ".nii", ".nii.bz2", ".nii.zst")
    detached: tuple[str, ...] = ()
    single: str = ".nii.gz"
    unoriented: str = "has no affine (its qform and sform codes are 0)"

    def read_header(self, path: Path, max_voxels: int) -> Any:
        """The header, of Analyze as NIfTI's."""
        promise = check_header(path, max_voxels)
        if promise.version:
            return promise.header
        header = promise.header
        return nifti_header(header.get_data_shape(), header.get_data_dtype(), zooms=header.get_zooms())

    def read(self, path: Path, max_voxels: int) -> Any:
        """The image, of Analyze as NIfTI's without a form."""
        promise = check_header(path, max_voxels)
        try:
            content = read_exactly(promise.voxels, promise.length, promise.codec)
            if not promise.pair:
                return image_of_bytes(content, promise.version)
            head, _ = read_first(promise.file, 2**24)
            image = image_of_pair(head, content, promise.version)
        except ScoreFusionError:
            raise
        except Exception as error:
            if out_of_memory(error):
                raise
            raise BadInput(
                path, f"cannot be read as NIfTI ({error})", "Check it with another viewer."
            ) from None
        if promise.version:
            return image
        return nifti_image(np.asanyarray(image.dataobj), zooms=np.abs(image.header.get_zooms()))

    def write(self, image: Any, path: Path, level: int) -> None:
        """Write one file."""
        codec = codec_for(path.name)
        if codec is None or codec.ending == ".gz" and level == 1:
            nib.save(image, path)
            return
        with path.open("wb") as file, codec.writer(file, level) as stream:
            stream.write(image.to_bytes())

    def companions(self, path: Path) -> tuple[Path, ...]:
        """The other file of a pair."""
        if not self.detached:
            return ()
        promise = check_header(path)
        return tuple(file for file in (promise.file, promise.voxels) if file != path)


@dataclass(frozen=True)
class Pair(Nifti):
    """NIfTI in two files, and Analyze 7.5, whose orientation nobody knows."""

    name: str = "NIfTI or Analyze"
    endings: tuple[str, ...] = ()
    detached: tuple[str, ...] = (".hdr", ".img", ".hdr.gz", ".img.gz")
    unoriented: str = "does not say how it is oriented (Analyze, or qform and sform codes of 0)"


@dataclass(frozen=True)
class Mgh:
    """FreeSurfer's volumes of uint8, int16, int32 or float32; other types are written as one of these."""

    name: str = "MGH"
    endings: tuple[str, ...] = (".mgz", ".mgh")
    detached: tuple[str, ...] = ()
    single: str = ".mgz"
    unoriented: str = "has no orientation (its goodRASFlag is not set)"

    def read_header(self, path: Path, max_voxels: int) -> Any:
        """The header as NIfTI's."""
        shape, dtype, affine, zooms, *_ = self._parts(path, max_voxels)
        return nifti_header(shape, dtype, affine, zooms)

    def read(self, path: Path, max_voxels: int) -> Any:
        """The image as NIfTI's."""
        shape, _, affine, zooms, length, codec = self._parts(path, max_voxels)
        try:
            with np.errstate(all="ignore"):  # numbers of a damaged header
                image = nib.MGHImage.from_bytes(read_exactly(path, length, codec))
            values = np.asanyarray(image.dataobj).reshape(shape)
        except ScoreFusionError:
            raise
        except Exception as error:
            if out_of_memory(error):
                raise
            raise BadInput(path, f"cannot be read as MGH ({error})", DAMAGED) from None
        return nifti_image(values, affine, zooms)

    def write(self, image: Any, path: Path, level: int) -> None:
        """Write one file."""
        values, affine = plain_voxels(image)
        kind = {"u1": "u1", "i1": "i2", "i2": "i2", "u2": "i4", "i4": "i4"}.get(values.dtype.str[1:], "f4")
        content = nib.MGHImage(values.astype(kind), affine).to_bytes()
        codec = None if path.name.lower().endswith(".mgh") else codec_for(".gz")
        with path.open("wb") as file:
            if codec is None:
                file.write(content)
                return
            with codec.writer(file, level) as stream:
                stream.write(content)

    def companions(self, path: Path) -> tuple[Path, ...]:
        """None."""
        return ()

    def _parts(self, path: Path, max_voxels: int) -> tuple[Any, ...]:
        """Shape, type, affine (None if unknown), voxel size, bytes up to the last voxel, compression."""
        head, codec = read_first(path, _MGH_START)
        if len(head) < _MGH_START or struct.unpack(">i", head[:4])[0] != 1:
            raise BadInput(path, "is not an MGH file", "Give a .mgz or .mgh file of FreeSurfer.")
        *shape, code = struct.unpack(">5i", head[4:24])
        shape = shape if shape[3] != 1 else shape[:3]
        known = check_shape(path, shape, max_voxels)
        if code not in _MGH_TYPES:
            raise BadInput(path, f"its header names a type of voxels that is not known, {code}", DAMAGED)
        dtype = np.dtype(_MGH_TYPES[code])
        length = _MGH_START + int(np.prod(known, dtype=object)) * dtype.itemsize
        check_room(path, length, codec)
        (flag,) = struct.unpack(">h", head[28:30])
        numbers = np.array(struct.unpack(">15f", head[30:90]), dtype=np.float64)
        zooms, cosines, centre = numbers[:3], numbers[3:12].reshape(3, 3).T, numbers[12:]
        affine = np.eye(4)
        with np.errstate(all="ignore"):
            affine[:3, :3] = cosines * zooms
            affine[:3, 3] = centre - affine[:3, :3] @ (np.array(known) / 2)
        return known, dtype, affine if flag > 0 else None, zooms, length, codec


_MGH_START = 284
_MGH_TYPES = {0: "u1", 1: ">i4", 3: ">f4", 4: ">i2", 10: ">u2"}

FORMATS = (
    Nifti(),
    Pair(),
    Mgh(),
    Nrrd(),
    MetaImage(),
)
"""What is read and written; files with ``detached`` endings, whose voxels are in a second one, read alone."""

WRITABLE = tuple(ending for format in FORMATS for ending in format.endings)
READABLE = WRITABLE + tuple(ending for format in FORMATS for ending in format.detached)
LISTED = tuple(ending for ending in READABLE if ending not in (".img", ".img.gz"))
"""Endings of outputs, of inputs, and of the files of a folder that are one volume each."""


def format_of(path: str | os.PathLike[str]) -> Any:
    """The format of a file by its name; NIfTI where the ending says nothing."""
    name = Path(path).name.lower()
    return next((f for f in FORMATS if name.endswith(f.endings + f.detached)), FORMATS[0])


def volume_stem(name: str) -> str:
    """A file's name without the ending of a volume."""
    for ending in sorted(READABLE, key=len, reverse=True):
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return name


def read_header(path: Path, max_voxels: int = MAX_VOXELS) -> Any:
    """Read a volume's header, as NIfTI's; no voxel is read.

    Raises:
        BadInput: for a file that is missing, not fetched, damaged, not one 3D volume, or too large.
        ScoreFusionError: if the module that reads the format is missing.
    """
    _check_file(path)
    return format_of(path).read_header(path, max_voxels)


def read_image(path: Path, max_voxels: int = MAX_VOXELS) -> Any:
    """Read a volume as a nibabel NIfTI image.

    Raises:
        BadInput, ScoreFusionError: as :func:`read_header`.
    """
    _check_file(path)
    return format_of(path).read(path, max_voxels)


def companions(path: Path) -> tuple[Path, ...]:
    """The further files that a volume's file needs, such as the .img of a .hdr; none where it is damaged."""
    try:
        return format_of(path).companions(path)
    except (ScoreFusionError, OSError):
        return ()


def check_volume_output(path: Path, inputs: Any = ()) -> Path:
    """Check before any work is done that a volume can be written.

    Args:
        path: the file to be written.
        inputs: files that must not be overwritten.

    Raises:
        BadInput: as :func:`scorefusion.io.atomic.check_output`, and for a format that is read alone.
        ScoreFusionError: if the module that writes the ending is missing.
    """
    form = format_of(path)
    if path.name.lower().endswith(form.detached):
        problem = f"cannot be written: {form.name} with its voxels in a second file is read alone"
        raise BadInput(path, problem, f"End its name in {form.single}.")
    final = check_output(path, WRITABLE, inputs)
    check_ending(final.name)
    return final


def check_ending(ending: str) -> None:
    """Check that the module that writes files of this ending is there.

    Raises:
        ScoreFusionError: naming the extra that brings it.
    """
    codec = codec_for(ending)
    if codec is not None:
        codec.check()


def _check_file(path: Path) -> None:
    check_fetched(path)
    if not path.exists() and not path.name.lower().endswith((".img", ".img.gz")):
        raise BadInput(path, "does not exist", "Check the name.")
    if path.exists() and not path.is_file():
        raise BadInput(path, "is not a file", "Give a volume, such as a NIfTI file (.nii or .nii.gz).")
    if path.exists() and not path.stat().st_size:
        raise BadInput(path, "is empty (0 bytes)", DAMAGED)
