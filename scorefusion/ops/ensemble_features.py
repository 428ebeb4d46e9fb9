"""2D decoder features summed onto the 3D network's grid, slab by slab, with no permuted copy of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scorefusion.errors import ScoreFusionError, unknown_name
from scorefusion.ops.backends import choose
from scorefusion.ops.reference import ensemble_features as reference
from scorefusion.ops.reference.planes import AXIS
from scorefusion.ops.view import view

IMPLEMENTED = ("torch", "cpp", "triton")


def ensemble_features(
    total: Tensor,
    features: Tensor,
    weight: Tensor,
    plane: str,
    start: int,
    *,
    backend: str | None = None,
) -> Tensor:
    """Add a slab of one branch's features to the sum of a feature layer (Zhu et al. 2025), in place.

        total[b, o, n, u, v] += sum_{j<s} sum_i weight[o, i, j] · features[b, s·n + j][i, u, v]

    n counts coarse slices along the plane's own axis and (u, v) are the other two. It is the convolution with
    kernel = stride = s along that axis, of the slab alone. Products and sums are float32 whatever the dtypes.
    Differentiable in `total` and `weight` (then a new tensor is returned and `total` is left alone); if the
    features need a gradient too, the PyTorch reference runs.

    Args:
        total: [B, O, D/s, H/s, W/s], any strides without overlap; float32, bfloat16, float16 (float64 with
            PyTorch). Fastest with its channels last in memory.
        features: [B·n, I, h/s, w/s], n a multiple of s, any strides; dtypes as for `total`. Fastest with its
            channels last in memory, as a 2D network leaves them.
        weight: [O, I, s], any strides, rounded to the features' dtype. Fastest packed as [s, I, O]:
            `weight.permute(2, 1, 0).contiguous().permute(2, 1, 0)`.
        plane: "axial" (fixes z), "coronal" (y) or "sagittal" (x): which axis the slices follow each other on.
        start: the slab's first slice in the volume, a multiple of s.
        backend: "torch", "cpp" or "triton"; chosen by `scorefusion.ops.backends` if not given.

    Returns:
        `total` itself, changed; a new tensor where autograd needs one.

    Raises:
        ScoreFusionError: if shapes, dtypes or devices disagree, the slab leaves the volume, or the backend
            cannot run.
    """
    _check(total, features, weight, plane, start)
    weight = weight.to(features.dtype)
    if torch.is_grad_enabled():
        if features.requires_grad:
            choose("ensemble_features with gradients of the features", total.device, backend, ("torch",))
            return reference.ensemble_features(total, features, weight, plane, start)
        if total.requires_grad or weight.requires_grad:
            return _new_total(total, features, weight, plane, start, backend)
    if any(size > 1 and step == 0 for size, step in zip(total.shape, total.stride(), strict=True)):
        raise ScoreFusionError(
            f"ensemble_features changes its total in place, so it must not be expanded; "
            f"got strides {list(total.stride())} for {list(total.shape)}"
        )
    _add_slab(total, features, weight, plane, start, backend)
    return total


def _check(total: Tensor, features: Tensor, weight: Tensor, plane: str, start: int) -> None:
    """Raise unless the slab fits its weight and its place in the total."""
    if plane not in AXIS:
        raise unknown_name("plane", plane, tuple(AXIS))
    for name, tensor, layout in (
        ("a total", total, "[B, O, D/s, H/s, W/s]"),
        ("features", features, "[B·n, I, h/s, w/s]"),
        ("a weight", weight, "[O, I, s]"),
    ):
        if tensor.ndim != layout.count(",") + 1:
            raise ScoreFusionError(f"ensemble_features needs {name} {layout}; got {list(tensor.shape)}")
        if not tensor.is_floating_point() or tensor.device != total.device:
            raise ScoreFusionError(
                f"ensemble_features needs {name} of floating dtype on {total.device}; "
                f"got {tensor.dtype} on {tensor.device}"
            )
    batch, outputs = total.shape[:2]
    grid = list(total.movedim(AXIS[plane], 1).shape)
    inputs, scale = weight.shape[1:]
    if weight.shape[0] != outputs or features.shape[1] != inputs or scale < 1:
        raise ScoreFusionError(
            f"ensemble_features needs a weight [{outputs}, {features.shape[1]}, s] for {outputs} channels of "
            f"the total and {features.shape[1]} of the features; got {list(weight.shape)}"
        )
    if list(features.shape[2:]) != grid[3:]:
        raise ScoreFusionError(
            f"ensemble_features needs {plane} features of {grid[3:]} pixels for a total "
            f"{list(total.shape)}; got {list(features.shape[2:])}"
        )
    if features.shape[0] % (max(batch, 1) * scale):
        raise ScoreFusionError(
            f"ensemble_features needs a multiple of {batch} x {scale} slices (items x scale); "
            f"got {features.shape[0]}"
        )
    count = features.shape[0] // (max(batch, 1) * scale)
    if start % scale or not 0 <= start // scale <= grid[1] - count:
        raise ScoreFusionError(
            f"ensemble_features needs a slab that starts at a multiple of {scale} and ends by slice "
            f"{grid[1] * scale}; got {count * scale} slices from {start}"
        )


@torch.library.custom_op("scorefusion::ensemble_features_", mutates_args={"total"})
def _add_slab(
    total: Tensor, features: Tensor, weight: Tensor, plane: str, start: int, backend: str | None
) -> None:
    chosen = choose(
        "ensemble_features", total.device, backend, IMPLEMENTED, [total.dtype, features.dtype, weight.dtype]
    )
    if 0 in (total.numel(), features.numel(), weight.numel()):
        return
    first = start // weight.shape[2]
    if chosen == "torch":
        reference.ensemble_features_(total, features, weight, plane, start)
    elif chosen == "cpp":
        from scorefusion import _C

        _C.ensemble_features(
            view(total), view(features), view(weight), AXIS[plane], first, torch.get_num_threads()
        )
    else:
        from scorefusion.kernels.ensemble_features import ensemble_features as kernel

        kernel(total, features, weight, AXIS[plane], first)


@_add_slab.register_fake
def _(total: Tensor, features: Tensor, weight: Tensor, plane: str, start: int, backend: str | None) -> None:
    return None


@torch.library.custom_op("scorefusion::ensemble_features", mutates_args=())
def _new_total(
    total: Tensor, features: Tensor, weight: Tensor, plane: str, start: int, backend: str | None
) -> Tensor:
    out = total.clone()
    _add_slab(out, features, weight, plane, start, backend)
    return out


@_new_total.register_fake
def _(total: Tensor, features: Tensor, weight: Tensor, plane: str, start: int, backend: str | None) -> Tensor:
    return total.clone()


@torch.library.custom_op("scorefusion::ensemble_features_backward", mutates_args=())
def _weight_gradient(
    grad: Tensor, features: Tensor, plane: str, start: int, scale: int, backend: str | None
) -> Tensor:
    chosen = choose("ensemble_features", grad.device, backend, IMPLEMENTED, [grad.dtype, features.dtype])
    outputs, inputs = grad.shape[1], features.shape[1]
    if 0 in (grad.numel(), features.numel()):
        return grad.new_zeros((outputs, inputs, scale), dtype=_gradient_dtype(grad, features))
    if chosen == "torch":
        return reference.ensemble_features_backward(grad, features, plane, start, scale).contiguous()
    out = torch.empty((outputs, inputs, scale), dtype=torch.float32, device=grad.device)
    first = start // scale
    if chosen == "cpp":
        from scorefusion import _C

        _C.ensemble_features_backward(
            view(out), view(grad), view(features), AXIS[plane], first, torch.get_num_threads()
        )
    else:
        from scorefusion.kernels.ensemble_features import ensemble_features_backward as kernel

        kernel(out, grad, features, AXIS[plane], first)
    return out


@_weight_gradient.register_fake
def _(grad: Tensor, features: Tensor, plane: str, start: int, scale: int, backend: str | None) -> Tensor:
    shape = (grad.shape[1], features.shape[1], scale)
    return grad.new_empty(shape, dtype=_gradient_dtype(grad, features))


def _gradient_dtype(grad: Tensor, features: Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in (grad.dtype, features.dtype) else torch.float32


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, features, weight, ctx.plane, ctx.start, ctx.backend = inputs
    ctx.scale, ctx.dtype = weight.shape[2], weight.dtype
    ctx.save_for_backward(features if ctx.needs_input_grad[2] else None)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (features,) = ctx.saved_tensors
    slope = None
    if features is not None:
        slope = _weight_gradient(grad, features, ctx.plane, ctx.start, ctx.scale, ctx.backend).to(ctx.dtype)
    return grad if ctx.needs_input_grad[0] else None, None, slope, None, None, None


_new_total.register_autograd(_backward, setup_context=_setup)
