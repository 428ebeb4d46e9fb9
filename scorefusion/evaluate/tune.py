"""Quality against network evaluations: sample volumes with known truth by many solvers, and choose.

PSNR alone would choose one evaluation, the posterior mean, which is too smooth; so a setting is also held to
the power spectrum and to the Fourier shell correlation of its samples, and all to a reference: many ancestral
steps of the same model.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from scorefusion.diffusion.solvers import SOLVERS, Table
from scorefusion.errors import ScoreFusionError, unknown_name
from scorefusion.evaluate.known_truth import KnownTruth
from scorefusion.evaluate.shared_start import SharedStart, StrategyRun, strategy_runs
from scorefusion.metrics.image import psnr, ssim
from scorefusion.metrics.patches import patch_distance
from scorefusion.metrics.spectrum import compare_spectra
from scorefusion.models.config import ModelConfig, SamplingConfig
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.models.strategies import require_strategy
from scorefusion.models.table import table_for

EVALUATIONS = (1, 2, 3, 4, 6, 8, 12)
SOLVERS_TRIED = ("ddpm", "ddim", "ddim:0.5", "ddim:0:0.2", "dpmpp_2m")
REFERENCE_STEPS = 50

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Slack:
    """By how much a setting may be worse than the reference and still count as no worse.

    Attributes:
        psnr: dB.
        spectrum: of the mean |log10 power ratio|.
        patches: of the patch distance.
        correlation: of the mean Fourier shell correlation.
    """

    psnr: float = 0.02
    spectrum: float = 0.01
    patches: float = 2e-4
    correlation: float = 0.03


@dataclass(frozen=True, eq=False)
class Point:
    """What one way of sampling gave, in the mean over subjects and seeds.

    Attributes:
        sampling: solver, steps and noise levels.
        evaluations: of the network, for one sample.
        seconds: evaluations times the median time of one, averaged over the subjects.
        psnr: dB.
        ssim: 1 is perfect.
        spectrum: mean |log10 power ratio| of the upper half of the bands; 0 is perfect.
        bias: the same with its sign; below 0 is too smooth.
        patches: distance of the patches from the truth's; 0 is perfect.
        correlation: mean Fourier shell correlation of the upper half with the truth; 1 is perfect.
        frequency: ``[bands]``, cycles a voxel.
        log_ratio: ``[bands]``, log10 power ratio.
        shells: ``[bands]``, Fourier shell correlation.
    """

    sampling: SamplingConfig
    evaluations: int
    seconds: float
    psnr: float
    ssim: float
    spectrum: float
    bias: float
    patches: float
    correlation: float
    frequency: np.ndarray
    log_ratio: np.ndarray
    shells: np.ndarray

    def no_worse(self, other: Point, slack: Slack) -> bool:
        """Whether PSNR, spectrum, patches and correlation are all no worse than another's, to the slack."""
        return (
            self.psnr >= other.psnr - slack.psnr
            and self.spectrum <= other.spectrum + slack.spectrum
            and self.patches <= other.patches + slack.patches
            and self.correlation >= other.correlation - slack.correlation
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
    subjects: Sequence[KnownTruth],
    tried: Sequence[SamplingConfig],
    *,
    reference: SamplingConfig | None = None,
    strategy: str | None = None,
    seeds: Sequence[int] = (0,),
    slack: Slack | None = None,
    callback: Progress | None = None,
) -> Curve:
    """Sample every subject in every way, measure, and choose.

    What starts from the same noise shares the branches' outputs there.

    Args:
        model: in evaluation mode, on the subjects' device.
        subjects: from :func:`scorefusion.evaluate.known_truth.read_subjects`.
        tried: from :func:`candidates`.
        reference: from :func:`reference_sampling`.
        strategy: how scores are fused; the model's own by default.
        seeds: a sample for each.
        slack: what counts as no worse.
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
    work = _Work(callback, len(subjects) * len(seeds) * _evaluations(tables[way] for way in ways))
    found: dict[SamplingConfig, list[Point]] = {way: [] for way in ways}
    for subject in subjects:
        work.times = []
        rows: list[tuple[SamplingConfig, Point]] = []
        for seed in seeds:
            sampler = SharedStart(model, subject.prepared, subject.box, seed)
            start = None
            for way in ways:
                table = tables[way]
                work.begin(shared=start == table.abar_start)
                residual = sampler.draw(run, table, work.tell)
                start = table.abar_start
                rows.append((way, _measure(subject, subject.volume(residual, config), way, len(table))))
        each = float(np.median(work.times))
        for way, point in rows:
            found[way].append(replace(point, seconds=each * point.evaluations))
    means = {way: _mean(points) for way, points in found.items()}
    points = tuple(means[way] for way in tried)
    chosen = choose(points, means[reference], slack or Slack())
    return Curve(points, means[reference], means[config.sampling], chosen)


def choose(points: Iterable[Point], reference: Point, slack: Slack) -> Point | None:
    """The cheapest point no worse than the reference; of equally cheap ones that of the best spectrum."""
    good = [point for point in points if point.no_worse(reference, slack)]
    return min(good, key=lambda point: (point.evaluations, point.spectrum), default=None)


class _Work:
    """Counts evaluations for a progress bar, and times those that are not shared."""

    def __init__(self, callback: Progress | None, total: int) -> None:
        self.callback, self.total, self.done = callback, total, 0
        self.times: list[float] = []
        self.shared, self.last = False, 0.0

    def begin(self, *, shared: bool) -> None:
        """A sample begins; ``shared`` if its first evaluation is another's."""
        self.shared, self.last = shared, time.perf_counter()

    def tell(self, step: int, steps: int, x0: Tensor) -> None:
        """An evaluation is done."""
        # A device computes on after the call returns: reading one voxel waits for it.
        float(x0.flatten()[0])
        now = time.perf_counter()
        if step > 1 or not self.shared:
            self.times.append(now - self.last)
            self.done += 1
            if self.callback is not None:
                self.callback(min(self.done, self.total), self.total)
        self.last = now


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


