"""Slabs of 2.5D slices: every backend gives the reference's values, rounded once to the result's dtype."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from scorefusion.errors import ScoreFusionError
from scorefusion.ops import backends
from scorefusion.ops.gather_slices import gather_slices
from scorefusion.ops.reference import gather_slices as reference
from scorefusion.ops.reference.planes import AXIS

CPU_BACKENDS = [
    "torch",
    pytest.param(
        "cpp", marks=pytest.mark.skipif(bool(backends.missing("cpp")), reason=str(backends.missing("cpp")))
    ),
]
needs_triton = pytest.mark.skipif(bool(backends.missing("triton")), reason=str(backends.missing("triton")))


class Slab(NamedTuple):
    """A box and what is cut of it; start and stop count from the plane's last slice if negative."""

    box: tuple[int, int, int]
    batch: int = 1
    conditions: int = 1
    common: int = 0
    noisy: int = 1
    context: int = 2
    start: int = 0
    stop: int | None = None
    channels: tuple[int, ...] | None = None


SLABS = {
    "one voxel": Slab((1, 1, 1)),
    "odd": Slab((5, 7, 6), batch=2, conditions=2, common=3, start=1),
    "one slice, alone": Slab((4, 3, 5), start=2, stop=3, context=0),
    "no neighbour within the volume": Slab((2, 2, 3), batch=2, context=3),
    "last partial slab": Slab((6, 5, 7), common=4, start=-2),
    "several blocks of pixels and slices": Slab((9, 17, 35), start=1, stop=-1),
    "aligned slices, paper's channels": Slab((4, 16, 16), common=4),
    "subset of channels, out of order": Slab((4, 5, 6), batch=2, conditions=3, common=1, channels=(2, 0)),
    "no channel of the condition": Slab((3, 4, 5), conditions=2, common=1, channels=()),
    "several noisy channels": Slab((3, 4, 9), noisy=3, conditions=4, context=1),
}

DTYPES = [  # values are moved or rounded once, so that nothing but equality will do
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float16),
    (torch.float16, torch.bfloat16),
    (torch.bfloat16, torch.float16),
]
SPECIAL = [math.nan, math.inf, -math.inf, -0.0, 1e-40, -3e-8, 6e-8, 65519.0, 65520.0, -1e30, 3.4e38]
TIES = [1.00390625, 1.01171875, 1.00048828125, 1.00146484375]


