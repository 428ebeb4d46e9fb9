"""The fused score: the branches' average, moved by the 3D network's weight maps and residual."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scorefusion.errors import ScoreFusionError
from scorefusion.ops.backends import (
    cpp,
    definition,
    implementation,
    kernel,
    needs_torch,
    operation,
    unfit,
    view,
    views,
)
from scorefusion.ops.reference import fuse_scores as reference

MAX_BRANCHES = 32


class Fusion(NamedTuple):
    """What the networks made of a step, not yet fused: :func:`fuse_scores`'s first four arguments."""

    scores: tuple[Tensor, ...]
    maps: Tensor | None
    base: tuple[float, ...]
    gain: float = 1.0


def fuse_scores(
    scores: Sequence[Tensor],
    maps: Tensor | None,
    base: Sequence[float],
    gain: float = 1.0,
    *,
    backend: str | None = None,
) -> Tensor:
    """Return `sum_{k<K} (base_k + w_k) s_k + (base_K - sum_{k<K} w_k) s_K + gain · r` (Zhu et al. 2025).

    Each score keeps the order its slices were made in: a stack of coronal slices [B, H, C, D, W] is given as
    its view in volume order, `stack.movedim(1, 3)`, and read in place. Differentiable in `maps`; if a score
    needs a gradient too, the PyTorch reference runs. Training fuses with it; inference does so inside
    `fuse_step`, never with this operation alone.

    Args:
        scores: K views [B, C, D, H, W] of one dtype (float32, bfloat16, float16; float64 with PyTorch),
            strides as they come.
        maps: weights w_1 .. w_{K-1} and residual r, [B, K, D, H, W] with C = 1; None for the average alone.
        base: K numbers.
        gain: scale of the residual.
        backend: "torch", "cpp" or "triton"; chosen by `scorefusion.ops.backends` if not given.

    Returns:
        [B, C, D, H, W], contiguous, float32 (float64 for float64 scores).

    Raises:
        ScoreFusionError: if shapes, dtypes or devices disagree, or the backend cannot run.
    """
    stacks, weights = list(scores), [float(weight) for weight in base]
    check_scores("fuse_scores", stacks, maps, weights)
    if torch.is_grad_enabled() and any(score.requires_grad for score in stacks):
        needs_torch("fuse_scores with gradients of the scores", stacks[0], backend)
        return reference.fuse_scores(stacks, maps, weights, gain)
    return _fuse_scores(stacks, maps, weights, float(gain), backend)


def check_scores(op: str, scores: list[Tensor], maps: Tensor | None, base: list[float]) -> None:
    """Raise unless scores, maps and base weights fit each other."""
    if not 1 <= len(scores) <= MAX_BRANCHES or len(base) != len(scores):
        got = f"got {len(scores)} scores and {len(base)} weights"
        raise ScoreFusionError(f"{op} needs 1 to {MAX_BRANCHES} scores and a base weight for each; {got}")
    first = scores[0]
    for score in scores:
        if score.ndim != 5 or score.shape != first.shape:
            shapes = [list(score.shape) for score in scores]
            raise ScoreFusionError(f"{op} needs scores [B, C, D, H, W] of one shape; got {shapes}")
        if score.dtype != first.dtype or not score.is_floating_point() or score.device != first.device:
            kinds = sorted({f"{score.dtype} on {score.device}" for score in scores})
            raise unfit(op, "scores of one floating dtype and device", ", ".join(kinds))
    if maps is not None:
        expected = [first.shape[0], len(scores), *first.shape[2:]]
        if list(maps.shape) != expected or first.shape[1] != 1:
            got = f"got {list(maps.shape)} and {first.shape[1]} channels"
            raise ScoreFusionError(f"{op} needs maps {expected} for {len(scores)} one-channel scores; {got}")
        if maps.device != first.device or not maps.is_floating_point():
            raise unfit(op, f"floating maps on {first.device}", f"{maps.dtype} on {maps.device}")


def _empty(scores: list[Tensor], *_: Any) -> Tensor:
    dtype = torch.float64 if scores[0].dtype == torch.float64 else torch.float32
    return scores[0].new_empty(scores[0].shape, dtype=dtype)


def _cpp(out: Tensor, scores: list[Tensor], maps: Tensor | None, *rest: Any) -> None:
    cpp("fuse_scores", view(out), views(*scores), view(maps), *rest)


IMPLEMENTATIONS = {
    "torch": definition(reference.fuse_scores),
    "cpp": _cpp,
    "triton": kernel("fuse_scores", "fuse_scores"),
}


@operation(
    "fuse_scores(Tensor[] scores, Tensor? maps, float[] base, float gain, str? backend) -> Tensor", _empty
)
def _fuse_scores(scores: list[Tensor], maps: Tensor | None, *rest: Any) -> Tensor:
    run, out = implementation("fuse_scores", (scores[0], maps), rest[-1], IMPLEMENTATIONS), _empty(scores)
    if out.numel():
        run(out, scores, maps, *rest[:-1])
    return out


def _empty_gradient(grad: Tensor, scores: list[Tensor], *_: Any) -> Tensor:
    return grad.new_empty((grad.shape[0], len(scores), *grad.shape[2:]))


def _cpp_backward(out: Tensor, grad: Tensor, scores: list[Tensor], gain: float) -> None:
    cpp("fuse_scores_backward", view(out), view(grad), views(*scores), gain)


_BACKWARD = {
    "torch": definition(reference.fuse_scores_backward),
    "cpp": _cpp_backward,
    "triton": kernel("fuse_scores", "fuse_scores_backward"),
}


@operation(
    "fuse_scores_backward(Tensor grad, Tensor[] scores, float gain, str? backend) -> Tensor", _empty_gradient
)
def _fuse_scores_backward(grad: Tensor, scores: list[Tensor], gain: float, backend: str | None) -> Tensor:
    run = implementation("fuse_scores", (grad, scores[0]), backend, _BACKWARD)
    out = _empty_gradient(grad, scores)
    if out.numel():
        run(out, grad, scores, gain)
    return out


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    scores, maps, _, ctx.gain, ctx.backend = inputs
    ctx.dtype = None if maps is None else maps.dtype
    ctx.save_for_backward(*scores)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    scores = list(ctx.saved_tensors)
    maps = None
    if ctx.dtype is not None:
        maps = _fuse_scores_backward(grad, scores, ctx.gain, ctx.backend).to(ctx.dtype)
    return [None] * len(scores), maps, None, None, None


_fuse_scores.register_autograd(_backward, setup_context=_setup)
