"""The rows of an evaluation: strategies of one model, other models beside it, ablations, and baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from scorefusion.data import BASELINES
from scorefusion.diffusion.solvers import Table
from scorefusion.errors import ScoreFusionError, unknown_name
from scorefusion.evaluate.known_truth import makes_its_input
from scorefusion.evaluate.shared_start import StrategyRun, strategy_runs
from scorefusion.models.config import ModelConfig, SamplingConfig
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.models.strategies import AVERAGE, STRATEGIES, require_strategy, strategies_of
from scorefusion.models.table import table_for

Kind = Literal["baseline", "sample", "one-step"]


@dataclass(frozen=True, eq=False)
class Contender:
    """A model that takes part.

    Attributes:
        name: empty for the model that is evaluated; else what its rows are called.
        model: in evaluation mode, on its device.
        strategies: which of its strategies make rows.
        sampling: solver and noise levels.
        digest: of its weights and configuration.
    """

    name: str
    model: ScoreFusion
    strategies: tuple[str, ...]
    sampling: SamplingConfig
    digest: str

    @property
    def config(self) -> ModelConfig:
        """The model's description."""
        return self.model.config

    def table(self, steps: int | None = None) -> Table:
        """The solver's table."""
        return table_for(self.config.model_copy(update={"sampling": self.sampling}), steps=steps)


@dataclass(frozen=True, eq=False)
class Method:
    """A row.

    Attributes:
        name: unique.
        kind: ``baseline``, ``sample``, or ``one-step``: one evaluation from pure noise.
        contender: whose model; None for a baseline.
        run: how it is sampled; None for a baseline.
        sampled: for ``one-step``, the name of the row that is sampled the same way in full.
    """

    name: str
    kind: Kind
    contender: Contender | None = None
    run: StrategyRun | None = None
    sampled: str | None = None
    _tables: dict[str, Table] = field(default_factory=dict, repr=False)

    @property
    def table(self) -> Table:
        """The solver's table."""
        assert self.contender is not None
        if "own" not in self._tables:
            self._tables["own"] = self.contender.table(1 if self.kind == "one-step" else None)
        return self._tables["own"]


def check_contender(contender: Contender, main: ModelConfig) -> None:
    """See that another model does the same task, from the same conditions or some of them.

    Raises:
        ScoreFusionError: naming what differs.
    """
    config = contender.config
    unknown = [name for name in config.conditions if name not in main.conditions]
    if config.target != main.target or unknown:
        raise ScoreFusionError(
            f"--against {contender.name}: makes {config.target} of {', '.join(config.conditions)}; "
            f"'{main.name}' makes {main.target} of {', '.join(main.conditions)}"
        )
    shared = [name for name in config.conditions if name == main.conditions[0]]
    same = config.degradation == main.degradation and makes_its_input(config) == makes_its_input(main)
    if shared and not same:
        raise ScoreFusionError(
            f"--against {contender.name}: its {shared[0]} is degraded by {config.degradation.model_dump()}, "
            f"that of '{main.name}' by {main.degradation.model_dump()}"
        )


def own_strategy(config: ModelConfig) -> str:
    """The strategy a model is sampled with by default; the last it was trained for, if not for that."""
    trained = [name for name in strategies_of(config) if name in config.strategies]
    return config.sampling.strategy if config.sampling.strategy in trained else trained[-1]


def choose_strategies(text: str | None, config: ModelConfig) -> tuple[str, ...]:
    """Read names with commas between them; all of a model's strategies when None.

    Raises:
        ScoreFusionError: for a name the model cannot run.
    """
    if text is None:
        return strategies_of(config)
    names = [part.strip() for part in text.split(",")]
    return tuple(dict.fromkeys(require_strategy(name, config).name for name in names))


