"""norm_act: every backend against the reference in float64, and the reference against layers of PyTorch."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scorefusion.errors import ScoreFusionError
from scorefusion.ops import backends, norm_act

CPU_BACKENDS = [
    "torch",
    pytest.param(
        "cpp", marks=pytest.mark.skipif(bool(backends.missing("cpp")), reason=str(backends.missing("cpp")))
    ),
]
needs_triton = pytest.mark.skipif(bool(backends.missing("triton")), reason=str(backends.missing("triton")))

# Arithmetic is float32 whatever the dtype: a few units of float32, or half a unit of the output's own.
TOLERANCES = {
    torch.float32: (2e-6, 4e-6),
    torch.bfloat16: (2**-8, 1e-5),
    torch.float16: (2**-11, 1e-5),
}
FULL = {"scale": True, "shift": True}
# name: samples, channels of x and of other, spatial size, groups, options
CASES: dict[str, tuple[int, tuple[int, int], tuple[int, ...], int | None, dict[str, Any]]] = {
    "layer, bundled model's widths": (2, (48, 0), (5, 6), None, FULL),
    "layer, odd channels of a skip": (2, (5, 8), (3, 4, 5), None, {**FULL, "pad": 1}),
    "layer, one voxel": (1, (17, 0), (1, 1), None, {}),
    "layer, one channel is its own mean": (1, (1, 0), (2, 3), None, {"shift": True}),
    "layer, wider than a tile of 4096": (1, (4100, 0), (1, 2), None, {}),
    "layer, replicate and add": (
        1,
        (6, 3),
        (2, 3, 4),
        None,
        {"add": True, "pad": 2, "pad_mode": "replicate"},
    ),
    "group, paper's widths": (2, (64, 0), (7, 9), 32, {**FULL, "pad": 1}),
    "group, across the two inputs": (2, (5, 3), (3, 4, 5), 2, {**FULL, "add": True}),
    "group, one voxel": (1, (8, 0), (1, 1, 1), 4, {}),
    "group, one slice, replicate": (1, (8, 8), (1, 6, 5), 4, {"pad": 1, "pad_mode": "replicate"}),
    "group, one group of all": (3, (12, 0), (5, 5), 1, {"act": "none"}),
    "group, last partial chunk": (1, (4, 0), (3, 37, 41), 2, {"add": True, "act": "none"}),
    "group, many samples": (9, (16, 0), (3, 3), 8, {"scale": True}),
}
LAYOUTS = ("channels last", "contiguous", "every other voxel")


def laid_out(x: Tensor, layout: str) -> Tensor:
    if layout == "contiguous":
        return x.contiguous()
    if layout == "channels last":
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    roomy = torch.full((*x.shape[:-1], 2 * x.shape[-1]), math.nan, dtype=x.dtype)
    roomy[..., ::2] = x
    return roomy[..., ::2]


def arguments(name: str, layout: str = "channels last", dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    samples, widths, size, groups, options = CASES[name]
    make = torch.Generator().manual_seed(len(name))
    parts = [
        laid_out((3.0 * torch.randn(samples, width, *size, generator=make) + 1.0).to(dtype), layout)
        for width in widths
        if width
    ]
    channels = sum(widths)
    told = torch.randn(samples, 3 * channels, generator=make).to(dtype).chunk(3, dim=1)
    given = {key: value for key, value in options.items() if value is not True}
    for key, value in zip(("scale", "shift", "add"), told, strict=True):
        if key in options:
            given[key] = value
    weight, bias = torch.randn(2, channels, generator=make).to(dtype)
    return {
        "x": parts[0],
        "other": parts[1] if len(parts) > 1 else None,
        "groups": groups,
        "weight": weight,
        "bias": bias,
        **given,
    }


def widened(given: dict[str, Any]) -> dict[str, Any]:
    return {key: value.double() if isinstance(value, Tensor) else value for key, value in given.items()}


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Make `torch.empty` return NaN, so that what is never written shows."""
    empty = torch.empty
    torch.empty = lambda *args, **kwargs: empty(*args, **kwargs).fill_(math.nan)  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.empty = empty  # type: ignore[assignment]


