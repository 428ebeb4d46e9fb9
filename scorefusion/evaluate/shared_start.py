"""Sample one volume by several strategies from the same noise, sharing what they have in common.

All start from the same noisy volume, so the branches' outputs there, and the sums of the feature layers, are
computed once for all strategies.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scorefusion.data.preprocess import Box, Prepared
from scorefusion.diffusion.level import NoiseLevel
from scorefusion.diffusion.sample import Callback, sample
from scorefusion.diffusion.solvers import Table
from scorefusion.engine.prepack import packed_model
from scorefusion.models.config import PLANES, STRATEGIES, ModelConfig, Plane, Strategy
from scorefusion.models.score_fusion import ScoreFusion, Scores, cropped
from scorefusion.ops.fuse_scores import Fusion
from scorefusion.pipeline.sample import projection, whole_patches


@dataclass(frozen=True)
class StrategyRun:
    """A strategy to sample with.

    Attributes:
        name: the strategy's, and for ``single`` the plane's.
        strategy: how scores are fused.
        planes: for ``single``.
        cost: of an evaluation, in about one plane's evaluation.
        branches: average these branches only (by index); ``strategy`` is then ``average``.
        consistent: whether each step is projected onto what was measured.
    """

    name: str
    strategy: Strategy
    planes: tuple[Plane, ...] | None
    cost: int
    branches: tuple[int, ...] | None = None
    consistent: bool = True


_COST = {"single": 1, "alternate": 1, "average": 3, "volume": 1, "fuse": 4, "fuse+features": 4}


def strategy_runs(config: ModelConfig) -> Iterator[StrategyRun]:
    """Every strategy of a model in the usual order; ``single`` once for each plane it has."""
    have = [plane for plane in PLANES if any(branch.plane == plane for branch in config.branches)]
    for strategy in STRATEGIES:
        if strategy == "single" and strategy in config.strategies:
            for plane in have:
                yield StrategyRun(f"single {plane}", strategy, (plane,), _COST[strategy])
        elif strategy in config.strategies:
            yield StrategyRun(strategy, strategy, None, _COST[strategy])


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
        self.project = projection(model.config, prepared, self.box)
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
        evaluation = itertools.count()

        def denoise(x_t: Tensor, level: NoiseLevel) -> Fusion:
            number = next(evaluation)
            if number == 0 and run.strategy != "volume":
                return self._at_start(run, x_t, level)
            if run.branches is not None:
                x = self.model.padded(self.model.scaled(x_t, level))
                scores, _ = self.model.branch_outputs(x, self.inputs, level, run.branches)
                return cropped(Fusion(scores, None, (1 / len(scores),) * len(scores)), self.inputs.size)
            return self.model.unfused(
                x_t, self.inputs, level, strategy=run.strategy, planes=run.planes, step=number
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

    def _at_start(self, run: StrategyRun, x_t: Tensor, level: NoiseLevel) -> Fusion:
        """What the model says of the noise that every strategy starts from."""
        model, config = self.model, self.model.config
        x = model.padded(model.scaled(x_t, level))
        if self._start is None or not torch.equal(self._start[0], x):
            scores, totals = model.branch_outputs(x, self.inputs, level, features=bool(model.features))
            self._start = (x, scores, totals)
        _, scores, totals = self._start
        if run.strategy in ("fuse", "fuse+features"):
            given = totals if "features" in run.strategy else {}
            fusion = model.fusion_of(x, self.inputs, level, scores, given)
        elif run.branches is not None:
            chosen = run.branches
            fusion = Fusion(tuple(scores[k] for k in chosen), None, (1 / len(chosen),) * len(chosen))
        else:
            planes = run.planes or (PLANES if run.strategy == "average" else self._first_plane())
            chosen = tuple(k for k, branch in enumerate(config.branches) if branch.plane in planes)
            weights = config.weights if run.strategy == "average" else (1 / len(chosen),) * len(chosen)
            fusion = Fusion(tuple(scores[k] for k in chosen), None, tuple(weights))
        return cropped(fusion, self.inputs.size)

    def _first_plane(self) -> tuple[Plane, ...]:
        """The plane that ``alternate`` begins with."""
        return next((p,) for p in PLANES if any(branch.plane == p for branch in self.model.config.branches))
