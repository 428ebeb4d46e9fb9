"""A network whose convolutions are prepared once for the CPU it runs on, by what was measured there.

A layer of extent 3 can be computed directly, by PyTorch, or with fewer multiplications from a transformed
copy of its weight (:func:`scorefusion.ops.winograd.winograd`). Which is faster depends on the processor, the
channels and the grid, so each kind of layer is timed both ways, once a process, and the faster is kept.
"""

from __future__ import annotations

import copy
import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ScoreFusionError
from ..models.score_fusion import ScoreFusion
from ..models.unet import UNet
from ..ops.backends import missing
from ..ops.winograd import VECTOR, PackedWeight, blank, multiplies_pairs, pack, winograd
from .plan import Plan

CLEARLY = 1.05
"""How many times faster than PyTorch's convolution a packed one has to be."""

NEARLY = 1.05
"""Of packings within this of the fastest, the smallest is taken."""

TOLERANCE = 3.2
"""How many times the direct convolution's rounding error a packed one may have; the table is `winograd`'s."""

ERRORS: dict[tuple[torch.dtype, torch.dtype], dict[tuple[int, ...], float]] = {
    (torch.float32, torch.float32): {(2, 2): 0.6, (4, 4): 2, (2, 2, 2): 0.6, (2, 4, 4): 1.8, (4, 4, 4): 3.2},
    (torch.bfloat16, torch.float32): {(4, 4): 1, (2, 4, 4): 1, (4, 4, 4): 1},
    (torch.bfloat16, torch.bfloat16): {
        (2, 2): 2, (2, 4): 3.1, (4, 4): 5.2, (2, 2, 2): 2.4, (2, 4, 4): 6.5, (4, 4, 4): 11,
    },
}  # fmt: skip
"""By dtype of the layer, of the products, and tile."""

_FLOP, _ROUNDS, _PATIENCE = 1.2e9, 5, 0.15


@dataclass(frozen=True)
class Packing:
    """How a layer is computed: `winograd`'s tile, dtype of products, how many times as fast as directly."""

    tile: tuple[int, ...]
    products: torch.dtype
    ratio: float


