"""Networks whose layers are prepared once for the CPU they run on.

A layer of extent 3 runs directly, or with fewer multiplications from a transformed copy of its weight. The
processor's instructions decide (docs/kernels.md), so a machine always computes the same bits. Where those are
packed, so are layers of extent 1: PyTorch's libraries split their sums by the number of threads.
"""

import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scorefusion.errors import ScoreFusionError
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.models.unet import UNet
from scorefusion.ops.backends import missing, outdated
from scorefusion.ops.device import cpu_instructions
from scorefusion.ops.packed_weight import PackedWeight, multiplies_pairs, packed_elements
from scorefusion.ops.pointwise import pack as pack_1
from scorefusion.ops.pointwise import pointwise
from scorefusion.ops.winograd import pack, winograd

Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear


@dataclass(frozen=True)
class Packing:
    """How a layer is computed: `winograd`'s tile, empty for `pointwise`, and the dtype of the products."""

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


class _Packed(nn.Module):
    """A layer with its weight packed, for inference; PyTorch computes with gradients, and other dtypes.

    It holds the original's parameters, under the same names, and packs again when they are written in place
    or moved; of what is written through ``parameter.data`` it must be told by :meth:`repack`.
    """

    def __init__(self, layer: Any, packing: Packing):
        super().__init__()
        self.weight, self.bias, self.dtype = layer.weight, layer.bias, layer.weight.dtype
        self.tile, self.products = packing.tile, packing.products
        self.repack()

    def repack(self) -> None:
        """Take the parameters as they are now."""
        form: dict[str, Any] = {"products": self.products}
        self._held = pack(self.weight, tile=self.tile, **form) if self.tile else pack_1(self.weight, **form)
        self._added = None if self.bias is None else self.bias.detach().float().clone()
        self._seen = self._state()

    def _packed(self) -> PackedWeight:
        if self._state() != self._seen:
            self.repack()
        return self._held

    @property
    def packed_bytes(self) -> int:
        """What the packed weight occupies, beside the weight itself."""
        return self._held.values.nbytes

    def extra_repr(self) -> str:
        """Channels, tile and dtype of the products."""
        tile = f"tile={'x'.join(map(str, self.tile))}, " if self.tile else ""
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, {tile}products={self.products}"

    def _is_direct(self, x: Tensor) -> bool:
        return torch.is_grad_enabled() or x.dtype != self.dtype or self.weight.dtype != self.dtype

    def _state(self) -> tuple[int, ...]:
        parts = [part for part in (self.weight, self.bias) if part is not None]
        versions = [0 if part.is_inference() else part._version for part in parts]
        return (*versions, *(part.data_ptr() for part in parts))


class PackedConvolution(_Packed):
    """A convolution of extent 3 that keeps the grid, packed for :func:`winograd`."""

    def __init__(self, layer: nn.Conv2d | nn.Conv3d, packing: Packing):
        super().__init__(layer, packing)
        self.in_channels, self.out_channels = layer.in_channels, layer.out_channels
        self.padding_mode = layer.padding_mode

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

    def _directly(self, x: Tensor) -> Tensor:
        convolve = F.conv2d if x.ndim == 4 else F.conv3d
        if self.padding_mode == "zeros":
            return convolve(x, self.weight, self.bias, padding=1)
        return convolve(F.pad(x, (1, 1) * (x.ndim - 2), mode=self.padding_mode), self.weight, self.bias)

    def _packedly(self, x: Tensor, **options: Any) -> Tensor:
        return winograd(x, self._packed(), self._added, pad_mode=self.padding_mode, **options)


class PackedPointwise(_Packed):
    """A convolution of extent 1, or a linear layer, packed for :func:`pointwise`."""

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """``[N, C, ...]``, and further channels, to ``[N, O, ...]``, channels last."""
        if not self._is_direct(x):
            return pointwise(x, self._packed(), self._added, other=other)
        x = x if other is None else torch.cat([x, other], dim=1)
        convolve: Any = {2: F.linear, 3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[self.weight.ndim]
        return convolve(x, self.weight, self.bias)


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
    twin: UNet = _twin(network)
    for name, layer in list(twin.named_modules()):
        packing = _packing(layer)
        if packing is not None:
            parent, _, child = name.rpartition(".")
            kind: type[_Packed] = PackedConvolution if packing.tile else PackedPointwise
            setattr(twin.get_submodule(parent), child, kind(layer, packing))
    return twin


def packed_model(model: ScoreFusion) -> ScoreFusion:
    """A model whose networks are :func:`prepacked`; parameters are shared with the original."""
    twin: ScoreFusion = _twin(model)
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
            outputs, inputs = cast(Layer, layer).weight.shape[:2]
            numbers = packed_elements(outputs, inputs, packing.tile, packing.products)
            total += numbers * packing.products.itemsize
    return total


def packed_layers(network: nn.Module) -> dict[str, _Packed]:
    """The packed layers of a network, by name."""
    return {name: part for name, part in network.named_modules() if isinstance(part, _Packed)}


def _fits(layer: nn.Module) -> int | None:
    """The extent, 3 or 1, of a layer that can be packed; None: it cannot."""
    if isinstance(layer, nn.Linear):
        return 1
    if not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return None
    if (set(layer.stride), set(layer.dilation), layer.groups) != ({1}, {1}, 1):
        return None
    extents, pads = set(layer.kernel_size), set(layer.padding)
    if (extents, pads) == ({1}, {0}):
        return 1
    wide = not isinstance(layer, nn.Conv1d) and layer.padding_mode in ("zeros", "replicate")
    return 3 if wide and (extents, pads) == ({3}, {1}) else None


def _packing(layer: nn.Module) -> Packing | None:
    extent = _fits(layer)
    if extent is None:
        return None
    weight = cast(Layer, layer).weight
    if outdated() and (extent == 1 or weight.shape[0] % 16 or weight.shape[1] % 16):
        return None
    if extent == 3:
        return packing_for(weight.ndim - 2, weight.dtype)
    packing = packing_for(2, weight.dtype)
    return None if packing is None else Packing((), packing.products)


def _twin(module: Any) -> Any:
    """A copy of a module that shares its parameters and buffers."""
    return copy.deepcopy(module, {id(it): it for it in [*module.parameters(), *module.buffers()]})
