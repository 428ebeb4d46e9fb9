"""Draw residuals of one volume: inside a box, several samples, their mean and standard deviation."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from scorefusion.diffusion.consistency import BlockPooling
from scorefusion.diffusion.level import NoiseLevel
from scorefusion.diffusion.sample import Callback, Projection, sample
from scorefusion.diffusion.solvers import Table
from scorefusion.errors import ScoreFusionError
from scorefusion.models.config import ModelConfig, Plane
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.ops.fuse_scores import Fusion
from scorefusion.preprocess import Box, Prepared

Progress = Callable[[int, int], None]


def draw_residuals(
    model: ScoreFusion,
    prepared: Prepared,
    box: Box,
    table: Table,
    *,
    strategy: str,
    planes: Sequence[Plane] | None = None,
    samples: int = 1,
    seed: int = 0,
    batch: int = 1,
    callback: Progress | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Sample a volume's residual, clamped and projected as the model's configuration says.

    Args:
        model: on the device of ``prepared``, in evaluation mode.
        prepared: the conditions and the base on the whole output grid.
        box: where to compute. A voxel's noise depends on its place in the whole volume, not on the box.
        table: the solver.
        strategy: how scores are fused.
        planes: for ``single`` and ``alternate``.
        samples: how many are drawn.
        seed: of the noise; sample n draws noise of its own with the same seed.
        batch: how many are drawn at once.
        callback: called with (network evaluations done, in all); raise in it to cancel.

    Returns:
        Mean and standard deviation (None for one sample) ``[1, 1, d, h, w]`` of the box, in units of
        ``residual.scale``.

    Raises:
        ScoreFusionError: if the networks' output is not finite.
    """
    project = projection(model.config, prepared, box)
    total = len(table) * -(-samples // batch)
    mean = torch.zeros_like(prepared.base[box.index])
    squares = torch.zeros_like(mean)
    for turn, first in enumerate(range(0, samples, batch)):
        members = range(first, min(first + batch, samples))
        tell = None if callback is None else functools.partial(_tell, callback, turn * len(table), total)
        drawn = _draw_members(model, prepared, box, table, members, strategy, planes, seed, project, tell)
        for count, residual in enumerate(drawn.split(1), start=first + 1):
            change = residual - mean
            mean += change / count
            squares += change * (residual - mean)
    if not bool(torch.isfinite(mean).all()):
        raise ScoreFusionError("the networks' output is not finite; compute in float32 (--dtype float32)")
    return mean, (squares / (samples - 1)).sqrt() if samples > 1 else None


def projection(config: ModelConfig, prepared: Prepared, box: Box) -> BlockPooling | None:
    """What makes a residual in the box agree with the measurement; None where nothing is measured."""
    if config.degradation.kind != "block-mean":
        return None
    factor, measured = config.degradation.factor, prepared.measured
    return BlockPooling(factor, None if measured is None else measured[box.coarser(factor).index])


def _draw_members(
    model: ScoreFusion,
    prepared: Prepared,
    box: Box,
    table: Table,
    members: range,
    strategy: str,
    planes: Sequence[Plane] | None,
    seed: int,
    project: Projection | None,
    callback: Callback | None,
) -> Tensor:
    """The samples numbered ``members``, drawn at once: ``[len(members), 1, d, h, w]``."""
    condition = prepared.condition[box.index].expand(len(members), -1, -1, -1, -1)
    with torch.no_grad():
        inputs = model.prepare(condition, origin=box.start, full=prepared.base.shape[2:])
    evaluation = itertools.count()

    def denoise(x_t: Tensor, level: NoiseLevel) -> Fusion:
        return model.unfused(x_t, inputs, level, strategy=strategy, planes=planes, step=next(evaluation))

    return sample(
        denoise,
        condition,
        table,
        seeds=[seed] * len(members),
        sample=members,
        origin=box.start,
        clamp=model.config.sampling.clamp,
        project=project,
        callback=callback,
    )


def _tell(callback: Progress, before: int, total: int, step: int, steps: int, x0: Tensor) -> None:
    callback(before + step, total)
