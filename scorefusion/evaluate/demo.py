"""The demonstration: pool a held-out volume, translate it with every strategy, and measure each result."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from scorefusion.data import BASELINES, Box, Prepared, foreground_box, interpolate, prepare_conditions
from scorefusion.degradations import Factor, block_edges, block_mean
from scorefusion.errors import BadInput, ScoreFusionError
from scorefusion.evaluate.shared_start import SharedStart, plane_row, strategy_runs
from scorefusion.io.nifti import Scan
from scorefusion.metrics.image import power_spectrum_error, psnr, ssim
from scorefusion.models.config import ModelConfig, SamplingConfig
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.models.strategies import STRATEGIES
from scorefusion.models.table import table_for

BOX = (80, 96, 96)
"""Default size (z, y, x) of the box that is translated, in voxels."""

_LEAST = 8

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Case:
    """A volume with its truth, and the box of it that is translated.

    Attributes:
        name: the file, and how it was coarsened.
        truth: float32 ``[1, 1, D, H, W]``, RAS order, the image's units: the whole volume.
        pooled: ``[1, 1, D/rz, H/ry, W/rx]``, what is measured of it: the model's input.
        prepared: what sampling needs, on the truth's grid.
        box: the box.
        affine: float64 ``[4, 4]``, (x, y, z) index of ``truth`` to millimetres.
        factors: (z, y, x), by which ``pooled`` is coarser.
    """

    name: str
    truth: Tensor
    pooled: Tensor
    prepared: Prepared
    box: Box
    affine: np.ndarray
    factors: tuple[int, int, int]

    @property
    def data_range(self) -> float:
        """White less black for PSNR and SSIM: greatest less least value of the whole true volume."""
        return float(self.truth.max() - self.truth.min())

    def to(self, device: torch.device) -> Case:
        """The same case with all tensors on a device."""
        truth, pooled = self.truth.to(device), self.pooled.to(device)
        return replace(self, truth=truth, pooled=pooled, prepared=self.prepared.to(device))


@dataclass(frozen=True)
class Row:
    """How close one result is to the truth, inside the box.

    Attributes:
        name: the method.
        psnr: dB.
        ssim: 1 is perfect.
        spectrum: error of the radial power spectrum's upper half; 0 is perfect.
    """

    name: str
    psnr: float
    ssim: float
    spectrum: float


@dataclass(frozen=True)
class Result:
    """What the demonstration found.

    Attributes:
        rows: in the order they are printed.
        volumes: name to float32 ``[D, H, W]`` of the box, RAS order, the image's units; ``truth`` is one.
        steps: network evaluations of a sample.
        solver: its name.
    """

    rows: tuple[Row, ...]
    volumes: dict[str, np.ndarray]
    steps: int
    solver: str


def make_case(
    scan: Scan,
    config: ModelConfig,
    *,
    coarsen: int = 1,
    size: Sequence[int] = BOX,
    start: Sequence[int] | None = None,
) -> Case:
    """Pool a volume as the model expects its input, and choose the box.

    Args:
        scan: the volume; voxels beyond a whole number of blocks are left out.
        config: the model; it takes one condition that is block-pooled.
        coarsen: average blocks of this edge first: the truth is that many times coarser than ``scan``.
        size: of the box (z, y, x), rounded down to what the model takes and what there is.
        start: the box's first voxel (z, y, x) on the truth's grid, rounded down to a whole block; by default
            the box is in the middle of the head.

    Raises:
        ScoreFusionError: for a model of another task, or numbers out of range.
        BadInput: for a volume too small to pool.
    """
    if not config.degradation.coarse or len(config.conditions) != 1:
        raise ScoreFusionError(
            f"the demonstration pools one volume and restores it; model '{config.name}' has degradation "
            f"'{config.degradation.kind}' and {len(config.conditions)} conditions"
        )
    if coarsen < 1 or min(size) < 1 or (start is not None and min(start) < 0):
        raise ScoreFusionError(f"coarsen {coarsen}, box {tuple(size)} at {start}: a number is out of range")
    factors = config.degradation.factors
    block = math.lcm(*factors)
    multiple = math.lcm(block, config.multiple)
    volume = torch.from_numpy(scan.values)[None, None]
    kept = [n // (coarsen * r) * coarsen * r for n, r in zip(volume.shape[2:], factors, strict=True)]
    if min(kept) // coarsen < max(multiple, _LEAST):
        shape = " × ".join(str(n) for n in scan.values.shape)
        problem = f"has {shape} voxels, too few to coarsen {coarsen} times and to pool {block} times"
        raise BadInput(scan.name, problem, "Give a larger volume.")
    truth = block_mean(volume[:, :, : kept[0], : kept[1], : kept[2]], coarsen)
    pooled = config.degradation.image(truth, seed=0)
    prepared = prepare_conditions([pooled], config)
    return Case(
        name=f"{scan.name}{f' averaged over {coarsen}×{coarsen}×{coarsen} voxels' if coarsen > 1 else ''}",
        truth=truth,
        pooled=pooled,
        prepared=prepared,
        box=choose_box(prepared.condition, size, start, multiple, block),
        affine=coarser_affine(scan.ras_affine, coarsen),
        factors=factors,
    )


def coarser_affine(affine: np.ndarray, factor: Factor) -> np.ndarray:
    """The affine of the grid whose voxels are blocks of ``affine``'s, of one edge or of edges (z, y, x)."""
    edges = np.array(block_edges(factor)[::-1], dtype=np.float64)
    step = np.diag([*edges, 1.0])
    step[:3, 3] = (edges - 1.0) / 2.0
    return affine @ step


