"""One solver step, of stacks of slices of the three planes, with blocks and without."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from benchmarks.evidence.case import Case, Work
from benchmarks.evidence.cases.fuse_scores import size, slice_major

if TYPE_CHECKING:
    from scorefusion.kernels.launch import Config

# (name, planes, dtype of scores and maps, block, measured, whether CI compiles it)
KINDS = (
    ("three planes, 4x4x4 blocks, bfloat16", "acs", torch.bfloat16, (4, 4, 4), False, True),
    ("three planes, 4x4x4 measured, float32", "acs", torch.float32, (4, 4, 4), True, False),
    ("three planes, 3x3x3 blocks, float32", "acs", torch.float32, (3, 3, 3), False, False),
    ("six branches, 4x4x4 blocks, float32", "acsacs", torch.float32, (4, 4, 4), False, False),
    ("six branches, no blocks, bfloat16", "acsacs", torch.bfloat16, (1, 1, 1), False, False),
)
# A quarter of ten rounds of Philox, half of a Box-Muller transform, and the row, clamp and projection.
_NOISE, _ROW = 10 * 8 // 4 + 30, 16


def cases(device: str) -> Iterator[Case]:
    """Yield steps whose row reads everything; the noise, which moves no bytes, is drawn on "meta" only."""
    from scorefusion.kernels.fuse_step import CONFIGS, fuse_step

    for name, planes, dtype, factor, has_measured, fast in KINDS:
        depth, height, width = size(device, deep=factor[0])
        volume = (depth // factor[0] * factor[0], height, width)
        count = len(planes)
        scores = slice_major(planes, volume, dtype, device)
        maps = torch.zeros(1, count, *volume, dtype=dtype, device=device)
        x_t, x0_prev, x_next, x0 = (torch.zeros(1, 1, *volume, device=device) for _ in range(4))
        coarse = [length // edge for length, edge in zip(volume, factor, strict=True)]
        measured = torch.zeros(1, 1, *coarse, device=device) if has_measured else None
        rows = torch.ones(8, 6, device=device)
        if device == "cpu":
            rows[:, 5] = 0.0
        index = torch.zeros(1, dtype=torch.int32, device=device)
        keys = torch.zeros(1, 5, dtype=torch.int64, device=device)
        base = [1.0 / count] * count
        fused = (scores, maps, base, 1.0, x_t, x0_prev, rows, index, keys)
        arguments = (x_next, x0, *fused, 1.0, factor, measured)

        def run(config: Config, arguments: tuple = arguments) -> None:
            fuse_step(*arguments, config=config)

        voxels, each = x_t.numel(), scores[0].element_size()
        small = 6 * 4 + 4 + 5 * 8 + (0 if measured is None else 4 * measured.numel())
        # The fused score's passes, 3 of x0, 2 of the clamp, 3 of the projection, 8 of x', and the noise's.
        unfused = voxels * (2 * count * (each + 4) + (3 * count - 1) * 4 + (count - 1) * 4 * 8 + 4 * 5)
        unfused += voxels * 4 * (7 + 2 + (5 if max(factor) > 1 else 0) + 16) + voxels * 640
        work = Work(
            (2 * count * each + 8) * voxels + small,
            8 * voxels,
            (5 * count - 2 + _ROW + _NOISE) * voxels,
            unfused,
        )
        yield Case("fuse_step", name, CONFIGS, run, {"_fuse_step_kernel": work}, fast=fast)