def model_methods(contender: Contender, *, without_consistency: Sequence[str] = ()) -> list[Method]:
    """The rows of one model: its strategies, single conditions, ablated consistency, one evaluation each.

    Args:
        contender: the model.
        without_consistency: strategies that are also sampled without projecting each step onto what was
            measured; ignored for a model that measures nothing.
    """
    config, found = contender.config, []
    runs = [run for run in strategy_runs(config) if run.strategy in contender.strategies]
    if not contender.name:
        runs = [each for run in runs for each in (run, *_by_condition(run, config))]
    full = [Method(_named(contender, run.name), "sample", contender, run) for run in runs]
    found += full
    if config.degradation.measures:
        for method in full:
            if method.run and method.run.strategy in without_consistency and not method.run.branches:
                name = f"{method.name} without consistency"
                found.append(Method(name, "sample", contender, replace(method.run, consistent=False)))
    for method in full:
        # A single evaluation from pure noise is the posterior mean.
        if method.run and not STRATEGIES[method.run.strategy].takes_planes and len(method.table) > 1:
            found.append(
                Method(f"one-step {method.name}", "one-step", contender, method.run, sampled=method.name)
            )
    return found


def _by_condition(run: StrategyRun, config: ModelConfig) -> list[StrategyRun]:
    """After the average of all branches, those of the branches that see the same conditions."""
    seen = dict.fromkeys(branch.conditions for branch in config.branches)
    if run.strategy != AVERAGE.name or len(seen) < 2:
        return []
    found = []
    for conditions in seen:
        chosen = tuple(k for k, branch in enumerate(config.branches) if branch.conditions == conditions)
        name = f"{AVERAGE} [{'+'.join(config.conditions[k] for k in conditions)}]"
        found.append(StrategyRun(name, AVERAGE.name, None, len(chosen), branches=chosen))
    return found


def baseline_names(config: ModelConfig, *, fitted: bool = False) -> tuple[str, ...]:
    """The baselines of a model's task.

    Args:
        config: the model.
        fitted: whether there are subjects to fit a regression of intensities on.
    """
    degradation = config.degradation
    if degradation.coarse:
        return BASELINES if degradation.inverse_is_nearest else (*BASELINES, "pseudo-inverse")
    if degradation.measures:
        return ("pseudo-inverse",)
    return ("input", "intensity regression") if fitted else ("input",)


def choose_baselines(text: str | None, config: ModelConfig, *, fitted: bool = False) -> list[Method]:
    """Read names with commas between them; all baselines of the task when None, none for ``none``.

    Raises:
        ScoreFusionError: for a name that is no baseline of the model's task.
    """
    valid = baseline_names(config, fitted=fitted)
    if text is None:
        names: Sequence[str] = valid
    else:
        names = [] if text == "none" else [part.strip() for part in text.split(",")]
    for name in names:
        if name not in valid:
            raise unknown_name("baseline", name, (*valid, "none"))
    return [Method(name, "baseline") for name in dict.fromkeys(names)]


def choose_rows(text: str | None, methods: Sequence[Method], own: str) -> list[Method]:
    """Read rows' names with commas between them; the row ``own`` or else the last sample when None.

    Raises:
        ScoreFusionError: for a name without a row; ``none`` is no row.
    """
    valid = [method.name for method in methods]
    if text == "none":
        return []
    if text is None:
        sampled = [method.name for method in methods if method.kind == "sample"]
        names = [own] if own in valid else sampled[-1:]
    else:
        names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in valid:
            raise unknown_name("row", name, (*valid, "none"))
    return [method for method in methods if method.name in names]


def check_names(methods: Sequence[Method]) -> None:
    """See that every row has a name of its own.

    Raises:
        ScoreFusionError: for a name that occurs twice.
    """
    seen: set[str] = set()
    for method in methods:
        if method.name in seen:
            raise ScoreFusionError(f"two rows are called '{method.name}'; choose another name for --against")
        seen.add(method.name)


def _named(contender: Contender, name: str) -> str:
    """A row's name: the strategy's for the main model; else the contender's, with the strategy if needed."""
    if not contender.name:
        return name
    return (
        contender.name
        if len(contender.strategies) == 1 and name in contender.strategies
        else f"{contender.name} {name}"
    )
