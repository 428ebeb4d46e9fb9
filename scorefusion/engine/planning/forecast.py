"""What a planned step will need before anything is allocated: weights, buffers, workspace, arithmetic."""

import functools
import math
from dataclasses import dataclass

import torch

from scorefusion.engine.planning.memory import Usage, measure
from scorefusion.engine.planning.plan import Plan
from scorefusion.engine.planning.tiles import Tiling
from scorefusion.engine.prepack import packed_bytes
from scorefusion.models.config import ModelConfig, Plane, UNetConfig
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.models.unet import UNet

#: bytes of a process before it has a model: 250 MB for PyTorch and scorefusion, 150 MB for planning.
PROGRAM = 400_000_000


@dataclass(frozen=True)
class Forecast:
    """What one denoising step takes."""

    plan: Plan  #: what was forecast
    tiling: Tiling | None  #: of the 3D network, or None where it sees the whole volume
    weights: int  #: bytes of the whole model's
    slabs: dict[Plane, int]  #: bytes that the 2D network takes for a slab, its output included, by plane
    volume: int  #: bytes that the 3D network takes, its output included; 0 where it does not run
    slice_flop: dict[Plane, int]  #: of the 2D networks, by plane, over all its branches and slices
    feature_flop: int  #: of the feature layers
    volume_flop: int  #: of the 3D network, what overlapping tiles repeat included
    device: str  #: "cpu" or "cuda"
    packed: int = 0  #: bytes of convolutions packed for this CPU, beside the weights; 0 where none are

    @property
    def program(self) -> int:
        """Bytes of the process itself; on a GPU it is in the host's memory."""
        return PROGRAM if self.device == "cpu" else 0

    @property
    def workspace(self) -> int:
        """Bytes that come and go in a step: the larger of the widest slab and the 3D network."""
        return max([self.volume, *self.slabs.values()])

    @property
    def peak_bytes(self) -> int:
        """The most that is resident at once."""
        return self.program + self.weights + self.packed + self.plan.bytes + self.workspace

    @property
    def flop(self) -> int:
        """FLOP of one step; where planes take turns, of the most expensive plane."""
        each = self.slice_flop.values()
        slices = max(each) if len(self.plan.cycle) > 1 else sum(each)
        return slices + self.feature_flop + self.volume_flop


def forecast(
    plan: Plan, tiling: Tiling | None = None, *, device: str = "cpu", packed: bool = True
) -> Forecast:
    """Walk the networks of a plan on meta tensors; about a second for the largest.

    The 2D networks are taken to run eagerly: a TensorRT engine or a compiled network has its own scratch.

    Args:
        device: "cpu" or "cuda".
        packed: whether convolutions are packed where this CPU is faster so.
    """
    config = plan.config
    slabs, slice_flop = {}, {}
    for plane in plan.planes:
        branches = [k for k in plan.branches if config.branches[k].plane == plane]
        name = config.branches[branches[0]].network
        network, inputs = config.slice_networks[name], plan.cut_shape(branches[0], 1)[-1]
        one = (1, *plan.slice_size(plane))  # slice; a slab takes as many times as much
        usage = _network_usage(network, inputs, 1, config.labels(name), one, plan.dtype, plan.scales)
        slabs[plane] = usage.peak_bytes * plan.batch * plan.rows[plane]
        slice_flop[plane] = usage.flop * plan.batch * plan.slice_count(plane) * len(branches)
    volume, volume_flop = 0, 0
    if plan.fuses:
        largest = plan.grid if tiling is None else tiling.largest(plan.grid)
        assert config.fusion is not None
        inputs, outputs, shape = config.volume_channels, len(config.branches), (plan.batch, *largest)
        usage = _network_usage(config.fusion, inputs, outputs, 0, shape, plan.dtype, plan.scales)
        again = 1.0 if tiling is None else tiling.extra(plan.grid) * math.prod(plan.grid) / math.prod(largest)
        volume, volume_flop = usage.peak_bytes, round(usage.flop * again)
    taken = 0
    if packed and device == "cpu":
        with torch.device("meta"):
            model = ScoreFusion(config)
        taken = packed_bytes(model.to(plan.dtype))
    weights, feature_flop = weight_bytes(config, plan.dtype), _feature_flop(plan)
    return Forecast(
        plan, tiling, weights, slabs, volume, slice_flop, feature_flop, volume_flop, device, taken
    )


def most_workspace(plan: Plan) -> int:
    """An upper bound of :attr:`Forecast.workspace`, by arithmetic alone, several times as much."""
    slabs = [
        _most(plan.config.slice_networks[branch.network], plan.cut_shape(k, 1)[-1], plan.dtype)
        * plan.batch * plan.rows[branch.plane] * math.prod(plan.slice_size(branch.plane))
        for k, branch in enumerate(plan.config.branches)
        if k in plan.branches
    ]  # fmt: skip
    volume = 0.0
    if plan.fuses:
        assert plan.config.fusion is not None
        voxels = math.prod(plan.grid) * plan.batch
        volume = _most(plan.config.fusion, plan.config.volume_channels, plan.dtype) * voxels
    return math.ceil(max([volume, *slabs]))


def _most(network: UNetConfig, inputs: int, dtype: torch.dtype) -> float:
    """More bytes than a network takes for each pixel or voxel of its input."""
    shares = sum(16 * width / scale**2 for width, scale in zip(network.widths, network.scales, strict=True))
    return (4 * inputs + shares) * dtype.itemsize


def weight_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of a model's weights: its networks in ``dtype``, the feature layers in float32."""
    with torch.device("meta"):
        model = ScoreFusion(config)
    total = sum(parameter.numel() for parameter in model.parameters())
    layers = sum(parameter.numel() for parameter in model.features.parameters())
    return (total - layers) * dtype.itemsize + layers * torch.float32.itemsize


def _feature_flop(plan: Plan) -> int:
    """Two operations for each weight at each place of the 3D grid."""
    total = 0
    for scale in plan.scales:
        assert plan.config.fusion is not None
        places = plan.batch * math.prod(length // scale for length in plan.grid)
        kernel = scale if plan.config.feature_kernel == 1 or scale > 1 else 27
        for k in plan.branches:
            network = plan.config.slice_networks[plan.config.branches[k].network]
            width = network.widths[network.scales.index(scale)]
            total += 2 * places * width * kernel * plan.config.fusion.injected_channels(scale)
    return total


@functools.lru_cache(maxsize=256)
def _network_usage(
    config: UNetConfig,
    inputs: int,
    outputs: int,
    labels: int,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    scales: tuple[int, ...],
) -> Usage:
    """Of one network on ``shape`` (batch and spatial sizes); in 3D with features of ``scales`` added."""
    batch, size, dims = shape[0], shape[1:], len(shape) - 1
    with torch.device("meta"):
        network = UNet(dims, inputs, outputs, config, labels=labels).eval().to(dtype)
        memory = torch.channels_last if dims == 2 else torch.channels_last_3d
        x = torch.empty(batch, inputs, *size, dtype=dtype).contiguous(memory_format=memory)
        time, label = torch.empty(batch, dtype=torch.float32), torch.empty(batch, dtype=torch.int64)
        if dims == 2:
            return measure(
                lambda: network.forward_with_features(x, time, scales, label=label if labels else None)
            )
        inject = {
            scale: torch.empty(
                batch, config.injected_channels(scale), *(length // scale for length in size), dtype=dtype
            )
            for scale in scales
        }
    return measure(lambda: network(x, time, inject=inject))
