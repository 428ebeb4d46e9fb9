"""The tail of a denoising step in one pass: fused score, solver row, clamp, projection and noise."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from scorefusion.errors import ScoreFusionError
from scorefusion.ops.backends import cpp, implementation, kernel, needs_torch, operation, unfit, view, views
from scorefusion.ops.fuse_scores import check_scores
from scorefusion.ops.noise import check_box
from scorefusion.ops.reference import fuse_step as reference

_SIGNATURE = (
    "Tensor[] scores, Tensor? maps, float[] base, float gain, Tensor x_t, Tensor x0_prev, Tensor rows, "
    "Tensor index, Tensor keys, float? clamp, SymInt[] factor, Tensor? measured, str? backend"
)
CUDA_EDGE = 32  # of a block in y and x: the CUDA kernel's tile
COLUMNS = ("P", "Q", "A", "B", "C", "S")
KEYS = ("seed", "sample", "z", "y", "x")


def fuse_step(
    scores: Sequence[Tensor],
    maps: Tensor | None,
    base: Sequence[float],
    gain: float,
    x_t: Tensor,
    x0_prev: Tensor,
    rows: Tensor,
    index: Tensor,
    keys: Tensor,
    *,
    clamp: float | None = None,
    factor: Sequence[int] = (1, 1, 1),
    measured: Tensor | None = None,
    out: tuple[Tensor, Tensor] | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Return (x', x0) of one solver step from the networks' outputs.

        m  = fuse_scores(scores, maps, base, gain)
        x0 = project(clamp(P x_t + Q m))
        x' = A x_t + B x0 + C x0_prev + S z

    Where A, C or S is zero its term is left out, and no noise is drawn for S = 0, as in
    `scorefusion.diffusion.sample`. The row's number and the keys are read on the device, so a captured CUDA
    graph of a step replays for every step, seed, sample and box. Differentiable through the reference.

    Args:
        scores: K views [B, C, D, H, W] of one dtype, in any strides, as for `fuse_scores`.
        maps: [B, K, D, H, W] with C = 1, or None, as for `fuse_scores`.
        base: K numbers.
        gain: scale of the residual in `maps`.
        x_t: float32 [B, C, D, H, W] (float64 with PyTorch): the noisy volume.
        x0_prev: as x_t: the clean volume of the step before; not read where C is zero.
        rows: [n, 6] in x_t's dtype and on its device: P, Q, A, B, C, S of every step.
        index: int32 tensor of one element on the same device: the step's row. On a CPU it is checked; on a
            GPU a row that is not there is undefined behaviour.
        keys: int64 [B, 5] on the same device, as `noise_keys` makes them: seed (two's complement), sample,
            and (z, y, x) of the box's first voxel in the original volume. An item's noise is
            `normal([1, C, D, H, W], [seed], index + 1, origin=(z, y, x), sample=sample)`. Checked on a CPU,
            undefined behaviour on a GPU, as index.
        clamp: limit x0 to [-clamp, clamp] before projecting; positive.
        factor: (z, y, x) edges of the blocks whose means are subtracted; (1, 1, 1) for no projection.
        measured: [B, C, D/rz, H/ry, W/rx] means that the blocks get instead of zero.
        out: where to write x' and x0 instead of new tensors: contiguous, of x_t's shape and dtype, and apart
            from everything that is read.
        backend: "torch", "cpp", "triton" or "cuda"; chosen by `scorefusion.ops.backends` if not given.

    Returns:
        x' and x0, contiguous, in x_t's dtype and shape; `out` where it is given.

    Raises:
        ScoreFusionError: if shapes, dtypes or devices disagree, a number is out of range, `out` is given
            where a gradient is needed, or the backend cannot run.
    """
    stacks, weights = list(scores), [float(weight) for weight in base]
    edges = [int(edge) for edge in factor]
    check_scores("fuse_step", stacks, maps, weights)
    _check_volumes(stacks[0], x_t, x0_prev, rows, index, keys)
    _check_projection(x_t, clamp, edges, measured)
    limit = None if clamp is None else float(clamp)
    fused = (stacks, maps, weights, float(gain), x_t, x0_prev, rows, index, keys)
    arguments: tuple[Any, ...] = (*fused, limit, edges, measured)
    tensors = (*stacks, x_t, x0_prev, *(tensor for tensor in (maps, measured) if tensor is not None))
    if out is not None:
        _check_out(out, x_t, tensors)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        needs_torch("fuse_step with gradients", x_t, backend)
        if out is not None:
            raise ScoreFusionError("fuse_step has no gradient where it writes into out")
        _check_values(x_t, rows, index, keys)
        return reference.fuse_step(*arguments)
    if out is not None:
        _fuse_step_into(*out, *arguments, backend)
        return out
    return _fuse_step(*arguments, backend)


