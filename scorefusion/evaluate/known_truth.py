"""Volumes whose truth is known, for models of every task: the input is made of it, or read beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scorefusion.data import Box, Intensity, Prepared, prepare_conditions
from scorefusion.degradations import block_mean
from scorefusion.errors import BadInput, ScoreFusionError
from scorefusion.evaluate.demo import choose_box, coarser_affine
from scorefusion.io.nifti import Scan, check_same_grid, read_scan
from scorefusion.models.config import ModelConfig

_LEAST = 8


@dataclass(frozen=True, eq=False)
class KnownTruth:
    """What a model is given, and what it should make of it, inside a box.

    Attributes:
        name: of the target's file.
        prepared: what sampling needs, on the whole grid.
        box: where to sample.
        truth: float32 ``[d, h, w]`` of the box, normalised.
        black: least value of the whole true volume, normalised.
        data_range: its greatest less its least value, normalised.
        intensity: how ``truth`` was normalised.
        given: contrast to ``[1, 1, ...]``, the conditions as the model is given them, image units: for a
            degradation, the first is what was measured.
        target: ``[1, 1, D, H, W]``, the whole true volume, image units.
        affine: float64 ``[4, 4]``, (x, y, z) index of the whole target in RAS order to millimetres.
    """

    name: str
    prepared: Prepared
    box: Box
    truth: np.ndarray
    black: float
    data_range: float
    intensity: Intensity
    given: Mapping[str, Tensor]
    target: Tensor
    affine: np.ndarray

    def volume(self, residual: Tensor, config: ModelConfig) -> np.ndarray:
        """The volume ``[d, h, w]``, normalised, that a residual ``[1, 1, d, h, w]`` of the box stands for."""
        return as_array(self.prepared.base[self.box.index] + config.residual.scale * residual)

    def residual(self, config: ModelConfig) -> Tensor:
        """The true residual ``[1, 1, d, h, w]`` of the box, in units of ``residual.scale``."""
        base = self.prepared.base[self.box.index]
        truth = torch.from_numpy(self.truth)[None, None].to(base)
        return (truth - base) / config.residual.scale


def makes_its_input(config: ModelConfig) -> bool:
    """Whether a model's first condition is its degraded target, so that the truth is enough to make it."""
    return config.degradation.measures and config.conditions[0] == config.target


def files_needed(config: ModelConfig) -> tuple[str, ...]:
    """What a subject consists of: the conditions that are not made of the target, then the target."""
    return (*config.conditions[makes_its_input(config) :], config.target)


