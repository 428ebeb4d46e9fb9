"""A denoising step over static buffers: slabs through the 2D networks, features streamed, scores fused.

    for each branch, for each slab of its slices:
        gather_slices -> cut;  2D network -> scores, features;  ensemble_features: total += features
    3D network over [x_t, condition, position, mask, scores] and the totals -> maps
    fuse_step -> x, x0;  index += 1

Whatever the step depends on lies in buffers on the device: the volumes, the solver's rows, the row's number,
the noise's keys. So the same launches serve every step, seed and table, and on CUDA one captured graph does.
"""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from scorefusion.degradations import Projection
from scorefusion.diffusion.level import NoiseLevel, input_scale
from scorefusion.diffusion.sample import Callback
from scorefusion.diffusion.solvers import Table
from scorefusion.engine.graph import CapturedStep, CudaGraphs, Graphs, Segment
from scorefusion.engine.planning.plan import ROWS, Plan, cut_channels, smaller_slabs
from scorefusion.engine.planning.tiles import Tiling, run_tiled
from scorefusion.engine.runners import EagerRunner, Outputs, Runner
from scorefusion.engine.tail import Tail
from scorefusion.errors import ScoreFusionError, out_of_memory
from scorefusion.models.config import PLANES, Plane
from scorefusion.models.features import FeatureLayer
from scorefusion.models.score_fusion import ScoreFusion, cropped, network_time
from scorefusion.models.unet import UNet
from scorefusion.ops.fuse_scores import Fusion
from scorefusion.ops.gather_slices import gather_slices
from scorefusion.ops.noise import noise_keys, normal
from scorefusion.ops.reference.planes import AXIS

Runners = Mapping[str, Runner]


