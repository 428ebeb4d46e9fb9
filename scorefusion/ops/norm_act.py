"""Normalisation, FiLM and SiLU in one pass, over a virtual concatenation, into a padded buffer."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scorefusion.errors import ScoreFusionError
from scorefusion.ops.backends import choose
from scorefusion.ops.reference import norm_act as reference
from scorefusion.ops.view import view

IMPLEMENTED = ("torch", "cpp", "triton")
WITH_GRADIENTS = ("torch", "cpp")
ACTIVATIONS = ("silu", "none")
PAD_MODES = ("zeros", "replicate")


def norm_act(
    x: Tensor,
    other: Tensor | None = None,
    *,
    groups: int | None,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    add: Tensor | None = None,
    act: str = "silu",
    pad: int = 0,
    pad_mode: str = "zeros",
    backend: str | None = None,
) -> Tensor:
    """Return `pad(act(norm(concat(x, other) + add) · (1 + scale) + shift))`, channels-last.

    What stands before a convolution of a residual block, in one pass: nothing is concatenated, and the
    convolution that follows needs no padding of its own. Arithmetic is float32 (float64 for float64), and
    statistics survive a mean far larger than the standard deviation. If a gradient is needed, it is C++'s own
    on a CPU (once differentiable, nothing but the arguments is kept); elsewhere, and inside the transforms of
    `torch.func`, the PyTorch reference runs under autograd.

    Args:
        x: [N, C1, H, W] or [N, C1, D, H, W], any strides; float32, bfloat16, float16 (with PyTorch, float64).
        other: [N, C2, *spatial] of x's dtype, the channels after x's (a skip connection); C = C1 + C2.
        groups: of GroupNorm (Wu and He 2018), over voxels too; None for LayerNorm over each voxel's channels.
        weight: [C], floating.
        bias: [C], floating.
        eps: added to the variance.
        scale: [N, C] or None; FiLM (Perez et al. 2018).
        shift: [N, C] or None.
        add: [N, C], added before normalising, or None.
        act: "silu" or "none".
        pad: voxels added on each side of each spatial axis.
        pad_mode: "zeros", or "replicate" for the nearest voxel.
        backend: "torch", "cpp" or "triton"; chosen by `scorefusion.ops.backends` if not given.

    Returns:
        [N, C, *(size + 2 · pad)] of x's dtype, in channels-last memory.

    Raises:
        ScoreFusionError: if shapes, dtypes, devices or options are wrong, or the backend cannot run.
    """
    tensors = [x, other, weight, bias, scale, shift, add]
    _check(x, other, groups, weight, bias, {"scale": scale, "shift": shift, "add": add}, act, pad, pad_mode)
    options = (groups, float(eps), act, pad, pad_mode)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        dtypes = [tensor.dtype for tensor in tensors if tensor is not None]
        chosen = choose("norm_act with gradients", x.device, backend, WITH_GRADIENTS, dtypes)
        groups, eps, act, pad, pad_mode = options
        if chosen == "torch" or torch._C._are_functorch_transforms_active():
            return reference.norm_act(
                x, other, groups, weight, bias, eps, scale, shift, add, act, pad, pad_mode
            )
        plain: Tensor = _Differentiable.apply(*tensors, groups, eps, act)
        edges = (pad,) * (2 * (x.ndim - 2))
        return F.pad(plain, edges, mode="constant" if pad_mode == "zeros" else pad_mode) if pad else plain
    return _norm_act(x, other, weight, bias, scale, shift, add, *options, backend)


def _check(
    x: Tensor,
    other: Tensor | None,
    groups: int | None,
    weight: Tensor,
    bias: Tensor,
    told: dict[str, Tensor | None],
    act: str,
    pad: int,
    pad_mode: str,
) -> None:
    """Raise unless everything fits x."""
    if x.ndim not in (4, 5) or not x.is_floating_point():
        raise ScoreFusionError(
            f"norm_act needs floating x [N, C, H, W] or [N, C, D, H, W]; got {list(x.shape)} of {x.dtype}"
        )
    channels = x.shape[1]
    if other is not None:
        if other.ndim != x.ndim or other.shape[0] != x.shape[0] or other.shape[2:] != x.shape[2:]:
            expected = [x.shape[0], "C2", *x.shape[2:]]
            raise ScoreFusionError(f"norm_act needs other {expected} to go with x; got {list(other.shape)}")
        if other.dtype != x.dtype:
            raise ScoreFusionError(f"norm_act needs other of x's dtype, {x.dtype}; got {other.dtype}")
        channels += other.shape[1]
    if groups is not None and (groups < 1 or channels % groups):
        raise ScoreFusionError(f"norm_act cannot split {channels} channels into {groups} groups")
    shapes = {"weight": (channels,), "bias": (channels,)} | dict.fromkeys(told, (x.shape[0], channels))
    given = {"weight": weight, "bias": bias, "other": other, **told}
    for name, tensor in given.items():
        if tensor is None:
            continue
        if name in shapes and (tuple(tensor.shape) != shapes[name] or not tensor.is_floating_point()):
            raise ScoreFusionError(
                f"norm_act needs floating {name} {list(shapes[name])}; "
                f"got {list(tensor.shape)} of {tensor.dtype}"
            )
        if tensor.device != x.device:
            raise ScoreFusionError(f"norm_act needs {name} on {x.device}, where x is; got {tensor.device}")
    if act not in ACTIVATIONS:
        raise ScoreFusionError(f"norm_act needs act one of {', '.join(ACTIVATIONS)}; got {act!r}")
    if pad < 0 or pad_mode not in PAD_MODES:
        raise ScoreFusionError(
            f"norm_act needs pad >= 0 and pad_mode one of {', '.join(PAD_MODES)}; got {pad} and {pad_mode!r}"
        )


def _computed(
    x: Tensor,
    other: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    add: Tensor | None,
    groups: int | None,
    eps: float,
    act: str,
    pad: int,
    pad_mode: str,
    backend: str | None,
) -> Tensor:
    dtypes = [tensor.dtype for tensor in (x, weight, bias, scale, shift, add) if tensor is not None]
    chosen = choose("norm_act", x.device, backend, IMPLEMENTED, dtypes)
    if 0 in (*x.shape[2:], x.shape[0], weight.numel()):
        return _empty(x, other, pad).zero_()
    if chosen == "torch":
        return reference.norm_act(x, other, groups, weight, bias, eps, scale, shift, add, act, pad, pad_mode)
    out = _empty(x, other, pad)
    if chosen == "cpp":
        from scorefusion import _C

        optional = [None if tensor is None else view(tensor) for tensor in (other, scale, shift, add)]
        _C.norm_act(
            view(out),
            view(x),
            optional[0],
            view(weight),
            view(bias),
            *optional[1:],
            groups or 0,
            eps,
            act == "silu",
            pad,
            pad_mode == "replicate",
            torch.get_num_threads(),
        )
    else:
        from scorefusion.kernels.norm_act import norm_act as kernel

        kernel(out, x, other, weight, bias, scale, shift, add, groups, eps, act == "silu", pad, pad_mode)
    return out


_norm_act = torch.library.custom_op("scorefusion::norm_act", _computed, mutates_args=())


def _empty(x: Tensor, other: Tensor | None, pad: int) -> Tensor:
    """Return the output's buffer: channels-last memory as strides, whatever the sizes."""
    channels = x.shape[1] + (0 if other is None else other.shape[1])
    shape = (x.shape[0], *(size + 2 * pad for size in x.shape[2:]), channels)
    return torch.empty(shape, dtype=x.dtype, device=x.device).movedim(-1, 1)


