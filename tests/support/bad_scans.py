"""Files that are no volumes, of many kinds, by name."""

from __future__ import annotations

import gzip
import pickle
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

from tests.support.tiny import AFFINE

Write = Callable[[Path], object]


def saved(data: np.ndarray, affine: np.ndarray | None = AFFINE) -> Write:
    """A file with this sform and no qform; neither for None."""
    header = nib.Nifti1Header()
    header.set_data_dtype(data.dtype)
    header.set_data_shape(data.shape)
    header.set_sform(affine, 0 if affine is None else 1)
    return lambda path: nib.save(nib.Nifti1Image(data, None, header), path)


def _voxels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape).astype(np.float32)


def _truncated(path: Path) -> None:
    saved(_voxels(9, 8, 7))(path)
    path.write_bytes(path.read_bytes()[:-500])


def _nan(path: Path) -> None:
    data = _voxels(5, 6, 7)
    data[1, 2, 3] = np.nan
    saved(data)(path)


def _absurd(path: Path) -> None:
    """A NIfTI-2 header that promises 2^40 voxels along each axis, and nothing after it."""
    header = nib.Nifti2Header()
    header.set_data_dtype(np.float32)
    header["dim"][:4] = 3, 2**40, 2**40, 2**40
    header["vox_offset"] = 544
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4)))


def _bomb(path: Path) -> None:
    """A small volume and 200 MB of zeros after it."""
    image = nib.Nifti1Image(_voxels(5, 6, 7), AFFINE).to_bytes()
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(image)
        for _ in range(100):
            stream.write(bytes(2_000_000))


BAD: dict[str, tuple[str, Write, str]] = {
    "truncated": (".nii.gz", _truncated, "truncated or damaged gzip file"),
    "text": (".nii", lambda path: path.write_text("not a volume " * 99), "is not a NIfTI file"),
    "nan": (".nii", _nan, "holds 1 voxels that are NaN"),
    "constant": (".nii.gz", saved(np.full((4, 5, 6), 7.0)), "is constant"),
    "frames": (".nii.gz", saved(_voxels(4, 5, 6, 3)), "holds several frames"),
    "nowhere": (".nii", saved(_voxels(4, 5, 6), None), "has no affine"),
    "complex": (".nii", saved(np.ones((4, 5, 6), np.complex64)), "not real numbers"),
    "absurd": (".nii.gz", _absurd, "more than 1,073,741,824"),
    "bomb": (".nii.gz", _bomb, "goes on for more than"),
    "pickled": (".nii", lambda path: path.write_bytes(pickle.dumps([1] * 999)), "is not a NIfTI file"),
    "axis": (".nii.gz", saved(_voxels(4, 5, 6), AFFINE[:, [0, 1, 1, 3]]), "has a singular affine"),
    "empty": (".nii.gz", lambda path: path.write_bytes(b""), "is empty"),
}
"""Kind to ending, writer, and part of what is said about it."""
