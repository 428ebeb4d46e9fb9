"""norm_act: every backend against the separate PyTorch operations it stands for, in the tensors' own dtype.

GroupNorm + SiLU + padding at the paper's widths, beyond the last-level cache; LayerNorm + FiLM + SiLU at the
bundled model's. Beside them the definition, eager and compiled. Bytes are the input once and the output once.
With gradients, at the sizes of training crops: the definition under autograd is the reference, and bytes are
those of the input and the result, of both gradients, and of the input once more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.conftest import check, needs_cuda
from scorefusion.ops import backends
from scorefusion.ops.norm_act import norm_act
from scorefusion.ops.reference import norm_act as definition

CASES = [
    pytest.param("eager", "cpu", id="separate operations"),
    pytest.param("torch", "cpu", id="torch reference"),
    pytest.param("compiled", "cpu", id="torch.compile", marks=pytest.mark.compiled),
    pytest.param(
        "cpp",
        "cpu",
        id="cpp",
        marks=pytest.mark.skipif(bool(backends.missing("cpp")), reason=str(backends.missing("cpp"))),
    ),
    pytest.param("eager", "cuda", id="cuda separate operations", marks=[needs_cuda, pytest.mark.gpu]),
    pytest.param("triton", "cuda", id="triton", marks=[needs_cuda, pytest.mark.gpu]),
]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Block:
    """Samples, channels of the input and of the skip, spatial size, groups, FiLM, padding."""

    samples: int
    widths: tuple[int, ...]
    size: tuple[int, ...]
    groups: int | None
    film: bool
    pad: int


BLOCKS = {
    "paper 2D, group": Block(8, (64,), (192, 192), 32, False, 1),
    "paper 3D, group": Block(1, (64,), (40, 96, 96), 32, False, 1),
    "paper 2D skip, group": Block(8, (128, 64), (96, 96), 32, False, 1),
    "t1-sr4 2D, layer": Block(24, (80,), (48, 48), None, True, 0),
    "t1-sr4 3D, layer": Block(1, (48,), (40, 48, 48), None, True, 0),
    "t1-sr4 2D skip, layer": Block(24, (96, 80), (24, 24), None, False, 0),
    "t1-sr4 2D small, layer": Block(24, (96,), (12, 12), None, True, 0),
}


def tensors(block: Block, dtype: torch.dtype, device: str) -> dict[str, Any]:
    torch.manual_seed(0)
    channels = sum(block.widths)
    parts = [
        (torch.randn(block.samples, *block.size, width) * 3.0 + 1.0).to(device, dtype).movedim(-1, 1)
        for width in block.widths
    ]
    told = torch.randn(block.samples, 2 * channels).to(device, dtype)
    scale, shift = told.chunk(2, dim=1) if block.film else (None, None)
    return {
        "x": parts[0],
        "other": parts[1] if len(parts) > 1 else None,
        "groups": block.groups,
        "weight": torch.randn(channels).to(device, dtype),
        "bias": torch.randn(channels).to(device, dtype),
        "scale": scale,
        "shift": shift,
        "pad": block.pad,
    }


def separate(
    x: Tensor,
    other: Tensor | None,
    groups: int | None,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    pad: int,
) -> Tensor:
    """The operations of a residual block, one by one."""
    hidden = x if other is None else torch.cat([x, other], dim=1)
    if groups is None:
        hidden = F.layer_norm(hidden.movedim(1, -1), weight.shape, weight, bias).movedim(-1, 1)
    else:
        hidden = F.group_norm(hidden, groups, weight, bias)
    if scale is not None and shift is not None:
        across = (...,) + (None,) * (x.ndim - 2)
        hidden = torch.addcmul(shift[across], hidden, 1 + scale[across])
    hidden = F.silu(hidden)
    return F.pad(hidden, (pad,) * (2 * (x.ndim - 2))) if pad else hidden


def body_of(kind: str, given: dict[str, Any], compiled: Callable[..., Any]) -> Callable[[], Tensor]:
    if kind == "eager":
        return lambda: separate(**given)
    if kind == "compiled":
        run = compiled(definition.norm_act)
        rest = {"eps": 1e-5, "add": None, "act": "silu", "pad_mode": "zeros"}
        return lambda: run(**given, **rest)
    return lambda: norm_act(**given, backend=kind)


@pytest.mark.main_case(name="t1-sr4 2D, layer", dtype="float32")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize(("kind", "device"), CASES)
def test_norm_act(
    measure: Callable[..., Any],
    compiled: Callable[..., Any],
    timed: bool,
    name: str,
    dtype: str,
    kind: str,
    device: str,
) -> None:
    block = BLOCKS[name]
    if not timed:
        size = (3,) * len(block.size)
        block = Block(2, block.widths, size, block.groups, block.film, block.pad)
    given = tensors(block, DTYPES[dtype], device)
    with torch.no_grad():
        wide = {key: value.double() if isinstance(value, Tensor) else value for key, value in given.items()}
        expected = norm_act(**wide, backend="torch")
        body = body_of(kind, given, compiled)
        # Separate operations round to bfloat16 after each: two of its units at values of up to 40. In float32
        # PyTorch's channels-last GroupNorm adds up a whole volume in one float.
        rtol, atol = (1e-5, 1e-5 if kind != "eager" else 1e-2) if dtype == "float32" else (2**-6, 0.15)
        check(body().double(), expected, baseline=kind == "compiled", rtol=rtol, atol=atol)

        elements = expected.numel() + sum(
            part.numel() for part in (given["x"], given["other"]) if part is not None
        )
        measure(
            body,
            group=f"norm_act, {name}, {dtype}, {device}",
            device=device,
            reference=kind == "eager",
            bytes=elements * DTYPES[dtype].itemsize,
        )


TRAINING = {
    "paper 2D, group": Block(8, (64,), (96, 96), 32, False, 0),
    "t1-sr4 2D, layer": Block(24, (48,), (32, 32), None, True, 0),
    "t1-sr4 2D skip, layer": Block(24, (80, 48), (32, 32), None, False, 0),
    "t1-sr4 2D small, layer": Block(24, (96,), (8, 8), None, True, 0),
    "t1-sr4 3D, layer": Block(2, (48,), (20, 20, 20), None, True, 0),
}


@pytest.mark.main_case(name="t1-sr4 2D, layer", dtype="float32")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", TRAINING)
@pytest.mark.parametrize("kind", ["torch", "cpp"])
def test_norm_act_with_gradients(
    measure: Callable[..., Any], timed: bool, name: str, dtype: str, kind: str
) -> None:
    if kind == "cpp" and backends.missing("cpp"):
        pytest.skip(str(backends.missing("cpp")))
    block = TRAINING[name]
    if not timed:
        block = Block(2, block.widths, (3,) * len(block.size), block.groups, block.film, 0)
    given = tensors(block, DTYPES[dtype], "cpu")
    given |= {key: given[key].float() for key in ("weight", "bias")}
    leaves = [
        value.detach().requires_grad_() if isinstance(value, Tensor) else value for value in given.values()
    ]
    given = dict(zip(given, leaves, strict=True))
    wanted = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    upstream = torch.randn(block.samples, *block.size, sum(block.widths), dtype=DTYPES[dtype]).movedim(-1, 1)

    def body(kind: str = kind) -> tuple[Tensor, ...]:
        return torch.autograd.grad(norm_act(**given, backend=kind), wanted, upstream)

    for found, expected in zip(body(), body("torch"), strict=True):
        unit = max(1.0, float(expected.abs().max()))
        atol = (1e-5 if dtype == "float32" else 2**-7) * unit  # both are rounded to bfloat16
        torch.testing.assert_close(found, expected, rtol=0.0, atol=atol)
    measure(
        body,
        group=f"norm_act with gradients, {name}, {dtype}, cpu",
        reference=kind == "torch",
        bytes=5 * upstream.numel() * upstream.element_size(),
    )