@dataclass(frozen=True)
class Layer:
    """What decides which way is faster: ``[N, *size]`` voxels, channels, dtype, threads, errors allowed."""

    samples: int
    size: tuple[int, ...]
    inputs: int
    outputs: int
    dtype: torch.dtype
    threads: int
    tolerance: float

    def cut(self) -> Layer:
        """Of the same kind, but with fewer samples, slices or rows: about 1 GFLOP.

        Sizes are whole tiles of 4, up to 64: what an edge costs tells where the grid is layer.
        """
        each = 2 * self.inputs * self.outputs * 3 ** len(self.size)
        voxels, size = max(1, int(_FLOP / each)), [min(64, _whole(length)) for length in self.size]
        samples = max(1, min(self.samples, voxels // math.prod(size)))
        for axis in range(len(size) - 1):
            others = samples * math.prod(size) // size[axis]
            size[axis] = min(size[axis], max(8, voxels // others))
        return replace(self, samples=samples, size=tuple(size))


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


def prepacked(network: UNet, shape: tuple[int, ...], *, tolerance: float = TOLERANCE) -> UNet:
    """Return a network that computes the same with convolutions packed where that is faster.

    Parameters are shared with the original, and changes of theirs are honoured. Packed weights take memory
    beside them: 1.8 times the elements for tiles of 2 outputs in 2D, 4 for tiles of 4, in 3D 2.4 to 8 times.

    Args:
        network: on the CPU, in evaluation mode.
        shape: ``[N, C, ...]`` of the inputs it will get; others work, and may be slower than they could be.
        tolerance: how many times the rounding error of PyTorch's own convolution is allowed in each layer.

    Raises:
        ScoreFusionError: if the network is elsewhere or training.
    """
    parameter = next(network.parameters())
    if parameter.device.type != "cpu" or network.training:
        state = "training" if network.training else "in evaluation mode"
        raise ScoreFusionError(
            f"prepacked needs a network on the CPU in evaluation mode; got one on {parameter.device}, {state}"
        )
    shared: dict[int, object] = {id(tensor): tensor for tensor in _tensors(network)}
    twin = copy.deepcopy(network, shared)
    if missing("cpp"):
        return twin
    for name, found in layer_shapes(network, shape).items():
        layer = cast("nn.Conv2d | nn.Conv3d", twin.get_submodule(name))
        packing = fastest(_kind(layer, found, tolerance).cut())
        if packing is not None:
            parent, _, child = name.rpartition(".")
            setattr(twin.get_submodule(parent), child, PackedConvolution(layer, packing))
    return twin


def packed_model(model: ScoreFusion, plan: Plan) -> ScoreFusion:
    """A model whose networks are :func:`prepacked` for a step; parameters are shared with the original."""
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in _tensors(model)})
    for k in plan.branches:
        branch = plan.config.branches[k]
        network = cast(UNet, model.slice_networks[branch.network])
        slices = plan.batch * plan.rows[branch.plane]
        shape = (slices, network.inputs, *plan.slice_size(branch.plane))
        twin.slice_networks[branch.network] = prepacked(network, shape)
    if plan.fuses and model.fusion is not None:
        twin.fusion = prepacked(model.fusion, (plan.batch, model.fusion.inputs, *plan.grid))
    return twin


def packed_layers(network: nn.Module) -> dict[str, PackedConvolution]:
    """The packed convolutions of a network, by name."""
    return {name: part for name, part in network.named_modules() if isinstance(part, PackedConvolution)}


def layer_shapes(network: UNet, shape: tuple[int, ...]) -> dict[str, torch.Size]:
    """The input shape of each convolution that could be packed, by name, for inputs of ``shape``.

    Nothing is computed: the network is walked on meta tensors.
    """
    found: dict[str, torch.Size] = {}

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, given: found.__setitem__(name, given[0].shape)

    hooks = [
        part.register_forward_pre_hook(note(name)) for name, part in network.named_modules() if _fits(part)
    ]
    try:
        held = {name: tensor.detach().to("meta") for name, tensor in network.state_dict().items()}
        x = torch.empty(shape, dtype=next(network.parameters()).dtype, device="meta")
        label = None if network.label is None else torch.zeros(shape[0], dtype=torch.long, device="meta")
        told = torch.empty(shape[0], device="meta")
        with torch.enable_grad():  # whole layers, not by depth; no parameter here has a gradient
            torch.func.functional_call(network, held, (x, told), {"label": label})
    finally:
        for hook in hooks:
            hook.remove()
    return found


@functools.cache
def fastest(layer: Layer) -> Packing | None:
    """Time a kind of layer both ways; return the packing that is clearly faster, or None. Once a process."""
    choices = [
        Packing(tile, products, 1.0)
        for (dtype, products), errors in ERRORS.items()
        if dtype == layer.dtype and (products == torch.float32 or multiplies_pairs())
        for tile, error in errors.items()
        if len(tile) == len(layer.size) and error <= layer.tolerance
    ]
    if not choices:
        return None
    x = torch.full((layer.samples, *layer.size, layer.inputs), 0.5, dtype=layer.dtype).movedim(-1, 1)
    weight = torch.zeros(layer.outputs, layer.inputs, *(3 for _ in layer.size), dtype=layer.dtype)
    bias = torch.zeros(layer.outputs)
    weights = [blank(layer.outputs, layer.inputs, each.tile, each.products) for each in choices]
    with torch.no_grad():
        runs: list[Callable[[], Tensor]] = [
            functools.partial(_direct, x, weight, bias.to(layer.dtype), "zeros"),
            *(functools.partial(winograd, x, packed, bias) for packed in weights),
        ]
        direct, *packed = _shortest(runs)
    near = [place for place, seconds in enumerate(packed) if seconds <= NEARLY * min(packed)]
    best = min(near, key=lambda place: weights[place].values.nbytes)
    ratio = direct / packed[best]
    return replace(choices[best], ratio=ratio) if ratio >= CLEARLY else None


def _shortest(runs: list[Callable[[], Tensor]]) -> list[float]:
    """The shortest time of each, after one to warm up; by turns, so that a disturbance meets all."""
    best = [math.inf] * len(runs)
    start = time.perf_counter()
    for turn in range(_ROUNDS + 1):
        if turn > 2 and time.perf_counter() - start > _PATIENCE:
            break
        for place, run in enumerate(runs):
            before = time.perf_counter()
            run()
            if turn:
                best[place] = min(best[place], time.perf_counter() - before)
    return best


def _whole(length: int) -> int:
    """A length rounded to whole tiles where that changes little."""
    return length if length <= 16 else (length + 3) // 4 * 4


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


def _kind(layer: nn.Conv2d | nn.Conv3d, shape: torch.Size, tolerance: float) -> Layer:
    return Layer(
        shape[0], tuple(shape[2:]), layer.in_channels, layer.out_channels, layer.weight.dtype,
        torch.get_num_threads(), tolerance,
    )  # fmt: skip


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    yield from network.parameters()
    yield from network.buffers()
