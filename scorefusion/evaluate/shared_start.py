"""Sample one volume by several strategies from the same noise.

The branches' outputs there, and the sums of the feature layers, are computed once for all strategies.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from scorefusion.data import Box, Prepared
from scorefusion.diffusion import NoiseLevel, Table
from scorefusion.engine.engine import Callback, Engine
from scorefusion.engine.pool import EnginePool
from scorefusion.models import PLANES, Inputs, ModelConfig, Plane, ScoreFusion
from scorefusion.models.strategies import AVERAGE, STRATEGIES, Strategy, strategies_of, strategy_named
from scorefusion.ops import AXIS
from scorefusion.pipeline import whole_patches


@dataclass(frozen=True)
class StrategyRun:
    """A strategy to sample with."""

    name: str  #: the strategy's, and for one that uses a plane by itself the plane's
    strategy: str  #: how scores are fused
    planes: tuple[Plane, ...] | None  #: for ``single``
    cost: int  #: of an evaluation, in about one plane's evaluation
    branches: tuple[int, ...] | None = None  #: for ``average``, of these branches only (by index)
    consistent: bool = True  #: whether each step is projected onto what was measured


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

    ``prepared`` is on the whole grid; ``engines`` are shared with other boxes of the same size.
    """

    COST: ClassVar[int] = 3  #: of the evaluation that is shared, in about one plane's evaluation

    def __init__(
        self,
        model: ScoreFusion,
        prepared: Prepared,
        box: Box,
        seed: int = 0,
        sample: int = 0,
        *,
        engines: EnginePool | None = None,
    ) -> None:
        self.engines, self.seed, self.sample = engines or EnginePool(model), seed, sample
        self.inside, self.full = Box.whole(box.size).index, prepared.condition.shape[2:]
        prepared, self.box = whole_patches(model.config, prepared, box)
        self.condition = prepared.condition[self.box.index]
        self.project = prepared.projection(model.config, self.box)
        self._first: tuple[list[float], dict[str, Tensor]] | None = None

    def draw(self, run: StrategyRun, table: Table, callback: Callback | None = None) -> Tensor:
        """Draw one residual ``[1, 1, d, h, w]`` of the box, in units of ``residual.scale``.

        ``callback(step, steps, x0)`` follows each evaluation; x0 may be of a larger box, of whole patches.
        """
        strategy = _strategy_of(run)
        with self.engines.borrow(
            self.box.size, strategy=strategy, planes=run.planes, consistent=run.consistent
        ) as engine:
            project = self.project if run.consistent else None
            engine.load(self.condition, origin=self.box.start, full=self.full, project=project)
            drawn = engine.run(
                table, [self.seed], sample=self.sample, callback=callback,
                given=self._first_evaluation(engine, table) if strategy.runs_slices else None,
            )  # fmt: skip
        return drawn[self.inside]

    @torch.no_grad()
    def _first_evaluation(self, engine: Engine, table: Table) -> dict[str, Tensor]:
        """The outputs of all branches for the noise that a table starts from, and the sums of features."""
        level, model = table.rows[0, :2].tolist(), engine.model
        if self._first is None or self._first[0] != level:
            engine.start(table, [self.seed], sample=self.sample)
            inputs = Inputs(engine.buffers["condition"], engine.buffers.get("common"), engine.plan.size)
            at = NoiseLevel.of(level[0], int(level[1]), 1, engine.device)
            scores, totals = model.branch_outputs(
                model.seen(engine.buffers["x"], at), inputs, at,
                slab=max(engine.plan.rows.values()), features=bool(model.features),
            )  # fmt: skip
            stacks = {
                f"scores.{k}": score.movedim(AXIS[branch.plane], 1)
                for k, (score, branch) in enumerate(zip(scores, model.config.branches, strict=True))
            }
            self._first = level, stacks | {f"total.{scale}": total for scale, total in totals.items()}
        return self._first[1]


@functools.cache
def _strategy_of(run: StrategyRun) -> Strategy:
    """The strategy of a run; of one that averages some branches only, one of its own."""
    if run.branches is None:
        return strategy_named(run.strategy)
    chosen = run.branches
    return replace(AVERAGE, name=run.name, cycle=lambda config, planes: (chosen,), trained=False)
