"""Draw residuals of one volume: inside a box, several samples, their mean and standard deviation."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scorefusion.data import Box, Prepared
from scorefusion.diffusion.solvers import Table
from scorefusion.engine.engine import Engine
from scorefusion.engine.pool import Around, EnginePool
from scorefusion.errors import ScoreFusionError
from scorefusion.models.config import ModelConfig, Plane
from scorefusion.models.score_fusion import ScoreFusion

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
    watch: Callable[[Engine], None] | None = None,
    around: Around | None = None,
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
        watch: shown the engine each time it has drawn.
        around: what the translation takes besides its engine; where memory is short, fewer samples are drawn
            at once, and the engine is made to fit.

    Returns:
        Mean and standard deviation (None for one sample) ``[1, 1, d, h, w]`` of the box, in units of
        ``residual.scale``.

    Raises:
        OutOfMemory: for what does not fit, whatever is changed.
        ScoreFusionError: if the networks' output is not finite.
    """
    engines, around = engines or EnginePool(model), around or Around()
    wanted, whole = Box.whole(box.size).index, prepared.base.shape[2:]
    prepared, box = whole_patches(model.config, prepared, box)
    mean = torch.zeros_like(prepared.base[box.index])
    squares = torch.zeros_like(mean)
    condition = prepared.condition[box.index]
    project = prepared.projection(model.config, box)
    how: dict[str, Any] = {"strategy": strategy, "planes": planes, "around": around}
    asked = min(batch, samples)
    batch = engines.batch_that_fits(box.size, asked, **how)
    total = len(table) * -(-samples // batch)
    for turn, first in enumerate(range(0, samples, batch)):
        members = range(first, min(first + batch, samples))
        tell = None if callback is None else functools.partial(_tell, callback, turn * len(table), total)
        with engines.borrow(box.size, batch=len(members), **how) as engine:
            if batch < asked:
                engine.note(f"memory is short: {batch} samples at once, not {asked}; equal to rounding")
            engine.load(condition, origin=box.start, full=whole, project=project)
            drawn = engine.run(table, [seed] * len(members), sample=members, callback=tell)
            if watch is not None:
                watch(engine)
        for count, residual in enumerate(drawn.split(1), start=first + 1):
            change = residual - mean
            mean += change / count
            squares += change * (residual - mean)
    if not bool(torch.isfinite(mean).all()):
        raise ScoreFusionError("the networks' output is not finite; compute in float32 (--dtype float32)")
    mean, squares = mean[wanted], squares[wanted]
    return mean, (squares / (samples - 1)).sqrt() if samples > 1 else None


def whole_patches(config: ModelConfig, prepared: Prepared, box: Box) -> tuple[Prepared, Box]:
    """Extend a box to whole patches of the networks, beyond the volume by repeating its last voxels.

    Networks pad what they are given in the same way, but that repeats the noise as well, and they take it for
    something that is there; here it is drawn for the voxels beyond, too. Only where a measurement is local:
    of blocks or slices, or none.
    """
    local = prepared.operator is None or prepared.operator.local
    beyond = missing_voxels(config, box)
    if not local or not any(beyond):
        return prepared, box
    stop = [last + more for last, more in zip(box.stop, beyond, strict=True)]
    short = [max(0, last - have) for last, have in zip(stop, prepared.base.shape[2:], strict=True)]
    pads = (0, short[2], 0, short[1], 0, short[0])

    def longer(volume: Tensor) -> Tensor:
        return F.pad(volume, pads, mode="replicate")

    base = longer(prepared.base)
    outside = base if prepared.outside is prepared.base else longer(prepared.outside)
    larger = replace(prepared, condition=longer(prepared.condition), base=base, outside=outside)
    return larger, Box(box.start, (stop[0], stop[1], stop[2]))


def missing_voxels(config: ModelConfig, box: Box) -> list[int]:
    """How many voxels a box lacks along z, y and x to be of whole patches and whole blocks."""
    multiples = [math.lcm(factor, config.multiple) for factor in config.degradation.factors]
    return [-length % multiple for length, multiple in zip(box.size, multiples, strict=True)]


def _tell(callback: Progress, before: int, total: int, step: int, steps: int, x0: Tensor) -> None:
    callback(before + step, total)
