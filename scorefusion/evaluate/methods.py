"""The rows of an evaluation: strategies of one model, other models beside it, ablations, and baselines."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch

from scorefusion.data import BASELINES, interpolate
from scorefusion.diffusion import Table
from scorefusion.engine import EnginePool
from scorefusion.errors import ScoreFusionError, unknown_name
from scorefusion.evaluate.cases import Case, as_array, makes_its_input
from scorefusion.evaluate.shared_start import StrategyRun, strategy_runs
from scorefusion.models import ModelConfig, SamplingConfig, ScoreFusion, table_for
from scorefusion.models.strategies import AVERAGE, STRATEGIES, require_strategy, strategies_of
from scorefusion.pipeline import Pipeline

Kind = Literal["baseline", "sample", "one-step"]

REGRESSION = "intensity regression"
DEGREE = 3


@dataclass(frozen=True, eq=False)
class Contender:
    """A model that takes part."""

    name: str  #: empty for the model that is evaluated; else what its rows are called
    model: ScoreFusion  #: in evaluation mode, on its device
    strategies: tuple[str, ...]  #: which of its strategies make rows
    sampling: SamplingConfig  #: solver and noise levels

    @cached_property
    def engines(self) -> EnginePool:
        """The model's engines; on a GPU those of several strategies are kept, with their graphs."""
        return EnginePool(self.model, idle=8 if next(self.model.parameters()).device.type == "cuda" else 1)

    @property
    def config(self) -> ModelConfig:
        """The model's description."""
        return self.model.config

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the weights, their dtype, and what of the configuration they are used by."""
        digest = hashlib.sha256(self.config.model_dump_json(exclude={"sampling", "name"}).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def table(self, steps: int | None = None) -> Table:
        """The solver's table."""
        return table_for(self.config.model_copy(update={"sampling": self.sampling}), steps=steps)


@dataclass(frozen=True, eq=False)
class Method:
    """A row."""

    name: str  #: unique
    kind: Kind  #: ``baseline``, ``sample``, or ``one-step``: one evaluation from pure noise
    contender: Contender | None = None  #: whose model; None for a baseline
    run: StrategyRun | None = None  #: how it is sampled; None for a baseline
    sampled: str | None = None  #: for ``one-step``, the name of the row that is sampled the same way in full

    @cached_property
    def table(self) -> Table:
        """The solver's table."""
        assert self.contender is not None
        return self.contender.table(1 if self.kind == "one-step" else None)


def other_sampling(
    config: ModelConfig,
    solver: str | None,
    steps: int | None,
    levels: Mapping[str, float | None],
    samples: int = 1,
) -> SamplingConfig:
    """The model's sampling, changed where something is given; ``levels``: sigma_min, sigma_max, rho."""
    steps = config.sampling.steps_for(samples) if steps is None else steps
    # Another solver takes no eta or spread.
    changes: dict[str, Any] = {} if solver is None else {"solver": solver, "eta": None, "spread": None}
    changes["steps"] = steps
    given = {name: value for name, value in levels.items() if value is not None}
    if given and config.sampling.schedule != "karras":
        option, schedule = next(iter(given)).replace("_", "-"), config.sampling.schedule
        raise ScoreFusionError(
            f"--{option} is for the karras schedule; model '{config.name}' has '{schedule}'"
        )
    return config.sampling.model_copy(update=changes | given)


def load_main(
    model: str,
    strategies: str | None,
    *,
    solver: str | None = None,
    steps: int | None = None,
    levels: Mapping[str, float | None] | None = None,
    samples: int = 1,
    device: str = "auto",
    dtype: str = "auto",
) -> Contender:
    """Load the model that is evaluated, device and dtype as :class:`~scorefusion.Pipeline` takes them.

    ``strategies`` are names with commas between them, all of the model's when None; ``solver``, ``steps``,
    ``levels`` and ``samples`` are as :func:`other_sampling` takes them. Raises ScoreFusionError for unknown
    names or numbers out of range.
    """
    pipeline = Pipeline(model, device=device, dtype=dtype)
    config = pipeline.config
    sampling = other_sampling(config, solver, steps, levels or {}, samples)
    main = Contender("", pipeline.model, choose_strategies(strategies, config), sampling)
    main.table()
    return main


