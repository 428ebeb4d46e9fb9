"""pointwise: layers of extent 1 of the bundled models' networks against PyTorch's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.ceilings import PRODUCT
from scorefusion.ops import backends
from scorefusion.ops.packed_weight import multiplies_pairs
from scorefusion.ops.pointwise import pack, pointwise

REASON = backends.missing("cpp") or backends.outdated()
pytestmark = pytest.mark.skipif(bool(REASON), reason=str(REASON))

# Samples, channels in, channels out, grid.
LAYERS: dict[str, tuple[int, int, int, tuple[int, ...]]] = {
    "t1-sr4 2D skip, 96 to 80 at 20x24": (32, 96, 80, (20, 24)),
    "t1-sr4 2D skip, 96 to 96 at 10x12": (32, 96, 96, (10, 12)),
    "t1-sr4 3D skip, 48 to 48 at 40x48x48": (1, 48, 48, (40, 48, 48)),
    "t1-sr4 3D skip, 64 to 64 at 20x24x24": (1, 64, 64, (20, 24, 24)),
    "t1-t2 2D skip, 56 to 40 at 40x48": (32, 56, 40, (40, 48)),
    "t1-sr4 linear, 192 to 160, 110 rows": (110, 192, 160, ()),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", ["PyTorch", "pointwise"])
@pytest.mark.parametrize("name", LAYERS)
def test_layer(name: str, way: str, dtype: str, measure: Callable[..., Any], timed: bool) -> None:
    samples, inputs, outputs, size = LAYERS[name]
    if not timed:
        samples, size = 1, tuple(min(length, 6) for length in size)
    torch.manual_seed(0)
    kind, kernel = DTYPES[dtype], (1,) * len(size)
    x = torch.randn(samples, *size, inputs).movedim(-1, 1).to(kind)
    weight = (torch.randn(outputs, inputs, *kernel) / math.sqrt(inputs)).to(kind)
    bias = torch.randn(outputs).to(kind)
    layer: Any = {0: F.linear, 2: F.conv2d, 3: F.conv3d}[len(size)]
    pairs = dtype == "bfloat16" and multiplies_pairs()
    packed, added = pack(weight, products=torch.bfloat16 if pairs else torch.float32), bias.float()

    def run() -> Tensor:
        return layer(x, weight, bias) if way == "PyTorch" else pointwise(x, packed, added)

    exact = layer(x.double(), weight.double(), bias.double())
    apart = float((run().double() - exact).pow(2).mean().sqrt() / exact.pow(2).mean().sqrt())
    assert apart < (1e-6 if dtype == "float32" else 2**-8)
    measure(
        run,
        group=f"{name}, {dtype}",
        reference=way == "PyTorch",
        dtype=kind,
        like=PRODUCT,
        FLOP=2 * inputs * outputs * samples * math.prod(size),
    )
