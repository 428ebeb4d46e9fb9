"""The sampling loop: it applies a solver's table and knows nothing else about solvers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from scorefusion.degradations import Projection
from scorefusion.diffusion.level import NoiseLevel
from scorefusion.diffusion.solvers import Table
from scorefusion.errors import ScoreFusionError
from scorefusion.ops.fuse_scores import Fusion, fuse_scores
from scorefusion.ops.fuse_step import fuse_step
from scorefusion.ops.noise import noise_keys, normal

Model = Callable[[Tensor, NoiseLevel], Tensor | Fusion]
Map = Callable[[Tensor], Tensor]
Callback = Callable[[int, int, Tensor], None]


@torch.no_grad()
def sample(
    model: Model,
    condition: Tensor,
    table: Table,
    *,
    seeds: Sequence[int],
    origin: Sequence[int] = (0, 0, 0),
    sample: int | Sequence[int] = 0,
    channels: int = 1,
    prior_mean: Tensor | None = None,
    clamp: float | None = None,
    project: Map | None = None,
    noise: Callable[[int], Tensor] | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Draw one sample for each item of a batch.

    Args:
        model: (x_t, level) -> m; x_t float32 [B, channels, D, H, W], m of the same shape and any float dtype,
            being what `table.prediction` says, or the `Fusion` that gives it. It already holds its condition.
        condition: [B, C, D, H, W]; only its batch, box and device matter here.
        table: the solver.
        seeds: one seed for each item; an item's sample depends on its own seed alone, whatever the batch.
        origin: (z, y, x) of the box in the original volume, so that a crop draws the same noise.
        sample: index of the sample, or one for each item, to draw several with one seed; the caller averages.
        channels: channels of the target.
        prior_mean: mean of x0 that a late start begins from, broadcastable; zero if not given.
        clamp: limit x0 to [-clamp, clamp] before projecting.
        project: applied to x0 after the clamp, such as a `Projection`.
        noise: draws z by number instead of `ops.normal`: 0 is the start, n is row n - 1's.
        callback: called as callback(step, total, x0) after each step, step from 1; raise in it to cancel.

    Returns:
        x0, float32 [B, channels, D, H, W].

    Raises:
        ScoreFusionError: if there is not one seed for each item, or the model's output has another shape.
    """
    shape = (condition.shape[0], channels, *condition.shape[2:])
    if condition.ndim != 5 or len(seeds) != shape[0]:
        raise ScoreFusionError(
            f"sampling needs a condition [B, C, D, H, W] and B seeds; "
            f"got {list(condition.shape)} and {len(seeds)} seeds"
        )
    draw = noise or functools.partial(
        normal, shape, seeds, origin=origin, sample=sample, device=condition.device
    )
    x = math.sqrt(1.0 - table.abar_start) * draw(0)
    if prior_mean is not None:
        x = x + math.sqrt(table.abar_start) * prior_mean
    if noise is None and (project is None or (isinstance(project, Projection) and project.blocks)):
        keys = noise_keys(seeds, sample=sample, origin=origin, device=x.device)
        update = _fused(table, x, keys, clamp, project)
    else:
        update = _composed(table, draw, clamp, project)
    x0 = x
    for step, (abar, t) in enumerate(table.rows[:, :2].tolist(), start=1):
        output = model(x, NoiseLevel.of(abar, int(t), shape[0], x.device))
        fusion = output if isinstance(output, Fusion) else Fusion((output.to(x.dtype),), None, (1.0,))
        if fusion.scores[0].shape != x.shape:
            found = list(fusion.scores[0].shape)
            raise ScoreFusionError(f"the model returned {found}, expected {list(x.shape)}")
        x, x0 = update(step, fusion, x, x0)
        if callback is not None:
            callback(step, len(table), x0)
    return x


Update = Callable[[int, Fusion, Tensor, Tensor], tuple[Tensor, Tensor]]


def _fused(table: Table, x: Tensor, keys: Tensor, clamp: float | None, project: Projection | None) -> Update:
    """One pass over the volume a step: `ops.fuse_step`, which finds its row on the device."""
    rows = torch.tensor(table.rows[:, 2:], dtype=x.dtype, device=x.device)
    numbers = torch.arange(len(table), dtype=torch.int32, device=x.device)
    factor, measured = (1, 1, 1), None
    if project is not None:
        assert project.blocks is not None
        factor = project.blocks
        if project.measured is not None:
            measured = project.measured.to(x.dtype).expand(*x.shape[:2], -1, -1, -1)

    def update(step: int, fusion: Fusion, x: Tensor, x0: Tensor) -> tuple[Tensor, Tensor]:
        return fuse_step(
            *fusion, x, x0, rows, numbers[step - 1 : step], keys,
            clamp=clamp, factor=factor, measured=measured,
        )  # fmt: skip

    return update


def _composed(
    table: Table,
    draw: Callable[[int], Tensor],
    clamp: float | None,
    project: Callable[[Tensor], Tensor] | None,
) -> Update:
    """The same from separate operations, for any noise and any projection."""
    rows = table.rows[:, 2:].tolist()

    def update(step: int, fusion: Fusion, x: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        p, q, a, b, c, s = rows[step - 1]
        x0 = p * x + q * fuse_scores(*fusion).to(x.dtype)
        x0 = x0 if clamp is None else x0.clamp(-clamp, clamp)
        x0 = x0 if project is None else project(x0)
        x = b * x0 if a == 0.0 else a * x + b * x0
        x = x if c == 0.0 else x + c * before
        return (x if s == 0.0 else x + s * draw(step)), x0

    return update