def _check_out(out: tuple[Tensor, Tensor], x_t: Tensor, read: Sequence[Tensor]) -> None:
    for volume in out:
        if volume.shape != x_t.shape or volume.dtype != x_t.dtype or volume.device != x_t.device:
            raise ScoreFusionError(
                f"fuse_step needs out of two tensors {list(x_t.shape)} in {x_t.dtype} on {x_t.device}; "
                f"got {list(volume.shape)} in {volume.dtype} on {volume.device}"
            )
        if not volume.is_contiguous():
            raise ScoreFusionError(f"fuse_step needs contiguous out; got strides {list(volume.stride())}")
    if any(volume is other for volume in out for other in read) or out[0] is out[1]:
        raise ScoreFusionError("fuse_step cannot write over what it reads; give out tensors of their own")


def _check_volumes(
    score: Tensor, x_t: Tensor, x0_prev: Tensor, rows: Tensor, index: Tensor, keys: Tensor
) -> None:
    for name, volume in (("x_t", x_t), ("x0_prev", x0_prev)):
        if volume.shape != score.shape:
            raise unfit("fuse_step", f"{name} of the scores' shape {list(score.shape)}", list(volume.shape))
        if volume.dtype not in (torch.float32, torch.float64) or volume.dtype != x_t.dtype:
            got = f"got {x_t.dtype} and {x0_prev.dtype}"
            raise ScoreFusionError(f"fuse_step needs x_t and x0_prev of float32 (or both float64); {got}")
        if volume.device != score.device:
            raise ScoreFusionError(f"fuse_step needs {name} on {score.device}; it is on {volume.device}")
    if rows.ndim != 2 or rows.shape[0] < 1 or rows.shape[1] != len(COLUMNS) or rows.dtype != x_t.dtype:
        problem = f"fuse_step needs rows [n, {len(COLUMNS)}] ({', '.join(COLUMNS)}) in {x_t.dtype}"
        raise ScoreFusionError(f"{problem}; got {list(rows.shape)} in {rows.dtype}")
    if index.numel() != 1 or index.dtype != torch.int32:
        raise unfit("fuse_step", "an int32 index of one element", f"{list(index.shape)} in {index.dtype}")
    if list(keys.shape) != [x_t.shape[0], len(KEYS)] or keys.dtype != torch.int64:
        problem = f"fuse_step needs int64 keys [{x_t.shape[0]}, {len(KEYS)}] ({', '.join(KEYS)})"
        raise ScoreFusionError(f"{problem}; got {list(keys.shape)} in {keys.dtype}")
    for name, tensor in (("rows", rows), ("index", index), ("keys", keys)):
        if tensor.device != x_t.device:
            raise ScoreFusionError(f"fuse_step needs {name} on {x_t.device}; it is on {tensor.device}")


def _check_values(x_t: Tensor, rows: Tensor, index: Tensor, keys: Tensor) -> None:
    """Raise unless, on a CPU, there is such a row and the keys are in range. A GPU is not waited for."""
    if x_t.device.type != "cpu":
        return
    if not 0 <= int(index) < rows.shape[0]:
        raise ScoreFusionError(f"fuse_step has {rows.shape[0]} rows, from 0; got index {int(index)}")
    for _, sample, *origin in keys.tolist():
        check_box("fuse_step", list(x_t.shape), origin, sample)


