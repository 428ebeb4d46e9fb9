"""Normalisation, FiLM and SiLU in one pass, over a virtual concatenation, into a padded buffer."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scorefusion.errors import ScoreFusionError
from scorefusion.ops.backends import choose, cpp, implementation, kernel, operation, unfit, views
from scorefusion.ops.reference import norm_act as reference

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
    _check(x, other, groups, weight, bias, {"scale": scale, "shift": shift, "add": add}, act, pad, pad_mode)
    tensors = (x, other, weight, bias, scale, shift, add)
    given = [tensor for tensor in tensors if tensor is not None]
    if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in given):
        return _norm_act(*tensors, groups, float(eps), act, pad, pad_mode, backend)
    dtypes = [tensor.dtype for tensor in given]
    chosen = choose("norm_act with gradients", x.device, backend, WITH_GRADIENTS, dtypes)
    if chosen == "torch" or torch._C._are_functorch_transforms_active():
        return _definition(*tensors, groups, float(eps), act, pad, pad_mode)
    plain: Tensor = _Differentiable.apply(*tensors, groups, float(eps), act)
    edges = (pad,) * (2 * (x.ndim - 2))
    return F.pad(plain, edges, mode="constant" if pad_mode == "zeros" else pad_mode) if pad else plain


def decompositions() -> dict[Any, Callable[..., Tensor]]:
    """Return the table that `torch.export`'s `run_decompositions` takes, PyTorch's defaults included.

    A network exported by `torch.export` holds `scorefusion::norm_act`; after
    `program.run_decompositions(decompositions())` it holds PyTorch's operations alone, as ONNX and TensorRT
    need it.
    """
    table = torch.export.default_decompositions()
    table[torch.ops.scorefusion.norm_act.default] = lambda *arguments: _definition(*arguments[:-1])
    return table


def _check(x: Tensor, other: Tensor | None, groups: int | None, *rest: Any) -> None:
    weight, bias, told, act, pad, pad_mode = rest
    if x.ndim not in (4, 5) or not x.is_floating_point():
        raise unfit("norm_act", "floating x [N, C, H, W] or [N, C, D, H, W]", f"{list(x.shape)} of {x.dtype}")
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
            raise unfit(
                "norm_act", f"floating {name} {list(shapes[name])}", f"{list(tensor.shape)} of {tensor.dtype}"
            )
        if tensor.device != x.device:
            raise ScoreFusionError(f"norm_act needs {name} on {x.device}, where x is; got {tensor.device}")
    if act not in ACTIVATIONS:
        raise ScoreFusionError(f"norm_act needs act one of {', '.join(ACTIVATIONS)}; got {act!r}")
    if pad < 0 or pad_mode not in PAD_MODES:
        raise ScoreFusionError(
            f"norm_act needs pad >= 0 and pad_mode one of {', '.join(PAD_MODES)}; got {pad} and {pad_mode!r}"
        )


_SIGNATURE = (
    "Tensor x, Tensor? other, Tensor weight, Tensor bias, Tensor? scale, Tensor? shift, Tensor? add, "
    "SymInt? groups, float eps, str act"
)


def _definition(x: Tensor, other: Tensor | None, *rest: Any) -> Tensor:
    weight, bias, scale, shift, add, groups, eps, *options = rest
    return reference.norm_act(x, other, groups, weight, bias, eps, scale, shift, add, *options)


def _empty(x: Tensor, other: Tensor | None, pad: int = 0) -> Tensor:
    """Return the output's buffer: channels-last memory as strides, whatever the sizes."""
    channels = x.shape[1] + (0 if other is None else other.shape[1])
    shape = (x.shape[0], *(size + 2 * pad for size in x.shape[2:]), channels)
    return torch.empty(shape, dtype=x.dtype, device=x.device).movedim(-1, 1)


def _cpp(*arguments: Any) -> Tensor:
    *tensors, groups, eps, act, pad, pad_mode = arguments
    out, options = _empty(tensors[0], tensors[1], pad), (act == "silu", pad, pad_mode == "replicate")
    cpp("norm_act", *views(out, *tensors), groups or 0, eps, *options)
    return out


def _triton(*arguments: Any) -> Tensor:
    *tensors, groups, eps, act, pad, pad_mode = arguments
    out = _empty(tensors[0], tensors[1], pad)
    kernel("norm_act", "norm_act")(out, *tensors, groups, eps, act == "silu", pad, pad_mode)
    return out


IMPLEMENTATIONS = {"torch": _definition, "cpp": _cpp, "triton": _triton}


def _computed(x: Tensor, other: Tensor | None, weight: Tensor, *rest: Any) -> Tensor:
    run = implementation("norm_act", (x, weight, *rest[:4]), rest[-1], IMPLEMENTATIONS)
    if 0 in (*x.shape[2:], x.shape[0], weight.numel()):
        return _empty(x, other, rest[-3]).zero_()
    return run(x, other, weight, *rest[:-1])


_norm_act = operation(
    f"norm_act({_SIGNATURE}, SymInt pad, str pad_mode, str? backend) -> Tensor",
    lambda x, other, *rest: _empty(x, other, rest[-3]),
)(_computed)


def _gradients(_: Tensor, *arguments: Any) -> list[Tensor]:
    """Return buffers like what is given, dense: x and other channels-last, the others row by row."""
    x, other, *others = arguments[:7]
    large = [_empty(tensor, None) for tensor in (x, other) if tensor is not None]
    return large + [tensor.new_empty(tensor.shape) for tensor in others if tensor is not None]


def _computed_backward(gradient: Tensor, *arguments: Any) -> list[Tensor]:
    """Return the gradients by x, other, weight, bias, scale, shift and add, of those that are given."""
    *tensors, groups, eps, act = arguments
    x, results = tensors[0], _gradients(gradient, *arguments)
    if 0 in (*x.shape[2:], x.shape[0], tensors[2].numel()):
        return [result.zero_() for result in results]
    left = iter(results)
    targets = views(*(None if tensor is None else next(left) for tensor in tensors))
    cpp("norm_act_backward", targets, *views(gradient, *tensors), groups or 0, eps, act == "silu")
    return results


_norm_act_backward = operation(f"norm_act_backward(Tensor gradient, {_SIGNATURE}) -> Tensor[]", _gradients)(
    _computed_backward
)


def _holds_numbers(tensor: Tensor) -> bool:
    """Whether it is a tensor in memory, not one that stands for it while a graph is traced."""
    return type(tensor) is Tensor and not torch.compiler.is_compiling()


class _Differentiable(torch.autograd.Function):
    """norm_act without padding, in C++ both ways; past the dispatcher, which costs 0.1 ms, if it can."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        ctx.save_for_backward(*arguments[:7])
        ctx.options = arguments[7:]
        run = _computed if _holds_numbers(arguments[0]) else _norm_act
        return run(*arguments, 0, "zeros", "cpp")

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        given = ctx.saved_tensors
        again = torch.is_grad_enabled()  # to be differentiated once more, which the operation refuses
        run = _computed_backward if _holds_numbers(gradient) and not again else _norm_act_backward
        results = iter(run(gradient, *given, *ctx.options))
        return (*(None if tensor is None else next(results) for tensor in given), None, None, None)