def check_case(backend: str, name: str, layout: str, dtype: torch.dtype) -> None:
    given = arguments(name, layout, dtype)
    expected = norm_act(**widened(given), backend="torch")
    with poisoned():
        result = norm_act(**given, backend=backend)
    rtol, atol = TOLERANCES[dtype]
    if backend == "triton" and dtype == torch.bfloat16 and backends.interpreting():
        rtol *= 2  # Triton's interpreter cuts a float32 off to bfloat16 where GPUs round it.
    assert result.dtype == dtype and result.shape == expected.shape
    assert result.movedim(1, -1).is_contiguous()
    torch.testing.assert_close(result.double(), expected, rtol=rtol, atol=atol)


def check_large_mean(backend: str) -> None:
    """Mean 1e4, standard deviation 1: what E[x²] - E[x]² in float32 gets entirely wrong."""
    make = torch.Generator().manual_seed(3)
    x = laid_out(torch.randn(2, 24, 11, 13, generator=make) + 1e4, "channels last")
    ones, zeros = torch.ones(24), torch.zeros(24)
    for groups in (None, 12, 1):
        given = {"x": x, "groups": groups, "weight": ones, "bias": zeros, "act": "none"}
        result = norm_act(**given, backend=backend)
        # PyTorch's own float32 means round to 1e-3 of a standard deviation there; the others keep the rest.
        atol = 5e-3 if backend == "torch" else 2e-5
        expected = norm_act(**widened(given), backend="torch")
        torch.testing.assert_close(result.double(), expected, rtol=0.0, atol=atol)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_matches_reference(backend: str, name: str, layout: str) -> None:
    check_case(backend, name, layout, torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", ["layer, odd channels of a skip", "group, paper's widths"])
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_matches_reference_in_short_dtypes(backend: str, name: str, dtype: torch.dtype) -> None:
    for layout in LAYOUTS:
        check_case(backend, name, layout, dtype)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_large_mean(backend: str) -> None:
    check_large_mean(backend)


@needs_triton
def test_triton_matches_reference() -> None:
    """Every case in one process, because TRITON_INTERPRET must be set before Triton is imported."""
    program = """
        import torch
        from tests.ops.test_norm_act import CASES, LAYOUTS, check_case, check_large_mean
        for index, name in enumerate(CASES):
            check_case("triton", name, LAYOUTS[index % 3], torch.float32)
        for dtype in (torch.bfloat16, torch.float16):
            check_case("triton", "layer, odd channels of a skip", "contiguous", dtype)
            check_case("triton", "group, across the two inputs", "channels last", dtype)
        check_large_mean("triton")
        print("all agree")
    """
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(root)}
    code = textwrap.dedent(program)
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "all agree"


def test_by_hand() -> None:
    """Two channels, two voxels: LayerNorm makes them -1 and 1; the group's mean is 2.5, its variance 1.25."""
    x = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]], dtype=torch.float64)
    weight, bias = torch.tensor([2.0, 3.0]).double(), torch.tensor([0.5, -0.5]).double()
    given = {"weight": weight, "bias": bias, "eps": 0.0, "backend": "torch"}
    layer = norm_act(x, groups=None, act="none", **given)
    assert layer.flatten().tolist() == pytest.approx([-1.5, -1.5, 2.5, 2.5])
    film = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[0.0, 10.0]]).double()
    layer = norm_act(x, groups=None, act="none", scale=film[0], shift=film[1], **given)
    assert layer.flatten().tolist() == pytest.approx([-3.0, -3.0, 12.5, 12.5])
    unit = [value / math.sqrt(1.25) for value in (-1.5, -0.5, 0.5, 1.5)]
    y = [2 * unit[0] + 0.5, 2 * unit[1] + 0.5, 3 * unit[2] - 0.5, 3 * unit[3] - 0.5]
    group = norm_act(x, groups=1, **given)
    assert group.flatten().tolist() == pytest.approx([value / (1 + math.exp(-value)) for value in y])
    padded = norm_act(x, groups=1, act="none", pad=1, **given)
    assert padded[0, 1].tolist() == [[0.0] * 4, pytest.approx([0.0, y[2], y[3], 0.0]), [0.0] * 4]
    padded = norm_act(x, groups=1, act="none", pad=1, pad_mode="replicate", **given)
    assert padded[0, 0].tolist() == [pytest.approx([y[0], y[0], y[1], y[1]])] * 3


