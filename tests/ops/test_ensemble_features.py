"""Feature layers' sums: every backend against float64, forward and weight gradient, whatever the layout."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scorefusion.errors import ScoreFusionError
from scorefusion.ops import backends
from scorefusion.ops.ensemble_features import ensemble_features
from scorefusion.ops.reference import ensemble_features as reference
from scorefusion.ops.reference.planes import AXIS

PLANES = tuple(AXIS)
CPU_BACKENDS = [
    "torch",
    pytest.param(
        "cpp", marks=pytest.mark.skipif(bool(backends.missing("cpp")), reason=str(backends.missing("cpp")))
    ),
]
needs_triton = pytest.mark.skipif(bool(backends.missing("triton")), reason=str(backends.missing("triton")))


@dataclass(frozen=True)
class Shape:
    """A coarse grid along and across the plane's axis, a slab of `coarse` slices from `first`, channels."""

    batch: int
    scale: int
    inputs: int
    outputs: int
    along: int
    across: tuple[int, int]
    first: int
    coarse: int


SHAPES = {
    "one voxel": Shape(1, 1, 1, 1, 1, (1, 1), 0, 1),
    "one slice of two": Shape(1, 2, 3, 5, 2, (3, 4), 1, 1),
    "batch, odd everything": Shape(2, 3, 7, 9, 5, (5, 3), 1, 2),
    "more rows than a chunk, 16 + 1 columns": Shape(1, 2, 20, 17, 2, (11, 13), 0, 2),
    "last partial slab": Shape(1, 4, 6, 48, 5, (4, 4), 3, 2),
    "inputs deeper than a block": Shape(1, 1, 530, 33, 1, (3, 3), 0, 1),
    "a tile and a bit": Shape(1, 1, 65, 65, 1, (5, 13), 0, 1),
}
LAYOUTS = ("channels last", "channels first", "strided")
DTYPES = {
    # Sums of up to 530 products of size 1, then a float32 total: 2^-24 a step.
    "float32": (torch.float32, 1e-5, 2e-5),
    # The inputs are rounded before both, so only the float32 total's rounding is left.
    "bfloat16": (torch.bfloat16, 1e-5, 2e-5),
    "float16": (torch.float16, 1e-5, 2e-5),
}


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """Return the same numbers in another memory order, or as every second element of a poisoned tensor."""
    if layout == "channels last":
        memory = torch.channels_last if tensor.ndim == 4 else torch.channels_last_3d
        return tensor.contiguous(memory_format=memory) if tensor.ndim > 3 else packed(tensor)
    if layout == "channels first":
        return tensor.contiguous()
    wide = tensor.new_full([2 * size for size in tensor.shape], math.nan)
    view = wide[tuple(slice(1, None, 2) for _ in tensor.shape)]
    return view.copy_(tensor)


def packed(weight: Tensor) -> Tensor:
    """Return a weight [O, I, s] whose memory is [s, I, O], as the layers keep it."""
    return weight.permute(2, 1, 0).contiguous().permute(2, 1, 0)


def inputs_of(shape: Shape, plane: str, dtype: torch.dtype, layout: str) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    grid = list(shape.across)
    grid.insert(AXIS[plane] - 2, shape.along)
    total = torch.randn(shape.batch, shape.outputs, *grid)
    slices = shape.batch * shape.coarse * shape.scale
    features = torch.randn(slices, shape.inputs, *shape.across).to(dtype)
    weight = (torch.randn(shape.outputs, shape.inputs, shape.scale) / math.sqrt(shape.inputs)).to(dtype)
    return laid_out(total, layout), laid_out(features, layout), laid_out(weight, layout)


def oracle(total: Tensor, features: Tensor, weight: Tensor, plane: str, start: int) -> Tensor:
    return reference.ensemble_features(total.double(), features.double(), weight.double(), plane, start)


