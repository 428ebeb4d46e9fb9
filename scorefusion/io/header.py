"""What file formats share: a base class, checks, compressed content, and conversion from and to NIfTI."""

import bz2
import gzip
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np

from scorefusion.errors import BadInput, ScoreFusionError, out_of_memory
from scorefusion.optional import need

DAMAGED = "Copy or download it again."
_CHUNK = 2**22
BEYOND = 2**26  #: bytes that may follow a volume inside a compressed file; one that goes on and on is a bomb


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
        return bz2.BZ2File(path) if self.ending == ".bz2" else zstd().ZstdFile(path, "rb")

    def writer(self, file: Any, level: int = 1) -> Any:
        """Open a binary stream into an open file; ``level`` from 0 to 9."""
        if self.ending == ".gz":
            return gzip.GzipFile("", "wb", level, file, mtime=0)
        if self.ending == ".bz2":
            return bz2.BZ2File(file, "wb", compresslevel=max(1, level))
        return zstd().ZstdFile(file, "wb", level=level)


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
    """Turn errors inside the block, but those of users and memory, into a BadInput ``problem (error)``."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ScoreFusionError) or out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[-200:] or type(error).__name__
        raise BadInput(name, f"{problem} ({reason})", fix) from None


@contextmanager
def readable(path: str | Path) -> Iterator[None]:
    """Turn the system's refusals inside the block into a BadInput."""
    try:
        yield
    except OSError as error:
        if error.errno is None or out_of_memory(error):
            raise
        problem = f"cannot be read ({error.strerror or error})"
        raise BadInput(path, problem, "Check its permissions.") from None


@contextmanager
def reading(path: Path, codec: Codec | None) -> Iterator[BinaryIO]:
    """Yield a binary stream of a file's uncompressed content; errors inside the block become BadInput too."""
    damaged = "cannot be read" if codec is None else f"is a truncated or damaged {codec.name} file"
    with bad_input(path, damaged, "Check its permissions." if codec is None else DAMAGED), readable(path):
        with path.open("rb") if codec is None else codec.reader(path) as stream:
            yield stream


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


def zstd() -> Any:
    """Return Python's module of zstd; a :class:`ScoreFusionError` if it is missing."""
    module = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    return need(module, "reading and writing .zst files")


MAX_VOXELS = 2**30  #: the most that a volume may have unless the caller says otherwise: 4 GiB in float32
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  #: from LPS+ to RAS+ millimetres, and the other way round
_MILLIMETRES = {"meter": 1000.0, "micron": 0.001}


class Format:
    """A file format of volumes. Its methods read and write nibabel's NIfTI headers and images."""

    name: str  # for messages
    endings: tuple[str, ...] = ()  # of files that are read and written
    detached: tuple[str, ...] = ()  # of files whose voxels are in a second one; these are only read
    single: str  # the ending to write instead of a detached one
    unoriented: str  # the problem of a file without orientation

    def read_header(self, path: Path, max_voxels: int) -> Any:
        """Return the header of one 3D volume of at most ``max_voxels`` voxels; no voxel is read."""
        raise NotImplementedError

    def read(self, path: Path, max_voxels: int) -> Any:
        """Return the image of one 3D volume."""
        raise NotImplementedError

    def write(self, image: Any, path: Path, level: int) -> None:
        """Write one file, compressed by ``level`` from 0 to 9."""
        raise NotImplementedError

    def companions(self, path: Path) -> tuple[Path, ...]:
        """Return the further files that a file needs."""
        return ()


def check_shape(name: str | Path, shape: list[int], max_voxels: int) -> tuple[int, int, int]:
    """Check that the header describes one 3D volume of at most ``max_voxels`` voxels; return (x, y, z)."""
    text = " × ".join(str(n) for n in shape)
    if any(n < 1 for n in shape):
        raise BadInput(name, f"its header gives impossible dimensions, {text}", DAMAGED)
    if len(shape) > 3 and any(n > 1 for n in shape[3:]):
        problem = f"holds several frames ({text}); one 3D volume is expected"
        raise BadInput(name, problem, "Extract one frame first.")
    if len(shape) < 3 or min(shape[:3]) < 2:
        raise BadInput(name, f"is not three-dimensional ({text})", "Give a 3D volume.")
    if math.prod(shape) > max_voxels:
        problem = f"its header promises {text} voxels, more than {max_voxels:,}"
        raise BadInput(name, problem, "Crop or resample it first.")
    return shape[0], shape[1], shape[2]


def check_voxel_type(name: str | Path, dtype: np.dtype) -> None:
    """Check that voxels are single real numbers."""
    if dtype.names is not None:
        fix = "Save one channel, or the mean of red, green and blue, as a grey volume first."
        problem = f"holds colours ({''.join(dtype.names)}), not one number for each voxel"
        raise BadInput(name, problem, fix)
    if dtype.kind == "c":
        fix = "Save its magnitude first, such as numpy.abs of its voxels."
        raise BadInput(name, f"holds complex numbers ({dtype}), not real numbers", fix)
    if dtype.kind not in "iuf":
        raise BadInput(name, f"holds {dtype} voxels, not real numbers", "Convert it to floats first.")


def check_contrast(name: str | Path, values: np.ndarray) -> None:
    """Check that voxels differ."""
    if values.min() == values.max():
        value = float(values.flat[0])
        raise BadInput(name, f"is constant: every voxel is {value:g}", "Give a volume with contrast.")


def nifti_header(
    shape: Sequence[int], dtype: Any, affine: np.ndarray | None = None, zooms: Sequence[float] = (1, 1, 1)
) -> Any:
    """Return a NIfTI header in millimetres: with an affine to RAS+ as its sform, else with ``zooms``."""
    header = (nib.Nifti2Header if max(shape) > 32767 else nib.Nifti1Header)()
    header.set_data_shape([int(n) for n in shape[:3]])
    header.set_data_dtype(np.dtype(dtype).newbyteorder("="))
    header.set_xyzt_units("mm")
    with np.errstate(all="ignore"):  # numbers of a damaged header
        header["pixdim"][1:4] = np.abs(np.asarray(zooms[:3], dtype=np.float64))
        if affine is not None:
            header.set_sform(affine, 2)
    return header


def nifti_image(values: np.ndarray, affine: np.ndarray | None = None, zooms: Any = (1, 1, 1)) -> Any:
    """Return a NIfTI image of ``[i, j, k]`` voxels; see :func:`nifti_header`."""
    values = values.reshape(values.shape[:3])
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    header = nifti_header(values.shape, values.dtype, affine, zooms)
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    with np.errstate(all="ignore"):
        if affine is not None and not np.isfinite(np.float32(affine)).all():
            affine = None  # the header's, which has the same numbers, and is refused where it is used
        return kind(values, affine, header, dtype=values.dtype)


def plain_voxels(image: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return ``[i, j, k]`` voxels with slope and intercept applied, and the affine to millimetres.

    Integers without scaling stay as they are; scaled ones become float32.
    """
    values = np.asanyarray(image.dataobj)
    if not nib.is_proxy(image.dataobj):
        slope, inter = image.header.get_slope_inter()
        if slope is not None and (slope, inter) != (1.0, 0.0):
            values = (values * np.float64(slope) + (inter or 0.0)).astype(np.float32)
    affine = np.array(image.affine, dtype=np.float64)
    affine[:3] *= _MILLIMETRES.get(image.header.get_xyzt_units()[0], 1.0)
    return values, affine
