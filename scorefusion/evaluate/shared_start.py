"""Sample one volume by several strategies from the same noise, sharing what they have in common.

All start from the same noisy volume, so the branches' outputs there, and the sums of the feature layers, are
computed once for all strategies.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from scorefusion.data import Box, Prepared
from scorefusion.diffusion.level import NoiseLevel
from scorefusion.diffusion.sample import Callback, sample
from scorefusion.diffusion.solvers import Table
from scorefusion.engine.prepack import packed_model
from scorefusion.models.config import PLANES, ModelConfig, Plane
from scorefusion.models.score_fusion import ScoreFusion, Scores
from scorefusion.models.slabs import cropped
from scorefusion.models.strategies import AVERAGE, STRATEGIES, Strategy, strategies_of, strategy_named
from scorefusion.ops.fuse_scores import Fusion
from scorefusion.pipeline import whole_patches


@dataclass(frozen=True)
class StrategyRun:
    """A strategy to sample with.

    Attributes:
        name: the strategy's, and for one that uses a plane by itself the plane's.
        strategy: how scores are fused.
        planes: for ``single``.
        cost: of an evaluation, in about one plane's evaluation.
        branches: average these branches only (by index); ``strategy`` is then ``average``.
        consistent: whether each step is projected onto what was measured.
    """

    name: str
    strategy: str
    planes: tuple[Plane, ...] | None
    cost: int
    branches: tuple[int, ...] | None = None
    consistent: bool = True


def strategy_runs(config: ModelConfig) -> Iterator[StrategyRun]:
    """Every strategy of a model in the usual order; ``single`` once for each plane it has."""
    for name in strategies_of(config):
        strategy = strategy_named(name)
        if strategy.per_plane:
            for plane in config.planes:
                yield StrategyRun(f"{name} {plane}", name, (plane,), strategy.cost)
        else:
            yield StrategyRun(name, name, None, strategy.cost)


def plane_row(name: str) -> str:
    """The strategy of a row that shows one plane by itself, such as ``single axial``; else empty."""
    strategy, _, plane = name.partition(" ")
    return strategy if plane and strategy in STRATEGIES and STRATEGIES[strategy].per_plane else ""


def first_rows() -> list[str]:
    """The row of each strategy that pictures show: of those that use one plane, the axial one."""
    return [f"{name} {PLANES[0]}" if each.per_plane else name for name, each in STRATEGIES.items()]


class SharedStart:
    """Draws residuals of one box, each by one strategy, all from the same noise.

    Args:
        model: in evaluation mode, on the device of ``prepared``.
        prepared: the condition and the base on the whole grid.
        box: where to compute; a voxel's noise depends on its place in the whole volume.
        seed: of the noise.
        sample: which of the samples of that seed.
    """

    COST: ClassVar[int] = 3
    """Cost of the evaluation that is shared, in about one plane's evaluation."""

    def __init__(
        self, model: ScoreFusion, prepared: Prepared, box: Box, seed: int = 0, sample: int = 0
    ) -> None:
        on_cpu = next(model.parameters()).device.type == "cpu"
        self.model, self.wanted = packed_model(model) if on_cpu else model, Box.whole(box.size).index
        self.seed, self.number = seed, sample
        full = prepared.condition.shape[2:]
        prepared, self.box = whole_patches(model.config, prepared, box)
        self.condition = prepared.condition[self.box.index]
        self.project = prepared.projection(model.config, self.box)
        with torch.no_grad():
            self.inputs = model.prepare(self.condition, origin=box.start, full=full)
        self._start: tuple[Tensor, Scores, dict[int, Tensor]] | None = None

    def draw(self, run: StrategyRun, table: Table, callback: Callback | None = None) -> Tensor:
        """Draw one residual.

        Args:
            run: the strategy.
            table: the solver; every call's begins at the same noise level.
            callback: called as callback(step, steps, x0) after each evaluation; x0 may be of a larger box, of
                whole patches.

        Returns:
            ``[1, 1, d, h, w]`` of the box, in units of ``residual.scale``.
        """
        strategy = _strategy_of(run)
        evaluation = itertools.count()

        def denoise(x_t: Tensor, level: NoiseLevel) -> Fusion:
            number = next(evaluation)
            if number == 0 and strategy.runs_slices:
                return self._at_start(strategy, run.planes, x_t, level)
            return self.model.unfused(
                x_t, self.inputs, level, strategy=strategy, planes=run.planes, step=number
            )

        drawn = sample(
            denoise,
            self.condition,
            table,
            seeds=[self.seed],
            origin=self.box.start,
            sample=self.number,
            clamp=self.model.config.sampling.clamp,
            project=self.project if run.consistent else None,
            callback=callback,
        )
        return drawn[self.wanted]

    def _at_start(
        self, strategy: Strategy, planes: Sequence[Plane] | None, x_t: Tensor, level: NoiseLevel
    ) -> Fusion:
        """What the model says of the noise that every strategy starts from."""
        model, config = self.model, self.model.config
        x = model.seen(x_t, level)
        if self._start is None or not torch.equal(self._start[0], x):
            scores, totals = model.branch_outputs(x, self.inputs, level, features=bool(model.features))
            self._start = (x, scores, totals)
        _, scores, totals = self._start
        scores = tuple(scores[k] for k in strategy.branches(config, planes)[0])
        maps = None
        if strategy.runs_volume:
            maps = model.fusion_maps(x, self.inputs, level, scores, totals if strategy.takes_features else {})
        return cropped(strategy.fuse(config, scores, maps), self.inputs.size)


def _strategy_of(run: StrategyRun) -> Strategy:
    """The strategy of a run; of one that averages some branches only, one of its own."""
    if run.branches is None:
        return strategy_named(run.strategy)
    chosen = run.branches
    return replace(AVERAGE, name=run.name, cycle=lambda config, planes: (chosen,), trained=False)
