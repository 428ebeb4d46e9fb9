"""The sampling loop, plainly: it applies a solver's table and knows nothing else about solvers."""

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from scorefusion.diffusion.level import NoiseLevel
from scorefusion.diffusion.solvers import Table
from scorefusion.errors import ScoreFusionError
from scorefusion.ops.fuse_scores import Fusion, fuse_scores
from scorefusion.ops.noise import normal


@torch.no_grad()
def sample(
    model: Callable[[Tensor, NoiseLevel], Tensor | Fusion],
    condition: Tensor,
    table: Table,
    *,
    seeds: Sequence[int],
    origin: Sequence[int] = (0, 0, 0),
    sample: int | Sequence[int] = 0,
    channels: int = 1,
    prior_mean: Tensor | None = None,
    clamp: float | None = None,
    project: Callable[[Tensor], Tensor] | None = None,
    noise: Callable[[int], Tensor] | None = None,
    callback: Callable[[int, int, Tensor], None] | None = None,
) -> Tensor:
    """Draw x0, float32 [B, channels, D, H, W]; the engine draws the same, to rounding, and faster.

    `model` makes of (x_t, level) what `table.prediction` says, or the `Fusion` that gives it, for x_t
    float32 [B, channels, D, H, W]. Of `condition` [B, C, D, H, W] only batch, box and device matter. An
    item's sample depends on its own seed alone, with `origin` (z, y, x) of the box in the original volume
    and the index of the sample. `prior_mean` of x0 is what a late start begins from; x0 is limited to
    `clamp`, then given to `project`. `noise(n)` draws z in place of `ops.normal`: 0 is the start, n is row
    n - 1's. `callback(step, total, x0)` follows each step, from 1; raise in it to cancel.
    """
    shape, device = (condition.shape[0], channels, *condition.shape[2:]), condition.device
    if condition.ndim != 5 or len(seeds) != shape[0]:
        given = f"got {list(condition.shape)} and {len(seeds)} seeds"
        raise ScoreFusionError(f"sampling needs a condition [B, C, D, H, W] and B seeds; {given}")
    draw = noise or functools.partial(normal, shape, seeds, origin=origin, sample=sample, device=device)
    x = math.sqrt(1.0 - table.abar_start) * draw(0)
    x = x if prior_mean is None else x + math.sqrt(table.abar_start) * prior_mean
    x0 = torch.zeros_like(x)
    for step, (abar, t, p, q, a, b, c, s) in enumerate(table.rows.tolist(), start=1):
        output = model(x, NoiseLevel.of(abar, int(t), shape[0], device))
        output = fuse_scores(*output) if isinstance(output, Fusion) else output
        if output.shape != x.shape:
            raise ScoreFusionError(f"the model returned {list(output.shape)}, expected {list(x.shape)}")
        before, x0 = x0, p * x + q * output.to(x.dtype)
        x0 = x0 if clamp is None else x0.clamp(-clamp, clamp)
        x0 = x0 if project is None else project(x0)
        x = a * x + b * x0 + c * before
        x = x if s == 0.0 else x + s * draw(step)
        if callback is not None:
            callback(step, len(table), x0)
    return x
