"""The fused score and its gradient, of stacks of slices of the three planes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from benchmarks.evidence.case import Case, Work

if TYPE_CHECKING:
    from scorefusion.kernels.launch import Config

# (name, planes, dtype of scores and maps, whether CI compiles it)
KINDS = (
    ("three planes, bfloat16", "acs", torch.bfloat16, True),
    ("three planes, float32", "acs", torch.float32, False),
    ("six branches, bfloat16", "acsacs", torch.bfloat16, False),
    ("six branches, float32", "acsacs", torch.float32, False),
)


def size(device: str, deep: int = 2) -> tuple[int, int, int]:
    """Return the paper's volume on "meta", else a slab of it that the interpreter counts in seconds."""
    return (152, 192, 192) if device == "meta" else (deep, 192, 192)


def slice_major(planes: str, volume: tuple[int, int, int], dtype: torch.dtype, device: str) -> list[Tensor]:
    """Return scores [1, 1, D, H, W] as views of the stacks that branches make."""
    d, h, w = volume
    made = {"a": ((1, d, 1, h, w), 2), "c": ((1, h, 1, d, w), 3), "s": ((1, w, 1, d, h), 4)}
    return [
        torch.zeros(made[plane][0], dtype=dtype, device=device).movedim(1, made[plane][1]) for plane in planes
    ]


def cases(device: str) -> Iterator[Case]:
    """Yield the forward kernel and its gradient for three and six branches."""
    from scorefusion.kernels.fuse_scores import CONFIGS, fuse_scores, fuse_scores_backward

    for name, planes, dtype, fast in KINDS:
        volume, count = size(device), len(planes)
        scores = slice_major(planes, volume, dtype, device)
        maps = torch.zeros(1, count, *volume, dtype=dtype, device=device)
        out = torch.zeros(1, 1, *volume, device=device)
        slopes = torch.zeros(1, count, *volume, device=device)
        voxels, each = out.numel(), scores[0].element_size()

        def forward(
            config: Config, out: Tensor = out, scores: list[Tensor] = scores, maps: Tensor = maps
        ) -> None:
            fuse_scores(out, scores, maps, [1 / len(scores)] * len(scores), 1.0, config=config)

        def backward(
            config: Config, out: Tensor = slopes, grad: Tensor = out, scores: list[Tensor] = scores
        ) -> None:
            fuse_scores_backward(out, grad, scores, 1.0, config=config)

        # The reference: each score and map widened, K products and sums of the average, and for each map a
        # difference, a product and a sum; every pass reads and writes float32 volumes.
        unfused = voxels * (2 * count * (each + 4) + (3 * count - 1) * 4 + (count - 1) * 4 * 8 + 4 * 5)
        work = Work(2 * count * each * voxels, 4 * voxels, (5 * count - 2) * voxels, unfused)
        yield Case("fuse_scores", name, CONFIGS, forward, {"_fuse_scores_kernel": work}, fast=fast)
        # Each score widened, K - 1 differences and products, a scaled gradient, and the copy that joins them.
        unfused = voxels * (count * (each + 4) + (count - 1) * 4 * 6 + 8 + count * 8)
        work = Work((count * each + 4) * voxels, 4 * count * voxels, (2 * count - 1) * voxels, unfused)
        yield Case(
            "fuse_scores",
            f"gradient of the maps, {name}",
            CONFIGS,
            backward,
            {"_fuse_scores_backward_kernel": work},
            fast=fast,
        )
