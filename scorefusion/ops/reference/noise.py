"""Standard normal noise as a pure function of (seed, sample, step, channel, voxel): the definition.

Philox 4x32-10 (Salmon et al. 2011) turns a counter and a key into four 32-bit words; Box-Muller turns two
words into two normals. A voxel's counter is its coordinate in the original volume, so any crop, tile, batch
or thread draws the same number for the same voxel:

    key     = (seed low word, seed high word)
    counter = (x // 4  |  y << 16,   z | channel << 16,   step,   sample)

and the four normals of a counter are the lanes x % 4. All other backends give these very bits. For that,
floating point is float32 with + - * and sqrt only, each correctly rounded, in the order written, never fused:

    u      = float(w0) * 2^-32 + 2^-33                  in (0, 1]
    radius = sqrt(-2 log(u))                            at most 6.8
    angle  = 2 pi w1 / 2^32                             the top bits give the quadrant, the rest are signed
    lanes  = radius * cos(angle), radius * sin(angle)   and likewise w2, w3 for lanes 2 and 3

log, sin and cos are the polynomials of Moshier's Cephes library (logf, sinf, cosf), within 1.1e-7 of the
truth, log relatively. Run this eagerly: a compiler that fuses a multiplication and an addition changes the
last bit.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
MULTIPLIER_0, MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
WEYL_0, WEYL_1 = 0x9E3779B9, 0xBB67AE85
ROUNDS = 10

LOG = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox(counter: Words, key: tuple[Tensor, Tensor]) -> Words:
    """Return the four words of Philox 4x32-10, int64 in [0, 2^32), of a counter and a key of such words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # An int64 product of two words may wrap, but all its 64 bits are right once masked.
        product_0, product_1 = c0 * MULTIPLIER_0, c2 * MULTIPLIER_1
        c0, c1, c2, c3 = (
            ((product_1 >> 32) & MASK) ^ c1 ^ k0,
            product_1 & MASK,
            ((product_0 >> 32) & MASK) ^ c3 ^ k1,
            product_0 & MASK,
        )
        k0, k1 = (k0 + WEYL_0) & MASK, (k1 + WEYL_1) & MASK
    return c0, c1, c2, c3


def box_muller(word_0: Tensor, word_1: Tensor) -> tuple[Tensor, Tensor]:
    """Return two float32 tensors of standard normals from two int64 tensors of 32-bit words of one shape."""
    radius = _sqrt(_log(word_0.to(torch.float32) * 2.0**-32 + 2.0**-33) * -2.0)
    quadrant = ((word_1 + 0x20000000) >> 30) & 3
    remainder = ((word_1 << 2) & MASK).to(torch.int32)  # wraps to signed: [-2^31, 2^31) is [-pi/4, pi/4)
    angle = remainder.to(torch.float32) * _ANGLE_UNIT
    square = angle * angle
    sine = ((square * SIN[0] + SIN[1]) * square + SIN[2]) * square * angle + angle
    cosine = ((square * COS[0] + COS[1]) * square + COS[2]) * square * square
    cosine = cosine - square * 0.5 + 1.0
    odd = (quadrant & 1).bool()
    first = torch.where(odd, sine, cosine)
    second = torch.where(odd, cosine, sine)
    first = torch.where((quadrant == 1) | (quadrant == 2), -first, first)
    second = torch.where(quadrant >= 2, -second, second)
    return radius * first, radius * second


def normal(
    shape: Sequence[int],
    seeds: Sequence[int],
    step: int,
    origin: Sequence[int],
    sample: int | Sequence[int],
    device: torch.device,
) -> Tensor:
    """Return standard normals, float32 [B, C, D, H, W]; arguments are `scorefusion.ops.normal`'s, checked."""
    batch, channels, depth, height, width = shape
    z0, y0, x0 = origin
    first = x0 // 4
    groups = (x0 + width + 3) // 4 - first

    def words(values: Sequence[int] | range, *view: int) -> Tensor:
        return torch.tensor(list(values), dtype=torch.int64, device=device).view(*view)

    x = words(range(first, first + groups), 1, 1, 1, 1, -1)
    y = words(range(y0, y0 + height), 1, 1, 1, -1, 1)
    z = words(range(z0, z0 + depth), 1, 1, -1, 1, 1)
    channel = words(range(channels), 1, -1, 1, 1, 1)
    key = (
        words([seed & MASK for seed in seeds], -1, 1, 1, 1, 1),
        words([(seed >> 32) & MASK for seed in seeds], -1, 1, 1, 1, 1),
    )
    counter = (
        x | (y << 16),
        z | (channel << 16),
        words([step], 1, 1, 1, 1, 1),
        words([sample] if isinstance(sample, int) else sample, -1, 1, 1, 1, 1),
    )
    w0, w1, w2, w3 = philox(counter, key)
    lanes = torch.stack((*box_muller(w0, w1), *box_muller(w2, w3)), dim=-1)
    lanes = lanes.reshape(batch, channels, depth, height, groups * 4)
    return lanes[..., x0 - first * 4 : x0 - first * 4 + width].contiguous()


_ANGLE_UNIT = 3.6572951981678994e-10  # pi / 2^33


def _sqrt(x: Tensor) -> Tensor:
    """Return the correctly rounded root of float32 x, which torch.sqrt may miss by a unit, through float64.

    No 24-bit number's root lies within 2^-51, relatively, of the middle between two others.
    """
    return torch.sqrt(x.double()).float()


def _log(u: Tensor) -> Tensor:
    """Return the natural logarithm of float32 u in [2^-33, 1]."""
    bits = u.view(torch.int32)
    mantissa = ((bits & 0x007FFFFF) | 0x3F000000).view(torch.float32)  # in [0.5, 1)
    exponent = (bits >> 23) - 126
    low = mantissa < 0.70710678
    exponent = (exponent - low.to(torch.int32)).to(torch.float32)
    x = torch.where(low, mantissa + mantissa, mantissa) - 1.0
    square = x * x
    y = x * LOG[0] + LOG[1]
    for coefficient in LOG[2:]:
        y = y * x + coefficient
    y = y * x * square
    y = y + exponent * -2.12194440e-4
    y = y - square * 0.5
    return (x + y) + exponent * 0.693359375