def agrees(backend: str, name: str, plane: str, dtype: str, layout: str) -> None:
    """Compare forward and weight gradient with float64; also called in the interpreter's process."""
    shape, (kind, rtol, atol) = SHAPES[name], DTYPES[dtype]
    total, features, weight = inputs_of(shape, plane, kind, layout)
    start = shape.first * shape.scale
    expected = oracle(total, features, weight, plane, start)
    before = total.clone()
    result = ensemble_features(total, features, weight, plane, start, backend=backend)
    assert result is total
    torch.testing.assert_close(result.double(), expected, rtol=rtol, atol=atol)
    # The slab leaves the other slices alone, to the bit.
    other = torch.ones(shape.along, dtype=torch.bool)
    other[shape.first : shape.first + shape.coarse] = False
    assert torch.equal(result.movedim(AXIS[plane], 0)[other], before.movedim(AXIS[plane], 0)[other])

    leaf = weight.detach().requires_grad_()
    fresh = ensemble_features(before, features, leaf, plane, start, backend=backend)
    assert fresh is not before and torch.equal(fresh.detach(), result)
    slope = laid_out(torch.randn(total.shape, generator=torch.Generator().manual_seed(1)), layout)
    (grad,) = torch.autograd.grad(fresh, leaf, slope)
    exact = reference.ensemble_features_backward(slope.double(), features.double(), plane, start, shape.scale)
    # A 16-bit weight has a 16-bit gradient.
    rtol = {torch.bfloat16: 2**-8, torch.float16: 2**-10}.get(kind, rtol)
    torch.testing.assert_close(grad.double(), exact, rtol=rtol, atol=10 * atol)


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_matches_reference(backend: str, name: str, plane: str, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(math.nan))
    for layout in LAYOUTS:
        for dtype in DTYPES:
            agrees(backend, name, plane, dtype, layout)


@needs_triton
def test_triton_matches_reference() -> None:
    """In a process of its own, because TRITON_INTERPRET must be set before Triton is imported."""
    program = """
        import math, torch
        from tests.ops.test_ensemble_features import DTYPES, LAYOUTS, PLANES, SHAPES
        from tests.ops.test_ensemble_features import agrees, mixed_dtypes_agree
        empty = torch.empty
        torch.empty = lambda *args, **kwargs: empty(*args, **kwargs).fill_(math.nan)
        for turn, name in enumerate(SHAPES):
            for step, plane in enumerate(PLANES):
                dtype = list(DTYPES)[(turn + step) % 3]
                agrees("triton", name, plane, dtype, LAYOUTS[(turn + 2 * step) % 3])
        mixed_dtypes_agree("triton")
        print("agrees")
    """
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", textwrap.dedent(program)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "agrees"


def mixed_dtypes_agree(backend: str) -> None:
    """Totals and gradients of 16 bits, float32 weights for 16-bit features."""
    for kind, total_kind, rtol in (
        # One rounding of the total to 8 or 11 bits.
        (torch.bfloat16, torch.bfloat16, 2**-8),
        (torch.float16, torch.float16, 2**-10),
        (torch.float32, torch.bfloat16, 2**-8),
    ):
        total, features, weight = inputs_of(SHAPES["one slice of two"], "coronal", kind, "channels last")
        total = total.to(total_kind)
        # Triton's interpreter, unlike a GPU, truncates to bfloat16 instead of rounding.
        rtol *= 2.0 if backend == "triton" else 1.0
        expected = oracle(total, features, weight, "coronal", 2)
        leaf = weight.detach().requires_grad_()
        fresh = ensemble_features(total, features, leaf, "coronal", 2, backend=backend)
        result = ensemble_features(total, features, weight.float(), "coronal", 2, backend=backend)
        assert result.dtype == fresh.dtype == total_kind
        torch.testing.assert_close(result.double(), expected, rtol=rtol, atol=rtol)
        torch.testing.assert_close(fresh.double(), expected, rtol=rtol, atol=rtol)
        slope = torch.ones_like(total)
        (grad,) = torch.autograd.grad(fresh, leaf, slope)
        exact = reference.ensemble_features_backward(slope.double(), features.double(), "coronal", 2, 2)
        torch.testing.assert_close(grad.double(), exact, rtol=rtol, atol=4 * rtol)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_mixed_dtypes(backend: str) -> None:
    mixed_dtypes_agree(backend)


@pytest.mark.parametrize("plane", PLANES)
def test_reference_is_a_strided_convolution(plane: str) -> None:
    """The definition against conv3d with kernel = stride = s along the plane's axis, of permuted features."""
    shape, axis = Shape(2, 2, 3, 4, 3, (4, 5), 0, 3), AXIS[plane]
    total, features, weight = (t.double() for t in inputs_of(shape, plane, torch.float32, "channels first"))
    volume = features.unflatten(0, (2, 6)).movedim(1, axis)
    kernel = weight.reshape(4, 3, *(2 if place == axis else 1 for place in (2, 3, 4)))
    strides = tuple(2 if place == axis else 1 for place in (2, 3, 4))
    expected = total + F.conv3d(volume, kernel, stride=strides)
    result = reference.ensemble_features(total, features, weight, plane, 0)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


