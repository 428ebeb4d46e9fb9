"""Quality against network evaluations: sample volumes with known truth by many solvers, and choose.

PSNR alone would choose one evaluation, too smooth; every metric with a slack is compared with a reference.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from scorefusion.diffusion import SOLVERS, Table
from scorefusion.engine import EnginePool
from scorefusion.errors import ScoreFusionError, unknown_name
from scorefusion.evaluate.cases import Case
from scorefusion.evaluate.output import aligned, write_csv, write_text
from scorefusion.evaluate.run import Clock, Progress, Work
from scorefusion.evaluate.shared_start import SharedStart, strategy_runs
from scorefusion.io import save_figure, try_to_write
from scorefusion.metrics import METRICS, Metric, Pair, measure, shown
from scorefusion.models import ModelConfig, SamplingConfig, ScoreFusion, require_strategy, table_for
from scorefusion.optional import need

EVALUATIONS = (1, 2, 3, 4, 6, 8, 12)
SOLVERS_TRIED = ("ddpm", "ddim", "ddim:0.5", "ddim:0:0.2", "dpmpp_2m")
REFERENCE_STEPS = 50

FILES = ("tune.json", "tune.csv", "tune.png")
NEEDED = ("matplotlib", "skimage.metrics")  #: optional packages that measure and draw
_LEVELS = ("sigma_max", "sigma_min", "rho")
_COLUMNS = {"spectrum_signed": "bias"}  #: names of metrics in the files, where they are other ones
_COLOURS = ("#1f77b4", "#d95f02", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f")
_STYLES = ("-", "--", ":", "-.")
_CHOSEN = "crimson"


@dataclass(frozen=True, eq=False)
class Point:
    """What one way of sampling gave, in the mean over subjects and seeds."""

    sampling: SamplingConfig  #: solver, steps and noise levels
    evaluations: int  #: of the network, for one sample
    seconds: float  #: evaluations times the median time of one, averaged over the subjects
    figures: Mapping[str, float]  #: metric to value
    frequency: np.ndarray  #: ``[bands]``, cycles per voxel
    log_ratio: np.ndarray  #: ``[bands]``, log10 power ratio
    shells: np.ndarray  #: ``[bands]``, Fourier shell correlation

    def no_worse(self, other: Point, slack: Mapping[str, float] | None = None) -> bool:
        """Whether all metrics that have a slack, or the given ones, are no worse than another point's."""
        slack = {m.name: m.slack for m in shown("tune") if m.slack is not None} if slack is None else slack
        return all(
            METRICS[name].no_worse(self.figures[name], other.figures[name], most)
            for name, most in slack.items()
        )


