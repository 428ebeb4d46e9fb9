"""Convolutions of extent 1 and linear layers on CPUs, the same bits for any number of threads and rows."""

from __future__ import annotations

import torch
from torch import Tensor

from scorefusion.errors import ScoreFusionError
from scorefusion.ops.backends import choose
from scorefusion.ops.packed_weight import PRODUCTS, PackedWeight, blank, has_rows
from scorefusion.ops.reference import pointwise as reference
from scorefusion.ops.view import view

IMPLEMENTED = ("torch", "cpp")


def pack(weight: Tensor, *, products: torch.dtype = torch.float32) -> PackedWeight:
    """Lay out a weight for this processor.

    Args:
        weight: [O, C], or [O, C, 1, ...] of a convolution, on the CPU, floating.
        products: float32, or bfloat16 for AVX512-BF16.

    Raises:
        ScoreFusionError: if the weight or dtype is none of these.
    """
    if (
        weight.ndim < 2
        or weight.numel() != weight.shape[0] * weight.shape[1]
        or not weight.is_floating_point()
    ):
        raise ScoreFusionError(
            f"pointwise needs a floating weight [O, C] or [O, C, 1, ...]; "
            f"got {list(weight.shape)} of {weight.dtype}"
        )
    outputs, inputs = weight.shape[:2]
    if 0 in (inputs, outputs):
        raise ScoreFusionError(f"pointwise needs channels; got {inputs} in and {outputs} out")
    if weight.device.type != "cpu":
        raise ScoreFusionError(f"pointwise runs on CPUs; the weight is on {weight.device}")
    if products not in PRODUCTS:
        raise ScoreFusionError(f"pointwise multiplies float32 or bfloat16; got products={products}")
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
    _check(x, packed, bias, other, residual, out)
    dtypes = (x.dtype,) if bias is None else (x.dtype, bias.dtype)
    chosen = choose("pointwise", x.device, backend, IMPLEMENTED, dtypes)
    if out is None:
        out = x.new_empty((x.shape[0], *x.shape[2:], packed.outputs)).movedim(-1, 1)
    if 0 in out.shape:
        return out
    with torch.no_grad():
        if chosen == "torch":
            (weight,) = packed.unpacked()
            x = x if other is None else torch.cat([x, other], dim=1)
            return out.copy_(reference.pointwise(x, weight, bias, residual, packed.products))
        return _cpp(out, x, other, packed, bias, residual)


def _cpp(
    out: Tensor,
    x: Tensor,
    other: Tensor | None,
    packed: PackedWeight,
    bias: Tensor | None,
    residual: Tensor | None,
) -> Tensor:
    from scorefusion import _C

    pairs = packed.products == torch.bfloat16
    if pairs and not _C.winograd_pairs():
        raise ScoreFusionError(
            "this processor does not multiply bfloat16 (no AVX512-BF16); pack with products=torch.float32"
        )
    if x.dtype == torch.float16:
        raise ScoreFusionError(
            "pointwise needs x in float32 or bfloat16 for backend 'cpp'; got torch.float16"
        )
    bias = packed.filled_bias(bias)
    x, other, residual = _rows(x), *(None if part is None else _rows(part) for part in (other, residual))
    _C.pointwise(
        view(_rows(out)),
        view(x),
        None if other is None else view(other),
        view(packed.values),
        view(bias),
        None if residual is None else view(residual),
        pairs,
        torch.get_num_threads(),
    )
    return out


def _rows(tensor: Tensor) -> Tensor:
    """[N, C, ...] as [voxels, C] with contiguous channels: a view where the memory allows it."""
    rows = tensor.movedim(1, -1).flatten(0, -2)
    return rows if has_rows(rows) else rows.contiguous()


def _check(
    x: Tensor,
    packed: PackedWeight,
    bias: Tensor | None,
    other: Tensor | None,
    residual: Tensor | None,
    out: Tensor | None,
) -> None:
    """Raise unless everything fits the packed weight."""
    more = 0 if other is None or other.ndim < 2 else other.shape[1]
    if packed.tile or x.ndim < 2 or not x.is_floating_point() or x.shape[1] + more != packed.inputs:
        raise ScoreFusionError(
            f"pointwise needs floating x [N, {packed.inputs - more}, ...] and a weight that it packed; "
            f"got {list(x.shape)} of {x.dtype} and a tile {packed.tile}"
        )
    if bias is not None and (tuple(bias.shape) != (packed.outputs,) or not bias.is_floating_point()):
        raise ScoreFusionError(
            f"pointwise needs a floating bias [{packed.outputs}]; got {list(bias.shape)} of {bias.dtype}"
        )
    shape = (x.shape[0], packed.outputs, *x.shape[2:])
    shapes = {"other": (x.shape[0], more, *x.shape[2:]), "residual": shape, "out": shape}
    given = {"other": other, "residual": residual, "out": out}
    for name, tensor in given.items():
        if tensor is not None and (tuple(tensor.shape) != shapes[name] or tensor.dtype != x.dtype):
            raise ScoreFusionError(
                f"pointwise needs {name} {list(shapes[name])} of {x.dtype}; "
                f"got {list(tensor.shape)} of {tensor.dtype}"
            )
    if out is not None and not out.movedim(1, -1).is_contiguous():
        raise ScoreFusionError(
            f"pointwise needs out in dense channels-last memory; got strides {out.stride()} of {list(shape)}"
        )
    for name, tensor in {"bias": bias, **given}.items():
        if tensor is not None and tensor.device != x.device:
            raise ScoreFusionError(f"pointwise needs {name} on {x.device}, where x is; got {tensor.device}")
