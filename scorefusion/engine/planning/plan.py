"""What an engine keeps for a shape: every buffer with its bytes, and how many slices go at once.

Arithmetic on a configuration: the engine allocates exactly these buffers; :mod:`.memory` measures the rest.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from scorefusion.errors import ScoreFusionError
from scorefusion.models.config import PLANES, ModelConfig, Plane
from scorefusion.models.slabs import SLAB_PIXELS, slab_rows, slabs
from scorefusion.models.strategies import Branches, Strategy, require_strategy
from scorefusion.ops.reference.planes import AXIS

ROWS = 1024  #: solver steps that an engine has room for.
Size = tuple[int, int, int]


@dataclass(frozen=True)
class Buffer:
    """A tensor that an engine allocates once."""

    name: str  #: under which the engine keeps it
    #: as PyTorch orders it; slices and volumes of several channels are channels last in memory
    shape: tuple[int, ...]
    dtype: torch.dtype  #: of its elements
    purpose: str  #: what it holds, in a few words

    @property
    def bytes(self) -> int:
        """Its size in memory."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Plan:
    """Everything an engine decides before it allocates."""

    config: ModelConfig  #: the model's description
    size: Size  #: (z, y, x) of the volume
    grid: Size  #: the same, padded to ``config.multiple``: what the networks see
    batch: int  #: volumes at once
    strategy: Strategy  #: how scores are fused
    cycle: tuple[Branches, ...]  #: branches that successive steps run, by number
    dtype: torch.dtype  #: that the networks compute in
    accumulators: torch.dtype  #: dtype of the feature layers' sums
    rows: dict[Plane, int]  #: slices that go at once, by plane
    buffers: tuple[Buffer, ...]  #: all that is allocated

    @property
    def bytes(self) -> int:
        """Of all buffers."""
        return sum(buffer.bytes for buffer in self.buffers)

    @property
    def branches(self) -> tuple[int, ...]:
        """Of ``config.branches``, the numbers of those that are used."""
        return tuple(sorted({k for branches in self.cycle for k in branches}))

    @property
    def planes(self) -> tuple[Plane, ...]:
        """Planes of the branches that are used, in the order of the cycle."""
        return tuple(dict.fromkeys(self.config.branches[k].plane for turn in self.cycle for k in turn))

    @property
    def scales(self) -> tuple[int, ...]:
        """Scales whose features are streamed into the fusion network."""
        return self.config.feature_scales if self.strategy.takes_features else ()

    @property
    def fuses(self) -> bool:
        """Whether the 3D network runs."""
        return self.strategy.runs_volume

    def slice_size(self, plane: Plane) -> tuple[int, int]:
        """(h, w) of the plane's slices on the padded grid."""
        h, w = (length for axis, length in enumerate(self.grid, start=2) if axis != AXIS[plane])
        return h, w

    def slice_count(self, plane: Plane) -> int:
        """Slices of the plane on the padded grid."""
        return self.grid[AXIS[plane] - 2]

    def slabs(self, branches: Branches) -> Iterator[tuple[int, int, int]]:
        """Each slab of some branches: the branch, its first slice, its last + 1."""
        for k in branches:
            plane = self.config.branches[k].plane
            for start, stop in slabs(self.slice_count(plane), self.rows[plane]):
                yield k, start, stop

    def cut_shape(self, branch: int, slices: int) -> tuple[int, int, int, int]:
        """(slices, h, w, channels) of the 2D network's input for so many slices of a branch."""
        known = self.config.branches[branch]
        return (slices, *self.slice_size(known.plane), self.config.slice_channels(len(known.conditions)))


