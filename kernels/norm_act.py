"""Normalisation, FiLM and SiLU in Triton, over a virtual concatenation, into a padded channels-last buffer.

    out = pad(act(norm(concat(x, other) + add) · weight · (1 + scale) + bias · (1 + scale) + shift))

LayerNorm is one kernel: a program has whole voxels in registers, takes the mean and then the variance about
it, and reads and writes each element once. GroupNorm is three. The first takes each channel's mean and sum
of squares about it (Welford 1962) over a chunk of voxels, measured from the channel's first voxel so that a
large mean costs no digits; the second combines chunks and channels in a fixed order (Chan et al. 1983) and
folds everything into a centre, slope and offset a channel; the third applies them, reading and writing each
element once. Both kernels that write also write the halo: from the nearest voxel, or zeros without reading.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Config, launch, view

LAYER = Config("4096x8", "32 floats a thread whatever the width", {"TILE": 4096, "STEPS": 8})
PARTIAL = Config(
    "32x64x64",
    "rows of 64 channels are whole lines; 2048 voxels a chunk keep a volume's partials in the L2 cache",
    {"BLOCK_V": 32, "BLOCK_C": 64, "STEPS": 64},
)
FINALISE = Config("64", "a chunk has few statistics: many loads in flight", {"BLOCK_K": 64}, num_warps=2)
APPLY = Config(
    "32x64x8",
    "16 floats a thread; the channels' parameters are read once for 256 voxels",
    {"BLOCK_V": 32, "BLOCK_C": 64, "STEPS": 8},
)
CONFIGS = (LAYER, PARTIAL, FINALISE, APPLY)


@triton.jit
def _source(place, sizes, PAD_Z: tl.constexpr, PAD: tl.constexpr, REPLICATE: tl.constexpr):
    """From places in the padded [D, H, W] to the voxel (z, y, x) each is made of, and whether it is read."""
    depth, height, width = sizes
    across, down = width + 2 * PAD, height + 2 * PAD
    x = place % across - PAD
    y = place // across % down - PAD
    z = place // across // down - PAD_Z
    near_x = tl.minimum(tl.maximum(x, 0), width - 1)
    near_y = tl.minimum(tl.maximum(y, 0), height - 1)
    near_z = tl.minimum(tl.maximum(z, 0), depth - 1)
    read = place < across * down * (depth + 2 * PAD_Z)
    if not REPLICATE:
        read = read & (x == near_x) & (y == near_y) & (z == near_z)
    return (near_z.to(tl.int64), near_y.to(tl.int64), near_x.to(tl.int64)), read


@triton.jit
def _load(view, n, voxel, channel, mask):
    """Load [voxels, channels] of an [N, C, D, H, W] (pointer, strides) as float32, zero where masked."""
    ptr, strides = view
    z, y, x = voxel
    rows = n * strides[0] + z * strides[2] + y * strides[3] + x * strides[4]
    places = rows[:, None] + channel[None, :] * strides[1]
    return tl.load(ptr + places, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _load_joined(x, other, n, voxel, channel, read, C: tl.constexpr, C1: tl.constexpr):
    """Load [voxels, channels] of the concatenation of [N, C1, ...] and [N, C - C1, ...]."""
    value = _load(x, n, voxel, channel, read[:, None] & (channel < C1)[None, :])
    if C1 < C:
        mask = read[:, None] & ((channel >= C1) & (channel < C))[None, :]
        value += _load(other, n, voxel, channel - C1, mask)
    return value


@triton.jit
def _load_told(told, n, channel, C: tl.constexpr):
    """Load channels of [N, C] (strides of two) or [C] (of one) as float32; zeros where there is none."""
    if told is None:
        return tl.zeros(channel.shape, tl.float32)
    elif len(told[1]) == 1:
        return tl.load(told[0] + channel * told[1][0], mask=channel < C, other=0.0).to(tl.float32)
    else:
        places = told[0] + n * told[1][0] + channel * told[1][1]
        return tl.load(places, mask=channel < C, other=0.0).to(tl.float32)


@triton.jit
def _film(told, n, channel, C: tl.constexpr):
    """Fold weight, bias, scale and shift into slope and offset."""
    gain = 1.0 + _load_told(told[2], n, channel, C)
    slope = _load_told(told[0], n, channel, C) * gain
    offset = _load_told(told[1], n, channel, C) * gain
    return slope, offset + _load_told(told[3], n, channel, C)


@triton.jit
def _write(out_ptr, n, places, place, channel, y, read, C: tl.constexpr, SILU: tl.constexpr):
    """Activate, and write to [N, places, C]; zeros where nothing was read."""
    if SILU:
        y = y / (1.0 + tl.exp(-y))
    y = tl.where(read[:, None], y, 0.0)
    target = out_ptr + (n * places + place)[:, None] * C + channel[None, :]
    mask = (place < places)[:, None] & (channel < C)[None, :]
    tl.store(target, y.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _norm_act_layer_kernel(
    out_ptr,
    x,
    other,
    told,
    sizes,
    places,
    eps,
    C: tl.constexpr,
    C1: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PAD_Z: tl.constexpr,
    PAD: tl.constexpr,
    REPLICATE: tl.constexpr,
    SILU: tl.constexpr,
    TILE: tl.constexpr,
    STEPS: tl.constexpr,
):
    BLOCK_V: tl.constexpr = max(TILE // BLOCK_C, 1)
    n = tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, BLOCK_C)
    slope, offset = _film(told, n, channel, C)
    added = _load_told(told[4], n, channel, C)
    whole = (channel < C)[None, :]
    first = tl.program_id(0) * STEPS * BLOCK_V
    for step in range(tl.minimum(tl.cdiv(places - first, BLOCK_V), STEPS)):
        place = first + step * BLOCK_V + tl.arange(0, BLOCK_V)
        voxel, read = _source(place, sizes, PAD_Z, PAD, REPLICATE)
        h = _load_joined(x, other, n, voxel, channel, read, C, C1)
        h += added[None, :]
        h = tl.where(whole, h - tl.sum(h, 1)[:, None] / C, 0.0)
        # Once more, for what rounding left of a large mean.
        h = tl.where(whole, h - tl.sum(h, 1)[:, None] / C, 0.0)
        rstd = tl.rsqrt(tl.sum(h * h, 1) / C + eps)
        y = h * rstd[:, None] * slope[None, :] + offset[None, :]
        _write(out_ptr, n, places, place, channel, y, read, C, SILU)


@triton.jit
def _norm_act_partial_kernel(
    centre_ptr,
    partial_ptr,
    x,
    sizes,
    voxels,
    first,
    C: tl.constexpr,
    OWN: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Statistics of one chunk of one of the two inputs, [N, OWN, ...], whose channels begin at `first` of C.

    centre is [N, C]: the first voxel. partial is [N, chunks, 2, C]: mean less centre, and sum of squares.
    """
    chunk, n = tl.program_id(0), tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    own = channel < OWN
    centre = tl.load(x[0] + n * x[1][0] + channel * x[1][1], mask=own, other=0.0).to(tl.float32)
    mean = tl.zeros([BLOCK_V, BLOCK_C], tl.float32)
    square = tl.zeros([BLOCK_V, BLOCK_C], tl.float32)
    count = tl.zeros([BLOCK_V], tl.float32)
    start = chunk * STEPS * BLOCK_V
    for step in range(tl.minimum(tl.cdiv(voxels - start, BLOCK_V), STEPS)):
        place = start + step * BLOCK_V + tl.arange(0, BLOCK_V)
        voxel, read = _source(place, sizes, 0, 0, False)
        value = _load(x, n, voxel, channel, read[:, None] & own[None, :])
        count += read.to(tl.float32)
        apart = tl.where(read[:, None], value - centre[None, :] - mean, 0.0)
        change = apart / tl.maximum(count, 1.0)[:, None]
        square += apart * (apart - change)
        mean += change
    # The rows of the tile, each with its own count, become one.
    total = tl.sum(count, 0)
    middle = tl.sum(mean * count[:, None], 0) / total
    apart = mean - middle[None, :]
    square = tl.sum(square + apart * apart * count[:, None], 0)
    target = partial_ptr + (n * tl.num_programs(0) + chunk) * 2 * C + first + channel
    tl.store(target, middle, mask=own)
    tl.store(target + C, square, mask=own)
    tl.store(centre_ptr + n * C + first + channel, centre, mask=own & (chunk == 0))


