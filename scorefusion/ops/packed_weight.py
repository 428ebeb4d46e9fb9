"""Weights laid out for the C++ products: panels of outputs, channels filled up to whole vectors."""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from scorefusion.errors import ScoreFusionError
from scorefusion.ops.backends import missing, unfit

PRODUCTS = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class PackedWeight:
    """A layer's weight, laid out for `winograd` or `pointwise`, whose `pack` functions make it."""

    #: flat, of dtype `products`: panels of outputs, each `[position, input, output]`, with pairs of inputs
    #: innermost in bfloat16; zeros where channels are filled up
    values: Tensor
    inputs: int  #: channels in
    outputs: int  #: channels out
    tile: tuple[int, ...]  #: outputs of a tile along each axis; empty for a kernel of one voxel
    products: torch.dtype  #: the dtype of what is multiplied
    panels: tuple[int, ...]  #: where each panel's outputs begin, and the end, in whole vectors

    @property
    def positions(self) -> int:
        """Numbers that a tile of one channel becomes."""
        return math.prod(outputs + 2 for outputs in self.tile)

    def filled_bias(self, bias: Tensor | None) -> Tensor:
        """The bias as float32, zeros where there is none and in channels that are filled up."""
        width = self.panels[-1]
        if bias is not None and bias.dtype == torch.float32 and bias.shape[0] == width:
            return bias.contiguous()
        filled = torch.zeros(width, dtype=torch.float32)
        if bias is not None:
            filled[: bias.shape[0]] = bias.detach()
        return filled

    def fill(self, transformed: Callable[[int, int], Tensor]) -> None:
        """Lay out the weight, panel by panel.

        Args:
            transformed: (first output, end) to `[position, input, output]`, floating; the end may be beyond
                the last output.
        """
        for (start, stop), piece in zip(itertools.pairwise(self.panels), self._pieces(), strict=True):
            part = transformed(start, stop)
            filled = F.pad(part, (0, stop - start - part.shape[2], 0, self._depth - part.shape[1]))
            piece.copy_(filled.unflatten(1, (-1, piece.shape[3])).transpose(2, 3))

    def unpacked(self) -> Tensor:
        """Return `[position, input, output]`."""
        parts = [piece.transpose(2, 3).flatten(1, 2) for piece in self._pieces()]
        return torch.cat(parts, dim=2)[:, : self.inputs, : self.outputs]

    @property
    def _depth(self) -> int:
        return self.values.numel() // (self.positions * self.panels[-1])

    def _pieces(self) -> list[Tensor]:
        """Return each panel as `[position, input / parts, output, part]`: views of the values."""
        parts, pieces, start = 1 if self.products == torch.float32 else 2, [], 0
        for first, last in itertools.pairwise(self.panels):
            shape = (self.positions, self._depth // parts, last - first, parts)
            pieces.append(self.values[start : start + math.prod(shape)].view(shape))
            start += math.prod(shape)
        return pieces

    def check(
        self, op: str, x: Tensor, bias: Tensor | None, given: Mapping[str, tuple[Tensor | None, tuple]]
    ) -> None:
        """Raise unless the bias, and each tensor by name with its shape, go with x."""
        if bias is not None and (tuple(bias.shape) != (self.outputs,) or not bias.is_floating_point()):
            raise unfit(op, f"a floating bias [{self.outputs}]", f"{list(bias.shape)} of {bias.dtype}")
        for name, (tensor, shape) in given.items():
            if tensor is not None and (tuple(tensor.shape) != shape or tensor.dtype != x.dtype):
                raise unfit(
                    op, f"{name} {list(shape)} of {x.dtype}", f"{list(tensor.shape)} of {tensor.dtype}"
                )
        for name, (tensor, _) in {"bias": (bias, ()), **given}.items():
            if tensor is not None and tensor.device != x.device:
                raise ScoreFusionError(f"{op} needs {name} on {x.device}, where x is; got {tensor.device}")

    def pairs(self, op: str, x: Tensor) -> bool:
        """Return whether C++ multiplies pairs of bfloat16; raise where it cannot multiply at all."""
        from scorefusion import _C

        pairs = self.products == torch.bfloat16
        if pairs and not _C.winograd_pairs():
            raise ScoreFusionError(
                "this processor does not multiply bfloat16 (no AVX512-BF16); pack with products=torch.float32"
            )
        if x.dtype == torch.float16:
            raise unfit(op, "x in float32 or bfloat16 for backend 'cpp'", "torch.float16")
        return pairs


def check_weight(op: str, weight: Tensor, products: torch.dtype) -> None:
    """Raise unless a weight [O, C, ...] can be packed."""
    outputs, inputs = weight.shape[:2]
    if 0 in (inputs, outputs):
        raise ScoreFusionError(f"{op} needs channels; got {inputs} in and {outputs} out")
    if weight.device.type != "cpu":
        raise ScoreFusionError(f"{op} runs on CPUs; the weight is on {weight.device}")
    if products not in PRODUCTS:
        raise ScoreFusionError(f"{op} multiplies float32 or bfloat16; got products={products}")


def blank(outputs: int, inputs: int, tile: tuple[int, ...], products: torch.dtype) -> PackedWeight:
    """Return the packed form of a weight of zeros."""
    lanes, most = _layout(products)
    vectors = -(-outputs // lanes)
    count = -(-vectors // most)
    panels = tuple(vectors * panel // count * lanes for panel in range(count + 1))
    numbers = packed_elements(outputs, inputs, tile, products)
    return PackedWeight(torch.zeros(numbers, dtype=products), inputs, outputs, tuple(tile), products, panels)


def packed_elements(outputs: int, inputs: int, tile: tuple[int, ...], products: torch.dtype) -> int:
    """Return how many numbers a packed weight holds."""
    lanes, _ = _layout(products)
    channels = (-(-count // lanes) * lanes for count in (inputs, outputs))
    return math.prod(length + 2 for length in tile) * math.prod(channels)


def multiplies_pairs() -> bool:
    """Return whether the C++ kernels multiply bfloat16 on this processor (AVX512-BF16)."""
    if missing("cpp"):
        return False
    from scorefusion import _C

    return bool(_C.winograd_pairs())


def has_rows(tensor: Tensor) -> bool:
    """Return whether a voxel's channels are next to each other in memory."""
    return tensor.stride(1) == 1 or tensor.shape[1] == 1 or tensor.numel() == 0


def channels_last(tensor: Tensor) -> Tensor:
    """Return the tensor, copied unless its channels are contiguous."""
    return tensor if has_rows(tensor) else tensor.movedim(1, -1).contiguous().movedim(-1, 1)


def _layout(products: torch.dtype) -> tuple[int, int]:
    """Return (floats of a vector, vectors of a panel)."""
    if missing("cpp"):
        return 16, 4
    from scorefusion import _C

    lanes, most = _C.winograd_layout(products == torch.bfloat16)
    return lanes, most