def test_reference_by_hand() -> None:
    """Two slices of one coronal pixel: 10 + 2·3 + 5·7 at y = 1, and nothing at y = 0."""
    total = torch.tensor([1.0, 10.0]).reshape(1, 1, 1, 2, 1)
    features = torch.tensor([3.0, 7.0]).reshape(2, 1, 1, 1)
    weight = torch.tensor([2.0, 5.0]).reshape(1, 1, 2)
    result = reference.ensemble_features(total, features, weight, "coronal", 2)
    assert result.flatten().tolist() == [1.0, 51.0]
    slope = torch.tensor([100.0, 0.5]).reshape(1, 1, 1, 2, 1)
    grad = reference.ensemble_features_backward(slope, features, "coronal", 2, 2)
    assert grad.flatten().tolist() == [1.5, 3.5]


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_slabs_add_up_to_the_whole(backend: str) -> None:
    shape = Shape(1, 2, 5, 6, 4, (3, 7), 0, 4)
    total, features, weight = inputs_of(shape, "sagittal", torch.float32, "channels last")
    whole = ensemble_features(total.clone(), features, weight, "sagittal", 0, backend=backend)
    for start, stop in ((0, 2), (2, 6), (6, 8)):
        ensemble_features(total, features[start:stop], weight, "sagittal", start, backend=backend)
    # A matrix product of PyTorch's adds in an order that depends on its size; the C++ one does not.
    assert torch.allclose(total, whole, rtol=0.0, atol=1e-5 if backend == "torch" else 0.0)


@pytest.mark.skipif(bool(backends.missing("cpp")), reason=str(backends.missing("cpp")))
def test_same_bits_whatever_the_threads() -> None:
    shape = Shape(1, 2, 70, 64, 2, (32, 33), 0, 2)
    total, features, weight = inputs_of(shape, "axial", torch.float32, "channels last")
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            leaf = weight.detach().requires_grad_()
            fresh = ensemble_features(total, features, leaf, "axial", 0, backend="cpp")
            found.append((fresh.detach(), *torch.autograd.grad(fresh.square().sum(), leaf)))
    finally:
        torch.set_num_threads(threads)
    for result, grad in found[1:]:
        assert torch.equal(result, found[0][0]) and torch.equal(grad, found[0][1])