def volume(slab: Slab, channels: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(slab.batch, channels, *slab.box, generator=generator)
    odd = torch.tensor(SPECIAL + TIES)[: values.numel()]
    values.view(-1)[: len(odd)] = odd
    return values.to(dtype)


def volumes(slab: Slab, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor | None]:
    shared = volume(slab, slab.common, 3, dtype) if slab.common else None
    return volume(slab, slab.noisy, 1, dtype), volume(slab, slab.conditions, 2, dtype), shared


def window(slab: Slab, plane: str) -> tuple[int, int]:
    count = slab.box[AXIS[plane] - 2]
    start, stop, _ = slice(slab.start, slab.stop).indices(count)
    return start, max(start, stop)


def check(
    slab: Slab,
    plane: str,
    order: str,
    backend: str,
    given: tuple[Tensor, Tensor, Tensor | None],
    dtype: torch.dtype,
) -> None:
    """The op equals the reference in float64, rounded to the result's dtype, whatever was in its memory."""
    start, stop = window(slab, plane)
    channels = None if slab.channels is None else list(slab.channels)
    x_t, condition, common = (None if part is None else part.double() for part in given)
    assert x_t is not None and condition is not None
    wide = reference.gather_slices(
        x_t, condition, common, plane, start, stop, channels, slab.context, order, torch.float64
    )
    empty = torch.empty
    torch.empty = lambda *args, **kwargs: empty(*args, **kwargs).fill_(math.nan)  # type: ignore[assignment]
    try:
        result = gather_slices(
            *given, plane, start, stop, channels=channels, context=slab.context, order=order, dtype=dtype,
            backend=backend,
        )  # fmt: skip
    finally:
        torch.empty = empty
    assert result.dtype == dtype and result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result, wide.to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("plane", AXIS)
@pytest.mark.parametrize("order", ["modality", "slice"])
@pytest.mark.parametrize("context", [0, 2])
def test_matches_loops(plane: str, order: str, context: int) -> None:
    generator = torch.Generator().manual_seed(2)
    x, condition, common = (torch.randn(2, c, 3, 4, 5, generator=generator) for c in (1, 2, 3))
    axis, offsets = AXIS[plane] - 1, range(-context, context + 1)

    def cut(volume: Tensor, index: int) -> Tensor:
        return volume.select(axis, min(max(index, 0), volume.shape[axis] - 1))

    expected = []
    for item in range(2):
        for n in range(1, x.shape[axis + 1]):
            pairs = [(c, o) for c in range(2) for o in offsets]
            pairs = pairs if order == "modality" else sorted(pairs, key=lambda pair: pair[::-1])
            near = [cut(condition[item, c : c + 1], n + o) for c, o in pairs]
            expected.append(torch.cat([*near, cut(common[item], n), cut(x[item], n)]))
    got = gather_slices(x, condition, common, plane, 1, x.shape[axis + 1], context=context, order=order)
    assert torch.equal(got, torch.stack(expected))


def test_reference_by_hand() -> None:
    """A voxel's value tells its place: 100 z + 10 y + x, conditions 1000 c more, common and x_t negative."""
    place = sum(
        torch.arange(3.0).reshape([3 if axis == i else 1 for axis in range(3)]) * 10 ** (2 - i)
        for i in range(3)
    )
    condition = torch.stack([place, 1000 + place])[None]
    x_t, common = -place[None, None], -1000 - place[None, None]
    slab = reference.gather_slices(
        x_t, condition, common, "coronal", 0, 2, None, 1, "modality", torch.float32
    )
    assert slab.shape == (2, 8, 3, 3)
    # coronal slice 1 at z = 2, x = 1, and slice 0, whose left neighbour is itself
    assert slab[1, :, 2, 1].tolist() == [201, 211, 221, 1201, 1211, 1221, -1211, -211]
    assert slab[0, :, 2, 1].tolist() == [201, 201, 211, 1201, 1201, 1211, -1201, -201]
    by_slice = reference.gather_slices(x_t, condition, None, "axial", 2, 3, [1, 0], 1, "slice", torch.float32)
    assert by_slice[0, :, 1, 0].tolist() == [1110, 110, 1210, 210, 1210, 210, -210]
    sagittal = reference.gather_slices(x_t, condition, None, "sagittal", 2, 3, [1], 0, "slice", torch.float32)
    assert sagittal[0, :, 1, 0].tolist() == [1102, -102]


@pytest.mark.parametrize("case", SLABS)
@pytest.mark.parametrize("order", ["modality", "slice"])
@pytest.mark.parametrize("plane", AXIS)
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_matches_reference(backend: str, plane: str, order: str, case: str) -> None:
    slab = SLABS[case]
    check(slab, plane, order, backend, volumes(slab), torch.float32)


@pytest.mark.parametrize(("source", "target"), DTYPES)
@pytest.mark.parametrize("plane", AXIS)
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_every_dtype(backend: str, plane: str, source: torch.dtype, target: torch.dtype) -> None:
    for case in ("odd", "several blocks of pixels and slices"):
        check(SLABS[case], plane, "modality", backend, volumes(SLABS[case], source), target)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_dtypes_may_differ(backend: str) -> None:
    slab = SLABS["odd"]
    x_t, condition, common = volumes(slab)
    assert common is not None
    check(slab, "sagittal", "modality", backend, (x_t, condition.bfloat16(), common.half()), torch.bfloat16)


def test_float64_stays_float64() -> None:
    slab = SLABS["odd"]
    check(slab, "axial", "slice", "torch", volumes(slab, torch.float64), torch.float64)
    result = gather_slices(*volumes(slab, torch.float64), "axial", 0, 1, context=1, dtype=torch.float64)
    assert result.dtype == torch.float64


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """The same values with other strides."""
    if layout == "channels last":
        return tensor.contiguous(memory_format=torch.channels_last_3d)
    if layout == "slice-major coronal":
        return tensor.movedim(3, 1).contiguous().movedim(1, 3)
    if layout == "z runs contiguously":
        return tensor.transpose(2, 4).contiguous().transpose(2, 4)
    if layout == "part of a larger volume":
        larger = torch.full([length + 3 for length in tensor.shape], math.nan, dtype=tensor.dtype)
        inner = larger[tuple(slice(1, length + 1) for length in tensor.shape)]
        return inner.copy_(tensor)
    larger = torch.full([2 * length for length in tensor.shape], math.nan, dtype=tensor.dtype)
    return larger[tuple(slice(None, None, 2) for _ in tensor.shape)].copy_(tensor)


LAYOUTS = [
    "channels last",
    "slice-major coronal",
    "z runs contiguously",
    "part of a larger volume",
    "every second voxel",
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("plane", AXIS)
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_any_strides(backend: str, plane: str, layout: str, dtype: torch.dtype) -> None:
    for case in ("odd", "several blocks of pixels and slices"):
        x_t, condition, common = volumes(SLABS[case])
        given = (laid_out(x_t, layout), laid_out(condition, layout), common)
        check(SLABS[case], plane, "modality", backend, given, dtype)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_expanded_volume(backend: str) -> None:
    slab = SLABS["odd"]
    x_t, condition, common = volumes(slab)
    line = torch.arange(float(slab.box[2])).expand(slab.batch, slab.common, *slab.box)
    for plane in AXIS:
        check(slab, plane, "modality", backend, (x_t, condition, line), torch.float32)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_same_whatever_the_threads(backend: str) -> None:
    slab = Slab((20, 33, 61), batch=2, common=4)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            for plane in AXIS:
                check(slab, plane, "modality", backend, volumes(slab), torch.float32)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_empty(backend: str) -> None:
    x_t = torch.zeros(2, 1, 3, 4, 5)
    for plane in AXIS:
        slab = gather_slices(x_t, x_t, None, plane, 2, 2, context=1, backend=backend)
        assert slab.shape == (
            0,
            4,
            *(length for axis, length in enumerate(x_t.shape) if axis not in (0, 1, AXIS[plane])),
        )
    assert gather_slices(x_t[:0], x_t[:0], None, "axial", 0, 3, context=2, backend=backend).shape == (
        0,
        6,
        4,
        5,
    )
    flat = x_t[..., :0]
    assert gather_slices(flat, flat, None, "axial", 0, 3, context=2, backend=backend).shape == (6, 6, 4, 0)


def test_opcheck() -> None:
    slab = SLABS["odd"]
    x_t, condition, common = (None if part is None else torch.nan_to_num(part) for part in volumes(slab))
    for shared, channels, backend in ((common, [1], None), (None, None, "torch")):
        arguments = (x_t, condition, shared, "coronal", 1, 4, channels, 2, "slice", torch.bfloat16, backend)
        torch.library.opcheck(torch.ops.scorefusion.gather_slices.default, arguments)

    out = torch.empty_like(gather_slices(x_t, condition, common, "coronal", 1, 5, context=2))
    arguments = (out, x_t, condition, common, "coronal", 1, 5, None, 2, "slice", None)
    torch.library.opcheck(torch.ops.scorefusion.gather_slices_into.default, arguments)


def test_fake_cuda() -> None:
    with FakeTensorMode():
        x_t = torch.empty(1, 1, 6, 8, 10, device="cuda")
        slab = gather_slices(x_t, x_t, x_t, "sagittal", 2, 6, context=2, dtype=torch.bfloat16)
        assert slab.device.type == "cuda" and slab.dtype == torch.bfloat16 and slab.shape == (4, 7, 6, 8)
        assert slab.is_contiguous(memory_format=torch.channels_last)


def test_gradients_are_the_references() -> None:
    generator = torch.Generator().manual_seed(4)
    x_t, condition = (
        torch.randn(1, count, 3, 2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
        for count in (1, 2)
    )
    for plane in AXIS:
        assert torch.autograd.gradcheck(
            lambda x, c, plane=plane: gather_slices(
                x, c, None, plane, 0, 2, channels=[1], context=1, dtype=torch.float64
            ),
            (x_t, condition),
        )
    with pytest.raises(ScoreFusionError, match="gather_slices with gradients has no cpp implementation"):
        gather_slices(x_t, condition, None, "axial", 0, 2, context=1, backend="cpp")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plane": "axal"}, "unknown plane 'axal'.*'axial'"),
        ({"order": "slices"}, "unknown order 'slices'.*'slice'"),
        ({"x_t": torch.zeros(1, 3, 4, 5)}, r"differ only in C; got .*'x_t': \[1, 3, 4, 5\]"),
        (
            {"condition": torch.zeros(1, 2, 3, 4, 6)},
            r"differ only in C; got .*'condition': \[1, 2, 3, 4, 6\]",
        ),
        ({"common": torch.zeros(2, 2, 3, 4, 5)}, r"differ only in C; got .*'common': \[2, 2, 3, 4, 5\]"),
        ({"condition": torch.zeros(1, 1, 3, 4, 5, dtype=torch.int32)}, "got condition of torch.int32 on cpu"),
        ({"common": torch.zeros(1, 1, 3, 4, 5, device="meta")}, "volumes on cpu; got common of .* on meta"),
        ({"stop": 4}, "0 <= start <= stop <= 3 axial slices; got 0 to 4"),
        ({"start": -1}, "got -1 to 2"),
        ({"start": 2, "stop": 1}, "got 2 to 1"),
        ({"context": -1}, "context of 0 or more slices, got -1"),
        ({"channels": [0, 2]}, r"condition channels within 0..1; got \[0, 2\]"),
        ({"channels": [-1]}, r"got \[-1\]"),
        ({"dtype": torch.int32}, "a floating dtype for its result, got torch.int32"),
        ({"backend": "cpp", "dtype": torch.float64}, "backend 'cpp', but it has no float64 form"),
        ({"backend": "cuda"}, "gather_slices has no cuda implementation"),
    ],
)
def test_rejects_bad_input(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "x_t": torch.zeros(1, 1, 3, 4, 5), "condition": torch.zeros(1, 2, 3, 4, 5), "common": None,
        "plane": "axial", "start": 0, "stop": 2, "context": 1, **changes,
    }  # fmt: skip
    with pytest.raises(ScoreFusionError, match=message):
        gather_slices(**arguments)


def convert_as_gpus_do() -> None:
    """Let Triton's interpreter convert bfloat16 as GPUs do: it cuts bits off and flushes subnormals."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    plain = InterpreterBuilder.cast_impl

    def cast(self: Any, src: Any, dst_type: Any) -> Any:
        kinds = (src.dtype.scalar, dst_type.scalar)
        if kinds == (tl.float32, tl.bfloat16):
            data = torch.from_numpy(src.data.copy()).bfloat16().view(torch.uint16).numpy()
        elif kinds == (tl.bfloat16, tl.float32):
            data = torch.from_numpy(src.data.copy()).view(torch.bfloat16).float().numpy()
        else:
            return plain(self, src, dst_type)
        return TensorHandle(data, dst_type.scalar)

    InterpreterBuilder.cast_impl = cast


def run_in_interpreter() -> None:
    """What the Triton kernel must give; runs where TRITON_INTERPRET was set before Triton is imported."""
    from scorefusion.kernels import gather_slices as kernel

    convert_as_gpus_do()
    for slab in SLABS.values():
        for plane, order in zip(AXIS, ("modality", "slice", "modality"), strict=True):
            check(slab, plane, order, "triton", volumes(slab), torch.float32)
    small = Slab((3, 5, 4), common=1, context=1)
    for source, target in DTYPES:
        check(small, "coronal", "modality", "triton", volumes(small, source), target)
    x_t, condition, common = volumes(small)
    for layout in LAYOUTS:
        given = (laid_out(x_t, layout), laid_out(condition, layout), common)
        check(small, "axial", "slice", "triton", given, torch.float32)
    for config in kernel.CONFIGS:
        for plane, axis in AXIS.items():
            expected = gather_slices(x_t, condition, common, plane, 1, 3, context=1, backend="torch")
            out = torch.full_like(expected, math.nan)
            kernel.gather_slices(out, x_t, condition, common, axis, 1, 3, [0], 1, "modality", config)
            torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)


@needs_triton
def test_triton_matches_reference() -> None:
    """In a process of its own, because TRITON_INTERPRET must be set before Triton is imported."""
    code = "from tests.ops import test_gather_slices as tests; tests.run_in_interpreter(); print('equal')"
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "equal"
