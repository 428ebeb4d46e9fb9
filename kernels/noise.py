"""Counter-based standard normals in Triton, bit for bit those of `scorefusion.ops.reference.noise`.

One program fills BLOCK groups of four voxels of one z-plane; a group is one Philox 4x32-10 counter, whose
four words give four normals. Nothing is read but the seeds; 4 bytes are written for each voxel. Fusing a
multiplication and an addition would change the last bit, so the kernel is compiled with
enable_fp_fusion=False, and the square root is the correctly rounded one.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Config, launch

CONFIGS = (Config("256", "two groups a thread: eight voxels, two 16-byte stores", {"BLOCK": 256}),)


@triton.jit
def _log_unit(u):
    """Natural logarithm of float32 u in [2^-33, 1] (Cephes logf)."""
    bits = u.to(tl.int32, bitcast=True)
    mantissa = (bits & 0x007FFFFF) | 0x3F000000
    low = (mantissa < 0x3F3504F3).to(tl.int32)
    exponent = ((bits >> 23) - 126 - low).to(tl.float32)
    x = (mantissa + (low << 23)).to(tl.float32, bitcast=True) - 1.0
    square = x * x
    y = x * 7.0376836292e-2 + -1.1514610310e-1
    y = y * x + 1.1676998740e-1
    y = y * x + -1.2420140846e-1
    y = y * x + 1.4249322787e-1
    y = y * x + -1.6668057665e-1
    y = y * x + 2.0000714765e-1
    y = y * x + -2.4999993993e-1
    y = y * x + 3.3333331174e-1
    y = y * x * square
    y = y + exponent * -2.12194440e-4
    y = y - square * 0.5
    return (x + y) + exponent * 0.693359375


@triton.jit
def _box_muller(word_0, word_1):
    """Two uint32 words to two float32 normals."""
    u = word_0.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10
    radius = tl.sqrt_rn(_log_unit(u) * -2.0)
    quadrant = (word_1 + 0x20000000) >> 30
    angle = (word_1 << 2).to(tl.int32, bitcast=True).to(tl.float32) * 3.657295198167899e-10
    square = angle * angle
    sine = (square * -1.9515295891e-4 + 8.3321608736e-3) * square + -1.6666654611e-1
    sine = sine * square * angle + angle
    tail = (square * 2.443315711809948e-5 + -1.388731625493765e-3) * square + 4.166664568298827e-2
    cosine = tail * square * square - square * 0.5 + 1.0
    odd = (quadrant & 1) != 0
    first = tl.where(odd, sine, cosine)
    second = tl.where(odd, cosine, sine)
    first = tl.where(((quadrant ^ (quadrant >> 1)) & 1) != 0, -first, first)
    second = tl.where((quadrant >> 1) != 0, -second, second)
    return radius * first, radius * second


@triton.jit
def _philox(c0, c1, c2, c3, k0, k1):
    """Philox 4x32-10 on uint32 tensors of one shape."""
    for _ in tl.static_range(10):
        high_0, low_0 = tl.umulhi(c0, 0xD2511F53), c0 * 0xD2511F53
        high_1, low_1 = tl.umulhi(c2, 0xCD9E8D57), c2 * 0xCD9E8D57
        c0, c1, c2, c3 = high_1 ^ c1 ^ k0, low_1, high_0 ^ c3 ^ k1, low_0
        k0 = k0 + 0x9E3779B9
        k1 = k1 + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit(do_not_specialize=["step", "z0", "y0", "x0"])
def _noise_kernel(
    out_ptr,
    keys_ptr,
    step,
    channels,
    depth,
    height,
    width,
    z0,
    y0,
    x0,
    groups,
    blocks,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Fill BLOCK groups of one z-plane of the [B, C, D, H, W] at out_ptr.

    keys_ptr is int32 [B, 3]: the seed's low and high words, the sample. A row of x has `groups` groups, a
    plane `blocks` programs.
    ALIGNED says that every group is whole (x0 and width are multiples of 4), so a plane is one run of groups.
    """
    program = tl.program_id(0)
    plane = program // blocks
    start = (program % blocks) * BLOCK
    z = plane % depth
    channel = plane // depth % channels
    item = plane // depth // channels
    index = start + tl.arange(0, BLOCK)
    y = index // groups
    group = index % groups
    k0 = tl.load(keys_ptr + item * 3).to(tl.uint32, bitcast=True)
    k1 = tl.load(keys_ptr + item * 3 + 1).to(tl.uint32, bitcast=True)
    sample = tl.load(keys_ptr + item * 3 + 2).to(tl.uint32, bitcast=True)
    c0 = (x0 // 4 + group).to(tl.uint32) | ((y0 + y).to(tl.uint32) << 16)
    c1 = tl.zeros_like(c0) + ((z0 + z) | (channel << 16)).to(tl.uint32)
    c2 = tl.zeros_like(c0) + step.to(tl.uint32)
    c3 = tl.zeros_like(c0) + sample
    w0, w1, w2, w3 = _philox(c0, c1, c2, c3, k0, k1)
    n0, n1 = _box_muller(w0, w1)
    n2, n3 = _box_muller(w2, w3)
    normals = tl.reshape(tl.join(tl.join(n0, n2), tl.join(n1, n3)), [BLOCK * 4])
    lane = start * 4 + tl.arange(0, BLOCK * 4)
    if ALIGNED:
        tl.store(
            out_ptr + plane.to(tl.int64) * height * groups * 4 + lane,
            normals,
            mask=lane < height * groups * 4,
        )
    else:
        row = lane // (groups * 4)
        x = lane % (groups * 4) - x0 % 4
        target = out_ptr + plane.to(tl.int64) * height * width + row * width + x
        tl.store(target, normals, mask=(row < height) & (x >= 0) & (x < width))


def fill_normal(
    out: Tensor,
    seeds: Sequence[int],
    step: int,
    origin: Sequence[int],
    samples: Sequence[int],
    config: Config = CONFIGS[0],
) -> None:
    """Fill a contiguous float32 [B, C, D, H, W] with standard normals; arguments are checked by the op."""
    batch, channels, depth, height, width = out.shape
    z0, y0, x0 = origin
    groups = (x0 + width + 3) // 4 - x0 // 4
    blocks = triton.cdiv(height * groups, config.constants["BLOCK"])
    pairs = zip(seeds, samples, strict=True)
    words = [[word & 0xFFFFFFFF for word in (seed, seed >> 32, sample)] for seed, sample in pairs]
    keys = torch.tensor(words, dtype=torch.int64, device="cpu").to(torch.int32).to(out.device)
    grid, aligned = (batch * channels * depth * blocks,), x0 % 4 == 0 and width % 4 == 0
    arguments = (out, keys, step, channels, depth, height, width, z0, y0, x0, groups, blocks)
    launch(_noise_kernel, grid, *arguments, ALIGNED=aligned, enable_fp_fusion=False, config=config)