def load_other(text: str, main: Contender, *, device: str = "auto", dtype: str = "auto") -> Contender:
    """Load what ``NAME=MODEL`` or ``NAME=MODEL:STRATEGY`` says.

    It is sampled as the main model is (solver, steps, noise levels), where both have the same kind of
    schedule; else as it says itself. Without a strategy it is its own. Raises ScoreFusionError for another
    form, an unknown name, or a model of another task.
    """
    name, equals, place = text.partition("=")
    if not (name.strip() and equals and place):
        raise ScoreFusionError(f"--against needs NAME=MODEL or NAME=MODEL:STRATEGY, got '{text}'")
    folder, colon, strategy = place.rpartition(":")
    if not colon or strategy not in STRATEGIES:
        folder, strategy = place, ""
    pipeline = Pipeline(folder, device=device, dtype=dtype)
    config, sampling = pipeline.config, pipeline.config.sampling
    strategy = require_strategy(strategy or own_strategy(config), config).name
    if sampling.schedule == main.sampling.schedule:
        shared = ("solver", "steps", "sigma_max", "sigma_min", "rho", "eta", "spread")
        sampling = sampling.model_copy(update={key: getattr(main.sampling, key) for key in shared})
    other = Contender(name.strip(), pipeline.model, (strategy,), sampling)
    task = main.config
    if config.target != task.target or not set(config.conditions) <= set(task.conditions):
        theirs, ours = (f"makes {each.target} of {', '.join(each.conditions)}" for each in (config, task))
        raise ScoreFusionError(f"--against {other.name}: {theirs}; '{task.name}' {ours}")
    same = config.degradation == task.degradation and makes_its_input(config) == makes_its_input(task)
    if task.conditions[0] in config.conditions and not same:
        by, usual = config.degradation.model_dump(), task.degradation.model_dump()
        degraded = f"its {task.conditions[0]} is degraded by {by}, that of '{task.name}' by {usual}"
        raise ScoreFusionError(f"--against {other.name}: {degraded}")
    other.table()
    return other


def own_strategy(config: ModelConfig) -> str:
    """The strategy a model is sampled with by default; the last it was trained for, if not for that."""
    trained = [name for name in strategies_of(config) if name in config.strategies]
    return config.sampling.strategy if config.sampling.strategy in trained else trained[-1]


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def choose_strategies(text: str | None, config: ModelConfig) -> tuple[str, ...]:
    """Read names with commas between them; all of a model's strategies when None."""
    if text is None:
        return strategies_of(config)
    return tuple(dict.fromkeys(require_strategy(name, config).name for name in _names(text)))


def rows_of(main: Contender, others: Sequence[Contender], without_consistency: str | None) -> list[Method]:
    """The rows of all models, each of a name of its own.

    ``without_consistency`` names the strategies that are also sampled without projection, with commas between
    them: the model's own when None, no one for ``none``. Raises ScoreFusionError for two rows of one name.
    """
    text = own_strategy(main.config) if without_consistency is None else without_consistency
    ablated = () if text == "none" else choose_strategies(text, main.config)
    methods = model_methods(main, without_consistency=ablated)
    for other in others:
        methods += model_methods(other)
    check_names(methods)
    return methods


def check_names(methods: Sequence[Method]) -> None:
    """Check that every row has a name of its own."""
    for name, count in Counter(method.name for method in methods).items():
        if count > 1:
            raise ScoreFusionError(f"two rows are called '{name}'; choose another name for --against")


def model_methods(contender: Contender, *, without_consistency: Sequence[str] = ()) -> list[Method]:
    """The rows of one model: its strategies, single conditions, some unprojected, one evaluation each."""
    config = contender.config
    runs = [run for run in strategy_runs(config) if run.strategy in contender.strategies]
    if not contender.name:
        runs = [each for run in runs for each in (run, *_by_condition(run, config))]
    full = []
    for run in runs:
        # The contender's only row is called as the contender is.
        alone = contender.name and contender.strategies == (run.name,)
        name = contender.name if alone else f"{contender.name} {run.name}".strip()
        full.append(Method(name, "sample", contender, run))
    rows = list(full)
    for method in full if config.degradation.measures else ():
        if method.run and method.run.strategy in without_consistency and not method.run.branches:
            name, run = f"{method.name} without consistency", replace(method.run, consistent=False)
            rows.append(Method(name, "sample", contender, run))
    for method in full:
        # A single evaluation from pure noise is the posterior mean.
        if method.run and not STRATEGIES[method.run.strategy].takes_planes and len(method.table) > 1:
            name = f"one-step {method.name}"
            rows.append(Method(name, "one-step", contender, method.run, sampled=method.name))
    return rows


