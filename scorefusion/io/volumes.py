"""Voxels and an affine as a NIfTI image, and the other way round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import nibabel as nib
import numpy as np

_MILLIMETRES = {"meter": 1000.0, "micron": 0.001}


def nifti_header(
    shape: Sequence[int], dtype: Any, affine: np.ndarray | None = None, zooms: Sequence[float] = (1, 1, 1)
) -> Any:
    """A NIfTI header in millimetres.

    Args:
        shape: voxels along (i, j, k).
        dtype: of the voxels.
        affine: ``[4, 4]``, (i, j, k) to RAS+ millimetres, written as the sform; None for no form.
        zooms: voxel size along (i, j, k), where there is no affine.
    """
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
    """A NIfTI image of ``[i, j, k]`` voxels; see :func:`nifti_header`."""
    values = values.reshape(values.shape[:3])
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    header = nifti_header(values.shape, values.dtype, affine, zooms)
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    with np.errstate(all="ignore"):
        if affine is not None and not np.isfinite(np.float32(affine)).all():
            affine = None  # the header's, which has the same numbers, and is refused where it is used
        return kind(values, affine, header, dtype=values.dtype)


def plain_voxels(image: Any) -> tuple[np.ndarray, np.ndarray]:
    """``[i, j, k]`` voxels with slope and intercept applied, and the affine to millimetres.

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