@dataclass(frozen=True, eq=False)
class Curve:
    """Every setting tried, and the reference."""

    points: tuple[Point, ...]  #: in the order of the candidates
    reference: Point  #: many ancestral steps
    own: Point  #: the model's default as it was
    chosen: Point | None  #: the cheapest point that is no worse than the reference; None if there is none


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
    """Read ``SOLVER``, ``SOLVER:ETA`` or ``SOLVER:ETA:SPREAD`` as the keys of a ``SamplingConfig``."""
    name, *given = text.split(":")
    if name not in SOLVERS:
        raise unknown_name("solver", name, SOLVERS)
    try:
        values = [float(number) for number in given]
    except ValueError:
        values = []
    if len(values) != len(given) or len(values) > 2:
        form = "NAME, NAME:ETA or NAME:ETA:SPREAD, such as ddim:0.5"
        raise ScoreFusionError(f"a solver is {form}; got '{text}'")
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

    Two that are the same numbers, step by step, are one; heun takes odd numbers of evaluations only. By
    default noise ends at the model's own sigma_min, twice and four times that, and is else the model's own.
    """
    own = config.sampling
    ranged = own.schedule == "karras"
    if not ranged and (sigma_min or sigma_max or rho):
        which = "sigma_min, sigma_max and rho are for the karras schedule"
        raise ScoreFusionError(f"{which}; model '{config.name}' has '{own.schedule}'")
    lows = sigma_min or [own.sigma_min * times for times in ((1, 2, 4) if ranged else (1,))]
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
    callback: Progress | None = None,
) -> Curve:
    """Sample every subject in every way with every seed, measure, and choose.

    What starts from the same noise shares the branches' outputs there. ``callback`` counts evaluations.
    """
    config = model.config
    chosen = require_strategy(strategy, config)
    runs = [run for run in strategy_runs(config) if run.strategy == chosen.name]
    run = next((run for run in runs if run.planes == (config.sampling.single_plane,)), runs[0])
    reference = reference or reference_sampling(config)
    ways = list(dict.fromkeys([reference, config.sampling, *tried]))
    tables = {way: table_of(config, way) for way in ways}
    ways.sort(key=lambda way: tables[way].abar_start)
    # The first evaluation of each start is counted once.
    evaluations = sum(map(len, tables.values())) - len(tables)
    evaluations += len({table.abar_start for table in tables.values()})
    work = Work(callback, len(subjects) * len(seeds) * evaluations)
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
    return Curve(results, means[reference], means[config.sampling], choose(results, means[reference]))


def choose(points: Iterable[Point], reference: Point) -> Point | None:
    """The cheapest point no worse than the reference; of equally cheap ones that of the best spectrum."""
    good = [point for point in points if point.no_worse(reference)]
    return min(good, key=lambda point: (point.evaluations, point.figures["spectrum"]), default=None)


def _measure(subject: Case, volume: np.ndarray, way: SamplingConfig, evaluations: int) -> Point:
    if not np.isfinite(volume).all():
        name, steps = solver_name(way), way.steps
        raise ScoreFusionError(f"the result of {name} with {steps} steps is not finite; compute in float32")
    pair = Pair(volume, subject.truth, subject.data_range)
    figures = {name: value for name, value in measure(pair, "tune").items() if value is not None}
    found = pair.spectra
    return Point(way, evaluations, 0.0, figures, found.frequency, found.log_ratio, found.correlation)


def _mean(points: Sequence[Point]) -> Point:
    """The mean over subjects and seeds; spectra of other box sizes are read off at the first's bands."""
    first = points[0]
    log_ratio, shells = (
        np.mean([np.interp(first.frequency, p.frequency, getattr(p, name)) for p in points], axis=0)
        for name in ("log_ratio", "shells")
    )
    seconds = float(np.mean([point.seconds for point in points]))
    figures = {name: float(np.mean([point.figures[name] for point in points])) for name in first.figures}
    return replace(first, seconds=seconds, figures=figures, log_ratio=log_ratio, shells=shells)


def table_text(curve: Curve) -> str:
    """Every setting as aligned columns, cheapest first; the chosen one is marked."""
    metrics = _metrics(curve)
    rows = [["", "solver", "eval.", "sigma", "seconds", *(metric.head for metric in metrics)]]
    for label, point in _labelled(curve):
        first = ["*" if point is curve.chosen else "", label, str(point.evaluations)]
        quality = [metric.format(point.figures[metric.name], narrow=True) for metric in metrics]
        rows.append([*first, noise_range(point.sampling), f"{point.seconds:.2f}", *quality])
    widths = [max(len(row[column]) for row in rows) + 2 for column in range(5, len(rows[0]))]
    return aligned(rows, [-2, -14, 6, 20, 9, *widths])


def verdict(curve: Curve) -> str:
    """The choice in one sentence."""
    reference = curve.reference
    beside = f"{reference.evaluations} {reference.sampling.solver} steps ({_quality(reference)})"
    if curve.chosen is None:
        return f"no setting tried is as good as {beside}"
    point = curve.chosen
    evaluations = f"{point.evaluations} evaluation{'s' * (point.evaluations != 1)}"
    return (
        f"chosen: {solver_name(point.sampling)}, {evaluations}, sigma "
        f"{noise_range(point.sampling)} ({_quality(point)}): no worse than {beside}"
    )


