"""Convolutions of extent 1 and linear layers on CPUs, the same bits for any number of threads and rows."""

from typing import Any

import torch
from torch import Tensor

from scorefusion.errors import ScoreFusionError
from scorefusion.ops.backends import cpp, implementation, view, views
from scorefusion.ops.packed_weight import PackedWeight, blank, check_weight, has_rows
from scorefusion.ops.reference import pointwise as reference


def pack(weight: Tensor, *, products: torch.dtype = torch.float32) -> PackedWeight:
    """Lay out a weight for this processor.

    Args:
        weight: [O, C], or [O, C, 1, ...] of a convolution, on the CPU, floating.
        products: float32, or bfloat16 for AVX512-BF16.
    """
    fits = weight.ndim >= 2 and weight.numel() == weight.shape[0] * weight.shape[1]
    if not fits or not weight.is_floating_point():
        got = f"got {list(weight.shape)} of {weight.dtype}"
        raise ScoreFusionError(f"pointwise needs a floating weight [O, C] or [O, C, 1, ...]; {got}")
    check_weight("pointwise", weight, products)
    outputs, inputs = weight.shape[:2]
    packed, matrix = blank(outputs, inputs, (), products), weight.detach().flatten(1).t()
    packed.fill(lambda start, stop: matrix[None, :, start:stop])
    return packed


def pointwise(
    x: Tensor,
    packed: PackedWeight,
    bias: Tensor | None = None,
    *,
    other: Tensor | None = None,
    residual: Tensor | None = None,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Return `weight [x, other] + bias + residual` over the channels of each voxel, channels-last.

    Sums are float32, in the order of the channels. For inference: no gradient is recorded.

    Args:
        x: [N, C, ...], float32 or bfloat16 (with PyTorch, float64); copied unless channels are contiguous and
            voxels evenly spaced.
        packed: of as many inputs as x and `other` have channels, and O outputs.
        bias: [O], floating.
        other: further channels, [N, C', ...] of x's dtype; never concatenated.
        residual: of the result's shape and x's dtype, added to it.
        out: of the result's shape and x's dtype, dense and channels last, to write to; may be `residual`.
        backend: "torch" or "cpp"; chosen by `scorefusion.ops.backends` if not given.

    Returns:
        [N, O, ...] of x's dtype, in channels-last memory; `out` if given.

    Raises:
        ScoreFusionError: if shapes, dtypes, devices or options are wrong, or the backend cannot run.
    """
    more = 0 if other is None or other.ndim < 2 else other.shape[1]
    if packed.tile or x.ndim < 2 or not x.is_floating_point() or x.shape[1] + more != packed.inputs:
        problem = f"pointwise needs floating x [N, {packed.inputs - more}, ...] and a weight that it packed"
        raise ScoreFusionError(f"{problem}; got {list(x.shape)} of {x.dtype} and a tile {packed.tile}")
    shape = (x.shape[0], packed.outputs, *x.shape[2:])
    shapes = {"other": (other, (x.shape[0], more, *x.shape[2:])), "residual": (residual, shape)}
    packed.check("pointwise", x, bias, {**shapes, "out": (out, shape)})
    if out is not None and not out.movedim(1, -1).is_contiguous():
        raise ScoreFusionError(
            f"pointwise needs out in dense channels-last memory; got strides {out.stride()} of {list(shape)}"
        )
    run = implementation("pointwise", (x, bias), backend, IMPLEMENTATIONS)
    if out is None:
        out = x.new_empty((x.shape[0], *x.shape[2:], packed.outputs)).movedim(-1, 1)
    if 0 not in out.shape:
        with torch.no_grad():
            run(out, x, other, packed, bias, residual)
    return out


def _torch(out: Tensor, x: Tensor, other: Tensor | None, packed: PackedWeight, *rest: Any) -> None:
    bias, residual = rest
    (weight,) = packed.unpacked()
    x = x if other is None else torch.cat([x, other], dim=1)
    out.copy_(reference.pointwise(x, weight, bias, residual, packed.products))


def _cpp(out: Tensor, x: Tensor, other: Tensor | None, packed: PackedWeight, *rest: Any) -> None:
    bias, residual = rest
    pairs, bias = packed.pairs("pointwise", x), packed.filled_bias(bias)
    rows = [None if part is None else _rows(part) for part in (x, other, residual)]
    cpp("pointwise", view(_rows(out)), *views(*rows[:2], packed.values, bias, rows[2]), pairs)


IMPLEMENTATIONS = {"torch": _torch, "cpp": _cpp}


def _rows(tensor: Tensor) -> Tensor:
    """[N, C, ...] as [voxels, C] with contiguous channels: a view where the memory allows it."""
    rows = tensor.movedim(1, -1).flatten(0, -2)
    return rows if has_rows(rows) else rows.contiguous()
