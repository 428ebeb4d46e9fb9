"""winograd: every backend against the direct convolution in float64, and its transforms by hand."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scorefusion.errors import ScoreFusionError
from scorefusion.ops import backends
from scorefusion.ops.packed_weight import multiplies_pairs
from scorefusion.ops.reference.winograd import transforms
from scorefusion.ops.winograd import TILES, pack, winograd

REASON = backends.missing("cpp") or backends.outdated()
needs_cpp = pytest.mark.skipif(bool(REASON), reason=str(REASON))
BACKENDS = ["torch", pytest.param("cpp", marks=needs_cpp)]

# Spatial sizes by name: whole tiles, what edges cut off, and less than a tile.
SIZES = {
    2: {"whole tiles": (8, 12), "odd": (7, 5), "one row": (1, 6), "one voxel": (1, 1), "blocks": (21, 26)},
    3: {"whole tiles": (4, 8, 4), "odd": (3, 7, 5), "one slice": (1, 5, 6), "one voxel": (1, 1, 1)},
}
GRIDS = [
    pytest.param(dims, size, id=f"{dims}D {name}") for dims in SIZES for name, size in SIZES[dims].items()
]
# Channels in and out: panels of one to four vectors, equal or not, the last vector whole or not.
CHANNELS = {
    "one vector": (16, 16), "panels of 3 and 2": (32, 80), "bundled": (48, 48), "widening": (16, 112),
    "half a vector": (40, 56), "first": (4, 24), "last": (8, 1), "odd": (19, 37),
}  # fmt: skip

# Root-mean-square errors, as parts of the result's. In bfloat16 rounding the result gives 2^-9 / sqrt(3);
# where the products are rounded too, that many times as much, as the op's table has it.
FLOAT32 = {(2, 2): 3e-7, (2, 4): 7e-7, (4, 4): 1e-6, (2, 2, 2): 4e-7, (2, 4, 4): 1e-6, (4, 4, 4): 2e-6}
ROUNDED = 2**-9
PAIRS = {(2, 2): 2.2, (2, 4): 3.5, (4, 4): 6.0, (2, 2, 2): 2.6, (2, 4, 4): 7.5, (4, 4, 4): 13.0}


def layer(dims: int, size: tuple[int, ...], inputs: int, outputs: int, samples: int = 2) -> dict[str, Tensor]:
    make = torch.Generator().manual_seed(inputs + outputs + sum(size))
    return {
        "x": torch.randn(samples, inputs, *size, generator=make),
        "weight": torch.randn(outputs, inputs, *[3] * dims, generator=make) / math.sqrt(inputs * 3**dims),
        "bias": torch.randn(outputs, generator=make),
        "residual": torch.randn(samples, outputs, *size, generator=make),
    }


def last(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def directly(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, pad_mode: str = "zeros"
) -> Tensor:
    x, weight = x.double(), weight.double()
    mode = "constant" if pad_mode == "zeros" else pad_mode
    padded = F.pad(x, (1, 1) * (x.ndim - 2), mode=mode)
    y = (F.conv2d if x.ndim == 4 else F.conv3d)(padded, weight, None if bias is None else bias.double())
    return y if residual is None else y + residual.double()


def error(found: Tensor, exact: Tensor) -> float:
    assert found.shape == exact.shape
    return float((found.double() - exact).pow(2).mean().sqrt() / exact.pow(2).mean().sqrt())


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Make new memory NaN, so that what is never written shows."""
    make = Tensor.new_empty
    Tensor.new_empty = lambda *args, **kwargs: make(*args, **kwargs).fill_(math.nan)  # type: ignore[method-assign]
    try:
        yield
    finally:
        Tensor.new_empty = make  # type: ignore[method-assign]


