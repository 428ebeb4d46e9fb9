"""What norm_act is held to: the paper's GroupNorm, with its skip connections, and the bundled LayerNorm."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.evidence.case import Case, Work

SLICES = 4


def cases(device: str) -> Iterator[Case]:
    """Yield the callers' shapes on "meta"; on "cpu", slabs of the same planes or channels."""
    small = device == "cpu"
    half, single = torch.bfloat16, torch.float32
    plane, coarse = ((16, 192), (6, 24)) if small else ((192, 192), (24, 24))
    volume = (6, 8, 192) if small else (152, 192, 192)
    deep = (2, 12, 24) if small else (19, 24, 24)
    count = 1 if small else SLICES
    yield _case("2D 64 bf16", device, count, (64,), plane, half, 32, fast=True)
    yield _case("2D 128+64 bf16, skip", device, count, (128, 64), plane, half, 32)
    yield _case("2D 512+512 bf16, skip", device, count, (512, 512), coarse, half, 32)
    yield _case("2D 512+512 f32, skip", device, count, (512, 512), coarse, single, 32)
    yield _case("3D 64 bf16, replicate", device, 1, (64,), volume, half, 32, replicate=True)
    yield _case("3D 256+256 f32, skip", device, 1, (256, 256), deep, single, 32)
    yield _case("LayerNorm 2D 80 bf16", device, count, (80,), plane, half, None, fast=True)
    yield _case("LayerNorm 2D 96+80 bf16, skip", device, count, (96, 80), plane, half, None)
    yield _case("LayerNorm 2D 512+512 f32, skip", device, count, (512, 512), coarse, single, None)
    yield _case("LayerNorm 3D 48 bf16", device, 1, (48,), volume, half, None)


def _case(
    name: str,
    device: str,
    count: int,
    widths: tuple[int, ...],
    size: tuple[int, ...],
    dtype: torch.dtype,
    groups: int | None,
    *,
    replicate: bool = False,
    fast: bool = False,
) -> Case:
    from scorefusion.kernels import norm_act as kernel
    from scorefusion.kernels.launch import Config

    channels, voxels = sum(widths), math.prod(size)
    padded = math.prod(length + 2 for length in size)
    bits = torch.empty(0, dtype=dtype).element_size()

    def features(width: int, grow: int = 0) -> Tensor:
        shape = (count, *(length + grow for length in size), width)
        return torch.zeros(shape, dtype=dtype, device=device).movedim(-1, 1)

    def run(config: Config) -> None:
        parts = [features(width) for width in widths]
        weight, bias = torch.zeros(channels, device=device), torch.zeros(channels, device=device)
        told = torch.zeros(count, 2 * channels, device=device)
        kernel.norm_act(
            features(channels, 2),
            parts[0],
            parts[1] if len(parts) > 1 else None,
            weight,
            bias,
            told[:, :channels],
            told[:, channels:],
            None,
            groups,
            1e-5,
            True,
            1,
            "replicate" if replicate else "zeros",
            config=config,
        )

    elements = count * channels * voxels
    read, written = elements * bits, count * channels * padded * bits
    # cat, GroupNorm (its input twice), addcmul, SiLU and padding: each reads and writes; cat only for a skip.
    passes = 2 * (len(widths) > 1) + (3 if groups else 2) + 2 + 2 + 1
    unfused = passes * read + written
    folded = 4 * count * channels
    if groups is None:
        work = {
            "_norm_act_layer_kernel": Work(read + 2 * folded + 8 * channels, written, 14 * elements, unfused)
        }
        return Case("norm_act", name, (kernel.LAYER,), run, work, fast)
    chunk = kernel.PARTIAL.constants["BLOCK_V"] * kernel.PARTIAL.constants["STEPS"]
    partials = 2 * folded * -(-voxels // chunk)
    work = {
        "_norm_act_partial_kernel": Work(read, partials + folded, 6 * elements, read),
        "_norm_act_finalise_kernel": Work(
            partials + 3 * folded + 8 * channels, 2 * folded, partials, partials, limit=2.0
        ),
        "_norm_act_apply_kernel": Work(read + 3 * folded, written, 8 * elements, unfused),
    }
    return Case("norm_act", name, (kernel.APPLY,), run, work, fast)
