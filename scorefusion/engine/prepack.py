"""Networks whose convolutions are prepared once for the CPU they run on.

A layer of extent 3 can be computed directly, by PyTorch, or with fewer multiplications from a transformed
copy of its weight (:func:`scorefusion.ops.winograd.winograd`). Which is faster was measured (docs/kernels.md)
and depends on the instructions far more than on the layer; so they decide, and the same machine always
computes the same bits, which a race by the clock would not give.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..compute import cpu_instructions
from ..errors import ScoreFusionError
from ..models.score_fusion import ScoreFusion
from ..models.unet import UNet
from ..ops.backends import missing
from ..ops.winograd import VECTOR, PackedWeight, multiplies_pairs, pack, winograd


@dataclass(frozen=True)
class Packing:
    """How a layer is computed: `winograd`'s tile and the dtype of its products."""

    tile: tuple[int, ...]
    products: torch.dtype


def packing_for(dims: int, dtype: torch.dtype) -> Packing | None:
    """How this processor is fastest at 3×3 (``dims`` 2) or 3×3×3 convolutions; None: directly.

    In float32, tiles of 4 wherever there is AVX2: 2 to 5 times as fast. In bfloat16, with AVX512-BF16, pairs
    in tiles of 2×4 or 2×2×2: 1.8 to 2.5 times. With AMX the direct convolution has an order of magnitude more
    multiplications a second, and nothing was measured on other processors.
    """
    have = cpu_instructions()
    if missing("cpp") or "avx2" not in have:
        return None
    if dtype == torch.float32:
        return Packing((4,) * dims, torch.float32)
    if dtype == torch.bfloat16 and multiplies_pairs() and "amx_bf16" not in have:
        return Packing((2, 4) if dims == 2 else (2, 2, 2), torch.bfloat16)
    return None


class PackedConvolution(nn.Module):
    """A convolution of extent 3 that keeps the grid, with its weight packed; for inference.

    It holds the original's parameters, under the same names, and packs again when they have changed: when
    they are written in place, or their memory is another. (What is written in place through
    ``parameter.data`` goes unnoticed: then call :meth:`repack`.) Where gradients are recorded, or for another
    dtype, it convolves directly.
    """

    def __init__(self, layer: nn.Conv2d | nn.Conv3d, packing: Packing):
        super().__init__()
        self.in_channels, self.out_channels = layer.in_channels, layer.out_channels
        self.weight, self.bias = layer.weight, layer.bias
        self.padding_mode, self.packing, self.dtype = layer.padding_mode, packing, layer.weight.dtype
        self._seen: tuple[int, ...] = ()
        self._packed: PackedWeight | None = None
        self._added: Tensor | None = None
        self.repack()

    def repack(self) -> None:
        """Take the parameters as they are now."""
        self._packed = pack(self.weight, tile=self.packing.tile, products=self.packing.products)
        self._added = None if self.bias is None else self.bias.detach().float().clone()
        self._seen = self._state()

    @property
    def packed_bytes(self) -> int:
        """What the packed weight occupies, beside the weight itself."""
        return 0 if self._packed is None else self._packed.values.nbytes

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, ...]`` to ``[N, O, ...]``, channels last."""
        return self._directly(x) if self._is_direct(x) else self._packedly(x)

    def plus(self, x: Tensor, add: Tensor, *, overwrite: bool = False) -> Tensor:
        """The sum of ``add [N, O, ...]`` and the convolution, in one pass, and in ``add`` where allowed."""
        if self._is_direct(x):
            return add + self._directly(x)
        fits = overwrite and add.stride(1) == 1
        return self._packedly(x, residual=add, out=add if fits else None)

    def rows(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Depth rows ``[start, stop)`` of the convolution of ``x [N, C, D, H, W]``."""
        if self._is_direct(x):
            return self._directly(x)[:, :, start:stop]
        return self._packedly(x, rows=(start, stop))

    def extra_repr(self) -> str:
        """Channels, tile and dtype of the products."""
        tile = "x".join(map(str, self.packing.tile))
        return f"{self.in_channels}, {self.out_channels}, tile={tile}, products={self.packing.products}"

    def _is_direct(self, x: Tensor) -> bool:
        return torch.is_grad_enabled() or x.dtype != self.dtype or self.weight.dtype != self.dtype

    def _directly(self, x: Tensor) -> Tensor:
        return _direct(x, self.weight, self.bias, self.padding_mode)

    def _packedly(
        self,
        x: Tensor,
        *,
        residual: Tensor | None = None,
        rows: tuple[int, int] | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        if self._state() != self._seen:
            self.repack()
        packed = cast(PackedWeight, self._packed)
        return winograd(
            x, packed, self._added, residual=residual, rows=rows, pad_mode=self.padding_mode, out=out
        )

    def _state(self) -> tuple[int, ...]:
        parts = [part for part in (self.weight, self.bias) if part is not None]
        versions = [0 if part.is_inference() else part._version for part in parts]
        return (*versions, *(part.data_ptr() for part in parts))


def prepacked(network: UNet) -> UNet:
    """Return a network that computes the same with convolutions packed where that is faster.

    Parameters are shared with the original, and changes of theirs are honoured. Packed weights take memory
    beside them; see :func:`packed_bytes`.

    Args:
        network: on the CPU, in evaluation mode.

    Raises:
        ScoreFusionError: if the network is elsewhere or training.
    """
    parameter = next(network.parameters())
    if parameter.device.type != "cpu" or network.training:
        state = "training" if network.training else "in evaluation mode"
        raise ScoreFusionError(
            f"prepacked needs a network on the CPU in evaluation mode; got one on {parameter.device}, {state}"
        )
    twin = copy.deepcopy(network, {id(tensor): tensor for tensor in _tensors(network)})
    for name, layer in list(twin.named_modules()):
        packing = _packing(layer)
        if packing is not None:
            parent, _, child = name.rpartition(".")
            packed = PackedConvolution(cast("nn.Conv2d | nn.Conv3d", layer), packing)
            setattr(twin.get_submodule(parent), child, packed)
    return twin


def packed_model(model: ScoreFusion) -> ScoreFusion:
    """A model whose networks are :func:`prepacked`; parameters are shared with the original."""
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in _tensors(model)})
    for name, network in model.slice_networks.items():
        twin.slice_networks[name] = prepacked(cast(UNet, network))
    twin.fusion = None if model.fusion is None else prepacked(model.fusion)
    return twin