def plan(
    config: ModelConfig,
    size: Sequence[int],
    *,
    batch: int = 1,
    strategy: str | Strategy | None = None,
    planes: Sequence[Plane] | None = None,
    dtype: torch.dtype = torch.float32,
    accumulators: torch.dtype | None = None,
    slab: int | None = None,
    pixels: int = SLAB_PIXELS,
) -> Plan:
    """Lay out an engine's buffers.

    Args:
        config: the model's description.
        size: (z, y, x) of the volume, any size.
        batch: volumes at once.
        strategy: its name, or the strategy itself; the model's own when None.
        planes: for ``single`` and ``alternate``.
        dtype: that the networks compute in.
        accumulators: dtype of the feature layers' sums; the networks' when None.
        slab: slices at once, rounded up to whole blocks of the coarsest feature scale; by
            ``pixels`` when None.
        pixels: that go at once, about; see :func:`slab_pixels`.

    Raises:
        ScoreFusionError: for a strategy or planes that the model has not, or a size below 1.
    """
    chosen = require_strategy(strategy, config)
    if len(size) != 3 or min(size) < 1 or batch < 1:
        raise ScoreFusionError(
            f"an engine needs three sizes and a batch of at least 1; got {list(size)} and {batch}"
        )
    given = (int(size[0]), int(size[1]), int(size[2]))
    d, h, w = config.grid(given)
    cycle = chosen.branches(config, planes)
    used = {config.branches[k].plane for branches in cycle for k in branches}
    rows = {
        plane: slab_rows(count, batch * d * h * w // count, config.block, slab, pixels)
        for plane, count in zip(PLANES, (d, h, w), strict=True)
        if plane in used
    }
    layout = Plan(
        config=config, size=given, grid=(d, h, w), batch=batch, strategy=chosen, cycle=cycle, dtype=dtype,
        accumulators=accumulators or dtype, rows=rows, buffers=(),
    )  # fmt: skip
    return replace(layout, buffers=_buffers(layout))


def slab_pixels(device: str, runner: str = "eager") -> int:
    """How many pixels to give a 2D network at once.

    A GPU is fed eight times what suits a CPU's caches: at 2^17 most launches of the bundled model had one or
    two programs for each multiprocessor of an H200. TensorRT engines are tuned for few slices.

    Args:
        device: "cpu" or "cuda".
        runner: how the 2D networks run.
    """
    return 8 * SLAB_PIXELS if device == "cuda" and runner != "tensorrt" else SLAB_PIXELS


def smaller_slabs(layout: Plan) -> Plan | None:
    """The same plan with half the slices at once; None where every slab is one block already."""
    unit = layout.config.block
    rows = {plane: max(unit, rows // 2 // unit * unit) for plane, rows in layout.rows.items()}
    if rows == layout.rows:
        return None
    return replace(layout, rows=rows)


def projected_blocks(config: ModelConfig) -> tuple[int, int, int] | None:
    """(z, y, x) edges of the blocks whose means each step sets; None where it does not."""
    return config.degradation.blocks if config.sampling.consistency else None


def without_projection(config: ModelConfig) -> ModelConfig:
    """Return the configuration of a model whose steps are not projected onto what was measured."""
    return config.model_copy(update={"sampling": config.sampling.model_copy(update={"consistency": False})})


def _buffers(layout: Plan) -> tuple[Buffer, ...]:
    config, batch, float32 = layout.config, layout.batch, torch.float32
    own, grid = (batch, 1, *layout.size), (batch, 1, *layout.grid)
    conditions, common = len(config.conditions), config.common_channels
    found = [
        Buffer("x", own, float32, "noisy volume"),
        Buffer("x0", own, float32, "clean volume of the step before"),
        Buffer("x.next", own, float32, "noisy volume of the step to come"),
        Buffer("x0.next", own, float32, "clean volume of this step"),
        Buffer("condition", (batch, conditions, *layout.grid), float32, "conditions"),
    ]
    edges = projected_blocks(config)
    if edges is not None:
        blocks = (length // edge for length, edge in zip(layout.size, edges, strict=True))
        found.append(Buffer("measured", (batch, 1, *blocks), float32, "measured block means"))
    if layout.grid != layout.size or config.scales_input:
        found.append(Buffer("seen", grid, float32, "noisy volume, scaled and padded"))
    if common:
        kinds = {
            "position": config.position,
            "mask": config.mask,
            "how it was sliced": config.degradation.channels,
        }
        what = " and ".join(name for name, channels in kinds.items() if channels)
        found.append(Buffer("common", (batch, common, *layout.grid), float32, what))
    slabs = [
        batch * layout.rows[plane] * math.prod(layout.cut_shape(k, 1))
        for k in layout.branches
        for plane in [config.branches[k].plane]
    ]
    if slabs:
        found.append(Buffer("cut", (max(slabs),), layout.dtype, "slab of slices, the 2D networks' input"))
    for k in layout.branches:
        plane = config.branches[k].plane
        stack = (batch, layout.slice_count(plane), 1, *layout.slice_size(plane))
        found.append(Buffer(f"scores.{k}", stack, layout.dtype, f"output of branch {k}, {plane}"))
    if layout.fuses:
        assert config.fusion is not None
        shape = (batch, config.volume_channels, *layout.grid)
        found.append(Buffer("stacked", shape, layout.dtype, "the 3D network's input"))
        for scale in layout.scales:
            coarse = (length // scale for length in layout.grid)
            total = (batch, config.fusion.injected_channels(scale), *coarse)
            found.append(Buffer(f"total.{scale}", total, layout.accumulators, f"features at scale {scale}"))
    return tuple(found)
