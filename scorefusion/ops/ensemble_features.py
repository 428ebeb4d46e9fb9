"""2D decoder features summed onto the 3D network's grid, slab by slab, with no permuted copy of them."""

from typing import Any

import torch
from torch import Tensor

from scorefusion.errors import ScoreFusionError, unknown_name
from scorefusion.ops.backends import cpp, implementation, kernel, needs_torch, operation, unfit, views
from scorefusion.ops.reference import ensemble_features as reference
from scorefusion.ops.reference.planes import AXIS


def ensemble_features(
    total: Tensor, features: Tensor, weight: Tensor, plane: str, start: int, *, backend: str | None = None
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
            needs_torch("ensemble_features with gradients of the features", total, backend)
            return reference.ensemble_features(total, features, weight, plane, start)
        if total.requires_grad or weight.requires_grad:
            return _new_total(total, features, weight, plane, start, backend)
    if any(size > 1 and step == 0 for size, step in zip(total.shape, total.stride(), strict=True)):
        problem = "ensemble_features changes its total in place, so it must not be expanded"
        raise ScoreFusionError(f"{problem}; got strides {list(total.stride())} for {list(total.shape)}")
    _add_slab(total, features, weight, plane, start, backend)
    return total


def _check(total: Tensor, features: Tensor, weight: Tensor, plane: str, start: int) -> None:
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
            problem = f"ensemble_features needs {name} of floating dtype on {total.device}"
            raise ScoreFusionError(f"{problem}; got {tensor.dtype} on {tensor.device}")
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
        raise unfit(
            "ensemble_features", f"a multiple of {batch} x {scale} slices (items x scale)", features.shape[0]
        )
    count = features.shape[0] // (max(batch, 1) * scale)
    if start % scale or not 0 <= start // scale <= grid[1] - count:
        raise ScoreFusionError(
            f"ensemble_features needs a slab that starts at a multiple of {scale} and ends by slice "
            f"{grid[1] * scale}; got {count * scale} slices from {start}"
        )


_SIGNATURE = "Tensor features, Tensor weight, str plane, SymInt start, str? backend"


def _cpp(total: Tensor, features: Tensor, weight: Tensor, plane: str, start: int) -> None:
    cpp("ensemble_features", *views(total, features, weight), AXIS[plane], start // weight.shape[2])


def _triton(total: Tensor, features: Tensor, weight: Tensor, plane: str, start: int) -> None:
    run = kernel("ensemble_features", "ensemble_features")
    run(total, features, weight, AXIS[plane], start // weight.shape[2])


IMPLEMENTATIONS = {"torch": reference.ensemble_features_, "cpp": _cpp, "triton": _triton}


@operation(f"ensemble_features_(Tensor(a!) total, {_SIGNATURE}) -> ()", lambda *_: None)
def _add_slab(total: Tensor, features: Tensor, weight: Tensor, *rest: Any) -> None:
    run = implementation("ensemble_features", (total, features, weight), rest[-1], IMPLEMENTATIONS)
    if 0 not in (total.numel(), features.numel(), weight.numel()):
        run(total, features, weight, *rest[:-1])


@operation(f"ensemble_features(Tensor total, {_SIGNATURE}) -> Tensor", lambda total, *_: total.clone())
def _new_total(total: Tensor, *rest: Any) -> Tensor:
    out = total.clone()
    _add_slab(out, *rest)
    return out


def _torch_backward(out: Tensor, grad: Tensor, features: Tensor, plane: str, start: int) -> None:
    out.copy_(reference.ensemble_features_backward(grad, features, plane, start, out.shape[2]))


def _cpp_backward(out: Tensor, grad: Tensor, features: Tensor, plane: str, start: int) -> None:
    cpp("ensemble_features_backward", *views(out, grad, features), AXIS[plane], start // out.shape[2])


def _triton_backward(out: Tensor, grad: Tensor, features: Tensor, plane: str, start: int) -> None:
    run = kernel("ensemble_features", "ensemble_features_backward")
    run(out, grad, features, AXIS[plane], start // out.shape[2])


_BACKWARD = {"torch": _torch_backward, "cpp": _cpp_backward, "triton": _triton_backward}


def _empty_gradient(grad: Tensor, features: Tensor, plane: str, start: int, scale: int, _: Any) -> Tensor:
    dtype = torch.float64 if torch.float64 in (grad.dtype, features.dtype) else torch.float32
    return grad.new_empty((grad.shape[1], features.shape[1], scale), dtype=dtype)


@operation(
    "ensemble_features_backward(Tensor grad, Tensor features, str plane, SymInt start, SymInt scale, "
    "str? backend) -> Tensor",
    _empty_gradient,
)
def _weight_gradient(grad: Tensor, features: Tensor, plane: str, start: int, *rest: Any) -> Tensor:
    run = implementation("ensemble_features", (grad, features), rest[-1], _BACKWARD)
    out = _empty_gradient(grad, features, plane, start, *rest)
    if 0 in (grad.numel(), features.numel()):
        return out.zero_()
    run(out, grad, features, plane, start)
    return out


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