@pytest.mark.skipif(bool(backends.missing("cpp")), reason=str(backends.missing("cpp")))
def test_infinities_stay_in_their_rows() -> None:
    """An odd number of bfloat16 products is padded: what stood there before must not reach the sum."""
    total = torch.zeros(1, 4, 1, 1, 40)
    features = torch.ones(1, 3, 1, 40, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    features[0, :, 0, 5] = math.inf
    result = ensemble_features(total, features, torch.ones(4, 3, 1), "axial", 0, backend="cpp")
    assert bool((result[..., 5] == math.inf).all())
    assert bool((result[..., torch.arange(40) != 5] == 3.0).all())


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_gradients_reach_total_weight_and_features(backend: str) -> None:
    total, features, weight = inputs_of(SHAPES["one slice of two"], "axial", torch.float32, "channels first")
    leaves = [tensor.detach().requires_grad_() for tensor in (total, weight)]
    result = ensemble_features(leaves[0], features, leaves[1], "axial", 2, backend=backend)
    slope = torch.randn_like(total)
    grads = torch.autograd.grad(result, leaves, slope)
    assert torch.equal(grads[0], slope) and grads[1].shape == weight.shape
    (alone,) = torch.autograd.grad(
        ensemble_features(leaves[0], features, weight, "axial", 2, backend=backend), leaves[0], slope
    )
    assert torch.equal(alone, slope)
    if backend == "torch":
        features.requires_grad_()
        (grad,) = torch.autograd.grad(ensemble_features(total, features, weight, "axial", 2).sum(), features)
        expected = weight.sum(0).T[:, :, None, None].expand_as(features)
        torch.testing.assert_close(grad, expected)
    else:
        with pytest.raises(ScoreFusionError, match="gradients of the features has no cpp"):
            ensemble_features(total, features.requires_grad_(), weight, "axial", 2, backend=backend)


@pytest.mark.parametrize("plane", PLANES)
def test_gradcheck(plane: str) -> None:
    shape = Shape(2, 2, 3, 2, 3, (2, 3), 1, 2)
    tensors = [t.double() for t in inputs_of(shape, plane, torch.float32, "strided")]
    for needed in ((True, False, True), (True, True, True)):
        given = [tensor.detach().requires_grad_(need) for tensor, need in zip(tensors, needed, strict=True)]
        assert torch.autograd.gradcheck(lambda *args: ensemble_features(*args, plane, 2), given)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_opcheck(backend: str) -> None:
    total, features, weight = inputs_of(SHAPES["one slice of two"], "axial", torch.float32, "channels last")
    ops = torch.ops.scorefusion
    torch.library.opcheck(ops.ensemble_features_, (total, features, weight, "axial", 2, backend))
    weight.requires_grad_()
    torch.library.opcheck(ops.ensemble_features, (total, features, weight, "axial", 2, backend))
    torch.library.opcheck(ops.ensemble_features_backward, (total, features, "axial", 2, 2, backend))


def test_float64_goes_to_torch() -> None:
    tensors = inputs_of(SHAPES["batch, odd everything"], "coronal", torch.float32, "channels first")
    total, features, weight = (tensor.double() for tensor in tensors)
    expected = oracle(total, features, weight, "coronal", 3)
    assert torch.equal(ensemble_features(total, features, weight, "coronal", 3), expected)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("empty", ["items", "inputs", "outputs", "slices", "pixels"])
def test_empty(empty: str, backend: str) -> None:
    changes = {
        "items": {"batch": 0}, "inputs": {"inputs": 0}, "outputs": {"outputs": 0},
        "slices": {"coarse": 0}, "pixels": {"across": (0, 3)},
    }[empty]  # fmt: skip
    values = {**vars(Shape(1, 2, 3, 4, 2, (2, 3), 0, 1)), **changes}
    total = torch.randn(values["batch"], values["outputs"], 2, *values["across"])
    slices = values["batch"] * values["coarse"] * 2
    features = torch.randn(slices, values["inputs"], *values["across"])
    weight = torch.randn(values["outputs"], values["inputs"], 2, requires_grad=True)
    before = total.clone()
    with torch.no_grad():
        assert torch.equal(ensemble_features(total, features, weight, "axial", 0, backend=backend), before)
    fresh = ensemble_features(total, features, weight, "axial", 0, backend=backend)
    (grad,) = torch.autograd.grad(fresh.sum(), weight)
    assert grad.shape == weight.shape and not bool(grad.any())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plane": "axail"}, "unknown plane 'axail'.*did you mean 'axial'"),
        ({"total": torch.zeros(1, 4, 2, 3)}, r"needs a total \[B, O, D/s, H/s, W/s\]; got \[1, 4, 2, 3\]"),
        ({"features": torch.zeros(4, 5, 3)}, r"needs features \[B·n, I, h/s, w/s\]; got \[4, 5, 3\]"),
        ({"weight": torch.zeros(4, 5)}, r"needs a weight \[O, I, s\]; got \[4, 5\]"),
        ({"weight": torch.zeros(4, 6, 2)}, r"needs a weight \[4, 5, s\].*got \[4, 6, 2\]"),
        ({"weight": torch.zeros(3, 5, 2)}, r"needs a weight \[4, 5, s\].*got \[3, 5, 2\]"),
        ({"features": torch.zeros(4, 5, 3, 2)}, r"axial features of \[3, 4\] pixels.*got \[3, 2\]"),
        ({"features": torch.zeros(3, 5, 3, 4)}, "a multiple of 1 x 2 slices .*got 3"),
        ({"start": 1}, "multiple of 2 and ends by slice 4; got 4 slices from 1"),
        ({"start": 2}, "got 4 slices from 2"),
        ({"start": -2}, "got 4 slices from -2"),
        ({"features": torch.zeros(4, 5, 3, 4, dtype=torch.int32)}, "of floating dtype on cpu; got .*int32"),
        ({"weight": torch.zeros(4, 5, 2, device="meta")}, "weight of floating dtype on cpu; got .* on meta"),
        ({"total": torch.zeros(1, 4, 1, 3, 4).expand(1, 4, 2, 3, 4)}, "must not be expanded; got strides"),
        ({"backend": "cuda"}, "no cuda implementation"),
    ],
)  # fmt: skip
def test_rejects_bad_input(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "total": torch.zeros(1, 4, 2, 3, 4), "features": torch.zeros(4, 5, 3, 4),
        "weight": torch.zeros(4, 5, 2), "plane": "axial", "start": 0, "backend": None, **changes,
    }  # fmt: skip
    backend = given.pop("backend")
    with pytest.raises(ScoreFusionError, match=message):
        ensemble_features(*given.values(), backend=backend)
