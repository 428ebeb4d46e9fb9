"""Third stage of a translation: sample the residual inside a box, several times, and average."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from scorefusion.data import Box, Prepared
from scorefusion.engine.engine import Engine, PlaneDeviation
from scorefusion.engine.pool import Around, EnginePool
from scorefusion.errors import ScoreFusionError
from scorefusion.models.config import ModelConfig
from scorefusion.pipeline.footprint import Room, missing_voxels
from scorefusion.pipeline.job import Job
from scorefusion.pipeline.settings import Settings

Progress = Callable[[int, int], None]


def sample(job: Job, room: Room, callback: Progress | None = None) -> None:
    """Sample the residual of a job's box; see :meth:`scorefusion.Pipeline.sample`."""
    settings, notes = job.settings, list[str]()
    apart = PlaneDeviation(settings.table, job.box.size) if settings.disagreement else None

    def watch(engine: Engine) -> None:
        notes[:] = dict.fromkeys([*notes, *engine.notes])
        if apart is not None:
            apart.add(engine)

    with job.stage("sample", "sampling"):
        own = job.scan.own_factors
        fitting = room.check(job.scan.name, job.footprint, settings, done=("read", "prepare"), own_order=own)
        job.mean, job.deviation = draw_residuals(
            room.engines,
            job.prepared,
            job.box,
            settings,
            around=fitting.around,
            callback=callback,
            watch=watch,
        )
        job.planes_apart = None if apart is None else apart.mean
    job.warnings += tuple(notes)


def draw_residuals(
    engines: EnginePool,
    prepared: Prepared,
    box: Box,
    settings: Settings,
    *,
    around: Around | None = None,
    callback: Progress | None = None,
    watch: Callable[[Engine], None] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Sample a volume's residual, clamped and projected as the model's configuration says.

    Args:
        engines: of the model, on the device of ``prepared``.
        prepared: the conditions and the base on the whole output grid.
        box: where to compute. A voxel's noise depends on its place in the whole volume, not on the box.
        settings: the strategy, the solver, how many samples, how many of them at once, and the seed; sample n
            draws noise of its own with the same seed.
        around: what the translation takes besides its engine; where memory is short, fewer samples are drawn
            at once, and the engine is made to fit.
        callback: called with (network evaluations done, in all); raise in it to cancel.
        watch: called with the engine each time it has drawn.

    Returns:
        Mean and standard deviation (None for one sample) ``[1, 1, d, h, w]`` of the box, in units of
        ``residual.scale``.

    Raises:
        OutOfMemory: for what does not fit, whatever is changed.
        ScoreFusionError: if the networks' output is not finite.
    """
    config, around = engines.model.config, around or Around()
    inside, whole = Box.whole(box.size).index, prepared.base.shape[2:]
    prepared, box = whole_patches(config, prepared, box)
    mean = torch.zeros_like(prepared.base[box.index])
    squares = torch.zeros_like(mean)
    condition, project = prepared.condition[box.index], prepared.projection(config, box)
    samples, table, strategy, planes = settings.samples, settings.table, settings.strategy, settings.planes
    asked = min(settings.batch, samples)
    batch = engines.batch_that_fits(box.size, asked, strategy=strategy, planes=planes, around=around)
    total = len(table) * -(-samples // batch)
    for first in range(0, samples, batch):
        members = range(first, min(first + batch, samples))
        report = None
        if callback is not None:
            report = functools.partial(_report, callback, first // batch * len(table), total)
        with engines.borrow(
            box.size, batch=len(members), strategy=strategy, planes=planes, around=around
        ) as engine:
            if batch < asked:
                engine.note(f"memory is short: {batch} samples at once, not {asked}; equal to rounding")
            engine.load(condition, origin=box.start, full=whole, project=project)
            drawn = engine.run(table, [settings.seed] * len(members), sample=members, callback=report)
            if watch is not None:
                watch(engine)
        for count, residual in enumerate(drawn.split(1), start=first + 1):
            change = residual - mean
            mean += change / count
            squares += change * (residual - mean)
    if not bool(torch.isfinite(mean).all()):
        raise ScoreFusionError("the networks' output is not finite; compute in float32 (--dtype float32)")
    mean, squares = mean[inside], squares[inside]
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


def _report(callback: Progress, before: int, total: int, step: int, steps: int, x0: Tensor) -> None:
    callback(before + step, total)