def test_is_the_layers_it_replaces() -> None:
    x, other = torch.randn(2, 8, 5, 6), torch.randn(2, 8, 5, 6)
    norm = torch.nn.GroupNorm(4, 16)
    torch.nn.init.normal_(norm.weight)
    add = torch.randn(2, 16)
    with torch.no_grad():
        expected = F.pad(F.silu(norm(torch.cat([x, other], 1) + add[..., None, None])), (1, 1, 1, 1))
        result = norm_act(x, other, groups=4, weight=norm.weight, bias=norm.bias, add=add, pad=1)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_silu_is_accurate(backend: str) -> None:
    """Scale 0 leaves the shift: SiLU of any number, to a few units of float32."""
    y = torch.cat(
        (torch.linspace(-88.0, 88.0, 20_001), torch.logspace(-44, 38, 2_000), -torch.logspace(-44, 1, 999))
    )
    result = _silu(y, backend)
    exact = y.double() * torch.sigmoid(y.double())
    unit = torch.maximum(exact.abs() * 2.0**-23, torch.tensor(2.0**-126))
    assert float(((result.double() - exact).abs() / unit).max()) < 4.0


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_silu_at_the_limits(backend: str) -> None:
    largest = torch.finfo(torch.float32).max
    y = torch.tensor([largest, -largest, -89.0, 0.0, math.inf, -math.inf, math.nan, -1e20])
    result, expected = _silu(y, backend), F.silu(y)
    assert torch.equal(result.isnan(), expected.isnan())
    assert torch.equal(result.nan_to_num(), expected.nan_to_num())
    assert math.copysign(1.0, float(result[2])) == -1.0


def _silu(y: Tensor, backend: str) -> Tensor:
    zeros = torch.zeros(len(y))
    x = torch.zeros(1, len(y), 1, 1)
    out = norm_act(x, groups=None, weight=zeros, bias=zeros, shift=y[None], backend=backend)
    return out.flatten()


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_nan_and_infinity_stay_where_they_are(backend: str) -> None:
    x = torch.randn(2, 8, 4, 5)
    x[0, 3, 1, 2], x[1, 0, 0, 0] = math.nan, math.inf
    given = {"weight": torch.ones(8), "bias": torch.zeros(8), "backend": backend}
    bad = norm_act(x, groups=None, **given).isnan()
    assert bad[0, :, 1, 2].all() and bad[1, :, 0, 0].all() and int(bad.sum()) == 16
    bad = norm_act(x, groups=4, **given).isnan()
    assert bad[0, 2:4].all() and bad[1, :2].all() and int(bad.sum()) == 2 * 2 * 20


@pytest.mark.skipif(bool(backends.missing("cpp")), reason=str(backends.missing("cpp")))
def test_same_bits_whatever_the_threads() -> None:
    made = [arguments(name) for name in ("group, last partial chunk", "layer, bundled model's widths")]
    big = torch.randn(1, 16, 24, 40, 40).contiguous(memory_format=torch.channels_last_3d)
    made.append({"x": big, "groups": 8, "weight": torch.ones(16), "bias": torch.zeros(16), "pad": 1})
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = [norm_act(**given, backend="cpp") for given in made]
        torch.set_num_threads(3)
        results = [norm_act(**given, backend="cpp") for given in made]
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, results, expected))


def test_several_callers_at_once() -> None:
    given = arguments("group, paper's widths")
    expected = norm_act(**given)
    wrong = []

    def call() -> None:
        wrong.extend(index for index in range(50) if not torch.equal(norm_act(**given), expected))

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