def _quality(point: Point) -> str:
    texts = []
    for metric in (metric for metric in shown("tune") if metric.slack is not None):
        text = metric.format(point.figures[metric.name], narrow=True)
        texts.append(f"{text} dB" if metric.unit == "dB" else f"{metric.head} {text}")
    return ", ".join(texts)


def write_results(
    folder: Path,
    curve: Curve,
    subjects: Sequence[Case],
    *,
    model: str,
    strategy: str,
    seeds: int,
    computed: str,
) -> str | None:
    """Write the figures as JSON (with bands) and CSV, last the picture; why that could not be, or None."""
    content = {
        "model": model,
        "strategy": strategy,
        "seeds": seeds,
        "computed": computed,
        "subjects": [{"name": s.file, "start": s.box.start, "stop": s.box.stop} for s in subjects],
        "chosen": None if curve.chosen is None else _record(curve.chosen),
        "reference": _record(curve.reference),
        "own": _record(curve.own),
        "points": [_record(point) for point in curve.points],
    }
    write_text(folder / "tune.json", json.dumps(content, indent=1) + "\n")
    figures = [_COLUMNS.get(metric.name, metric.name) for metric in _metrics(curve)]
    lines: list[list[object]] = [["label", "evaluations", *_LEVELS, "seconds", *figures]]
    for label, point in _labelled(curve):
        levels = [getattr(point.sampling, name) for name in _LEVELS]
        lines.append([label, point.evaluations, *levels, point.seconds, *point.figures.values()])
    write_csv(folder / "tune.csv", lines)
    title = f"{model}, {strategy}: {', '.join(Path(subject.file).name for subject in subjects)}"
    picture = folder / "tune.png"
    return try_to_write(picture, lambda: save_figure(curve_figure(curve, title), picture))


def _labelled(curve: Curve) -> Iterable[tuple[str, Point]]:
    """Every setting with its name, cheapest first, then the model's own and the reference."""
    for point in sorted(curve.points, key=lambda point: point.evaluations):
        yield solver_name(point.sampling), point
    yield "as it was", curve.own
    yield "reference", curve.reference


def _metrics(curve: Curve) -> list[Metric]:
    return [metric for metric in shown("tune") if metric.name in curve.own.figures]


def _record(point: Point) -> dict[str, Any]:
    return {
        "sampling": point.sampling.model_dump(mode="json"),
        "evaluations": point.evaluations,
        "seconds": round(point.seconds, 4),
        **{_COLUMNS.get(name, name): round(value, 5) for name, value in point.figures.items()},
        "frequency": point.frequency.round(5).tolist(),
        "log10_power_ratio": point.log_ratio.round(4).tolist(),
        "fourier_shell_correlation": point.shells.round(4).tolist(),
    }


