"""A slab of 2.5D slices of one plane, cut out of volumes and laid out as the 2D networks read it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from scorefusion.errors import ScoreFusionError, unknown_name
from scorefusion.ops.backends import cpp, implementation, kernel, needs_torch, operation, unfit, views
from scorefusion.ops.reference import gather_slices as reference
from scorefusion.ops.reference.planes import AXIS

_SIGNATURE = (
    "Tensor x_t, Tensor condition, Tensor? common, str plane, SymInt start, SymInt stop, SymInt[]? channels, "
    "SymInt context, str order"
)
ORDERS = ("modality", "slice")


def gather_slices(
    x_t: Tensor,
    condition: Tensor,
    common: Tensor | None,
    plane: str,
    start: int,
    stop: int,
    *,
    channels: Sequence[int] | None = None,
    context: int,
    order: str = "modality",
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Cut a slab of 2.5D slices: `[condition with its neighbours, common, x_t]` on the channel axis.

    Each slice of the conditions comes with `context` neighbours on either side; beyond the volume the edge
    slice is repeated (Zhu et al., ICML 2025). The volumes are read in place, whatever their strides and
    whichever channels the branch sees. If x_t, condition or common needs a gradient, the PyTorch reference
    runs.

    Args:
        x_t: noisy target [B, t, D, H, W].
        condition: conditions [B, c, D, H, W].
        common: position and mask channels [B, p, D, H, W], or None.
        plane: "axial", "coronal" or "sagittal": the plane whose slices are cut.
        start: first slice.
        stop: one past the last slice.
        channels: the condition channels that the branch sees, in its order; all of them if not given.
        context: neighbours on either side.
        order: "modality" (all neighbours of one condition, then of the next) or "slice".
        dtype: of the result; values are rounded to the nearest, ties to even.
        out: where to write instead of a new tensor: of the result's shape and dtype, channels last.
        backend: "torch", "cpp" or "triton"; chosen by `scorefusion.ops.backends` if not given.

    Returns:
        [B·(stop - start), (2·context + 1)·len(channels) + p + t, h, w], channels last in memory: ``out``
        where it is given.

    Raises:
        ScoreFusionError: if shapes, dtypes or devices disagree, the slab or a channel is not there, ``out``
            is given where a gradient is needed, or the backend cannot run.
    """
    seen = None if channels is None else [int(channel) for channel in channels]
    _check(x_t, condition, common, plane, start, stop, seen, context, order, dtype)
    if seen == list(range(condition.shape[1])):
        seen = None
    arguments = (x_t, condition, common, plane, start, stop, seen, context, order)
    if out is not None:
        _check_out(out, *arguments, dtype)
    if torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in (x_t, condition, common)):
        if out is not None:
            raise ScoreFusionError("gather_slices has no gradient where it writes into out")
        needs_torch("gather_slices with gradients", x_t, backend)
        return reference.gather_slices(*arguments, dtype)
    if out is None:
        return _gather_slices(*arguments, dtype, backend)
    _gather_slices_into(out, *arguments, backend)
    return out


def _check_out(out: Tensor, *arguments: Any) -> None:
    shape, dtype, device = _shape(*arguments[:-1]), arguments[-1], arguments[0].device
    if list(out.shape) != shape or out.dtype != dtype or out.device != device:
        got = f"got {list(out.shape)} in {out.dtype} on {out.device}"
        raise ScoreFusionError(f"gather_slices needs out {shape} in {dtype} on {device}; {got}")
    if not out.is_contiguous(memory_format=torch.channels_last):
        raise ScoreFusionError(f"gather_slices needs out channels last; got strides {list(out.stride())}")


def _check(x_t: Tensor, condition: Tensor, common: Tensor | None, *rest: Any) -> None:
    plane, start, stop, channels, context, order, dtype = rest
    if plane not in AXIS:
        raise unknown_name("plane", plane, AXIS)
    if order not in ORDERS:
        raise unknown_name("order", order, ORDERS)
    named = {"x_t": x_t, "condition": condition, **({} if common is None else {"common": common})}
    for name, volume in named.items():
        if volume.ndim != 5 or volume.shape[:1] + volume.shape[2:] != x_t.shape[:1] + x_t.shape[2:]:
            shapes = {name: list(volume.shape) for name, volume in named.items()}
            raise unfit("gather_slices", "volumes [B, C, D, H, W] that differ only in C", shapes)
        if volume.device != x_t.device or not volume.is_floating_point():
            got = f"got {name} of {volume.dtype} on {volume.device}"
            raise ScoreFusionError(f"gather_slices needs floating volumes on {x_t.device}; {got}")
    count = x_t.shape[AXIS[plane]]
    if not 0 <= start <= stop <= count:
        raise unfit("gather_slices", f"0 <= start <= stop <= {count} {plane} slices", f"{start} to {stop}")
    if context < 0:
        raise ScoreFusionError(f"gather_slices needs a context of 0 or more slices, got {context}")
    if channels is not None and not all(0 <= channel < condition.shape[1] for channel in channels):
        raise unfit("gather_slices", f"condition channels within 0..{condition.shape[1] - 1}", channels)
    if not dtype.is_floating_point:
        raise ScoreFusionError(f"gather_slices needs a floating dtype for its result, got {dtype}")


def _shape(x_t: Tensor, condition: Tensor, common: Tensor | None, *rest: Any) -> list[int]:
    plane, start, stop, channels, context, _ = rest
    depth = (2 * context + 1) * len(_seen(condition, channels))
    depth += x_t.shape[1] + (0 if common is None else common.shape[1])
    size = [length for axis, length in enumerate(x_t.shape) if axis not in (0, 1, AXIS[plane])]
    return [x_t.shape[0] * (stop - start), depth, *size]


def _seen(condition: Tensor, channels: list[int] | None) -> list[int]:
    return list(range(condition.shape[1])) if channels is None else channels


def _torch(out: Tensor, *arguments: Any) -> None:
    arguments += (out.dtype,)
    out.copy_(reference.gather_slices(*arguments))


def _cpp(out: Tensor, *arguments: Any) -> None:
    *volumes, plane, start, stop, channels, context, order = arguments
    span = (_seen(volumes[1], channels), AXIS[plane], start, stop, context, order == "slice")
    cpp("gather_slices", *views(out, *volumes), *span)


def _triton(out: Tensor, *arguments: Any) -> None:
    *volumes, plane, start, stop, channels, context, order = arguments
    run = kernel("gather_slices", "gather_slices")
    run(out, *volumes, AXIS[plane], start, stop, _seen(volumes[1], channels), context, order)


IMPLEMENTATIONS = {"torch": _torch, "cpp": _cpp, "triton": _triton}


def _write(out: Tensor, *arguments: Any) -> None:
    run = implementation("gather_slices", (*arguments[:3], out), arguments[-1], IMPLEMENTATIONS)
    if out.numel():
        run(out, *arguments[:-1])


def _empty(*arguments: Any) -> Tensor:
    *cut, dtype, _ = arguments
    shape, device = _shape(*cut), cut[0].device
    return torch.empty(shape, dtype=dtype, device=device, memory_format=torch.channels_last)


@operation(f"gather_slices({_SIGNATURE}, ScalarType dtype, str? backend) -> Tensor", _empty)
def _gather_slices(*arguments: Any) -> Tensor:
    out = _empty(*arguments)
    _write(out, *arguments[:-2], arguments[-1])
    return out


_gather_slices_into = operation(
    f"gather_slices_into(Tensor(a!) out, {_SIGNATURE}, str? backend) -> ()", lambda *_: None
)(_write)