@_norm_act.register_fake
def _(
    x: Tensor,
    other: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    add: Tensor | None,
    groups: int | None,
    eps: float,
    act: str,
    pad: int,
    pad_mode: str,
    backend: str | None,
) -> Tensor:
    return _empty(x, other, pad)


def _computed_backward(
    gradient: Tensor,
    x: Tensor,
    other: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    add: Tensor | None,
    groups: int | None,
    eps: float,
    act: str,
) -> list[Tensor]:
    """Return the gradients by x, other, weight, bias, scale, shift and add, of those that are given."""
    given = (x, other, weight, bias, scale, shift, add)
    results = _gradients(given)
    if 0 in (*x.shape[2:], x.shape[0], weight.numel()):
        return [result.zero_() for result in results]
    from scorefusion import _C

    left = iter(results)
    _C.norm_act_backward(
        [None if tensor is None else view(next(left)) for tensor in given],
        view(gradient),
        *(None if tensor is None else view(tensor) for tensor in given),
        groups or 0,
        eps,
        act == "silu",
        torch.get_num_threads(),
    )
    return results


_norm_act_backward = torch.library.custom_op(
    "scorefusion::norm_act_backward", _computed_backward, mutates_args=()
)


def _gradients(given: tuple[Tensor | None, ...]) -> list[Tensor]:
    """Return buffers like what is given, dense: x and other channels-last, the others row by row."""
    return [
        _empty(tensor, None, 0)
        if index < 2
        else torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
        for index, tensor in enumerate(given)
        if tensor is not None
    ]


@_norm_act_backward.register_fake
def _(
    gradient: Tensor,
    x: Tensor,
    other: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    add: Tensor | None,
    groups: int | None,
    eps: float,
    act: str,
) -> list[Tensor]:
    return _gradients((x, other, weight, bias, scale, shift, add))


def _holds_numbers(tensor: Tensor) -> bool:
    """Whether it is a tensor in memory, not one that stands for it while a graph is traced."""
    return type(tensor) is Tensor and not torch.compiler.is_compiling()


class _Differentiable(torch.autograd.Function):
    """norm_act without padding, in C++ both ways.

    Neither `register_autograd` nor `setup_context`, and no dispatcher where tensors hold numbers: each costs
    0.1 ms a call, as much as a small layer.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        other: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        add: Tensor | None,
        groups: int | None,
        eps: float,
        act: str,
    ) -> Tensor:
        ctx.save_for_backward(x, other, weight, bias, scale, shift, add)
        ctx.options = (groups, eps, act)
        run = _computed if _holds_numbers(x) else _norm_act
        return run(x, other, weight, bias, scale, shift, add, groups, eps, act, 0, "zeros", "cpp")

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        given = ctx.saved_tensors
        again = torch.is_grad_enabled()  # to be differentiated once more, which the operation refuses
        run = _computed_backward if _holds_numbers(gradient) and not again else _norm_act_backward
        found = iter(run(gradient, *given, *ctx.options))
        return (*(None if tensor is None else next(found) for tensor in given), None, None, None)