def curve_figure(curve: Curve, title: str) -> Any:
    """Draw metrics against evaluations, PSNR against the spectrum error, and the bands.

    A solver has a colour, a noise range a style; the reference is dashed or a diamond, the choice a star.
    """
    metrics = [metric for metric in shown("tune") if metric.better and metric.name in curve.own.figures]
    rows = -(-(len(metrics) + 3) // 4)
    figure = need("matplotlib.figure", "a figure").Figure(figsize=(18, 4.25 * rows), layout="constrained")
    axes = list(figure.subplots(rows, 4).flat)
    for axis, metric in zip(axes, metrics, strict=False):
        _against_evaluations(axis, curve, metric)
    both, bands, *rest = axes[len(metrics) :]
    _both_at_once(both, curve)
    _by_band(bands, curve)
    for axis in rest:
        axis.set_axis_off()
    rest[0].legend(*both.get_legend_handles_labels(), loc="center", fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=11)
    return figure


def _against_evaluations(axis: Any, curve: Curve, metric: Metric) -> None:
    for look, points in _lines(curve.points):
        values = [point.figures[metric.name] for point in points]
        axis.plot([point.evaluations for point in points], values, **look)
    reference = curve.reference
    axis.axhline(reference.figures[metric.name], color="black", linewidth=0.9, linestyle=(0, (6, 2)))
    if curve.chosen is not None:
        place = (curve.chosen.evaluations, curve.chosen.figures[metric.name])
        axis.plot(*place, marker="*", markersize=14, color=_CHOSEN, zorder=5)
    counts = sorted({point.evaluations for point in curve.points})
    axis.set_xscale("log", base=2)
    axis.set_xticks(counts, labels=[str(count) for count in counts])
    axis.minorticks_off()
    axis.set(xlabel="network evaluations", ylabel=metric.label)
    each = reference.seconds / reference.evaluations
    seconds = axis.secondary_xaxis("top", functions=(lambda x: x * each, lambda x: x / each))
    seconds.set_xticks([n * each for n in counts], labels=[f"{n * each:.3g}" for n in counts])
    seconds.minorticks_off()
    seconds.set_xlabel("seconds", fontsize=8)
    seconds.tick_params(labelsize=7)


def _both_at_once(axis: Any, curve: Curve) -> None:
    """PSNR against the spectrum error; what is no worse than the reference in both lies in the shade."""
    x, y = METRICS["spectrum"], METRICS["psnr"]

    def place(point: Point) -> tuple[float, float]:
        return point.figures[x.name], point.figures[y.name]

    for look, points in _lines(curve.points):
        axis.plot(*zip(*map(place, points), strict=True), **look)
        style = {"textcoords": "offset points", "fontsize": 6, "color": look["color"]}
        for point in points:
            axis.annotate(str(point.evaluations), place(point), (3, 2), **style)
    ends = place(curve.reference)
    axis.plot(*ends, "D", color="black", zorder=5, label=f"{curve.reference.evaluations} ancestral steps")
    if curve.chosen is not None:
        star = {"markersize": 14, "color": _CHOSEN, "zorder": 6, "label": "chosen", "linestyle": "none"}
        axis.plot(*place(curve.chosen), "*", **star)
    left, top = axis.get_xlim()[0], axis.get_ylim()[1]
    axis.fill_between([left, ends[0]], ends[1], top, color="black", alpha=0.06)
    axis.set(xlim=(left, None), ylim=(None, top), ylabel=y.label)
    axis.set_xlabel(f"{x.label} (numbers: evaluations)")


def _by_band(axis: Any, curve: Curve) -> None:
    shown = [(curve.reference, "black", f"{curve.reference.evaluations} steps")]
    shown += [] if curve.chosen is None else [(curve.chosen, _CHOSEN, "chosen")]
    for point, colour, label in shown:
        axis.plot(point.frequency, point.shells, color=colour, label=f"shell correlation, {label}")
        axis.plot(point.frequency, point.log_ratio, "--", color=colour, label=f"log10 power ratio, {label}")
    axis.axhline(0.0, color="grey", linewidth=0.6)
    axis.set(xlabel="spatial frequency, cycles per voxel", ylabel="by band", ylim=(-1.05, 1.05))
    axis.legend(fontsize=7)


def _lines(points: Sequence[Point]) -> list[tuple[dict[str, Any], list[Point]]]:
    """Points by solver (colour) and noise range (style), cheapest first; one evaluation begins all lines."""
    lines: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        lines.setdefault((solver_name(point.sampling), noise_range(point.sampling)), []).append(point)
    first = {point.sampling.sigma_max: point for point in points if point.evaluations == 1}
    colours = dict(zip(dict.fromkeys(solver for solver, _ in lines), itertools.cycle(_COLOURS), strict=False))
    styles = dict(zip(dict.fromkeys(levels for _, levels in lines), itertools.cycle(_STYLES), strict=False))
    found = []
    for (solver, levels), line in lines.items():
        start = first.get(line[0].sampling.sigma_max)
        if start is not None and line[0].evaluations > 1:
            line.append(start)
        look: dict[str, Any] = {"marker": "o", "markersize": 3.5, "linewidth": 1.2}
        look |= {"color": colours[solver], "linestyle": styles[levels], "label": f"{solver}, {levels}"}
        found.append((look, sorted(line, key=lambda point: point.evaluations)))
    return found