def _by_condition(run: StrategyRun, config: ModelConfig) -> Iterator[StrategyRun]:
    """After the average of all branches, those of the branches that see the same conditions."""
    seen = dict.fromkeys(branch.conditions for branch in config.branches)
    for conditions in seen if run.strategy == AVERAGE.name and len(seen) > 1 else ():
        chosen = tuple(k for k, branch in enumerate(config.branches) if branch.conditions == conditions)
        name = f"{AVERAGE} [{'+'.join(config.conditions[k] for k in conditions)}]"
        yield StrategyRun(name, AVERAGE.name, None, len(chosen), branches=chosen)


def choose_rows(text: str | None, methods: Sequence[Method], own: str) -> list[Method]:
    """Read rows' names with commas between them; the row ``own`` or else the last sample when None."""
    valid = [method.name for method in methods]
    if text is None:
        names = [own] if own in valid else [m.name for m in methods if m.kind == "sample"][-1:]
    else:
        names = _known_names("row", text, valid)
    return [method for method in methods if method.name in names]


def _known_names(kind: str, text: str, valid: Sequence[str]) -> list[str]:
    """Read valid names with commas between them, each once; ``none`` is no name."""
    names = [] if text == "none" else list(dict.fromkeys(_names(text)))
    for name in names:
        if name not in valid:
            raise unknown_name(kind, name, (*valid, "none"))
    return names


def choose_baselines(text: str | None, config: ModelConfig, *, fitted: bool = False) -> list[Method]:
    """Read names with commas between them; all baselines of the task when None, none for ``none``.

    ``fitted`` says whether there are subjects to fit a regression on.
    """
    degradation, valid = config.degradation, ["input", REGRESSION][: 1 + fitted]
    if degradation.measures:
        inverse = () if degradation.inverse_is_nearest else ("pseudo-inverse",)
        valid = [*(BASELINES if degradation.coarse else ()), *inverse]
    names = valid if text is None else _known_names("baseline", text, valid)
    return [Method(name, "baseline") for name in names]


def baseline_volume(name: str, case: Case, regression: Regression | None = None) -> np.ndarray:
    """The result of one of :func:`choose_baselines`: float32 ``[d, h, w]`` of the box, normalised."""
    degradation = case.config.degradation
    if name in (*BASELINES, "pseudo-inverse") and degradation.coarse:
        given = case.measured.float()
        fine = interpolate(given, name, degradation.factors, case.prepared.operator)
        return as_array(case.intensity.normalise(fine)[case.box.index])
    if name == REGRESSION:
        assert regression is not None
        return regression(_conditions(case))
    # What the pseudo-inverse makes of a measurement, or an input that is not degraded.
    return as_array(case.prepared.condition[:, :1][case.box.index])


@dataclass(frozen=True, eq=False)
class Regression:
    """The target's intensity as a polynomial of the conditions', the same everywhere."""

    weights: np.ndarray  #: float64 ``[1 + DEGREE · C]``: of 1, then of each condition's powers 1, 2, 3

    @classmethod
    def fit(cls, cases: Iterable[Case]) -> Regression:
        """Fit by least squares over all voxels of the boxes of a training set, of one case at least."""
        square, product, count = 0.0, 0.0, 0
        for case in cases:
            terms = _terms(_conditions(case))
            square = square + terms.T @ terms
            product = product + terms.T @ case.truth.ravel().astype(np.float64)
            count += 1
        if not count:
            raise ScoreFusionError("a regression of intensities needs at least one subject")
        weights, *_ = np.linalg.lstsq(np.asarray(square), np.asarray(product), rcond=None)
        return cls(weights)

    @property
    def digest(self) -> str:
        """SHA-256 of the weights."""
        return hashlib.sha256(self.weights.tobytes()).hexdigest()

    def __call__(self, conditions: np.ndarray) -> np.ndarray:
        """Predict a normalised volume ``[d, h, w]`` from conditions ``[C, d, h, w]``."""
        return (_terms(conditions) @ self.weights).reshape(conditions.shape[1:]).astype(np.float32)


def _conditions(case: Case) -> np.ndarray:
    return case.prepared.condition[case.box.index][0].float().cpu().numpy()


def _terms(conditions: np.ndarray) -> np.ndarray:
    """``[N, 1 + DEGREE · C]`` of conditions ``[C, d, h, w]`` of N voxels."""
    rows = conditions.reshape(len(conditions), -1).astype(np.float64)
    powers = [values**n for values in rows for n in range(1, DEGREE + 1)]
    return np.stack([np.ones(rows.shape[1]), *powers], axis=1)
