"""Voxel grids: shape and affine, from the header alone, and the distance between two grids."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.orientations import inv_ornt_aff, io_orientation
from nibabel.spatialimages import HeaderDataError

from scorefusion.errors import BadInput
from scorefusion.io.formats import format_of, read_header
from scorefusion.io.header import MAX_VOXELS, check_shape, check_voxel_type
from scorefusion.io.nifti_format import mend_orientation


@dataclass(frozen=True, eq=False)
class Grid:
    """The voxel grid of a volume, its axes in RAS+ order."""

    name: str  # the file's name, for messages
    shape: tuple[int, int, int]  # voxels along (x, y, z)
    affine: np.ndarray  # float64 ``[4, 4]``, (x, y, z) index to millimetres

    @property
    def voxel(self) -> tuple[float, float, float]:
        """Size of a voxel along (x, y, z) in millimetres."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    def __str__(self) -> str:
        rows = "] [".join(" ".join(f"{number:.6g}" for number in row) for row in self.affine[:3])
        return f"{' × '.join(str(n) for n in self.shape)} voxels, affine [[{rows}]]"


def read_grid(
    path: str | os.PathLike[str], *, assume_affine: bool = False, max_voxels: int = MAX_VOXELS
) -> Grid:
    """Read the grid of a file's voxels; no voxel is read.

    Args:
        path: a file of any format of :data:`scorefusion.io.FORMATS`.
        assume_affine: as in :func:`scorefusion.io.read_scan`.
        max_voxels: refuse a larger volume.

    Raises:
        BadInput: for a file whose header does not describe one 3D volume with an orientation.
    """
    file, name = Path(path), str(path)
    header = read_header(file, max_voxels)
    shape = check_shape(name, [int(n) for n in header.get_data_shape()], max_voxels)
    check_voxel_type(name, header.get_data_dtype())
    mend_orientation(header)
    affine, *_ = find_affine(name, header, shape, None, assume_affine, format_of(file).unoriented)
    return ras_grid(name, shape, affine)


def ras_grid(name: str, shape: tuple[int, int, int], affine: np.ndarray) -> Grid:
    """Return the grid of a volume of ``shape`` (i, j, k), its axes reordered and flipped to RAS+."""
    orientation = io_orientation(affine)
    x, y, z = (shape[int(axis)] for axis in np.argsort(orientation[:, 0]))
    return Grid(name, (x, y, z), affine @ inv_ornt_aff(orientation, shape))


def corner_distance(affine: np.ndarray, other: np.ndarray, shape: Sequence[int]) -> float:
    """Return the largest distance in millimetres between the positions of a grid's corners by two affines.

    Args:
        affine: float64 ``[4, 4]``.
        other: float64 ``[4, 4]``.
        shape: voxels along each axis, in the affines' order.
    """
    corners = np.array([[x, y, z, 1.0] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    corners[:, :3] *= np.array(shape) - 1
    apart = corners @ (affine - other).T
    return float(np.linalg.norm(apart[:, :3], axis=1).max())


def find_affine(
    name: str, header: Any, shape: Sequence[int], affine: Any, assume: bool, unoriented: str
) -> tuple[np.ndarray, int, str]:
    """Choose the first valid one of an image's affine (as nibabel chose it), its header's sform and qform.

    Where none is and ``assume`` holds, the axes are R, A, S, the voxel size is pixdim's and the origin is in
    the centre. ``unoriented`` is the problem of a header without forms. Returns the affine, float64
    ``[4, 4]``, NIfTI's code of its form, 0 where it is assumed, and what is unusual about the choice.
    """
    codes = {form: int(header[f"{form}_code"]) for form in ("sform", "qform")}
    chosen = "sform" if codes["sform"] else "qform"
    if codes[chosen] and _is_regular(affine):
        return np.asarray(affine, dtype=np.float64), codes[chosen], ""
    for form in (form for form, code in codes.items() if code):
        own = own_form(header, form)
        if _is_regular(own):
            note = f"its {chosen} is not valid; the {form} is used" if form != chosen else ""
            return np.asarray(own, dtype=np.float64), codes[form], note
    if codes["qform"] and not all(header.get_zooms()[:3]):
        raise _sizeless(name, header)
    if assume:
        zooms = np.array(header.get_zooms()[:3], dtype=np.float64)
        assumed = np.diag([*zooms, 1.0])
        if not (zooms > 0).all() or not _is_regular(assumed):
            raise _sizeless(name, header)
        assumed[:3, 3] = -0.5 * zooms * (np.array(shape) - 1)
        return assumed, 0, "its header has no orientation: pixdim and RAS axes are assumed"
    fix = "Set one, or pass --assume-affine (assume_affine=True in Python) to use pixdim and RAS axes."
    if not any(codes.values()):
        raise BadInput(name, unoriented, fix)
    problem = "has a singular affine, which places its voxels in a plane or nowhere"
    if codes["qform"] and own_form(header, "qform") is None:
        problem = "has a damaged qform (its quaternion is longer than 1)"
        problem += " and a singular sform" if codes["sform"] else " and no sform"
    raise BadInput(name, problem, fix)


def own_form(header: Any, form: str) -> np.ndarray | None:
    """Return a header's sform or qform as it stands, float64 ``[4, 4]``; None where nibabel refuses it."""
    try:
        return header.get_sform() if form == "sform" else header.get_qform()
    except (HeaderDataError, ValueError):
        return None


def _is_regular(affine: Any) -> bool:
    """Return whether an affine is finite and its axes have three directions."""
    if affine is None:
        return False
    affine = np.asarray(affine, dtype=np.float64)
    with np.errstate(all="ignore"):
        columns = np.linalg.norm(affine[:3, :3], axis=0)
        if not (np.isfinite(affine).all() and np.isfinite(columns).all() and columns.all()):
            return False
        three = abs(np.linalg.det(affine[:3, :3] / columns)) > 1e-3
        return bool(three and np.isfinite(io_orientation(affine)).all())


def _sizeless(name: str, header: Any) -> BadInput:
    zooms = [float(zoom) for zoom in header.get_zooms()[:3]]
    return BadInput(name, f"has no usable voxel size (pixdim {zooms})", "Set pixdim in its header.")
