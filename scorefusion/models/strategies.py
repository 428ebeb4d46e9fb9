"""Strategies: which networks a denoising step runs, and how their outputs become one score.

Whatever names strategies reads them from here, where a new one is registered once::

    register(Strategy("weighted", "the planes' average, axial counting double", fuse=weighted))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scorefusion.errors import ScoreFusionError, unknown_name

if TYPE_CHECKING:
    from torch import Tensor

    from scorefusion.models.config import ModelConfig, Plane
    from scorefusion.ops.fuse_scores import Fusion

Branches = tuple[int, ...]


def all_branches(config: ModelConfig, planes: Sequence[Plane]) -> tuple[Branches, ...]:
    """Run every branch at every evaluation."""
    return (tuple(range(len(config.branches))),)


def chosen_branches(config: ModelConfig, planes: Sequence[Plane]) -> tuple[Branches, ...]:
    """Run the branches of the chosen planes at every evaluation; of the model's own plane if none is."""
    planes = planes or (config.sampling.single_plane or config.planes[0],)
    return (config.branches_of(planes),)


def branches_in_turn(config: ModelConfig, planes: Sequence[Plane]) -> tuple[Branches, ...]:
    """Run the branches of one plane at each evaluation, plane after plane."""
    return tuple(config.branches_of([plane]) for plane in planes or config.planes)


def no_branches(config: ModelConfig, planes: Sequence[Plane]) -> tuple[Branches, ...]:
    """Run no 2D network."""
    return ((),)


def average_scores(config: ModelConfig, scores: Sequence[Tensor], maps: Tensor | None) -> Fusion:
    """Return the plain mean of the scores."""
    from scorefusion.ops.fuse_scores import Fusion

    return Fusion(tuple(scores), None, (1.0 / len(scores),) * len(scores))


def fuse_with_maps(config: ModelConfig, scores: Sequence[Tensor], maps: Tensor | None) -> Fusion:
    """Return the scores, to be weighted by the 3D network's maps, and its residual added."""
    from scorefusion.ops.fuse_scores import Fusion

    return Fusion(tuple(scores), maps, config.weights, config.residual_gain)


def residual_alone(config: ModelConfig, scores: Sequence[Tensor], maps: Tensor | None) -> Fusion:
    """Return the 3D network's residual as the only score."""
    from scorefusion.ops.fuse_scores import Fusion

    assert maps is not None
    return Fusion((maps[:, -1:],), None, (config.residual_gain,))


@dataclass(frozen=True)
class Strategy:
    """Which networks a denoising step runs, and how their outputs become one score."""

    name: str  #: of letters, digits and signs other than comma, colon and space
    help: str  #: one line for ``--help`` and tables
    cost: int = 3  #: of one evaluation, in about one plane's evaluations
    #: ``cycle(config, planes)`` gives the branches of successive evaluations, by number; evaluation n runs
    #: ``cycle[n % len(cycle)]``. ``planes`` are those asked for, empty for the default.
    cycle: Callable[[ModelConfig, Sequence[Plane]], tuple[Branches, ...]] = all_branches
    #: ``fuse(config, scores, maps)`` makes a :class:`~scorefusion.ops.fuse_scores.Fusion` of the scores ``[B,
    #: 1, D, H, W]`` of the branches that ran and the 3D network's maps, or None
    fuse: Callable[[ModelConfig, Sequence[Tensor], Tensor | None], Fusion] = average_scores
    takes_planes: bool = False  #: whether a caller may choose planes
    runs_volume: bool = False  #: whether the 3D network runs
    takes_features: bool = False  #: whether the 2D networks' features are streamed into the 3D network
    #: whether a model must name it among its ``strategies``, having been trained for it; otherwise every
    #: model that has the networks can run it
    trained: bool = False

    def __str__(self) -> str:
        return self.name

    @property
    def runs_slices(self) -> bool:
        """Whether 2D networks run."""
        return self.cycle is not no_branches

    @property
    def every_plane(self) -> bool:
        """Whether the branches of every plane run at each evaluation."""
        return self.cycle is all_branches

    @property
    def takes_turns(self) -> bool:
        """Whether planes take turns, evaluation by evaluation."""
        return self.cycle is branches_in_turn

    @property
    def per_plane(self) -> bool:
        """Whether it is evaluated once for each plane, as a row of its own."""
        return self.takes_planes and not self.takes_turns

    def available(self, config: ModelConfig) -> bool:
        """Whether a model can run it."""
        if self.trained:
            return self.name in config.strategies
        has_slices, has_volume = bool(config.branches), config.fusion is not None
        return (has_slices or not self.runs_slices) and (has_volume or not self.runs_volume)

    def branches(self, config: ModelConfig, planes: Sequence[Plane] | None = None) -> tuple[Branches, ...]:
        """Return the branches of successive evaluations; see ``cycle``.

        Raises:
            ScoreFusionError: for a plane that the model has no branch for.
        """
        if planes is not None and not set(planes) <= set(config.planes):
            have = ", ".join(config.planes)
            raise ScoreFusionError(f"the model has branches for {have}; got planes {', '.join(planes)}")
        return self.cycle(config, tuple(planes or ()) if self.takes_planes else ())


