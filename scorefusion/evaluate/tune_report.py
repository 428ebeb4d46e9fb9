"""The files of a tuning: every setting's figures as JSON and CSV, a table, and a picture."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from scorefusion.evaluate.cases import Case
from scorefusion.evaluate.output import aligned, write_text
from scorefusion.evaluate.tune import Curve, Point, noise_range, solver_name
from scorefusion.io.figures import save_figure, try_to_write
from scorefusion.metrics import METRICS, Metric, shown
from scorefusion.optional import need

FILES = ("tune.json", "tune.csv", "tune.png")
NEEDED = ("matplotlib", "skimage.metrics")
"""Optional packages that measure and draw."""

_COLUMNS = {"spectrum_signed": "bias"}
"""Names of metrics in the files, where they are other ones."""

_COLOURS = ("#1f77b4", "#d95f02", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f")
_STYLES = ("-", "--", ":", "-.")
_CHOSEN = "crimson"


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
    """The figures that decide."""
    parts = []
    for metric in shown("tune"):
        if metric.slack is not None:
            value = metric.format(point.figures[metric.name], narrow=True)
            parts.append(f"{value} dB" if metric.unit == "dB" else f"{metric.head} {value}")
    return ", ".join(parts)


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
    """Write the figures as JSON (with the bands) and CSV, and the picture.

    Args:
        folder: from :func:`~scorefusion.evaluate.output.check_folder`.
        curve: what was found.
        subjects: what it was found on.
        model: its name.
        strategy: how scores were fused.
        seeds: samples of each setting.
        computed: dtype and device.

    Returns:
        Why the picture could not be drawn, which is last; None if it was.

    Raises:
        BadInput: if another file cannot be written.
    """
    content = {
        "model": model,
        "strategy": strategy,
        "seeds": seeds,
        "computed": computed,
        "subjects": [
            {"name": subject.file, "start": subject.box.start, "stop": subject.box.stop}
            for subject in subjects
        ],
        "chosen": None if curve.chosen is None else _record(curve.chosen),
        "reference": _record(curve.reference),
        "own": _record(curve.own),
        "points": [_record(point) for point in curve.points],
    }
    write_text(folder / "tune.json", json.dumps(content, indent=1) + "\n")
    lines = io.StringIO()
    writer = csv.writer(lines)
    figures = [_COLUMNS.get(metric.name, metric.name) for metric in _metrics(curve)]
    writer.writerow(("label", "evaluations", "sigma_max", "sigma_min", "rho", "seconds", *figures))
    for label, point in _labelled(curve):
        way = point.sampling
        values = (label, point.evaluations, way.sigma_max, way.sigma_min, way.rho, point.seconds)
        writer.writerow([*values, *point.figures.values()])
    write_text(folder / "tune.csv", lines.getvalue())
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
    """Metrics against evaluations, PSNR against the spectrum error, and the bands.

    Args:
        curve: what was found.
        title: of the picture.

    Returns:
        A ``matplotlib.figure.Figure``: a colour a solver, a line style a noise range; the reference is a
        dashed line or a diamond, the choice a star.
    """
    metrics = [metric for metric in shown("tune") if metric.better and metric.name in curve.own.figures]
    rows = -(-(len(metrics) + 3) // 4)
    figure = need("matplotlib.figure", "a figure").Figure(figsize=(18, 4.25 * rows), layout="constrained")
    axes = list(figure.subplots(rows, 4).flat)
    lines = _lines(curve.points)
    for axis, metric in zip(axes, metrics, strict=False):
        _against_evaluations(axis, curve, lines, metric)
    both, bands, *rest = axes[len(metrics) :]
    _both_at_once(both, curve, lines)
    _by_band(bands, curve)
    for axis in rest:
        axis.set_axis_off()
    rest[0].legend(*both.get_legend_handles_labels(), loc="center", fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=11)
    return figure


def _against_evaluations(
    axis: Any, curve: Curve, lines: dict[tuple[str, str], list[Point]], metric: Metric
) -> None:
    """One metric against evaluations below, and seconds above."""
    for key, points in lines.items():
        values = [point.figures[metric.name] for point in points]
        axis.plot([point.evaluations for point in points], values, **_look(lines, key))
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


def _both_at_once(axis: Any, curve: Curve, lines: dict[tuple[str, str], list[Point]]) -> None:
    """PSNR against the spectrum error; what is no worse than the reference in both lies in the shade."""
    x, y = METRICS["spectrum"], METRICS["psnr"]

    def place(point: Point) -> tuple[float, float]:
        return point.figures[x.name], point.figures[y.name]

    for key, points in lines.items():
        look = _look(lines, key)
        axis.plot(*zip(*map(place, points), strict=True), label=", ".join(key), **look)
        for point in points:
            axis.annotate(
                str(point.evaluations), place(point), (3, 2), textcoords="offset points", fontsize=6,
                color=look["color"],
            )  # fmt: skip
    ends = place(curve.reference)
    label = f"{curve.reference.evaluations} ancestral steps"
    axis.plot(*ends, "D", color="black", zorder=5, label=label)
    if curve.chosen is not None:
        star = {"markersize": 14, "color": _CHOSEN, "zorder": 6, "label": "chosen", "linestyle": "none"}
        axis.plot(*place(curve.chosen), "*", **star)
    left, top = axis.get_xlim()[0], axis.get_ylim()[1]
    axis.fill_between([left, ends[0]], ends[1], top, color="black", alpha=0.06)
    axis.set(xlim=(left, None), ylim=(None, top))
    axis.set(xlabel=f"{x.label} (numbers: evaluations)", ylabel=y.label)


def _by_band(axis: Any, curve: Curve) -> None:
    """Fourier shell correlation and power ratio of the reference and the choice, by spatial frequency."""
    shown = [(curve.reference, "black", f"{curve.reference.evaluations} steps")]
    shown += [] if curve.chosen is None else [(curve.chosen, _CHOSEN, "chosen")]
    for point, colour, label in shown:
        axis.plot(point.frequency, point.shells, color=colour, label=f"shell correlation, {label}")
        axis.plot(point.frequency, point.log_ratio, "--", color=colour, label=f"log10 power ratio, {label}")
    axis.axhline(0.0, color="grey", linewidth=0.6)
    axis.set(xlabel="spatial frequency, cycles per voxel", ylabel="by band", ylim=(-1.05, 1.05))
    axis.legend(fontsize=7)


def _look(lines: dict[tuple[str, str], list[Point]], key: tuple[str, str]) -> dict[str, Any]:
    solvers, ranges = (list(dict.fromkeys(names)) for names in zip(*lines, strict=True))
    return {
        "color": _COLOURS[solvers.index(key[0]) % len(_COLOURS)],
        "linestyle": _STYLES[ranges.index(key[1]) % len(_STYLES)],
        "marker": "o",
        "markersize": 3.5,
        "linewidth": 1.2,
    }


def _lines(points: Iterable[Point]) -> dict[tuple[str, str], list[Point]]:
    """Points by (solver, noise range), in the order of their evaluations.

    One evaluation is the same for all of a start, so the first line's point begins the others too.
    """
    lines: dict[tuple[str, str], list[Point]] = {}
    points = list(points)
    for point in points:
        lines.setdefault((solver_name(point.sampling), noise_range(point.sampling)), []).append(point)
    first = {point.sampling.sigma_max: point for point in points if point.evaluations == 1}
    for line in lines.values():
        start = first.get(line[0].sampling.sigma_max)
        if start is not None and line[0].evaluations > 1:
            line.append(start)
        line.sort(key=lambda point: point.evaluations)
    return lines
