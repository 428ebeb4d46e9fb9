"""The engine: buffers of one shape, the denoising step over them, its CUDA graph; how far planes differ."""

import itertools
import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from scorefusion.degradations import Projection
from scorefusion.diffusion.solvers import Table
from scorefusion.engine.graph import CapturedStep, CudaGraphs, Segment
from scorefusion.engine.planning.plan import ROWS, Plan, projected_blocks, smaller_slabs
from scorefusion.engine.planning.tiles import Tiling
from scorefusion.engine.runners import make_runners
from scorefusion.engine.step import Runners, denoising_step, load_table, small_buffers
from scorefusion.errors import ScoreFusionError, out_of_memory
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.models.slabs import fill_channels
from scorefusion.models.strategies import Branches
from scorefusion.ops.noise import noise_keys, normal
from scorefusion.ops.reference.planes import AXIS

Callback = Callable[[int, int, Tensor], None]


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
        graphs: CudaGraphs | None = None,
        notes: Sequence[str] = (),
    ):
        self.notes = [*notes]
        self.model, self.plan, self.tiling = model, plan, tiling
        self.device = device or next(model.parameters()).device
        self._graphs = CudaGraphs(self.device) if graphs is None and self.device.type == "cuda" else graphs
        self.runners: Runners = runners or make_runners("eager", model, plan)
        self.buffers = {buffer.name: self._allocate(buffer.shape, buffer.dtype) for buffer in plan.buffers}
        self._all = {"seen": self.buffers["x"], **self.buffers, **small_buffers(plan, self.device)}
        self.index = self._all["index"]
        self.captured: dict[Branches, CapturedStep] = {}
        self._project: Projection | None = None
        self._given: Mapping[str, Tensor] | None = None
        self._origin, self._turn, self._steps = (0, 0, 0), 0, 0

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
            ScoreFusionError: for another shape than the plan's, or a projection onto the means of other
                blocks.
        """
        if tuple(condition.shape[2:]) != self.plan.size or condition.shape[0] not in (1, self.plan.batch):
            expected = [self.plan.batch, len(self.plan.config.conditions), *self.plan.size]
            raise ScoreFusionError(f"the engine was made for {expected}, got {list(condition.shape)}")
        inputs = self.model.prepare(
            condition, origin=origin, full=full, measurement=self.plan.config.degradation
        )
        self._origin = (origin[0], origin[1], origin[2])
        self.buffers["condition"].copy_(inputs.condition)
        if inputs.common is not None:
            self.buffers["common"].copy_(inputs.common)
        self._load_projection(project)
        if "stacked" in self.buffers:
            fill_channels(self.buffers["stacked"].zero_(), 1, [inputs.condition, inputs.common])

    def _load_projection(self, project: Projection | None) -> None:
        """Use a projection from now on: block means within `fuse_step`, any other between two passes."""
        blocks, fused = projected_blocks(self.plan.config), project is None or bool(project.blocks)
        if project is not None and fused and project.blocks != blocks:
            raise ScoreFusionError(
                f"the engine projects onto means of blocks {blocks}, got blocks {project.blocks}"
            )
        if fused and "measured" in self.buffers:
            measured = None if project is None else project.measured
            self.buffers["measured"].copy_(torch.zeros(()) if measured is None else measured)
        if fused != (self._project is None):
            self._forget_steps()
        self._project = None if fused else project

    def start(
        self,
        table: Table,
        seeds: Sequence[int],
        *,
        sample: int | Sequence[int] = 0,
        prior_mean: Tensor | None = None,
        given: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Begin at the table's first noise level.

        Args:
            table: the solver, of at most :data:`.plan.ROWS` rows.
            seeds: one for each volume.
            sample: index of the sample, or one for each volume.
            prior_mean: mean of x0 that a late start begins from; zero if not given.
            given: ``scores.K`` and ``total.S`` of the first evaluation, which is then not computed.

        Raises:
            ScoreFusionError: for more rows than there is room for, or another number of seeds.
        """
        if len(table) > ROWS or len(seeds) != self.plan.batch:
            problem = f"an engine for {self.plan.batch} volumes takes as many seeds and up to {ROWS} steps"
            raise ScoreFusionError(f"{problem}; got {len(seeds)} seeds and {len(table)} steps")
        for runner in self.runners.values():
            runner.watch()
        load_table(self._all, self.plan, table)
        self._all["keys"].copy_(noise_keys(seeds, sample=sample, origin=self._origin))
        self.index.zero_()
        self._turn, self._steps, self._given = 0, len(table), given
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
        branches, given = self.plan.cycle[self._turn % len(self.plan.cycle)], self._given
        while True:
            try:
                if given is not None and self._turn == 0:
                    for segment in self.segments(branches, given):
                        segment.run()
                    break
                captured = self._captured_step(branches)
                if self._turn < len(self.plan.cycle) + (given is not None):
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
        given: Mapping[str, Tensor] | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """Draw one sample of each volume, new float32 ``[B, 1, d, h, w]``; arguments as for :meth:`start`.

        Args:
            callback: called as callback(step, total, x0) after each step; raise in it to cancel.
        """
        with torch.no_grad():
            self.start(table, seeds, sample=sample, prior_mean=prior_mean, given=given)
        for step in range(1, len(table) + 1):
            self.step()
            if callback is not None:
                callback(step, len(table), self.buffers["x0"])
        return self.buffers["x"].clone()

    def note(self, text: str) -> None:
        """Add to the notes, once."""
        if text not in self.notes:
            self.notes.append(text)

    def segments(self, branches: Branches, given: Mapping[str, Tensor] | None = None) -> list[Segment]:
        """The step over some branches; see :func:`.step.denoising_step`."""
        project = None if self._project is None else lambda x0: cast(Projection, self._project)(x0)
        return denoising_step(
            self._all, self.model, self.plan, self.runners, branches,
            tiling=self.tiling, project=project, given=given,
        )  # fmt: skip

    def _captured_step(self, branches: Branches) -> CapturedStep:
        """The step over some branches, which captures itself when it is first called."""
        if branches not in self.captured:
            self.captured[branches] = CapturedStep(
                self.segments(branches),
                device=self.device,
                state=(self.buffers["x"], self.buffers["x0"], self.index),
                watch=lambda: itertools.chain(self.model.parameters(), self.model.buffers()),
                graphs=self._graphs,
            )
        return self.captured[branches]

    def _allocate(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        memory = torch.channels_last_3d if len(shape) == 5 and shape[1] > 1 else torch.contiguous_format
        return torch.zeros(shape, dtype=dtype, device=self.device).contiguous(memory_format=memory)

    def _forget_steps(self) -> None:
        """Free what was captured; the next step captures again."""
        for step in self.captured.values():
            step.reset()
        self.captured.clear()

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


class PlaneDeviation:
    """Collects the standard deviation over planes of x0 at the last noise level, averaged over samples.

    A branch's x0 is p x + q m of its output m, so the deviation is |q| times that of the outputs, which lie
    in the engine after its last step: nothing is evaluated for it. Branches of one plane are averaged first.

    Args:
        table: the solver that the engine ran.
        size: (z, y, x) of the box; what an engine draws beyond it is left out.
    """

    def __init__(self, table: Table, size: Sequence[int]):
        self.gain, self.size = abs(float(table.rows[-1, 3])), tuple(size)
        self.count = 0
        self.total: Tensor | None = None

    def add(self, engine: Engine) -> None:
        """Take what an engine has just drawn, by a strategy that runs every plane at each step."""
        d, h, w = self.size
        planes: dict[str, list[Tensor]] = defaultdict(list)
        for k in engine.plan.branches:
            plane = engine.plan.config.branches[k].plane
            score = engine.buffers[f"scores.{k}"].movedim(1, AXIS[plane])
            planes[plane].append(score[:, :, :d, :h, :w].float())
        means = torch.stack([torch.stack(scores).mean(dim=0) for scores in planes.values()])
        apart = self.gain * means.std(dim=0, correction=0)
        total = apart.sum(dim=0, keepdim=True)
        self.total = total if self.total is None else self.total + total
        self.count += apart.shape[0]

    @property
    def mean(self) -> Tensor | None:
        """``[1, 1, d, h, w]``, in units of ``residual.scale``; None before anything was added."""
        return None if self.total is None else self.total / self.count