STRATEGIES: dict[str, Strategy] = {}  #: every strategy by name, in the order of tables.


def register(strategy: Strategy) -> Strategy:
    """Add a strategy; return it.

    Raises:
        ValueError: for a name that is taken, empty, or holds a space, a comma or a colon.
    """
    if strategy.name in STRATEGIES or not strategy.name or set(strategy.name) & set(" ,:"):
        raise ValueError(f"a strategy cannot be called {strategy.name!r}")
    STRATEGIES[strategy.name] = strategy
    return strategy


def unregister(name: str) -> None:
    """Remove a strategy again."""
    del STRATEGIES[name]


def strategy_named(name: str | Strategy) -> Strategy:
    """Return a strategy by name; a strategy itself is returned as it is.

    Raises:
        ScoreFusionError: for an unknown name, with the nearest.
    """
    if isinstance(name, Strategy):
        return name
    if name not in STRATEGIES:
        raise unknown_name("strategy", name, STRATEGIES)
    return STRATEGIES[name]


def strategies_of(config: ModelConfig) -> tuple[str, ...]:
    """Return the names of the strategies that a model can run, in the order of tables."""
    return tuple(name for name, strategy in STRATEGIES.items() if strategy.available(config))


def require_strategy(name: str | Strategy | None, config: ModelConfig) -> Strategy:
    """Return a strategy that a model can run: by name, or the model's own when None.

    Raises:
        ScoreFusionError: for an unknown name (with the nearest) or one this model cannot run.
    """
    strategy = strategy_named(name or config.sampling.strategy)
    if not strategy.available(config):
        reason = "was not trained for" if strategy.trained else "lacks the networks for"
        fix = f"choose from {', '.join(strategies_of(config))}"
        raise ScoreFusionError(f"model {config.name!r} {reason} strategy {strategy.name!r}; {fix}")
    return strategy


def simpler(strategy: Strategy, config: ModelConfig) -> list[Strategy]:
    """Return the strategies of every plane before this one that a model can run, the nearest first."""
    before = list(STRATEGIES.values())
    before = before[: before.index(strategy)] if strategy in before else before
    return [other for other in reversed(before) if other.every_plane and other.available(config)]


def names_text() -> str:
    """Return all names as a sentence lists them, for ``--help``: ``single, alternate or average``."""
    *first, last = STRATEGIES
    return f"{', '.join(first)} or {last}"


SINGLE = register(
    Strategy("single", "one plane's 2D network alone", 1, chosen_branches, takes_planes=True, trained=True)
)
ALTERNATE = register(
    Strategy(
        "alternate", "one plane at each step, in turn", 1, branches_in_turn, takes_planes=True, trained=True
    )
)
AVERAGE = register(Strategy("average", "the mean of all 2D networks", trained=True))
VOLUME = register(
    Strategy("volume", "the 3D network alone", 1, no_branches, residual_alone, runs_volume=True, trained=True)
)
FUSE = register(
    Strategy(
        "fuse", "the 2D networks' scores fused by the 3D network", 4, fuse=fuse_with_maps,
        runs_volume=True, trained=True,
    )
)  # fmt: skip
FUSE_FEATURES = register(
    Strategy(
        "fuse+features", "as fuse, the 3D network also given the 2D networks' features", 4,
        fuse=fuse_with_maps, runs_volume=True, takes_features=True, trained=True,
    )
)  # fmt: skip
#: strategies of which the paper finds each to be better than the one before.
PAPER_ORDER = (SINGLE.name, AVERAGE.name, FUSE.name, FUSE_FEATURES.name)

#: names of the strategies of this package, which a model may list as trained for.
BUILT_IN = tuple(STRATEGIES)
