"""Quality against network evaluations: sample volumes with known truth by many solvers, and choose.

PSNR alone would choose one evaluation, the posterior mean, which is too smooth; so every metric that has a
slack is compared with a reference: many ancestral steps of the same model.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from scorefusion.diffusion.solvers import SOLVERS, Table
from scorefusion.engine.pool import EnginePool
from scorefusion.errors import ScoreFusionError, unknown_name
from scorefusion.evaluate.cases import Case
from scorefusion.evaluate.run import Clock, Progress, Work
from scorefusion.evaluate.shared_start import SharedStart, StrategyRun, strategy_runs
from scorefusion.metrics import METRICS, Pair, measure, shown
from scorefusion.models.config import ModelConfig, SamplingConfig
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.models.strategies import require_strategy
from scorefusion.models.table import table_for

EVALUATIONS = (1, 2, 3, 4, 6, 8, 12)
SOLVERS_TRIED = ("ddpm", "ddim", "ddim:0.5", "ddim:0:0.2", "dpmpp_2m")
REFERENCE_STEPS = 50


@dataclass(frozen=True, eq=False)
class Point:
    """What one way of sampling gave, in the mean over subjects and seeds.

    Attributes:
        sampling: solver, steps and noise levels.
        evaluations: of the network, for one sample.
        seconds: evaluations times the median time of one, averaged over the subjects.
        figures: metric to value.
        frequency: ``[bands]``, cycles per voxel.
        log_ratio: ``[bands]``, log10 power ratio.
        shells: ``[bands]``, Fourier shell correlation.
    """

    sampling: SamplingConfig
    evaluations: int
    seconds: float
    figures: Mapping[str, float]
    frequency: np.ndarray
    log_ratio: np.ndarray
    shells: np.ndarray

    def no_worse(self, other: Point, slack: Mapping[str, float] | None = None) -> bool:
        """Whether all metrics that have a slack, or the given ones, are no worse than another point's."""
        slack = {m.name: m.slack for m in shown("tune") if m.slack is not None} if slack is None else slack
        return all(
            METRICS[name].no_worse(self.figures[name], other.figures[name], most)
            for name, most in slack.items()
        )


@dataclass(frozen=True, eq=False)
class Curve:
    """Every setting tried, and the reference.

    Attributes:
        points: in the order of the candidates.
        reference: many ancestral steps.
        own: the model's default as it was.
        chosen: the cheapest point that is no worse than the reference; None if there is none.
    """

    points: tuple[Point, ...]
    reference: Point
    own: Point
    chosen: Point | None


def solver_name(sampling: SamplingConfig) -> str:
    """The solver, with its eta and spread where it has them: ``ddim:0.5:0.2``."""
    parts = [sampling.eta, sampling.spread]
    while parts and parts[-1] is None:
        parts.pop()
    return ":".join([sampling.solver, *(f"{part or 0.0:g}" for part in parts)])


def noise_range(sampling: SamplingConfig) -> str:
    """Where the noise begins and ends, and rho if not the usual 7; the schedule's name if it is fixed."""
    if sampling.schedule != "karras":
        return sampling.schedule
    rho = "" if sampling.rho == SamplingConfig().rho else f", rho {sampling.rho:g}"
    return f"{sampling.sigma_max:g} to {sampling.sigma_min:g}{rho}"


def parse_solver(text: str) -> dict[str, Any]:
    """Read ``SOLVER``, ``SOLVER:ETA`` or ``SOLVER:ETA:SPREAD`` as the keys of a ``SamplingConfig``.

    Raises:
        ScoreFusionError: for an unknown solver, with the nearest, or what is no number.
    """
    name, *given = text.split(":")
    if name not in SOLVERS:
        raise unknown_name("solver", name, SOLVERS)
    try:
        values = [float(number) for number in given]
    except ValueError:
        values = []
    if len(values) != len(given) or len(values) > 2:
        raise ScoreFusionError(
            f"a solver is NAME, NAME:ETA or NAME:ETA:SPREAD, such as ddim:0.5; got '{text}'"
        )
    return {"solver": name, "eta": None, "spread": None, **dict(zip(("eta", "spread"), values, strict=False))}


def candidates(
    config: ModelConfig,
    *,
    solvers: Iterable[str] = SOLVERS_TRIED,
    evaluations: Iterable[int] = EVALUATIONS,
    sigma_min: Sequence[float] | None = None,
    sigma_max: Sequence[float] | None = None,
    rho: Sequence[float] | None = None,
) -> list[SamplingConfig]:
    """Ways to sample a model: every solver with every number of evaluations and noise range.

    Two that are the same numbers, step by step, are one; heun takes odd numbers of evaluations only.

    Args:
        config: the model.
        solvers: as :func:`parse_solver` reads them.
        evaluations: of the network.
        sigma_min: where the noise ends; the model's own, twice and four times that by default.
        sigma_max: where it begins; the model's own by default.
        rho: how levels crowd at the clean end; the model's own by default.

    Raises:
        ScoreFusionError: for an unknown solver or numbers out of range; and for noise ranges of a model
            whose schedule is not ``karras``, which has none to choose.
    """
    own = config.sampling
    ranged = own.schedule == "karras"
    if not ranged and (sigma_min or sigma_max or rho):
        raise ScoreFusionError(
            "sigma_min, sigma_max and rho are for the karras schedule; "
            f"model '{config.name}' has '{own.schedule}'"
        )
    lows = sigma_min or (
        (own.sigma_min, 2 * own.sigma_min, 4 * own.sigma_min) if ranged else (own.sigma_min,)
    )
    found: dict[bytes, SamplingConfig] = {}
    ranges = itertools.product(sigma_max or (own.sigma_max,), lows, rho or (own.rho,))
    for solver, (high, low, power) in itertools.product(map(parse_solver, solvers), ranges):
        for count in evaluations:
            heun = solver["solver"] == "heun"
            if heun and count % 2 == 0:
                continue
            steps = (count + 1) // 2 if heun else count
            levels = {"steps": steps, "sigma_min": low, "sigma_max": high, "rho": power}
            sampling = own.model_copy(update=solver | levels)
            found.setdefault(table_of(config, sampling).rows.tobytes(), sampling)
    return list(found.values())