@pytest.mark.parametrize(("dims", "size"), GRIDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_matches_direct_convolution(backend: str, dims: int, size: tuple[int, ...]) -> None:
    given = layer(dims, size, 32, 48)
    for tile in TILES[dims]:
        packed = pack(given["weight"], tile=tile)
        for pad_mode in ("zeros", "replicate"):
            for residual in (None, last(given["residual"])):
                exact = directly(given["x"], given["weight"], given["bias"], residual, pad_mode)
                with poisoned():
                    found = winograd(
                        last(given["x"]), packed, given["bias"],
                        residual=residual, pad_mode=pad_mode, backend=backend,
                    )  # fmt: skip
                assert found.movedim(1, -1).is_contiguous()
                assert error(found, exact) < FLOAT32[tile], (tile, pad_mode)


@pytest.mark.parametrize("name", CHANNELS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_width_of_a_panel(backend: str, name: str) -> None:
    given = layer(2, (6, 7), *CHANNELS[name])
    exact = directly(given["x"], given["weight"], None, given["residual"])
    for products in (torch.float32, torch.bfloat16):
        if products == torch.bfloat16 and backend == "cpp" and not multiplies_pairs():
            continue
        packed, out = pack(given["weight"], tile=(2, 2), products=products), last(given["residual"].clone())
        found = winograd(last(given["x"]), packed, residual=out, out=out, backend=backend)
        assert error(found, exact) < (FLOAT32[2, 2] if products == torch.float32 else 3 * ROUNDED)


@pytest.mark.parametrize("threads", [2, 3, 4])
def test_packs_to_the_same_bits_with_any_number_of_threads(threads: int) -> None:
    """PyTorch's matrix product of the transform does not: its library splits it by threads."""
    weight, before = layer(3, (1, 1, 1), 96, 80)["weight"], torch.get_num_threads()
    packed = []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            packed.append(pack(weight, tile=(4, 4, 4)).values)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*packed)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16(backend: str, dims: int) -> None:
    given = {name: value.bfloat16() for name, value in layer(dims, (5, 9, 6)[-dims:], 64, 64).items()}
    exact = directly(**given)
    for tile in TILES[dims]:
        for products in (torch.float32, torch.bfloat16):
            if products == torch.bfloat16 and backend == "cpp" and not multiplies_pairs():
                continue
            packed = pack(given["weight"], tile=tile, products=products)
            found = winograd(
                last(given["x"]), packed, given["bias"], residual=last(given["residual"]), backend=backend
            )
            assert found.dtype == torch.bfloat16
            times = 1.0 if products == torch.float32 else PAIRS[tile]
            assert error(found, exact) < times * ROUNDED, (tile, products)


@pytest.mark.parametrize("tile", [tile for tiles in TILES.values() for tile in tiles], ids=str)
def test_definition_is_exact_in_float64(tile: tuple[int, ...]) -> None:
    from scorefusion.ops.reference import winograd as reference

    given = {name: value.double() for name, value in layer(len(tile), (5, 6, 7)[-len(tile) :], 3, 2).items()}
    three = (0, *tile) if len(tile) == 2 else tile
    weights = reference.transformed(given["weight"], three)
    for pad_mode in ("zeros", "replicate"):
        found = reference.winograd(
            given["x"], weights, given["bias"], given["residual"], three, torch.float64, None, pad_mode
        )
        torch.testing.assert_close(found, directly(**given, pad_mode=pad_mode), rtol=1e-12, atol=1e-12)


def test_by_hand() -> None:
    """F(2, 3) of 1, 2, 3, 4 with 1, 10, 100: 321 and 432."""
    into, weights, back = transforms(2)
    x, w = torch.tensor([1.0, 2.0, 3.0, 4.0]).double(), torch.tensor([1.0, 10.0, 100.0]).double()
    assert (into @ x).tolist() == [-2.0, 5.0, 1.0, 2.0]
    assert (weights @ w).tolist() == [1.0, 55.5, 45.5, 100.0]
    assert (back @ ((into @ x) * (weights @ w))).tolist() == [321.0, 432.0]


@needs_cpp
def test_any_strides() -> None:
    given = layer(2, (7, 9), 32, 32)
    packed = pack(given["weight"], tile=(4, 4))
    exact = directly(**given)
    wide = torch.full((2, 14, 9, 48), math.nan)
    wide[:, ::2, :, :32] = given["x"].movedim(1, -1)
    for x in (given["x"], last(given["x"]), wide[:, ::2, :, :32].movedim(-1, 1)):
        roomy = torch.full((2, 8, 10, 40), math.nan)
        out = roomy[:, :7, :9, :32].movedim(-1, 1)
        found = winograd(x, packed, given["bias"], residual=given["residual"], out=out)
        assert found is out and error(out, exact) < FLOAT32[4, 4]
        assert bool(roomy[:, 7:].isnan().all() and roomy[..., 32:].isnan().all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_some_depth_rows(backend: str) -> None:
    given = layer(3, (7, 5, 6), 16, 32)
    for tile in TILES[3]:
        packed = pack(given["weight"], tile=tile)
        for pad_mode in ("zeros", "replicate"):
            exact = directly(given["x"], given["weight"], given["bias"], None, pad_mode)
            for start, stop in ((0, 7), (0, 3), (1, 6), (5, 7), (6, 7), (2, 2)):
                found = winograd(
                    given["x"], packed, given["bias"], rows=(start, stop), pad_mode=pad_mode, backend=backend
                )
                assert found.shape[2] == stop - start
                assert stop == start or error(found, exact[:, :, start:stop]) < 1.5 * FLOAT32[tile]


@needs_cpp
def test_adds_to_its_residual_in_place() -> None:
    given = layer(3, (3, 6, 5), 16, 32)
    exact, residual = directly(**given), last(given["residual"])
    packed = pack(given["weight"], tile=(4, 4, 4))
    assert winograd(given["x"], packed, given["bias"], residual=residual, out=residual) is residual
    assert error(residual, exact) < FLOAT32[4, 4, 4]


@needs_cpp
@pytest.mark.parametrize("dims", [2, 3])
def test_threads_and_blocks_do_not_change_a_bit(dims: int) -> None:
    """A tile's result depends on nothing but its inputs, wherever it falls in a block."""
    given = layer(dims, (6, 22, 31)[-dims:], 16, 16, samples=3)
    packed = pack(given["weight"], tile=TILES[dims][-1])
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(winograd(last(given["x"]), packed, given["bias"]))
    finally:
        torch.set_num_threads(before)
    alone = torch.cat([winograd(last(x), packed, given["bias"]) for x in given["x"].split(1)])
    assert all(torch.equal(results[0], each) for each in (*results[1:], alone))


@needs_cpp
def test_nan_stays_in_its_tile_and_neighbours() -> None:
    given = layer(2, (12, 12), 16, 16, samples=1)
    given["x"][0, 3, 5, 6] = math.nan
    found = winograd(given["x"], pack(given["weight"], tile=(4, 4)), given["bias"])
    bad = found.isnan().any(dim=1)[0].nonzero()
    assert bad.min(dim=0).values.tolist() == [4, 4] and bad.max(dim=0).values.tolist() == [7, 7]


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty(backend: str) -> None:
    packed = pack(torch.zeros(32, 16, 3, 3), tile=(2, 2))
    assert winograd(torch.zeros(0, 16, 4, 4), packed, backend=backend).shape == (0, 32, 4, 4)
    assert winograd(torch.zeros(1, 16, 0, 4), packed, backend=backend).shape == (1, 32, 0, 4)


def test_rejects_bad_input() -> None:
    weight = torch.zeros(32, 16, 3, 3)
    for bad, said in (
        ({"weight": torch.zeros(32, 16, 3)}, r"\[O, C, 3, 3\]"),
        ({"weight": torch.zeros(32, 16, 5, 5)}, r"\[32, 16, 5, 5\]"),
        ({"weight": torch.zeros(0, 12, 3, 3)}, "needs channels; got 12 in and 0 out"),
        ({"weight": torch.zeros(32, 16, 3, 3, dtype=torch.int32)}, "torch.int32"),
        ({"weight": torch.zeros(32, 16, 3, 3, device="meta")}, "on meta"),
        ({"tile": (3, 3)}, r"tiles \(2, 2\), \(2, 4\), \(4, 4\) for a 2D weight"),
        ({"products": torch.float16}, "float32 or bfloat16"),
    ):
        with pytest.raises(ScoreFusionError, match=said):
            pack(**{"weight": weight, "tile": (2, 2), **bad})  # type: ignore[arg-type]
    packed, x = pack(weight, tile=(2, 2)), torch.zeros(1, 16, 4, 4)
    for given, said in (
        ({"x": torch.zeros(1, 24, 4, 4)}, r"x \[N, 16, H, W\] for this weight; got \[1, 24, 4, 4\]"),
        ({"x": torch.zeros(1, 16, 4, 4, 4)}, "for this weight"),
        ({"bias": torch.zeros(16)}, r"bias \[32\]; got \[16\]"),
        ({"residual": torch.zeros(1, 32, 4, 5)}, r"residual \[1, 32, 4, 4\]"),
        ({"residual": torch.zeros(1, 32, 4, 4).bfloat16()}, "residual .* of torch.float32"),
        ({"out": torch.zeros(1, 32, 4, 4)}, "channels-last"),
        ({"residual": torch.zeros(1, 32, 4, 4, device="meta")}, "residual on cpu"),
        ({"rows": (0, 1)}, r"depth of a volume; got \(0, 1\)"),
        ({"pad_mode": "reflect"}, "zeros, replicate; got 'reflect'"),
        ({"backend": "triton"}, "no triton implementation"),
    ):
        with pytest.raises(ScoreFusionError, match=said):
            winograd(**{"x": x, "packed": packed, **given})  # type: ignore[arg-type]


@needs_cpp
@pytest.mark.parametrize("instructions", ["baseline", "avx2", "avx512"])
def test_every_copy_of_the_loops(instructions: str) -> None:
    """A set that this processor lacks is left at its best; pairs of bfloat16 are refused without theirs."""
    program = """
        import pytest, torch
        from scorefusion.errors import ScoreFusionError
        from scorefusion.ops.packed_weight import multiplies_pairs
        from scorefusion.ops.winograd import TILES, pack, winograd
        from tests.ops.test_winograd import FLOAT32, ROUNDED, directly, error, layer
        for dims, tiles in TILES.items():
            given = layer(dims, (5, 6, 9)[-dims:], 32, 80)
            for tile in tiles:
                for dtype, limit in ((torch.float32, FLOAT32[tile]), (torch.bfloat16, ROUNDED)):
                    part = {name: value.to(dtype) for name, value in given.items()}
                    exact, packed = directly(**part), pack(part.pop("weight"), tile=tile)
                    found = winograd(part.pop("x"), packed, part.pop("bias"), backend="cpp", **part)
                    assert error(found, exact) < limit, (tile, dtype)
        assert not multiplies_pairs()
        with pytest.raises(ScoreFusionError, match="AVX512-BF16"):
            pairs = pack(torch.zeros(16, 16, 3, 3), tile=(2, 2), products=torch.bfloat16)
            winograd(torch.zeros(1, 16, 4, 4), pairs, backend="cpp")
    """
    environment = {**os.environ, "SCOREFUSION_CPU": instructions}
    code = textwrap.dedent(program)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
