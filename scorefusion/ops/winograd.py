"""Convolutions of extent 3 with fewer multiplications, on CPUs; weights are packed once."""

from typing import Any

import torch
from torch import Tensor

from scorefusion.errors import ScoreFusionError
from scorefusion.ops.backends import cpp, implementation, unfit, views
from scorefusion.ops.packed_weight import PackedWeight, blank, channels_last, check_weight, has_rows
from scorefusion.ops.reference import winograd as reference

PAD_MODES = ("zeros", "replicate")
#: outputs of a tile along each axis, by the number of axes.
TILES: dict[int, tuple[tuple[int, ...], ...]] = {
    2: ((2, 2), (2, 4), (4, 4)),
    3: ((2, 2, 2), (2, 4, 4), (4, 4, 4)),
}


def pack(weight: Tensor, *, tile: tuple[int, ...], products: torch.dtype = torch.float32) -> PackedWeight:
    """Transform a weight, in float64, and lay it out for this processor.

    Args:
        weight: [O, C, 3, 3] or [O, C, 3, 3, 3] on the CPU, floating.
        tile: outputs of a tile along each axis, one of `TILES`; the packed weight has
            prod((t + 2) / 3) times as many elements.
        products: float32, or bfloat16 for AVX512-BF16.
    """
    dims = weight.ndim - 2
    if dims not in TILES or tuple(weight.shape[2:]) != (3,) * dims or not weight.is_floating_point():
        got = f"got {list(weight.shape)} of {weight.dtype}"
        raise ScoreFusionError(f"winograd needs a floating weight [O, C, 3, 3] or [O, C, 3, 3, 3]; {got}")
    check_weight("winograd", weight, products)
    if tuple(tile) not in TILES[dims]:
        known = ", ".join(map(str, TILES[dims]))
        raise ScoreFusionError(f"winograd has tiles {known} for a {dims}D weight; got {tile}")
    outputs, inputs = weight.shape[:2]
    packed = blank(outputs, inputs, tile, products)
    packed.fill(lambda start, stop: reference.transformed(weight[start:stop], _tile3(tile)))
    return packed


def winograd(
    x: Tensor,
    packed: PackedWeight,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    rows: tuple[int, int] | None = None,
    pad_mode: str = "zeros",
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Return `conv(pad(x), weight) + bias + residual`, stride 1, padding 1, channels-last.

    Winograd's minimal filtering (Lavin and Gray 2016): a tile of 4 outputs along an axis takes 6 products
    for 12. Sums and transforms are float32. Root-mean-square errors on normal numbers with 48 to 512
    channels, as multiples of the direct convolution's in x's dtype:

        x and products         2D (2, 2)  (2, 4)  (4, 4)  3D (2, 2, 2)  (2, 4, 4)  (4, 4, 4)
        float32, float32       0.6        1.1     2       0.6           1.8        3.2
        bfloat16, float32      1          1       1       1             1          1
        bfloat16, bfloat16     2          3.1     5.2     2.4           6.5        11

    For inference: no gradient is recorded.

    Args:
        x: [N, C, H, W] or [N, C, D, H, W], float32 or bfloat16 (with PyTorch, float64); copied unless its
            channels are contiguous.
        packed: of C inputs and O outputs.
        bias: [O], floating.
        residual: of the result's shape and x's dtype, added to it.
        rows: only these depth rows of the result of a volume, from and up to; all if not given.
        pad_mode: "zeros", or "replicate" for the nearest voxel.
        out: of the result's shape and x's dtype with contiguous channels, to write to; may be `residual`.
        backend: "torch" or "cpp"; chosen by `scorefusion.ops.backends` if not given.

    Returns:
        [N, O, *size] of x's dtype, size[0] being that of `rows`, in channels-last memory; `out` if given.

    Raises:
        ScoreFusionError: if shapes, dtypes, devices or options are wrong, or the backend cannot run.
    """
    shape = _check(x, packed, bias, residual, rows, pad_mode, out)
    run = implementation("winograd", (x, bias), backend, IMPLEMENTATIONS)
    if out is None:
        out = x.new_empty((shape[0], *shape[2:], packed.outputs)).movedim(-1, 1)
    if 0 not in out.shape:
        with torch.no_grad():
            run(out, x, packed, bias, residual, rows, pad_mode)
    return out


def _torch(out: Tensor, x: Tensor, packed: PackedWeight, bias: Tensor | None, *rest: Any) -> None:
    residual, rows, pad_mode = rest
    products, tile = packed.products, _tile3(packed.tile)
    weights = packed.unpacked()
    out.copy_(reference.winograd(x, weights, bias, residual, tile, products, rows, pad_mode))


def _cpp(out: Tensor, x: Tensor, packed: PackedWeight, bias: Tensor | None, *rest: Any) -> None:
    residual, rows, pad_mode = rest
    pairs, bias = packed.pairs("winograd", x), packed.filled_bias(bias)
    x, residual = channels_last(x), None if residual is None else channels_last(residual)
    options = (pairs, *_tile3(packed.tile), 0 if rows is None else rows[0], pad_mode == "replicate")
    cpp("winograd", *views(out, x, packed.values, bias, residual), *options)


IMPLEMENTATIONS = {"torch": _torch, "cpp": _cpp}


def _check(x: Tensor, packed: PackedWeight, bias: Tensor | None, *rest: Any) -> tuple[int, ...]:
    """Return the result's shape; raise unless everything fits the packed weight."""
    residual, rows, pad_mode, out = rest
    dims = len(packed.tile)
    if x.ndim != dims + 2 or not x.is_floating_point() or x.shape[1] != packed.inputs:
        expected = ["N", packed.inputs, *"DHW"[3 - dims :]]
        problem = f"winograd needs floating x [{', '.join(map(str, expected))}] for this weight"
        raise ScoreFusionError(f"{problem}; got {list(x.shape)} of {x.dtype}")
    shape = (x.shape[0], packed.outputs, *x.shape[2:])
    if rows is not None:
        if dims != 3 or not 0 <= rows[0] <= rows[1] <= x.shape[2]:
            raise unfit("winograd", "rows within 0 and the depth of a volume", f"{rows} of {list(x.shape)}")
        shape = (*shape[:2], rows[1] - rows[0], *shape[3:])
    packed.check("winograd", x, bias, {"residual": (residual, shape), "out": (out, shape)})
    if out is not None and not has_rows(out):
        raise unfit("winograd", "out in channels-last memory", f"strides {out.stride()} of {list(out.shape)}")
    if pad_mode not in PAD_MODES:
        raise ScoreFusionError(f"winograd needs pad_mode one of {', '.join(PAD_MODES)}; got {pad_mode!r}")
    return shape


def _tile3(tile: tuple[int, ...]) -> tuple[int, int, int]:
    """Return outputs along z, y and x; 0 along z for slices."""
    return (0, tile[0], tile[1]) if len(tile) == 2 else (tile[0], tile[1], tile[2])
