"""A kernel that does nothing but multiply and add in registers: the rate at which instructions issue."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

BLOCK, STEPS = 1024, 4096


@triton.jit
def ffma_kernel(out_ptr: Any, factor: Any, BLOCK: tl.constexpr, STEPS: tl.constexpr) -> None:
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = place.to(tl.float32)
    for _ in range(STEPS):
        value = value * factor + 1.0
    tl.store(out_ptr + place, value)


def ffma(out: torch.Tensor) -> int:
    """Fill a float32 tensor of a multiple of BLOCK elements; return the FLOP."""
    ffma_kernel[(out.numel() // BLOCK,)](out, 0.5, BLOCK=BLOCK, STEPS=STEPS, num_warps=4)
    return 2 * out.numel() * STEPS