def _check_projection(x_t: Tensor, clamp: float | None, factor: list[int], measured: Tensor | None) -> None:
    if clamp is not None and not clamp > 0.0:
        raise ScoreFusionError(f"fuse_step needs a positive clamp or None; got {clamp}")
    if len(factor) != 3 or min(factor) < 1:
        raise ScoreFusionError(f"fuse_step needs a factor of three edges of at least 1; got {factor}")
    size = list(x_t.shape[2:])
    if any(length % edge for length, edge in zip(size, factor, strict=True)):
        raise ScoreFusionError(
            f"a volume of {' x '.join(map(str, size))} voxels is not a whole number of "
            f"{' x '.join(map(str, factor))} blocks"
        )
    if measured is None:
        return
    if max(factor) == 1:
        raise ScoreFusionError("fuse_step takes measured block means with a factor above 1 only")
    expected = [*x_t.shape[:2], *(length // edge for length, edge in zip(size, factor, strict=True))]
    if list(measured.shape) != expected:
        raise ScoreFusionError(f"fuse_step needs measured {expected}; got {list(measured.shape)}")
    if measured.device != x_t.device or not measured.is_floating_point():
        raise unfit(
            "fuse_step", f"floating measured means on {x_t.device}", f"{measured.dtype} on {measured.device}"
        )


def _torch(x_next: Tensor, x0: Tensor, *arguments: Any) -> None:
    for volume, values in zip((x_next, x0), reference.fuse_step(*arguments), strict=True):
        volume.copy_(values)


def _cpp(*arguments: Any) -> None:
    cpp("fuse_step", *_described(*arguments))


def _cuda(x_next: Tensor, *arguments: Any) -> None:
    from scorefusion import _cuda

    with torch.cuda.device(x_next.device):
        _cuda.fuse_step(*_described(x_next, *arguments), torch.cuda.current_stream().cuda_stream)


def _described(x_next: Tensor, x0: Tensor, scores: list[Tensor], maps: Tensor | None, *rest: Any) -> Any:
    """Return the arguments as the extensions take them."""
    base, gain, x_t, x0_prev, rows, index, keys, clamp, factor, measured = rest
    volumes, pointers = views(x_t, x0_prev), [tensor.data_ptr() for tensor in (rows, index, keys)]
    fused = (view(x_next), view(x0), views(*scores), view(maps), base, gain)
    return *fused, *volumes, *pointers, clamp, factor, view(measured)


IMPLEMENTATIONS = {"torch": _torch, "cpp": _cpp, "triton": kernel("fuse_step", "fuse_step"), "cuda": _cuda}
_WIDE = {name: run for name, run in IMPLEMENTATIONS.items() if name != "cuda"}


def _write(x_next: Tensor, x0: Tensor, *arguments: Any) -> None:
    *fused, rows, index, keys, clamp, factor, measured, backend = arguments
    scores, maps, _, _, x_t, _ = fused
    implementations = IMPLEMENTATIONS if max(factor[1:]) <= CUDA_EDGE else _WIDE
    run = implementation("fuse_step", (scores[0], x_t, maps, measured), backend, implementations)
    _check_values(x_t, rows, index, keys)
    if x_t.numel():
        run(x_next, x0, *fused, rows.contiguous(), index, keys.contiguous(), clamp, factor, measured)


def _empty(*arguments: Any) -> tuple[Tensor, Tensor]:
    x_t = arguments[4]
    return x_t.new_empty(x_t.shape), x_t.new_empty(x_t.shape)


@operation(f"fuse_step({_SIGNATURE}) -> (Tensor, Tensor)", _empty)
def _fuse_step(*arguments: Any) -> tuple[Tensor, Tensor]:
    results = _empty(*arguments)
    _write(*results, *arguments)
    return results


_fuse_step_into = operation(
    f"fuse_step_into(Tensor(a!) x_next, Tensor(b!) x0, {_SIGNATURE}) -> ()", lambda *_: None
)(_write)