def reference_sampling(config: ModelConfig, steps: int = REFERENCE_STEPS) -> SamplingConfig:
    """Many ancestral steps over the model's own noise levels; for imported models the authors' sampler."""
    solver = "official" if config.sampling.solver == "official" else "ddpm"
    return config.sampling.model_copy(update={"solver": solver, "steps": steps, "eta": None, "spread": None})


def table_of(config: ModelConfig, sampling: SamplingConfig) -> Table:
    """The solver's table of one way to sample a model."""
    return table_for(config.model_copy(update={"sampling": sampling}))


def tune(
    model: ScoreFusion,
    subjects: Sequence[Case],
    tried: Sequence[SamplingConfig],
    *,
    reference: SamplingConfig | None = None,
    strategy: str | None = None,
    seeds: Sequence[int] = (0,),
    slack: Mapping[str, float] | None = None,
    callback: Progress | None = None,
) -> Curve:
    """Sample every subject in every way, measure, and choose.

    What starts from the same noise shares the branches' outputs there.

    Args:
        model: in evaluation mode, on the subjects' device.
        subjects: from :func:`scorefusion.evaluate.cases.make_cases`.
        tried: from :func:`candidates`.
        reference: from :func:`reference_sampling`.
        strategy: how scores are fused; the model's own by default.
        seeds: a sample for each.
        slack: by how much each metric may be worse than the reference's; the metrics' own by default.
        callback: called with (network evaluations done, in all).

    Raises:
        ScoreFusionError: for a strategy the model cannot run, or a result that is not finite.
    """
    config = model.config
    run = _run_of(config, strategy)
    reference = reference or reference_sampling(config)
    ways = list(dict.fromkeys([reference, config.sampling, *tried]))
    tables = {way: table_of(config, way) for way in ways}
    ways.sort(key=lambda way: tables[way].abar_start)
    work = Work(callback, len(subjects) * len(seeds) * _evaluations(tables[way] for way in ways))
    points: dict[SamplingConfig, list[Point]] = {way: [] for way in ways}
    engines = EnginePool(model)
    for subject in subjects:
        times: list[float] = []
        rows: list[Point] = []
        for seed in seeds:
            sampler = SharedStart(model, subject.prepared, subject.box, seed, engines=engines)
            start = None
            for way in ways:
                table = tables[way]
                shared = start == table.abar_start

                def done(step: int, shared: bool = shared) -> None:
                    work.add(step > 1 or not shared)

                clock = Clock(done)
                volume = subject.volume(sampler.draw(run, table, clock))
                times += clock.times[shared:]
                start = table.abar_start
                rows.append(_measure(subject, volume, way, len(table)))
        each = float(np.median(times))
        for point in rows:
            points[point.sampling].append(replace(point, seconds=each * point.evaluations))
    means = {way: _mean(several) for way, several in points.items()}
    results = tuple(means[way] for way in tried)
    chosen = choose(results, means[reference], slack)
    return Curve(results, means[reference], means[config.sampling], chosen)


def choose(
    points: Iterable[Point], reference: Point, slack: Mapping[str, float] | None = None
) -> Point | None:
    """The cheapest point no worse than the reference; of equally cheap ones that of the best spectrum."""
    good = [point for point in points if point.no_worse(reference, slack)]
    return min(good, key=lambda point: (point.evaluations, point.figures["spectrum"]), default=None)


def _evaluations(tables: Iterator[Table]) -> int:
    """How many evaluations the tables take, one after another, the first of each start counted once."""
    total, start = 0, None
    for table in tables:
        total += len(table) - (table.abar_start == start)
        start = table.abar_start
    return total


def _run_of(config: ModelConfig, strategy: str | None) -> StrategyRun:
    chosen = require_strategy(strategy, config)
    runs = [run for run in strategy_runs(config) if run.strategy == chosen.name]
    own = (config.sampling.single_plane,)
    return next((run for run in runs if run.planes == own), runs[0])


def _measure(subject: Case, volume: np.ndarray, way: SamplingConfig, evaluations: int) -> Point:
    if not np.isfinite(volume).all():
        name, steps = solver_name(way), way.steps
        raise ScoreFusionError(f"the result of {name} with {steps} steps is not finite; compute in float32")
    pair = Pair(volume, subject.truth, subject.data_range)
    figures = {name: value for name, value in measure(pair, "tune").items() if value is not None}
    spectra = pair.spectra
    bands = spectra.frequency, spectra.log_ratio, spectra.correlation
    return Point(way, evaluations, 0.0, figures, *bands)


def _mean(points: Sequence[Point]) -> Point:
    """The mean over subjects and seeds; spectra of other box sizes are read off at the first's bands."""
    first = points[0]

    def curve(name: str) -> np.ndarray:
        read = [np.interp(first.frequency, point.frequency, getattr(point, name)) for point in points]
        return np.asarray(np.mean(read, axis=0))

    return replace(
        first,
        seconds=float(np.mean([point.seconds for point in points])),
        figures={name: float(np.mean([point.figures[name] for point in points])) for name in first.figures},
        log_ratio=curve("log_ratio"),
        shells=curve("shells"),
    )
