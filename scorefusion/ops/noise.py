"""Standard normal noise that is a pure function of (seed, sample, step, channel, voxel coordinate)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from scorefusion.errors import ScoreFusionError
from scorefusion.ops.backends import choose, cpp, kernel
from scorefusion.ops.reference import noise as reference


def normal(
    shape: Sequence[int],
    seeds: Sequence[int],
    step: int,
    *,
    origin: Sequence[int] = (0, 0, 0),
    sample: int | Sequence[int] = 0,
    device: torch.device | str = "cpu",
    backend: str | None = None,
) -> Tensor:
    """Return the noise of a box of voxels, the same bits on every backend.

    Philox 4x32-10 (Salmon et al. 2011) keyed by the seed, counting by the voxel's coordinate in the original
    volume, and Box-Muller; `scorefusion.ops.reference.noise` is the definition. A crop, another batch or
    another backend therefore draws the same number for the same voxel.

    Args:
        shape: [B, C, D, H, W] of the box.
        seeds: B seeds, each within [-2^63, 2^64); a negative one is its 64-bit two's complement.
        step: 0 for the start of sampling, n for the noise of the solver's row n - 1; within [0, 2^32).
        origin: (z, y, x) of the box's first voxel in the original volume, not negative.
        sample: index of the sample, or one for each item; within [0, 2^32).
        device: where the result lives.
        backend: "torch", "cpp" or "triton"; chosen by `scorefusion.ops.backends` if not given.

    Returns:
        float32 [B, C, D, H, W], contiguous.

    Raises:
        ScoreFusionError: if a number is out of range (z, y and channel end at 2^16, x at 2^18), there is not
            a seed (and, of several samples, a sample) for each item, or the backend cannot run.
    """
    box, start, keys = ([int(number) for number in numbers] for numbers in (shape, origin, seeds))
    samples = each_sample(sample, len(keys))
    step, device = int(step), torch.device(device)
    _check(box, keys, step, start, samples)
    run = IMPLEMENTATIONS[choose("noise", device, backend, IMPLEMENTATIONS)]
    out = torch.empty(box, dtype=torch.float32, device=device)
    if out.numel():
        run(out, keys, step, start, samples)
    return out


def _torch(out: Tensor, keys: list[int], step: int, start: list[int], samples: list[int]) -> None:
    # The reference needs float64, which MPS has not.
    home = torch.device("cpu") if out.device.type == "mps" else out.device
    out.copy_(reference.normal(out.shape, keys, step, start, samples, home))


def _cpp(out: Tensor, keys: list[int], *rest: Any) -> None:
    cpp("normal", out.data_ptr(), list(out.shape), [key % 2**64 for key in keys], *rest)


IMPLEMENTATIONS = {"torch": _torch, "cpp": _cpp, "triton": kernel("noise", "fill_normal")}


def noise_keys(
    seeds: Sequence[int],
    *,
    sample: int | Sequence[int] = 0,
    origin: Sequence[int] = (0, 0, 0),
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return what `fuse_step` reads of each item's noise: int64 [B, 5] of seed, sample, z, y, x.

    Copied into a tensor that a captured CUDA graph reads, it gives the graph other seeds, samples and boxes.

    Args:
        seeds: B seeds, each within [-2^63, 2^64); stored as 64-bit two's complement.
        sample: index of the sample, or one for each item; within [0, 2^32).
        origin: (z, y, x) of the box's first voxel in the original volume, not negative.
        device: where the result lives.

    Raises:
        ScoreFusionError: if a number is out of range or there is not a sample for each item.
    """
    start = [int(corner) for corner in origin]
    rows = []
    for seed, index in zip(seeds, each_sample(sample, len(seeds)), strict=True):
        _check_seed(int(seed))
        check_box("noise", [1, 1, 0, 0, 0], start, index)
        rows.append([(int(seed) + 2**63) % 2**64 - 2**63, index, *start])
    return torch.tensor(rows, dtype=torch.int64, device=device).reshape(-1, 5)


def each_sample(sample: int | Sequence[int], items: int) -> list[int]:
    """Return the sample of each item."""
    if not isinstance(sample, Sequence):
        return [int(sample)] * items
    if len(sample) != items:
        raise ScoreFusionError(f"noise needs a sample for each of {items} items, or one; got {len(sample)}")
    return [int(index) for index in sample]


def _check(shape: list[int], seeds: list[int], step: int, origin: list[int], samples: list[int]) -> None:
    if len(shape) != 5 or min(shape) < 0:
        raise ScoreFusionError(f"noise needs a shape [B, C, D, H, W], got {shape}")
    if len(seeds) != shape[0]:
        raise ScoreFusionError(
            f"noise needs one seed for each item of the batch: {shape[0]} items, {len(seeds)} seeds"
        )
    for seed in seeds:
        _check_seed(seed)
    if not 0 <= step < 2**32:
        raise ScoreFusionError(f"noise step must be within [0, 2^32), got {step}")
    for sample in samples or [0]:
        check_box("noise", shape, origin, sample)


def _check_seed(seed: int) -> None:
    if not -(2**63) <= seed < 2**64:
        raise ScoreFusionError(f"a seed must be within [-2^63, 2^64), got {seed}")


def check_box(op: str, shape: list[int], origin: list[int], sample: int) -> None:
    """Raise unless a box [B, C, D, H, W] of voxels and a sample's index fit the counter's bits."""
    if not 0 <= sample < 2**32:
        raise ScoreFusionError(f"{op} sample must be within [0, 2^32), got {sample}")
    if len(origin) != 3 or min(origin) < 0:
        raise ScoreFusionError(f"{op} origin must be (z, y, x), none negative, got {origin}")
    ends = (shape[1], origin[0] + shape[2], origin[1] + shape[3], origin[2] + shape[4])
    for name, end, limit in zip(("channel", "z", "y", "x"), ends, (2**16, 2**16, 2**16, 2**18), strict=True):
        if end > limit:
            raise ScoreFusionError(f"{op} counts {name} below {limit}, but the box ends at {end}")
