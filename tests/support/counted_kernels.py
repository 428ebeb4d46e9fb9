"""Kernels whose traffic can be worked out by hand, and faulty ones; run, it prints the traffic."""

from __future__ import annotations

import json
from typing import Any

import torch
import triton
import triton.language as tl

from benchmarks.evidence.interpreter import watching
from benchmarks.evidence.memory import Memory

N = 2048


@triton.jit
def copy_kernel(out_ptr, in_ptr, n, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + place, tl.load(in_ptr + place, mask=place < n), mask=place < n)


@triton.jit
def twice_kernel(out_ptr, in_ptr, n, BLOCK: tl.constexpr):
    """Reads all of the input in the first program, and its own part again in each."""
    total = tl.zeros([BLOCK], tl.float32)
    if tl.program_id(0) == 0:
        for start in range(0, n, BLOCK):
            total += tl.load(in_ptr + start + tl.arange(0, BLOCK))
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + place, tl.load(in_ptr + place) + total)


@triton.jit
def strided_kernel(out_ptr, in_ptr, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + place, tl.load(in_ptr + place * 8))


@triton.jit
def add_in_place_kernel(in_ptr, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(in_ptr + place, tl.load(in_ptr + place) + 1.0)


@triton.jit
def atomic_kernel(out_ptr, BLOCK: tl.constexpr):
    tl.atomic_add(out_ptr + tl.arange(0, BLOCK), 1.0)


@triton.jit
def beyond_kernel(out_ptr, BLOCK: tl.constexpr):
    tl.store(out_ptr + tl.arange(0, BLOCK), 0.0)


@triton.jit
def order_kernel(out_ptr):
    """Stores the order that programs of a 2 x 3 grid run in."""
    before = tl.load(out_ptr + 6)
    tl.store(out_ptr + tl.program_id(1) * 2 + tl.program_id(0), before)
    tl.store(out_ptr + 6, before + 1)


@triton.jit
def product_kernel(out_ptr, a_ptr, b_ptr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    m, n, k = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :], tl.arange(0, K)
    product = tl.dot(tl.load(a_ptr + m * K + k[None, :]), tl.load(b_ptr + k[:, None] * N + n))
    tl.store(out_ptr + m * N + n, product)


@triton.jit
def unknown_name_kernel(out_ptr):
    tl.store(out_ptr, nothing_of_this_name)  # noqa: F821


def counted(kernel: Any, grid: tuple[int, ...], *arguments: Any, cache: int = 10**6, **named: Any) -> dict:
    memories = []

    def open_memory(name: str, size: int) -> Memory:
        memories.append(Memory(size, [cache]))
        return memories[-1]

    with watching(open_memory):
        try:
            kernel[grid](*arguments, **named)
        except Exception as error:
            return {"error": str(error)}
    return {
        "raw": [memories[0].raw_read, memories[0].raw_written],
        **vars(memories[0].caches[0].moved),
    }


def main() -> None:
    x, out = torch.zeros(N), torch.zeros(N)
    wide, order = torch.zeros(8 * N), torch.zeros(7, dtype=torch.int32)
    short = torch.zeros(100, dtype=torch.bfloat16)
    found = {
        "copy": counted(copy_kernel, (N // 256,), out, x, N, BLOCK=256),
        "masked": counted(copy_kernel, (1,), short.clone(), short, 100, BLOCK=128),
        "twice": counted(twice_kernel, (N // 256,), out, x, N, BLOCK=256),
        "twice, tiny cache": counted(twice_kernel, (N // 256,), out, x, N, BLOCK=256, cache=2048),
        "strided": counted(strided_kernel, (N // 256,), out, wide, BLOCK=256),
        "in place": counted(add_in_place_kernel, (N // 256,), x, BLOCK=256),
        "atomic": counted(atomic_kernel, (1,), out, BLOCK=256),
        "beyond": counted(beyond_kernel, (1,), torch.zeros(100), BLOCK=128),
        "order": counted(order_kernel, (2, 3), order),
    }
    print(json.dumps({**found, "programs": order[:6].tolist()}))


if __name__ == "__main__":
    main()
