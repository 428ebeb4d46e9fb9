"""Draw residuals of one volume: inside a box, several samples, their mean and standard deviation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from scorefusion.degradations.inpainting import Inpainting
from scorefusion.degradations.pooling import Pooling
from scorefusion.diffusion.consistency import BlockPooling, MeasurementProjection
from scorefusion.diffusion.solvers import Table
from scorefusion.engine.pool import EnginePool
from scorefusion.errors import ScoreFusionError
from scorefusion.models.config import ModelConfig, Plane
from scorefusion.models.score_fusion import ScoreFusion
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
    engines: EnginePool | None = None,
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
        engines: lends the model's engines; one of its own when None.

    Returns:
        Mean and standard deviation (None for one sample) ``[1, 1, d, h, w]`` of the box, in units of
        ``residual.scale``.

    Raises:
        ScoreFusionError: if the networks' output is not finite.
    """
    engines = engines or EnginePool(model)
    total = len(table) * -(-samples // batch)
    mean = torch.zeros_like(prepared.base[box.index])
    squares = torch.zeros_like(mean)
    condition, whole = prepared.condition[box.index], prepared.base.shape[2:]
    project = projection(model.config, prepared, box)
    for turn, first in enumerate(range(0, samples, batch)):
        members = range(first, min(first + batch, samples))
        tell = None if callback is None else functools.partial(_tell, callback, turn * len(table), total)
        with engines.borrow(box.size, batch=len(members), strategy=strategy, planes=planes) as engine:
            engine.load(condition, origin=box.start, full=whole, project=project)
            drawn = engine.run(table, [seed] * len(members), sample=members, callback=tell)
        for count, residual in enumerate(drawn.split(1), start=first + 1):
            change = residual - mean
            mean += change / count
            squares += change * (residual - mean)
    if not bool(torch.isfinite(mean).all()):
        raise ScoreFusionError("the networks' output is not finite; compute in float32 (--dtype float32)")
    return mean, (squares / (samples - 1)).sqrt() if samples > 1 else None


def projection(
    config: ModelConfig, prepared: Prepared, box: Box
) -> BlockPooling | MeasurementProjection | None:
    """What makes a residual in the box agree with the measurement.

    Returns:
        None where nothing is measured, or where ``config.sampling`` does without.

    Raises:
        ScoreFusionError: if the box leaves out voxels that the measurement mixes with those inside.
    """
    operator = prepared.operator
    if operator is None or not config.sampling.consistency:
        return None
    size = prepared.base.shape[2:]
    if box != box.whole_along(config.degradation.whole, size):
        raise ScoreFusionError(
            f"a measurement of kind {config.degradation.kind} mixes voxels over whole slices or the whole "
            f"volume, so the box must be whole there; got {box} of {list(size)}"
        )
    inside = operator.inside(box.index) if isinstance(operator, Inpainting) else operator
    measured = None
    if prepared.outside is not prepared.base:
        short = (prepared.outside - prepared.base)[box.index]
        measured = inside.A(short) / config.residual.scale
    if isinstance(inside, Pooling):
        return BlockPooling(inside.factor, measured)
    return MeasurementProjection(inside, measured)


def _tell(callback: Progress, before: int, total: int, step: int, steps: int, x0: Tensor) -> None:
    callback(before + step, total)