def _measure(subject: KnownTruth, volume: np.ndarray, way: SamplingConfig, evaluations: int) -> Point:
    if not np.isfinite(volume).all():
        name, steps = solver_name(way), way.steps
        raise ScoreFusionError(f"the result of {name} with {steps} steps is not finite; compute in float32")
    spectra = compare_spectra(volume, subject.truth)
    return Point(
        sampling=way,
        evaluations=evaluations,
        seconds=0.0,
        psnr=psnr(volume, subject.truth, subject.data_range),
        ssim=ssim(volume, subject.truth, subject.data_range),
        spectrum=spectra.error,
        bias=spectra.bias,
        patches=patch_distance(volume, subject.truth),
        correlation=spectra.upper_correlation,
        frequency=spectra.frequency,
        log_ratio=spectra.log_ratio,
        shells=spectra.correlation,
    )


def _mean(points: Sequence[Point]) -> Point:
    """The mean over subjects and seeds; spectra of other box sizes are read off at the first's bands."""
    at = points[0].frequency

    def mean(name: str) -> float:
        return float(np.mean([getattr(point, name) for point in points]))

    def curve(name: str) -> np.ndarray:
        read = [np.interp(at, point.frequency, getattr(point, name)) for point in points]
        return np.asarray(np.mean(read, axis=0))

    return Point(
        sampling=points[0].sampling,
        evaluations=points[0].evaluations,
        seconds=mean("seconds"),
        psnr=mean("psnr"),
        ssim=mean("ssim"),
        spectrum=mean("spectrum"),
        bias=mean("bias"),
        patches=mean("patches"),
        correlation=mean("correlation"),
        frequency=at,
        log_ratio=curve("log_ratio"),
        shells=curve("shells"),
    )
