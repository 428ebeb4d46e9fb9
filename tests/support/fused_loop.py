"""The sampling loop with `fuse_step` for its tail, as the engine runs it, for any model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from scorefusion.degradations import Projection
from scorefusion.diffusion.level import NoiseLevel
from scorefusion.diffusion.solvers import Table
from scorefusion.ops import normal
from scorefusion.ops.fuse_scores import Fusion
from scorefusion.ops.fuse_step import fuse_step
from scorefusion.ops.noise import noise_keys

Update = Callable[[int, Fusion, Tensor, Tensor], tuple[Tensor, Tensor]]


def fused_update(
    table: Table, x: Tensor, keys: Tensor, clamp: float | None, project: Projection | None
) -> Update:
    """update(step, fusion, x, x0) in one pass over the volume, which finds its row on the device."""
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


@torch.no_grad()
def fused_sample(
    model: Callable[[Tensor, NoiseLevel], Fusion],
    shape: Sequence[int],
    table: Table,
    *,
    seeds: Sequence[int],
    origin: Sequence[int],
    clamp: float | None = None,
    project: Projection | None = None,
) -> Tensor:
    """As `scorefusion.diffusion.sample`."""
    x = math.sqrt(1.0 - table.abar_start) * normal(tuple(shape), seeds, 0, origin=origin)
    x0, update = torch.zeros_like(x), fused_update(table, x, noise_keys(seeds, origin=origin), clamp, project)
    for step, (abar, t) in enumerate(table.rows[:, :2].tolist(), start=1):
        x, x0 = update(step, model(x, NoiseLevel.of(abar, int(t), shape[0], "cpu")), x, x0)
    return x