class Engine:
    """Samples volumes of one shape with one strategy; its results are the plain model's.

    Args:
        model: in evaluation mode; its networks in ``plan.dtype``. Weights changed in place are honoured.
        plan: the shape, the strategy and the buffers, from :func:`.plan.plan`.
        runners: how each slice network runs, by name; eagerly when None.
        tiling: tiles that the 3D network runs on, with a buffer ``maps`` in the plan; whole when None.
        device: of the buffers; the model's when None.
        graphs: captures steps; CUDA graphs on CUDA, and nothing elsewhere, when None.
        notes: what was changed to make the plan fit into memory, for whoever reads the result.

    An engine serves one thread at a time.
    """

    def __init__(
        self,
        model: ScoreFusion,
        plan: Plan,
        *,
        runners: Runners | None = None,
        tiling: Tiling | None = None,
        device: torch.device | None = None,
        graphs: Graphs | None = None,
        notes: Sequence[str] = (),
    ):
        self.notes = [*notes]
        self.model, self.plan, self.tiling = model, plan, tiling
        self.device = device or next(model.parameters()).device
        self.captured: dict[tuple[int, ...], CapturedStep] = {}
        self._graphs = CudaGraphs(self.device) if graphs is None and self.device.type == "cuda" else graphs
        self.runners: Runners = runners or {
            name: EagerRunner(cast(UNet, network), plan.scales)
            for name, network in model.slice_networks.items()
        }
        self.buffers = {buffer.name: self._allocate(buffer.shape, buffer.dtype) for buffer in plan.buffers}
        self.index = torch.zeros(1, dtype=torch.int32, device=self.device)
        self.keys = torch.zeros(plan.batch, 5, dtype=torch.int64, device=self.device)
        self._tail = Tail(plan, self.buffers, self.index, self.keys)
        self.labels = {plane: torch.full((1,), n, device=self.device) for n, plane in enumerate(PLANES)}
        self._told = [*model.slice_networks] + (["fusion"] if plan.fuses else [])
        told = len(self._told) + 1
        self._levels = torch.zeros(ROWS, told, dtype=torch.float32, device=self.device)
        self._level = torch.zeros(1, told, dtype=torch.float32, device=self.device)
        self._origin, self._turn, self._steps = (0, 0, 0), 0, 0
        self._found: dict[tuple[int, int], Outputs] = {}

    def load(
        self,
        condition: Tensor,
        *,
        origin: Sequence[int] = (0, 0, 0),
        full: Sequence[int] | None = None,
        project: Projection | None = None,
    ) -> None:
        """Take the conditions of the volumes to be drawn.

        Args:
            condition: ``[B, C, d, h, w]`` in [-1, 1], or with a batch of 1 that all share.
            origin: (z, y, x) of the box inside the whole volume.
            full: size of the whole volume; the box's own by default.
            project: makes each step's residual consistent. When None, block means become zero where the
                configuration measures them, and nothing is done elsewhere.

        Raises:
            ScoreFusionError: for another shape than the plan's.
        """
        if tuple(condition.shape[2:]) != self.plan.size or condition.shape[0] not in (1, self.plan.batch):
            expected = [self.plan.batch, len(self.plan.config.conditions), *self.plan.size]
            raise ScoreFusionError(f"the engine was made for {expected}, got {list(condition.shape)}")
        inputs = self.model.prepare(condition, origin=origin, full=full)
        self._origin = (origin[0], origin[1], origin[2])
        self.buffers["condition"].copy_(inputs.condition)
        if inputs.common is not None:
            self.buffers["common"].copy_(inputs.common)
        if self._tail.take_projection(project):
            self._forget_steps()
        if "stacked" in self.buffers:
            stacked = self.buffers["stacked"]
            stacked.zero_()
            last = 1 + inputs.condition.shape[1]
            stacked[:, 1:last].copy_(inputs.condition)
            if inputs.common is not None:
                stacked[:, last : last + inputs.common.shape[1]].copy_(inputs.common)

    def start(
        self,
        table: Table,
        seeds: Sequence[int],
        *,
        sample: int | Sequence[int] = 0,
        prior_mean: Tensor | None = None,
    ) -> None:
        """Begin at the table's first noise level.

        Args:
            table: the solver, of at most :data:`.plan.ROWS` rows.
            seeds: one for each volume.
            sample: index of the sample, or one for each volume.
            prior_mean: mean of x0 that a late start begins from; zero if not given.

        Raises:
            ScoreFusionError: for more rows than there is room for, or another number of seeds.
        """
        if len(table) > ROWS or len(seeds) != self.plan.batch:
            raise ScoreFusionError(
                f"an engine for {self.plan.batch} volumes takes as many seeds and up to {ROWS} steps; "
                f"got {len(seeds)} seeds and {len(table)} steps"
            )
        for runner in self.runners.values():
            runner.watch()
        self._take_levels(table)
        self.keys.copy_(noise_keys(seeds, sample=sample, origin=self._origin))
        self.index.zero_()
        self._turn, self._steps = 0, len(table)
        shape = (self.plan.batch, 1, *self.plan.size)
        x = self.buffers["x"]
        x.copy_(normal(shape, seeds, 0, origin=self._origin, sample=sample, device=self.device))
        x.mul_(math.sqrt(1.0 - table.abar_start))
        if prior_mean is not None:
            x.add_(prior_mean, alpha=math.sqrt(table.abar_start))
        self.buffers["x0"].zero_()

    @torch.no_grad()
    def step(self) -> None:
        """One evaluation and one row of the solver; where memory runs out, again with half the slab.

        Raises:
            ScoreFusionError: after the table's last row.
        """
        if self._turn >= self._steps:
            raise ScoreFusionError(f"the solver has {self._steps} rows, and all are done; call start first")
        cycle = self.plan.cycle
        branches = cycle[self._turn % len(cycle)]
        while True:
            try:
                captured = self._captured_step(branches)
                if self._turn < len(cycle):
                    captured.prepare()
                captured()
                break
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error) or not self._halve():
                    raise
        self._turn += 1

    def run(
        self,
        table: Table,
        seeds: Sequence[int],
        *,
        sample: int | Sequence[int] = 0,
        prior_mean: Tensor | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """Draw one sample of each volume; arguments as for :meth:`start`.

        Args:
            callback: called as callback(step, total, x0) after each step; raise in it to cancel.

        Returns:
            A new float32 tensor ``[B, 1, d, h, w]``.
        """
        with torch.no_grad():
            self.start(table, seeds, sample=sample, prior_mean=prior_mean)
        for step in range(1, len(table) + 1):
            self.step()
            if callback is not None:
                callback(step, len(table), self.buffers["x0"])
        return self.buffers["x"].clone()

    def note(self, text: str) -> None:
        """Add to the notes, once."""
        if text not in self.notes:
            self.notes.append(text)

    def _captured_step(self, branches: tuple[int, ...]) -> CapturedStep:
        """The step over some branches, which captures itself when it is first called."""
        if branches not in self.captured:
            self.captured[branches] = CapturedStep(
                self._segments(branches),
                device=self.device,
                state=(self.buffers["x"], self.buffers["x0"], self.index),
                watch=self._weights,
                graphs=self._graphs,
            )
        return self.captured[branches]

    def _weights(self) -> Iterable[Tensor]:
        return itertools.chain(self.model.parameters(), self.model.buffers())

    def _segments(self, branches: Sequence[int]) -> list[Segment]:
        """The step's parts in order. A TensorRT engine is one by itself, since it may refuse capture."""
        parts = [Segment("level and totals", self._begin)]
        for k in branches:
            name = self.plan.config.branches[k].network
            rows, count = self.plan.rows[self._plane(k)], self.plan.slice_count(self._plane(k))
            for start in range(0, count, rows):
                slab = (k, start, min(start + rows, count))
                if self.runners[name].name == "tensorrt":
                    parts.append(Segment("gather", functools.partial(self._gather, *slab)))
                    parts.append(Segment(f"network {name}", functools.partial(self._keep, *slab), False))
                    parts.append(Segment("scores and features", functools.partial(self._collect_kept, *slab)))
                else:
                    parts.append(Segment("slab", functools.partial(self._slab, *slab)))
        return [*parts, *self._tail.segments(lambda: cropped(self._fusion(branches), self.plan.size))]

    def _begin(self) -> None:
        """The row's noise level, the networks' view of x, and the features' sums before the first branch."""
        torch.index_select(self._levels, 0, self.index, out=self._level)
        self._pad()
        for scale in self.plan.scales:
            layer = cast(FeatureLayer, self.model.features[str(scale)])
            self.buffers[f"total.{scale}"].copy_(layer.bias[None, :, None, None, None])

    def _slab(self, k: int, start: int, stop: int) -> None:
        """A slab of a branch, from the volume to its scores and features."""
        self._gather(k, start, stop)
        self._collect(k, start, stop, self._network(k, start, stop))

    def _gather(self, k: int, start: int, stop: int) -> None:
        config, branch = self.plan.config, self.plan.config.branches[k]
        gather_slices(
            self._seen, self.buffers["condition"], self.buffers.get("common"), branch.plane, start, stop,
            channels=branch.conditions, context=config.context, order=config.context_order,
            dtype=self.plan.dtype, out=self._cut(k, self.plan.batch * (stop - start)),
        )  # fmt: skip

    def _network(self, k: int, start: int, stop: int) -> Outputs:
        branch, slices = self.plan.config.branches[k], self.plan.batch * (stop - start)
        time, label = self._time(branch.network), self.labels[branch.plane]
        return self.runners[branch.network](self._cut(k, slices), time.expand(slices), label.expand(slices))

    def _keep(self, k: int, start: int, stop: int) -> None:
        """Run a network whose outputs are the same tensors at every step."""
        self._found[k, start] = self._network(k, start, stop)

    def _collect_kept(self, k: int, start: int, stop: int) -> None:
        self._collect(k, start, stop, self._found[k, start])

    def _collect(self, k: int, start: int, stop: int, outputs: Outputs) -> None:
        """Put a slab's scores into the branch's stack, and add its features to the totals."""
        output, found = outputs
        self.buffers[f"scores.{k}"][:, start:stop].copy_(output.unflatten(0, (self.plan.batch, stop - start)))
        for scale in self.plan.scales:
            layer = cast(FeatureLayer, self.model.features[str(scale)])
            layer.add(self.buffers[f"total.{scale}"], found[scale], k, self._plane(k), start)

    def _fusion(self, branches: Sequence[int]) -> Fusion:
        """What is to be fused, after the 3D network where there is one."""
        config, plan = self.plan.config, self.plan
        scores = tuple(self.buffers[f"scores.{k}"].movedim(1, AXIS[self._plane(k)]) for k in branches)
        if not plan.fuses:
            return plan.strategy.fuse(config, scores, None)
        stacked, network = self.buffers["stacked"], self.model.fusion
        assert network is not None
        stacked[:, :1].copy_(self._seen)
        first = stacked.shape[1] - len(config.branches)
        for place, score in enumerate(scores, start=first):
            stacked[:, place : place + 1].copy_(score)
        totals = {scale: self.buffers[f"total.{scale}"] for scale in plan.scales}
        time = self._time("fusion").expand(plan.batch)
        if self.tiling is None:
            maps = network(stacked, time, inject=totals)
        else:
            maps = run_tiled(network, stacked, time, totals, self.tiling, self.buffers["maps"])
        return plan.strategy.fuse(config, scores, maps)

    @property
    def _seen(self) -> Tensor:
        """The networks' view of x, where it is another than x itself."""
        return self.buffers.get("padded", self.buffers["x"])

    def _pad(self) -> None:
        """Scale x, and repeat its edges up to the grid."""
        x, padded = self.buffers["x"], self.buffers.get("padded")
        if padded is None:
            return
        d, h, w = self.plan.size
        torch.mul(x, self._level[0, -1], out=padded[:, :, :d, :h, :w])
        parts = ((4, w, padded[:, :, :d, :h]), (3, h, padded[:, :, :d]), (2, d, padded))
        for axis, length, part in parts:
            edge = part.narrow(axis, length, part.shape[axis] - length)
            edge.copy_(part.narrow(axis, length - 1, 1).expand_as(edge))

    def _take_levels(self, table: Table) -> None:
        """Put the solver's rows, and what each network is told at each, on the device."""
        rows, config = torch.tensor(table.rows), self.plan.config
        level = NoiseLevel(rows[:, 0], rows[:, 1].to(torch.int64))
        told = [
            network_time(config.fusion, level)
            if name == "fusion" and config.fusion is not None
            else network_time(config.slice_networks[name], level, config.halved_slice_time)
            for name in self._told
        ]
        told.append(input_scale(config.prediction, level.abar, config.sigma_data))
        self._levels[: len(table)].copy_(torch.stack([each.to(torch.float32) for each in told], dim=1))
        self._tail.take(rows[:, 2:])

    def _time(self, network: str) -> Tensor:
        place = self._told.index(network)
        return self._level[0, place : place + 1]

    def _plane(self, k: int) -> Plane:
        return self.plan.config.branches[k].plane

    def _cut(self, k: int, slices: int) -> Tensor:
        """A view of the cut buffer for that many slices of a branch, channels last."""
        h, w = self.plan.slice_size(self._plane(k))
        channels = cut_channels(self.plan.config, k)
        flat = self.buffers["cut"][: slices * channels * h * w]
        return flat.view(slices, h, w, channels).permute(0, 3, 1, 2)

    def _allocate(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        memory = torch.channels_last_3d if len(shape) == 5 and shape[1] > 1 else torch.contiguous_format
        return torch.zeros(shape, dtype=dtype, device=self.device).contiguous(memory_format=memory)

    def _forget_steps(self) -> None:
        """Free what was captured; the next step captures again."""
        for step in self.captured.values():
            step.reset()
        self.captured.clear()
        self._found.clear()

    def _halve(self) -> bool:
        """Go on with half as many slices at once, if there is a half; said once."""
        smaller = smaller_slabs(self.plan)
        if smaller is None:
            return False
        self._forget_steps()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        slices = ", ".join(f"{plane} {rows}" for plane, rows in smaller.rows.items())
        note = f"out of memory in a denoising step; going on with smaller slabs ({slices} slices)"
        self.note(note)
        warnings.warn(note, RuntimeWarning, stacklevel=3)
        self.plan = smaller
        return True
