"""pointwise: every backend against the product in float64; bits that depend on a voxel's channels alone."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import Tensor

from scorefusion.errors import ScoreFusionError
from scorefusion.ops import backends
from scorefusion.ops.packed_weight import multiplies_pairs
from scorefusion.ops.pointwise import pack, pointwise

REASON = backends.missing("cpp") or backends.outdated()
needs_cpp = pytest.mark.skipif(bool(REASON), reason=str(REASON))
BACKENDS = ["torch", pytest.param("cpp", marks=needs_cpp)]
# Channels of x, of other, and out: whole vectors, parts of one, and several panels.
CHANNELS = [(48, 0, 96), (48, 80, 48), (8, 8, 8), (3, 5, 1), (40, 56, 72), (17, 1, 130), (192, 0, 128)]
SIZES = [(), (1,), (7,), (5, 9), (3, 4, 5)]
LIMITS = {torch.float32: 4e-7, torch.bfloat16: 2**-8}


def layer(inputs: int, more: int, outputs: int, size: tuple[int, ...], samples: int = 2) -> dict[str, Tensor]:
    make = torch.Generator().manual_seed(inputs + more + outputs + sum(size))

    def volume(channels: int) -> Tensor:
        return torch.randn(samples, *size, channels, generator=make).movedim(-1, 1)

    return {
        "x": volume(inputs),
        "other": volume(more),
        "weight": torch.randn(outputs, inputs + more, generator=make) / math.sqrt(inputs + more),
        "bias": torch.randn(outputs, generator=make),
        "residual": volume(outputs),
    }


def exactly(given: dict[str, Tensor]) -> Tensor:
    x = torch.cat([given["x"], given["other"]], dim=1).double().movedim(1, -1)
    y = x @ given["weight"].double().t() + given["bias"].double()
    return y.movedim(-1, 1) + given["residual"].double()


def error(found: Tensor, exact: Tensor) -> float:
    assert found.shape == exact.shape
    return float((found.double() - exact).pow(2).mean().sqrt() / exact.pow(2).mean().sqrt())


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("channels", CHANNELS, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_matches_the_product(backend: str, channels: tuple[int, int, int], size: tuple[int, ...]) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        given = {name: part.to(dtype) for name, part in layer(*channels, size).items()}
        exact, other = exactly(given), given["other"] if channels[1] else None
        for products in (torch.float32, torch.bfloat16):
            if products == torch.bfloat16 and (dtype == torch.float32 or not multiplies_pairs()):
                continue
            packed = pack(given["weight"], products=products)
            result = pointwise(
                given["x"], packed, given["bias"], other=other, residual=given["residual"], backend=backend
            )
            assert result.dtype == dtype and result.movedim(1, -1).is_contiguous()
            assert error(result, exact) < LIMITS[dtype], (dtype, products)


@needs_cpp
def test_any_strides_and_in_place() -> None:
    given = layer(40, 24, 48, (6, 5))
    packed, exact = pack(given["weight"]), exactly(given)
    wide = torch.full((2, 12, 5, 64), math.nan)
    wide[:, ::2, :, :40] = given["x"].movedim(1, -1)
    for x in (given["x"].contiguous(), wide[:, ::2, :, :40].movedim(-1, 1)):
        out = given["residual"].movedim(1, -1).contiguous().movedim(-1, 1).clone()
        found = pointwise(x, packed, given["bias"], other=given["other"].contiguous(), residual=out, out=out)
        assert found is out and error(out, exact) < LIMITS[torch.float32]
    assert pack(given["weight"][:, :, None, None]).values.equal(packed.values)


@needs_cpp
@pytest.mark.parametrize("channels", [(96, 0, 80), (40, 24, 56), (192, 0, 128)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bits_depend_on_a_voxels_channels_alone(channels: tuple[int, int, int], dtype: torch.dtype) -> None:
    """Not on threads, nor on how many rows are computed together."""
    given = {name: part.to(dtype) for name, part in layer(*channels, (2111,)).items()}
    other = given["other"] if channels[1] else None
    products = dtype if dtype == torch.float32 or multiplies_pairs() else torch.float32
    packed, before, results = pack(given["weight"], products=products), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            results.append(pointwise(given["x"], packed, given["bias"], other=other))
    finally:
        torch.set_num_threads(before)
    for first, last in ((0, 1), (5, 7), (100, 149), (2110, 2111)):
        part = None if other is None else other[:, :, first:last]
        some = pointwise(given["x"][:, :, first:last], packed, given["bias"], other=part)
        assert torch.equal(some, results[0][:, :, first:last])
    assert all(torch.equal(results[0], each) for each in results[1:])


@needs_cpp
def test_nan_stays_in_its_voxel() -> None:
    given = layer(19, 5, 21, (9,), samples=1)
    given["x"][0, 18, 4] = math.nan
    found = pointwise(given["x"], pack(given["weight"]), given["bias"], other=given["other"])
    assert found.isnan().any(dim=1)[0].nonzero().flatten().tolist() == [4]


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty(backend: str) -> None:
    packed = pack(torch.zeros(3, 4))
    assert pointwise(torch.zeros(0, 4, 5), packed, backend=backend).shape == (0, 3, 5)
    assert pointwise(torch.zeros(2, 4, 0), packed, backend=backend).shape == (2, 3, 0)


def test_rejects_bad_input() -> None:
    weight = torch.zeros(32, 16)
    for bad, said in (
        ({"weight": torch.zeros(32)}, r"\[O, C\] or \[O, C, 1, ...\]"),
        ({"weight": torch.zeros(32, 16, 3)}, r"got \[32, 16, 3\]"),
        ({"weight": torch.zeros(0, 16)}, "16 in and 0 out"),
        ({"weight": torch.zeros(32, 16, dtype=torch.int32)}, "torch.int32"),
        ({"weight": torch.zeros(32, 16, device="meta")}, "on meta"),
        ({"products": torch.float16}, "float32 or bfloat16"),
    ):
        with pytest.raises(ScoreFusionError, match=said):
            pack(**{"weight": weight, **bad})  # type: ignore[arg-type]
    packed, x = pack(weight), torch.zeros(1, 16, 4)
    for given, said in (
        ({"x": torch.zeros(1, 24, 4)}, r"x \[N, 16, ...\]"),
        ({"other": torch.zeros(1, 4, 4)}, r"x \[N, 12, ...\]"),
        ({"x": torch.zeros(1, 12, 4), "other": torch.zeros(1, 4, 5)}, r"other \[1, 4, 4\]"),
        ({"bias": torch.zeros(16)}, r"bias \[32\]; got \[16\]"),
        ({"residual": torch.zeros(1, 32, 5)}, r"residual \[1, 32, 4\]"),
        ({"residual": torch.zeros(1, 32, 4).bfloat16()}, "residual .* of torch.float32"),
        ({"out": torch.zeros(1, 32, 4)}, "dense channels-last"),
        ({"residual": torch.zeros(1, 32, 4, device="meta")}, "residual on cpu"),
        ({"backend": "triton"}, "no triton implementation"),
    ):
        with pytest.raises(ScoreFusionError, match=said):
            pointwise(**{"x": x, "packed": packed, **given})  # type: ignore[arg-type]


@needs_cpp
@pytest.mark.parametrize("instructions", ["baseline", "avx2", "avx512"])
def test_every_copy_of_the_loops(instructions: str) -> None:
    """A set that this processor lacks is left at its best; pairs of bfloat16 are refused without theirs."""
    program = """
        import pytest, torch
        from scorefusion.errors import ScoreFusionError
        from scorefusion.ops.pointwise import pack, pointwise
        from tests.ops.test_pointwise import CHANNELS, LIMITS, error, exactly, layer
        for channels in CHANNELS:
            for dtype, limit in LIMITS.items():
                given = {name: part.to(dtype) for name, part in layer(*channels, (5, 9)).items()}
                exact, packed = exactly(given), pack(given.pop("weight"))
                if not channels[1]:
                    del given["other"]
                result = pointwise(given.pop("x"), packed, given.pop("bias"), backend="cpp", **given)
                assert error(result, exact) < limit, (channels, dtype)
        with pytest.raises(ScoreFusionError, match="AVX512-BF16"):
            pointwise(torch.zeros(1, 16), pack(torch.zeros(16, 16), products=torch.bfloat16), backend="cpp")
    """
    environment = {**os.environ, "SCOREFUSION_CPU": instructions}
    code = textwrap.dedent(program)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