def box_affine(affine: np.ndarray, box: Box) -> np.ndarray:
    """The affine of a box, given that of the whole volume in RAS order."""
    step = np.eye(4)
    step[:3, 3] = box.start[::-1]
    return affine @ step


def run_demo(
    model: ScoreFusion,
    case: Case,
    *,
    sampling: SamplingConfig | None = None,
    steps: int | None = None,
    seed: int = 0,
    callback: Progress | None = None,
) -> Result:
    """Translate the box with every strategy of the model and every baseline, and measure them.

    Args:
        model: in evaluation mode, on the device of ``case.prepared``.
        case: from :func:`make_case`.
        sampling: solver and noise levels; the model's own when None.
        steps: of the solver; those of ``sampling`` when None.
        seed: of the noise, the same for every strategy.
        callback: called with (work done, work in all), in units of about one plane's evaluation.

    Returns:
        The interpolations; ``single`` plane by plane and their mean; the other strategies; then the same
        strategies with one evaluation from pure noise, which is the posterior mean.

    Raises:
        ScoreFusionError: if a result is not finite.
    """
    config, box = model.config, case.box
    sampled = config if sampling is None else config.model_copy(update={"sampling": sampling})
    table, once = table_for(sampled, steps=steps), table_for(sampled, steps=1)
    runs = [(run, table) for run in strategy_runs(config)]
    runs += [
        (replace(run, name=f"one-step {run.name}"), once)
        for run, _ in runs
        if not STRATEGIES[run.strategy].takes_planes
    ]
    truth = _array(case.truth[box.index])
    volumes = {"truth": truth}
    for name in BASELINES:
        volumes[name] = _array(
            interpolate(case.pooled, name, case.factors, case.prepared.operator)[box.index]
        )
    sampler = SharedStart(model, case.prepared, box, seed)
    done, total = 0, SharedStart.COST + sum(run.cost * (len(rows) - 1) for run, rows in runs)

    def tell(cost: int, step: int, steps: int, x0: Tensor) -> None:
        nonlocal done
        work = cost if step > 1 else SharedStart.COST if done == 0 else 0
        done += work
        if callback is not None and work:
            callback(done, total)

    for run, rows in runs:
        residual = sampler.draw(run, rows, partial(tell, run.cost))
        fine = case.prepared.base[box.index] + config.residual.scale * residual
        volumes[run.name] = _array(case.prepared.intensity.denormalise(fine))
    return Result(_rows(volumes, truth, case.data_range), volumes, len(table), table.name)


def _rows(volumes: dict[str, np.ndarray], truth: np.ndarray, data_range: float) -> tuple[Row, ...]:
    """Measure every volume but the truth; after the single planes comes their mean."""
    rows: list[Row] = []
    planes: list[Row] = []
    for name, volume in volumes.items():
        if name == "truth":
            continue
        if not np.isfinite(volume).all():
            raise ScoreFusionError(f"the result of '{name}' is not finite; compute in float32")
        if planes and plane_row(name) != plane_row(planes[-1].name):
            rows.append(_mean_row(plane_row(planes[-1].name), planes))
            planes = []
        row = Row(
            name,
            psnr(volume, truth, data_range),
            ssim(volume, truth, data_range),
            power_spectrum_error(volume, truth),
        )
        rows.append(row)
        if plane_row(name):
            planes.append(row)
    if planes:
        rows.append(_mean_row(plane_row(planes[-1].name), planes))
    return tuple(rows)


def _mean_row(name: str, rows: Sequence[Row]) -> Row:
    columns = zip(*((row.psnr, row.ssim, row.spectrum) for row in rows), strict=True)
    return Row(name, *(float(np.mean(column)) for column in columns))


def _array(volume: Tensor) -> np.ndarray:
    return np.ascontiguousarray(volume[0, 0].float().cpu().numpy())


def choose_box(
    condition: Tensor, size: Sequence[int], start: Sequence[int] | None, multiple: int, block: int
) -> Box:
    """A box of about ``size``, aligned to blocks: at ``start``, or in the middle of the head.

    Args:
        condition: normalised ``[1, C, D, H, W]``.
        size: (z, y, x), rounded down to ``multiple`` and to what there is.
        start: the box's first voxel, rounded down to ``block``.
        multiple: of the box's size.
        block: of the box's first voxel.

    Raises:
        ScoreFusionError: if the box would be too small.
    """
    whole = condition.shape[2:]
    size = [min(n, most) // multiple * multiple for n, most in zip(size, whole, strict=True)]
    if min(size) < max(multiple, _LEAST):
        least = f"at least {max(multiple, _LEAST)} voxels along each axis"
        raise ScoreFusionError(f"a box needs {least}, and no more than the volume has; got {tuple(size)}")
    if start is None:
        head = foreground_box(condition, margin=0)
        start = [(a + b - n) // 2 for a, b, n in zip(head.start, head.stop, size, strict=True)]
    first = [
        max(0, min(at, most - n)) // block * block for at, most, n in zip(start, whole, size, strict=True)
    ]
    last = [at + n for at, n in zip(first, size, strict=True)]
    return Box((first[0], first[1], first[2]), (last[0], last[1], last[2]))
