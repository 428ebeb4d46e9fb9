"""norm_act's gradients: every backend that has them against autograd through the reference in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from scorefusion.ops import backends, norm_act
from tests.ops.test_norm_act import CASES, CPU_BACKENDS, LAYOUTS, arguments, poisoned, widened

needs_cpp = pytest.mark.skipif(bool(backends.missing("cpp")), reason=str(backends.missing("cpp")))
LEAVES = ("x", "other", "weight", "bias", "scale", "shift", "add")

# Relative to a tensor's largest gradient: sums of up to 4e4 float32 terms, or half a unit of a short dtype.
TOLERANCES = {torch.float32: 5e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}


def gradients(given: dict[str, Any], upstream: Tensor, **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The result, and the gradient by each tensor that is given."""
    names = [name for name in LEAVES if given.get(name) is not None]
    leaves = {name: given[name].detach().requires_grad_() for name in names}
    result = norm_act(**{**given, **leaves}, **options)
    found = torch.autograd.grad(result, list(leaves.values()), upstream.to(result.dtype))
    return result, dict(zip(names, found, strict=True))


def upstream_of(given: dict[str, Any], layout: str = "channels last") -> Tensor:
    with torch.no_grad():
        shape = norm_act(**given, backend="torch").shape
    made = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    return made.contiguous() if layout == "contiguous" else made.movedim(1, -1).contiguous().movedim(-1, 1)


def check(given: dict[str, Any], upstream: Tensor, backend: str, tolerance: float) -> None:
    expected, exact = gradients(widened(given), upstream.double(), backend="torch")
    with poisoned():
        result, found = gradients(given, upstream, backend=backend)
    with torch.no_grad():
        assert torch.equal(result, norm_act(**given, backend=backend))
    assert result.shape == expected.shape and found.keys() == exact.keys()
    for name, gradient in found.items():
        assert gradient.dtype == given[name].dtype and gradient.shape == given[name].shape, name
        error = float((gradient.double() - exact[name]).abs().max())
        assert error <= tolerance * max(1.0, float(exact[name].abs().max())), (name, error)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_matches_reference(backend: str, name: str, layout: str) -> None:
    given = arguments(name, layout)
    check(given, upstream_of(given, layout), backend, TOLERANCES[torch.float32])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize(
    "name",
    ["layer, odd channels of a skip", "layer, bundled model's widths", "group, across the two inputs"],
)
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_matches_reference_in_short_dtypes(backend: str, name: str, dtype: torch.dtype) -> None:
    for layout in LAYOUTS:
        given = arguments(name, layout, dtype)
        upstream = upstream_of(given, layout).to(dtype)
        check(given, upstream, backend, TOLERANCES[dtype])
        float_weights = {**given, "weight": given["weight"].float(), "bias": given["bias"].float()}
        check(float_weights, upstream, backend, TOLERANCES[dtype])


@needs_cpp
@pytest.mark.parametrize("groups", [None, 12, 1])
def test_large_mean(groups: int | None) -> None:
    """Mean 1e4, standard deviation 1."""
    make = torch.Generator().manual_seed(3)
    x = (torch.randn(2, 11, 13, 24, generator=make) + 1e4).movedim(-1, 1)
    given = {"x": x, "groups": groups, "weight": torch.ones(24), "bias": torch.zeros(24)}
    check(given, upstream_of(given), "cpp", 2e-5)


def test_by_hand() -> None:
    """LayerNorm of two channels is ±1: gradients by the input 0, by weight ±g, by shift g, by scale ±2g."""
    x = torch.tensor([1.0, 3.0]).reshape(1, 2, 1, 1)
    given = {"x": x, "groups": None, "act": "none", "weight": torch.full((2,), 2.0), "bias": torch.zeros(2)}
    given |= {"scale": torch.zeros(1, 2), "shift": torch.zeros(1, 2)}
    _, found = gradients(given, torch.tensor([10.0, 7.0]).reshape(1, 2, 1, 1), eps=0.0)
    assert found["x"].abs().max() < 1e-5
    assert found["weight"].tolist() == pytest.approx([-10.0, 7.0])
    assert found["bias"].tolist() == found["shift"].flatten().tolist() == [10.0, 7.0]
    assert found["scale"].flatten().tolist() == pytest.approx([-20.0, 14.0])


@needs_cpp
def test_silus_slope_at_the_limits() -> None:
    """Scale 0 leaves the shift, whose gradient is SiLU's slope."""
    y = torch.tensor([torch.finfo(torch.float32).max, -1e30, -89.0, -1.2785, math.nan])
    y = torch.cat([y, torch.linspace(-90.0, 90.0, 999)])
    zeros = torch.zeros(len(y))
    shift = y[None].clone().requires_grad_()
    norm_act(
        torch.zeros(1, len(y), 1, 1), groups=None, weight=zeros, bias=zeros, shift=shift
    ).sum().backward()
    exact = y.double().requires_grad_()
    F.silu(exact).sum().backward()
    # 1 - s is known to 6e-8 at best, and then multiplied by up to 17.
    torch.testing.assert_close(shift.grad[0].double(), exact.grad, rtol=0, atol=1.5e-6, equal_nan=True)


