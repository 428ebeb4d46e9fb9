"""Counter-based noise: nothing is read but the seeds and samples, 4 bytes are written for each voxel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from benchmarks.evidence.case import Case, Work

if TYPE_CHECKING:
    from scorefusion.kernels.launch import Config

# A normal takes a quarter of ten rounds of Philox, of 2 wide products and 6 other operations each, and half
# of a Box-Muller transform of about 60 operations.
_OPERATIONS = 10 * 8 // 4 + 30
# The reference's separate passes: the counters and key, 10 rounds over four 8-byte words, then the transform.
_UNFUSED = 10 * 4 * 8 * 2


def cases(device: str) -> Iterator[Case]:
    """Yield the noise of the paper's volume, and of a crop whose rows begin inside a group of four."""
    from scorefusion.kernels.noise import CONFIGS, fill_normal

    meta = device == "meta"
    for name, shape, origin in (
        ("whole volume", (1, 1, 152, 192, 192) if meta else (1, 1, 4, 192, 192), (0, 0, 0)),
        ("odd crop", (2, 1, 75, 95, 97) if meta else (2, 1, 3, 95, 97), (7, 5, 3)),
    ):
        out = torch.empty(shape, device=device)
        seeds = list(range(shape[0]))
        voxels = out.numel()

        def run(
            config: Config, out: Tensor = out, seeds: list[int] = seeds, origin: tuple[int, ...] = origin
        ) -> None:
            fill_normal(out, seeds, 1, origin, [0] * len(seeds), config=config)

        yield Case(
            "noise",
            name,
            CONFIGS,
            run,
            {"_noise_kernel": Work(12 * shape[0], 4 * voxels, _OPERATIONS * voxels, _UNFUSED * voxels)},
            fast=name == "whole volume",
        )