def known_truth(
    scans: Sequence[Scan],
    config: ModelConfig,
    *,
    coarsen: int = 1,
    size: Sequence[int] | None,
    start: Sequence[int] | None = None,
    slab: tuple[int, int] | None = None,
    device: torch.device | str = "cpu",
) -> KnownTruth:
    """Make a model's input of volumes with known truth, and choose the box.

    The first condition of a super-resolution model, or one of another degradation, is made of the target.
    All intensities are normalised: conditions each by its own, as ``config.intensity`` says; the target by
    the first condition's if that is made of it, else by its own.

    Args:
        scans: as :func:`files_needed` names them, all on one grid; conditions that are not made of the target
            may be on the coarse one.
        config: the model.
        coarsen: average blocks of this edge first; everything is then that many times coarser.
        size: of the box (z, y, x), rounded down to what the model takes and what there is; None for all.
        start: its first voxel; in the middle of the head by default.
        slab: (first, last + 1) slice along z that the box must lie in, after coarsening; None for all.
        device: where the tensors go.

    Raises:
        ScoreFusionError: for a number out of range.
        BadInput: for volumes on other grids, or too small.
    """
    target, made = scans[-1], makes_its_input(config)
    if coarsen < 1 or (start is not None and min(start) < 0):
        raise ScoreFusionError(f"coarsen {coarsen}, box at {start}: a number is out of range")
    factors = config.degradation.factors
    for scan in scans[:-1]:
        _check_grid(scan, target, (1, 1, 1) if made or coarsen > 1 else factors)
    fine = target.values.shape
    steps = [coarsen * factor for factor in factors]
    kept = [n // step * step for n, step in zip(fine, steps, strict=True)]
    if min(kept) // coarsen < max(config.multiple, _LEAST, *factors):
        shape, pooled = (" × ".join(str(n) for n in numbers) for numbers in (fine, factors))
        problem = f"has {shape} voxels, too few to coarsen {coarsen} times and to pool by {pooled}"
        raise BadInput(target.name, problem, "Give a larger volume.")
    volumes = [torch.from_numpy(scan.values)[None, None].to(device) for scan in scans]
    *conditions, truth = (
        block_mean(volume[:, :, : kept[0], : kept[1], : kept[2]], coarsen)
        if volume.shape[2:] == fine
        else volume
        for volume in volumes
    )
    if made:
        conditions.insert(0, _degraded(truth, config))
    prepared = prepare_conditions(conditions, config)
    intensity = prepared.intensity if made else Intensity.of(truth, config.intensity)
    normal = intensity.normalise(truth)
    box = _box(prepared.condition, size, start, slab, config)
    return KnownTruth(
        name=f"{target.name}{f' averaged over {coarsen}×{coarsen}×{coarsen} voxels' if coarsen > 1 else ''}",
        prepared=prepared,
        box=box,
        truth=as_array(normal[box.index]),
        black=float(normal.min()),
        data_range=float(normal.max() - normal.min()),
        intensity=intensity,
        given=dict(zip(config.conditions, conditions, strict=True)),
        target=truth,
        affine=coarser_affine(target.ras_affine, coarsen),
    )


def read_subjects(
    files: Sequence[Path],
    config: ModelConfig,
    *,
    coarsen: int = 1,
    size: Sequence[int],
    start: Sequence[int] | None = None,
    nan: str = "error",
    device: torch.device | str = "cpu",
) -> list[KnownTruth]:
    """Read volumes with known truth.

    Args:
        files: of each subject what :func:`files_needed` names, in that order.
        config: the model.
        coarsen: average blocks of this edge first.
        size: of the box (z, y, x), as :func:`known_truth` takes it.
        start: its first voxel; in the middle of the head by default.
        nan: ``error`` or ``zero``.
        device: where the tensors go.

    Raises:
        ScoreFusionError: for a number of files that does not fit the model.
        BadInput: for a file that cannot be used.
    """
    names = files_needed(config)
    if not files or len(files) % len(names):
        each = "a volume each" if len(names) == 1 else f"{len(names)} files each ({', '.join(names)})"
        raise ScoreFusionError(
            f"model '{config.name}' is measured on subjects of {each}; got {len(files)} files"
        )
    groups = (files[at : at + len(names)] for at in range(0, len(files), len(names)))
    return [
        known_truth(
            [read_scan(file, nan=nan) for file in group],
            config,
            coarsen=coarsen,
            size=size,
            start=start,
            device=device,
        )
        for group in groups
    ]


def as_array(volume: Tensor) -> np.ndarray:
    """``[1, 1, D, H, W]`` as a float32 array ``[D, H, W]``."""
    return np.ascontiguousarray(volume[0, 0].float().cpu().numpy())


def _degraded(truth: Tensor, config: ModelConfig) -> Tensor:
    """What would have been measured; noise is in normalised intensity."""
    if not config.degradation.noise:
        return config.degradation.image(truth)
    intensity = Intensity.of(truth, config.intensity)
    return intensity.denormalise(config.degradation.image(intensity.normalise(truth)))


def _check_grid(scan: Scan, target: Scan, factors: tuple[int, int, int]) -> None:
    """See that a condition is on the target's grid, or on the coarser one."""
    if scan.values.shape == target.values.shape:
        check_same_grid(target, scan)
    else:
        check_same_grid(scan, target, factors)


def _box(
    condition: Tensor,
    size: Sequence[int] | None,
    start: Sequence[int] | None,
    slab: tuple[int, int] | None,
    config: ModelConfig,
) -> Box:
    """A box inside the slab, on whole blocks; all of the volume along axes that the measurement mixes."""
    degradation, full = config.degradation, condition.shape[2:]
    block = math.lcm(*degradation.factors)
    depth = full[0]
    low, high = slab or (0, depth)
    if not 0 <= low < high <= depth:
        raise ScoreFusionError(f"slices {low}:{high} are not inside the volume, which has {depth}")
    if slab is not None and degradation.whole[0]:
        raise ScoreFusionError(
            f"degradation {degradation.kind} mixes all slices, so it cannot be cut into slabs"
        )
    low = -(-low // block) * block
    within = condition[:, :, low:high]
    if size is None:
        size = within.shape[2:]
    if start is not None:
        start = (max(start[0] - low, 0), *start[1:])
    box = choose_box(within, size, start, math.lcm(block, config.multiple), block)
    (z, y, x), (z_end, y_end, x_end) = box.start, box.stop
    return Box((z + low, y, x), (z_end + low, y_end, x_end)).whole_along(degradation.whole, full)