@needs_cpp
def test_nan_stays_where_it_is() -> None:
    x = torch.randn(2, 9, 4, 5).contiguous(memory_format=torch.channels_last)
    x[0, 3, 1, 2] = math.nan
    given = {"x": x, "groups": None, "weight": torch.ones(9), "bias": torch.zeros(9)}
    _, found = gradients(given, torch.ones_like(x), backend="cpp")
    assert found["x"][0, :, 1, 2].isnan().all() and int(found["x"].isnan().sum()) == 9


@needs_cpp
@pytest.mark.parametrize("groups", [None, 8])
@pytest.mark.parametrize("samples", [1, 13])
def test_same_bits_whatever_the_threads(samples: int, groups: int | None) -> None:
    size = (24, 40, 41) if samples == 1 else (3, 20, 31)
    x = torch.randn(samples, *size, 16).movedim(-1, 1)
    told = torch.randn(2, samples, 16)
    given = {"x": x, "groups": groups, "weight": torch.randn(16), "bias": torch.randn(16), "scale": told[0]}
    given["add"] = told[1]
    upstream, threads, found = torch.randn_like(x), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(gradients(given, upstream, backend="cpp")[1])
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(gradient, found[0][name]) for name, gradient in other.items())


@needs_cpp
@pytest.mark.parametrize(
    "shape", [(0, 4, 2, 2), (2, 4, 0, 2), (1, 0, 2, 2)], ids=["batch", "space", "channels"]
)
def test_empty(shape: tuple[int, ...]) -> None:
    told = torch.ones(shape[1])
    given = {"x": torch.randn(shape), "groups": None, "weight": told, "bias": told}
    with poisoned():
        _, found = gradients(given, torch.ones(shape), backend="cpp")
    assert found["x"].shape == shape and not found["weight"].any() and not found["bias"].any()


@needs_cpp
def test_only_what_is_asked_for() -> None:
    given = arguments("layer, odd channels of a skip")
    given["scale"].requires_grad_()
    norm_act(**given, backend="cpp").sum().backward()
    assert given["scale"].grad is not None and given["x"].grad is None


@needs_cpp
def test_in_checkpoints_and_under_autocast() -> None:
    given = arguments("layer, bundled model's widths")
    leaf = given["x"].detach().requires_grad_()
    rest = {name: value for name, value in given.items() if name != "x"}
    upstream = upstream_of(given)
    norm_act(leaf, **rest).backward(upstream)
    plain, leaf.grad = leaf.grad, None
    with torch.autocast("cpu", torch.bfloat16):
        result = checkpoint(lambda x: norm_act(x, **rest), leaf, use_reentrant=False)
    result.backward(upstream)
    assert result.dtype == torch.float32 and torch.equal(leaf.grad, plain)


@needs_cpp
def test_compiled() -> None:
    """Traced in parts: which backend runs is decided between them."""
    torch._dynamo.reset()
    given = arguments("group, across the two inputs")
    rest = {name: value for name, value in given.items() if name != "x"}

    def function(x: Tensor) -> Tensor:
        return norm_act(2.0 * x, **rest, backend="cpp").sum()

    found = []
    for run in (function, torch.compile(function, backend="aot_eager")):
        leaf = given["x"].detach().requires_grad_()
        run(leaf).backward()
        found.append(leaf.grad)
    assert torch.equal(*found)


@needs_cpp
def test_in_torch_func() -> None:
    given = arguments("layer, bundled model's widths")
    rest = {name: value for name, value in given.items() if name != "x"}
    found = torch.func.grad(lambda x: norm_act(x, **rest).sum())(given["x"])
    _, expected = gradients(given, torch.ones_like(given["x"]), backend="cpp")
    torch.testing.assert_close(found, expected["x"], rtol=1e-5, atol=1e-5)


@needs_cpp
def test_differentiates_once() -> None:
    leaf = torch.randn(1, 4, 2, 2, requires_grad=True)
    result = norm_act(leaf, groups=None, weight=torch.ones(4), bias=torch.zeros(4), backend="cpp")
    (first,) = torch.autograd.grad(result.square().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="norm_act_backward"):
        first.sum().backward()


@needs_cpp
@pytest.mark.parametrize("name", ["layer, odd channels of a skip", "group, across the two inputs"])
def test_opcheck(name: str) -> None:
    given = {**arguments(name), "pad": 0}
    options = (given["groups"], 1e-5, "silu")
    tensors = [given.get(key) for key in LEAVES]
    torch.library.opcheck(
        torch.ops.scorefusion.norm_act_backward.default, (upstream_of(given), *tensors, *options)
    )