@triton.jit
def _norm_act_finalise_kernel(
    fold_ptr,
    centre_ptr,
    partial_ptr,
    told,
    voxels,
    chunks,
    eps,
    C: tl.constexpr,
    EACH: tl.constexpr,
    BLOCK_E: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Combine a group's partial statistics; fold is [N, 2, C]: slope, and offset of what is centred."""
    group, n = tl.program_id(0), tl.program_id(1).to(tl.int64)
    inside = tl.arange(0, BLOCK_E) < EACH
    channel = tl.where(inside, group * EACH + tl.arange(0, BLOCK_E), C)
    centre = tl.load(centre_ptr + n * C + channel, mask=inside, other=0.0)
    # From the centre of the group's first channel: the others are near it if the mean is large.
    centre -= tl.load(centre_ptr + n * C + group * EACH)
    centre += _load_told(told[4], n, channel, C)
    base = partial_ptr + n * chunks * 2 * C + channel[None, :]
    total = voxels * (EACH + 0.0)  # of one voxel Triton makes a constant, which has no `to`
    mean = tl.sum(tl.where(inside, centre, 0.0), 0) / EACH
    for again in tl.static_range(2):
        sums = tl.zeros([BLOCK_K, BLOCK_E], tl.float32)
        for block in range(0, chunks, BLOCK_K):
            chunk = block + tl.arange(0, BLOCK_K)
            mask = (chunk < chunks)[:, None] & inside[None, :]
            count = tl.minimum(tl.maximum(voxels - chunk * CHUNK, 0), CHUNK).to(tl.float32)[:, None]
            places = base + chunk.to(tl.int64)[:, None] * 2 * C
            apart = tl.load(places, mask=mask, other=0.0) + (centre - mean)[None, :]
            if again == 0:
                sums += tl.where(mask, count * apart, 0.0)
            else:
                sums += tl.where(mask, count * apart * apart, 0.0)
                sums += tl.load(places + C, mask=mask, other=0.0)
        result = tl.sum(tl.sum(sums, 1), 0) / total
        if again == 0:
            mean += result
        else:
            rstd = tl.rsqrt(result + eps)
            slope, offset = _film(told, n, channel, C)
            slope *= rstd
            tl.store(fold_ptr + n * 2 * C + channel, slope, mask=inside)
            tl.store(fold_ptr + n * 2 * C + C + channel, offset + (centre - mean) * slope, mask=inside)


@triton.jit
def _norm_act_apply_kernel(
    out_ptr,
    x,
    other,
    centre_ptr,
    fold_ptr,
    sizes,
    places,
    C: tl.constexpr,
    C1: tl.constexpr,
    PAD_Z: tl.constexpr,
    PAD: tl.constexpr,
    REPLICATE: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STEPS: tl.constexpr,
):
    n = tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    centre = tl.load(centre_ptr + n * C + channel, mask=channel < C, other=0.0)
    slope = tl.load(fold_ptr + n * 2 * C + channel, mask=channel < C, other=0.0)
    offset = tl.load(fold_ptr + n * 2 * C + C + channel, mask=channel < C, other=0.0)
    first = tl.program_id(0) * STEPS * BLOCK_V
    for step in range(tl.minimum(tl.cdiv(places - first, BLOCK_V), STEPS)):
        place = first + step * BLOCK_V + tl.arange(0, BLOCK_V)
        voxel, read = _source(place, sizes, PAD_Z, PAD, REPLICATE)
        h = _load_joined(x, other, n, voxel, channel, read, C, C1)
        y = (h - centre[None, :]) * slope[None, :] + offset[None, :]
        _write(out_ptr, n, places, place, channel, y, read, C, SILU)


def norm_act(
    out: Tensor,  # [N, C, *(size + 2 · pad)], dense channels-last
    x: Tensor,  # [N, C1, *size], any strides
    other: Tensor | None,  # [N, C2, *size], any strides
    weight: Tensor,  # [C]
    bias: Tensor,  # [C]
    scale: Tensor | None,  # [N, C]
    shift: Tensor | None,  # [N, C]
    add: Tensor | None,  # [N, C]
    groups: int | None,
    eps: float,
    silu: bool,
    pad: int,
    pad_mode: str,
    config: Config | None = None,
) -> None:
    """Write the result into `out`; arguments are checked by the op, `config` is of the kernel that writes."""
    parts = [part for part in (x, other) if part is not None and part.shape[1]]
    samples, channels = out.shape[:2]
    sizes = (1,) * (5 - x.ndim) + tuple(x.shape[2:])
    voxels, places = sizes[0] * sizes[1] * sizes[2], out[0, 0].numel() if samples else 0
    told = tuple(map(view, (weight, bias, scale, shift, add)))
    common = {"C": channels, "C1": parts[0].shape[1], "PAD_Z": pad if x.ndim == 5 else 0, "PAD": pad}
    common |= {"REPLICATE": pad_mode == "replicate", "SILU": silu}
    inputs = (_volume(parts[0]), _volume(parts[-1]))
    if groups is None:
        block, config = triton.next_power_of_2(channels), config or LAYER
        rows = max(config.constants["TILE"] // block, 1) * config.constants["STEPS"]
        grid = (triton.cdiv(places, rows), samples)
        arguments = (out, *inputs, told, sizes, places, eps)
        launch(_norm_act_layer_kernel, grid, *arguments, BLOCK_C=block, config=config, **common)
        return
    config, chunk = config or APPLY, PARTIAL.constants["BLOCK_V"] * PARTIAL.constants["STEPS"]
    chunks = triton.cdiv(voxels, chunk)
    centre = torch.empty((samples, channels), dtype=torch.float32, device=x.device)
    partial = torch.empty((samples, chunks, 2, channels), dtype=torch.float32, device=x.device)
    fold = torch.empty((samples, 2, channels), dtype=torch.float32, device=x.device)
    first = 0
    for part in parts:
        own = part.shape[1]
        grid = (chunks, triton.cdiv(own, PARTIAL.constants["BLOCK_C"]), samples)
        partials = (centre, partial, _volume(part), sizes, voxels, first)
        launch(_norm_act_partial_kernel, grid, *partials, C=channels, OWN=own, config=PARTIAL)
        first += own
    arguments = (fold, centre, partial, told, voxels, chunks, eps)
    each = channels // groups
    fixed = {"C": channels, "EACH": each, "BLOCK_E": triton.next_power_of_2(each), "CHUNK": chunk}
    launch(_norm_act_finalise_kernel, (groups, samples), *arguments, config=FINALISE, **fixed)
    rows = config.constants["BLOCK_V"] * config.constants["STEPS"]
    grid = (triton.cdiv(places, rows), triton.cdiv(channels, config.constants["BLOCK_C"]), samples)
    launch(_norm_act_apply_kernel, grid, out, *inputs, centre, fold, sizes, places, config=config, **common)


def _volume(x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Return x with strides of [N, C, D, H, W], D being 1 in two dimensions."""
    return x, x.stride() if x.ndim == 5 else (*x.stride()[:2], 0, *x.stride()[2:])
