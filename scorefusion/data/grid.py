"""Whether a subject's volumes lie on one grid, and reading them so that they do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from scorefusion.data.config import DatasetConfig
from scorefusion.data.subject import Subject
from scorefusion.errors import BadInput
from scorefusion.io.grid import Grid, corner_distance, ras_grid, read_grid
from scorefusion.io.nifti import Scan, read_scan
from scorefusion.models.contrast import LABELS, in_order
from scorefusion.optional import need

_ORDER = {"linear": 1, "cubic": 3}
_DEFAULT = DatasetConfig(root="")


def check_grids(subject: Subject, contrasts: Sequence[str], config: DatasetConfig = _DEFAULT) -> Grid:
    """Check from the headers that a subject's volumes can be used together.

    Args:
        subject: whose.
        contrasts: which; the first one's grid counts.
        config: ``on_misaligned``, ``tolerance`` and ``assume_affine``.

    Returns:
        The first volume's grid.

    Raises:
        BadInput: for a file that cannot be a volume, or that lies on another grid, with both grids.
    """
    files = [subject.files[contrast] for contrast in contrasts]
    grids = [read_grid(file, assume_affine=config.assume_affine) for file in files]
    if config.on_misaligned == "refuse":
        for file, grid in zip(files[1:], grids[1:], strict=True):
            _check_aligned(file, grid, grids[0], config.tolerance)
    return grids[0]


def read_subject(
    subject: Subject, contrasts: Sequence[str] = (), config: DatasetConfig = _DEFAULT
) -> dict[str, Scan]:
    """Read a subject's volumes, all on the first one's grid.

    Args:
        subject: whose.
        contrasts: which, the first one's grid counts; all by default, by name, labels last.
        config: ``on_misaligned``, ``tolerance``, ``interpolation``, ``nan`` and ``assume_affine``.

    Returns:
        Each contrast's volume. One that was resampled has the grid and header of the first; outside its own
        field of view it holds its least value (label maps: 0). It is not smoothed first, so let the first
        contrast be the finer.

    Raises:
        BadInput: for a volume that cannot be read, labels that are not whole numbers, or a volume on another
            grid that is not to be resampled or does not overlap the first.
    """
    wanted = list(contrasts) or in_order(subject.files)
    first, scans = None, {}
    for contrast in wanted:
        path = subject.files[contrast]
        labels = contrast == LABELS
        scan = read_scan(path, nan=config.nan, assume_affine=config.assume_affine, constant=labels)
        if labels and not (scan.values == np.rint(scan.values)).all():
            fix = "Give a label map, made with nearest-neighbour interpolation."
            raise BadInput(path, "holds labels that are not whole numbers", fix)
        first = scan if first is None else first
        try:
            _check_aligned(path, _grid(scan), _grid(first), config.tolerance)
        except BadInput:
            if config.on_misaligned == "refuse":
                raise
            scan = resample(scan, first, order=0 if labels else _ORDER[config.interpolation])
        scans[contrast] = scan
    return scans


def resample(scan: Scan, onto: Scan, order: int = 1) -> Scan:
    """Interpolate a volume at the voxels of another, by both affines; nothing is registered.

    Args:
        scan: the volume.
        onto: whose grid, orientation and header the result has.
        order: of the spline: 0 nearest voxel, 1 linear, 3 cubic (limited to the volume's own range).

    Raises:
        BadInput: if they do not overlap.
        ScoreFusionError: if scipy is missing.
    """
    need("scipy.ndimage", "resampling")
    from nibabel.processing import resample_from_to

    low, high = (0.0 if order == 0 else float(scan.values.min())), float(scan.values.max())
    image = nib.Nifti1Image(scan.values.transpose(2, 1, 0), scan.ras_affine)
    target = (onto.values.shape[::-1], onto.ras_affine)
    # grid-constant: a voxel on the very edge is not lost to rounding
    values = resample_from_to(image, target, order=order, mode="grid-constant", cval=low)
    array = np.asarray(values.dataobj, dtype=np.float32).transpose(2, 1, 0)
    if order > 1:
        array = array.clip(low, high)
    if array.min() == array.max() and not _overlap(image, target):
        problem = f"does not overlap {onto.name}: {_grid(scan)} against {_grid(onto)}"
        raise BadInput(scan.name, problem, "Register it first, or correct its affine.")
    return replace(
        scan,
        values=np.ascontiguousarray(array),
        affine=onto.affine,
        affine_assumed=onto.affine_assumed,
        shape=onto.shape,
        header=onto.header.copy(),
        dtype=np.dtype(np.float32),
        slope=1.0,
        intercept=0.0,
    )


def _overlap(image: Any, target: Any) -> bool:
    from nibabel.processing import resample_from_to

    everywhere = nib.Nifti1Image(np.ones(image.shape, np.uint8), image.affine)
    return bool(np.any(resample_from_to(everywhere, target, order=0, mode="grid-constant").dataobj))


def _grid(scan: Scan) -> Grid:
    return ras_grid(scan.name, scan.shape, scan.affine)


def _check_aligned(file: Path, grid: Grid, first: Grid, tolerance: float) -> None:
    if grid.shape == first.shape:
        distance = corner_distance(first.affine, grid.affine, grid.shape)
        if distance <= tolerance:
            return
        what = f"corners are {distance:.3g} mm apart"
    else:
        what = "shapes differ"
    problem = f"lies on another grid than {Path(first.name).name} ({what}): {grid} against {first}"
    raise BadInput(file, problem, "Resample it first, or set on_misaligned = 'resample' (--resample).")
