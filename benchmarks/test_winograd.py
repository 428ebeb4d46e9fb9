"""winograd: layers of the paper's and the bundled model's networks against PyTorch's own convolution.

FLOP are the direct convolution's for every case, so a rate above the ceiling is multiplications saved.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.ceilings import CONVOLUTION
from scorefusion.ops import backends
from scorefusion.ops.packed_weight import multiplies_pairs
from scorefusion.ops.winograd import TILES, pack, winograd

pytestmark = pytest.mark.skipif(bool(backends.missing("cpp")), reason=str(backends.missing("cpp")))

# Samples, channels in, channels out, grid.
LAYERS: dict[str, tuple[int, int, int, tuple[int, ...]]] = {
    "paper 2D, 64 at 64x64": (8, 64, 64, (64, 64)),
    "paper 2D, 128 at 32x32": (8, 128, 128, (32, 32)),
    "paper 2D, 256 at 16x16": (8, 256, 256, (16, 16)),
    "paper 2D, 512 at 8x8": (8, 512, 512, (8, 8)),
    "paper 2D skip, 128 to 64": (8, 128, 64, (64, 64)),
    "paper 3D, 64 at 32x64x64": (1, 64, 64, (32, 64, 64)),
    "paper 3D, 128 at 16x32x32": (1, 128, 128, (16, 32, 32)),
    "paper 3D, 192 at 8x16x16": (1, 192, 192, (8, 16, 16)),
    "t1-sr4 2D, 48 at 40x48": (32, 48, 48, (40, 48)),
    "t1-sr4 2D, 80 at 20x24": (32, 80, 80, (20, 24)),
    "t1-sr4 2D, 96 at 10x12": (32, 96, 96, (10, 12)),
    "t1-sr4 3D, 48 at 40x48x48": (1, 48, 48, (40, 48, 48)),
    "t1-sr4 3D, 64 at 20x24x24": (1, 64, 64, (20, 24, 24)),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WAYS = ("direct", "tiles of 2", "tiles of 4", "pairs, tiles of 2", "pairs, tiles of 2 and 4")


@pytest.mark.main_case(name="t1-sr4 2D, 48 at 40x48", dtype="float32")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", LAYERS)
def test_convolution(name: str, way: str, dtype: str, measure: Callable[..., Any], timed: bool) -> None:
    samples, inputs, outputs, size = LAYERS[name]
    pairs, dims = way.startswith("pairs"), len(size)
    if pairs and (dtype == "float32" or not multiplies_pairs()):
        pytest.skip("pairs of bfloat16 are for bfloat16, with AVX512-BF16")
    if not timed:
        samples, size = 1, tuple(min(length, 6) for length in size)
    if dims == 3 and way.endswith("and 4"):
        pytest.skip("for slices")
    torch.manual_seed(0)
    x = torch.randn(samples, *size, inputs).movedim(-1, 1).to(DTYPES[dtype])
    weight = torch.randn(outputs, inputs, *(3 for _ in size)) / math.sqrt(inputs * 3**dims)
    weight, bias = weight.to(DTYPES[dtype]), torch.randn(outputs).to(DTYPES[dtype])
    direct = F.conv2d if dims == 2 else F.conv3d
    tile = TILES[dims][{"tiles of 4": -1, "pairs, tiles of 2 and 4": 1}.get(way, 0)]
    packed = pack(weight, tile=tile, products=torch.bfloat16 if pairs else torch.float32)
    added = bias.float()

    def run() -> Tensor:
        return direct(x, weight, bias, padding=1) if way == "direct" else winograd(x, packed, added)

    exact = direct(x[:1].double(), weight.double(), bias.double(), padding=1)
    rounding = 3e-6 if dtype == "float32" else 4 * 2**-9
    apart = float((run()[:1].double() - exact).pow(2).mean().sqrt() / exact.pow(2).mean().sqrt())
    assert apart < rounding
    flop = 2 * inputs * outputs * 3**dims * samples * math.prod(size)
    measure(
        run,
        group=f"{name}, {dtype}",
        reference=way == "direct",
        dtype=DTYPES[dtype],
        like=CONVOLUTION,
        FLOP=flop,
    )