@pytest.mark.parametrize("name", ["layer, odd channels of a skip", "group, across the two inputs"])
def test_gradcheck(name: str) -> None:
    samples, widths, _, groups, _ = CASES[name]
    channels = sum(widths)
    leaves = [torch.randn(samples, width, 2, 1) for width in widths] + list(torch.randn(2, channels))
    leaves += list(torch.randn(3, samples, channels))

    def function(x: Tensor, other: Tensor, weight: Tensor, bias: Tensor, *told: Tensor) -> Tensor:
        film = dict(zip(("scale", "shift", "add"), told, strict=True))
        return norm_act(
            x, other, groups=groups, weight=weight, bias=bias, pad=1, pad_mode="replicate", **film
        )

    assert torch.autograd.gradcheck(
        function, [leaf.double().requires_grad_() for leaf in leaves], fast_mode=True
    )


def test_triton_has_no_gradients() -> None:
    given = arguments("group, paper's widths")
    given["x"].requires_grad_()
    assert norm_act(**given).requires_grad
    with pytest.raises(ScoreFusionError, match="norm_act with gradients has no triton"):
        norm_act(**given, backend="triton")
    with torch.no_grad():
        assert not norm_act(**given).requires_grad


@pytest.mark.parametrize("name", ["layer, odd channels of a skip", "group, one slice, replicate"])
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_opcheck(backend: str, name: str) -> None:
    given = arguments(name)
    tensors = [given.get(key) for key in ("x", "other", "weight", "bias", "scale", "shift", "add")]
    options = (given["groups"], 1e-5, "silu", given.get("pad", 0), given.get("pad_mode", "zeros"), backend)
    torch.library.opcheck(torch.ops.scorefusion.norm_act.default, (*tensors, *options))


@pytest.mark.parametrize(
    "shape", [(0, 4, 2, 2), (2, 4, 0, 2), (1, 0, 2, 2)], ids=["batch", "space", "channels"]
)
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_empty(shape: tuple[int, ...], backend: str) -> None:
    told = torch.ones(shape[1])
    with poisoned():
        result = norm_act(torch.randn(shape), groups=None, weight=told, bias=told, pad=1, backend=backend)
    assert result.shape == (*shape[:2], shape[2] + 2, shape[3] + 2)
    assert not result.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.ones(1, 4, 3)}, r"x \[N, C, H, W\] or \[N, C, D, H, W\]; got \[1, 4, 3\]"),
        ({"x": torch.ones(1, 4, 3, 3, dtype=torch.int64)}, "got .* of torch.int64"),
        ({"other": torch.ones(1, 4, 3, 2)}, r"other \[1, 'C2', 3, 3\] to go with x; got \[1, 4, 3, 2\]"),
        ({"other": torch.ones(1, 4, 3, 3).half()}, "x's dtype, torch.float32; got torch.float16"),
        ({"groups": 3}, "split 4 channels into 3 groups"),
        ({"groups": 0}, "into 0 groups"),
        ({"weight": torch.ones(5)}, r"weight \[4\]; got \[5\]"),
        ({"scale": torch.ones(2, 4)}, r"scale \[1, 4\]; got \[2, 4\]"),
        ({"shift": torch.ones(1, 4, dtype=torch.int32)}, "floating shift .* of torch.int32"),
        ({"add": torch.ones(1, 4, device="meta")}, "add on cpu, where x is; got meta"),
        ({"act": "relu"}, "act one of silu, none; got 'relu'"),
        ({"pad": -1}, "got -1 and 'zeros'"),
        ({"pad_mode": "reflect"}, "zeros, replicate; got 0 and 'reflect'"),
        ({"backend": "cuda"}, "norm_act has no cuda implementation"),
    ],
)
def test_rejects_bad_input(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"x": torch.ones(1, 4, 3, 3), "groups": 2}
    given |= {"weight": torch.ones(4), "bias": torch.zeros(4), **changes}
    with pytest.raises(ScoreFusionError, match=message):
        norm_act(**given)


@pytest.mark.skipif(bool(backends.missing("cpp")), reason=str(backends.missing("cpp")))
def test_float64_is_pytorchs() -> None:
    given = widened(arguments("group, one voxel"))
    assert norm_act(**given).dtype == torch.float64
    with pytest.raises(ScoreFusionError, match="no float64 form"):
        norm_act(**given, backend="cpp")