def packed_bytes(model: nn.Module) -> int:
    """Bytes that packing takes beside the weights: 5.3 a weight for pairs in 2D, 32 for tiles of 4 in 3D."""
    total = 0
    for layer in model.modules():
        packing = _packing(layer)
        if packing is not None:
            weight = cast("nn.Conv2d | nn.Conv3d", layer).weight
            positions = math.prod(length + 2 for length in packing.tile)
            total += positions * weight.shape[0] * weight.shape[1] * packing.products.itemsize
    return total


def packed_layers(network: nn.Module) -> dict[str, PackedConvolution]:
    """The packed convolutions of a network, by name."""
    return {name: part for name, part in network.named_modules() if isinstance(part, PackedConvolution)}


def _direct(x: Tensor, weight: Tensor, bias: Tensor | None, padding_mode: str) -> Tensor:
    convolve = F.conv2d if x.ndim == 4 else F.conv3d
    if padding_mode == "zeros":
        return convolve(x, weight, bias, padding=1)
    return convolve(F.pad(x, (1, 1) * (x.ndim - 2), mode=padding_mode), weight, bias)


def _fits(layer: nn.Module) -> bool:
    """Whether a module is a convolution that can be packed."""
    if not isinstance(layer, nn.Conv2d | nn.Conv3d):
        return False
    plain = (set(layer.stride), set(layer.dilation), set(layer.padding), layer.groups) == ({1}, {1}, {1}, 1)
    whole = layer.in_channels % VECTOR == 0 and layer.out_channels % VECTOR == 0
    return plain and whole and set(layer.kernel_size) == {3} and layer.padding_mode in ("zeros", "replicate")


def _packing(layer: nn.Module) -> Packing | None:
    if not _fits(layer):
        return None
    convolution = cast("nn.Conv2d | nn.Conv3d", layer)
    return packing_for(convolution.weight.ndim - 2, convolution.weight.dtype)


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    yield from network.parameters()
    yield from network.buffers()
