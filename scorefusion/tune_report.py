"""What tuning leaves behind: every setting's figures as JSON and CSV, a table, and a picture."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from scorefusion.errors import BadInput
from scorefusion.figures import save_figure
from scorefusion.io.atomic import check_output, written_beside
from scorefusion.known_truth import Subject
from scorefusion.optional import need
from scorefusion.tune import Curve, Point, solver_name

FILES = ("tune.json", "tune.csv", "tune.png")
FIGURES = ("psnr", "ssim", "spectrum", "bias", "correlation")
_COLOURS = ("#1f77b4", "#d95f02", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f")
_STYLES = ("-", "--", ":", "-.")


def check_folder(folder: str | os.PathLike[str]) -> Path:
    """Make the folder, and find out before any work is done that the files can be written.

    Raises:
        BadInput: if the folder cannot be made or written.
        ScoreFusionError: without the packages that measure and draw.
    """
    for module in ("matplotlib", "skimage.metrics"):
        need(module, "tuning")
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(target, f"cannot be made ({error.strerror})", "Choose another folder.") from None
    for name in FILES:
        check_output(target / name, (Path(name).suffix,))
    return target


def table_text(curve: Curve) -> str:
    """Every setting as aligned columns, cheapest first; the chosen one is marked."""
    head = (
        f"{'':2}{'solver':<14}{'eval.':>6}{'sigma':>12}{'seconds':>9}"
        f"{'PSNR dB':>9}{'SSIM':>7}{'spectrum':>10}{'signed':>8}{'FSC':>7}"
    )
    lines = [head]
    for label, point in _labelled(curve):
        way = point.sampling
        levels = f"{way.sigma_max:g}-{way.sigma_min:g}" if way.schedule == "karras" else way.schedule
        mark = "*" if point is curve.chosen else ""
        lines.append(
            f"{mark:2}{label:<14}{point.evaluations:6d}{levels:>12}{point.seconds:9.2f}"
            f"{point.psnr:9.2f}{point.ssim:7.3f}{point.spectrum:10.3f}{point.bias:8.3f}{point.correlation:7.3f}"
        )
    return "\n".join(lines)


def verdict(curve: Curve) -> str:
    """The choice in one sentence."""
    reference = curve.reference
    beside = (
        f"{reference.evaluations} {reference.sampling.solver} steps "
        f"({reference.psnr:.2f} dB, spectrum {reference.spectrum:.3f}, FSC {reference.correlation:.3f})"
    )
    if curve.chosen is None:
        return f"no setting tried is as good as {beside}"
    point = curve.chosen
    evaluations = f"{point.evaluations} evaluation{'s' * (point.evaluations != 1)}"
    return (
        f"chosen: {solver_name(point.sampling)}, {evaluations}, sigma {point.sampling.sigma_max:g} to "
        f"{point.sampling.sigma_min:g}: {point.psnr:.2f} dB, spectrum {point.spectrum:.3f}, "
        f"FSC {point.correlation:.3f}; no worse than {beside}"
    )


def write_results(
    folder: Path,
    curve: Curve,
    subjects: Sequence[Subject],
    *,
    model: str,
    strategy: str,
    seeds: int,
    computed: str,
) -> None:
    """Write the figures as JSON (with the bands) and CSV, and the picture.

    Args:
        folder: from :func:`check_folder`.
        curve: what was found.
        subjects: what it was found on.
        model: its name.
        strategy: how scores were fused.
        seeds: samples of each setting.
        computed: dtype and device.

    Raises:
        BadInput: if a file cannot be written.
    """
    content = {
        "model": model,
        "strategy": strategy,
        "seeds": seeds,
        "computed": computed,
        "subjects": [
            {"name": subject.name, "start": subject.box.start, "stop": subject.box.stop}
            for subject in subjects
        ],
        "chosen": None if curve.chosen is None else _record(curve.chosen),
        "reference": _record(curve.reference),
        "own": _record(curve.own),
        "points": [_record(point) for point in curve.points],
    }
    with written_beside(folder / "tune.json") as beside:
        beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    with (
        written_beside(folder / "tune.csv") as beside,
        beside.open("w", newline="", encoding="utf-8") as file,
    ):
        names = ("label", "evaluations", "sigma_max", "sigma_min", "seconds", *FIGURES)
        writer = csv.writer(file)
        writer.writerow(names)
        for label, point in _labelled(curve):
            way = point.sampling
            values = (label, point.evaluations, way.sigma_max, way.sigma_min, point.seconds)
            writer.writerow([*values, *(getattr(point, name) for name in FIGURES)])
    title = f"{model}, {strategy}: {', '.join(Path(subject.name).name for subject in subjects)}"
    save_figure(curve_figure(curve, title), folder / "tune.png")


def curve_figure(curve: Curve, title: str) -> Any:
    """PSNR, SSIM, spectrum error and correlation against evaluations, and both axes of quality at once.

    Returns:
        A ``matplotlib.figure.Figure``: a colour a solver, a line style a noise range.
    """
    figures = need("matplotlib.figure", "a figure")
    figure = figures.Figure(figsize=(15, 8.5), layout="constrained")
    grid = figure.subplots(2, 3)
    lines = _lines(curve.points)
    solvers = list(dict.fromkeys(solver for solver, _ in lines))
    ranges = list(dict.fromkeys(span for _, span in lines))
    each = curve.reference.seconds / curve.reference.evaluations
    panels = (
        (grid[0, 0], "psnr", "PSNR, dB"),
        (grid[0, 1], "ssim", "SSIM"),
        (grid[1, 0], "spectrum", "spectrum error, |log10 power ratio|"),
        (grid[1, 1], "correlation", "Fourier shell correlation, upper half"),
    )
    for (solver, span), points in lines.items():
        look = {
            "color": _COLOURS[solvers.index(solver) % len(_COLOURS)],
            "linestyle": _STYLES[ranges.index(span) % len(_STYLES)],
            "marker": "o",
            "markersize": 3.5,
            "linewidth": 1.2,
        }
        label = f"{solver}, sigma {span}" if span else solver
        for axis, name, _ in panels:
            axis.plot(
                [p.evaluations for p in points], [getattr(p, name) for p in points], label=label, **look
            )
        grid[0, 2].plot([p.spectrum for p in points], [p.psnr for p in points], label=label, **look)
        for point in points:
            grid[0, 2].annotate(
                str(point.evaluations), (point.spectrum, point.psnr), (3, 2), textcoords="offset points",
                fontsize=6, color=look["color"],
            )  # fmt: skip
    marked = [(curve.reference, "D", "black", f"{curve.reference.evaluations} ancestral steps")]
    if curve.chosen is not None:
        marked.append((curve.chosen, "*", "crimson", "chosen"))
    for axis, name, label in panels:
        value = getattr(curve.reference, name)
        axis.axhline(value, color="black", linewidth=0.9, linestyle=(0, (6, 2)))
        axis.annotate(
            marked[0][3], (0.99, value), (0, 3), xycoords=("axes fraction", "data"),
            textcoords="offset points", ha="right", fontsize=7,
        )  # fmt: skip
        if curve.chosen is not None:
            place = (curve.chosen.evaluations, getattr(curve.chosen, name))
            axis.plot(*place, marker="*", markersize=14, color="crimson", zorder=5)
        axis.set_xscale("log", base=2)
        counts = sorted({point.evaluations for point in curve.points})
        axis.set_xticks(counts, labels=[str(count) for count in counts])
        axis.minorticks_off()
        axis.set(xlabel="network evaluations", ylabel=label)
        seconds = axis.secondary_xaxis("top", functions=(lambda x: x * each, lambda x: x / each))
        seconds.set_xticks([count * each for count in counts], labels=[f"{n * each:.3g}" for n in counts])
        seconds.minorticks_off()
        seconds.set_xlabel("seconds", fontsize=8)
        seconds.tick_params(labelsize=7)
    both = grid[0, 2]
    for point, marker, colour, label in marked:
        size = 14 if marker == "*" else 6
        both.plot(point.spectrum, point.psnr, marker, color=colour, markersize=size, zorder=5, label=label)
    left, top = both.get_xlim()[0], both.get_ylim()[1]
    both.fill_between([left, curve.reference.spectrum], curve.reference.psnr, top, color="black", alpha=0.06)
    both.set(
        xlabel="spectrum error (numbers: evaluations)", ylabel="PSNR, dB", xlim=(left, None), ylim=(None, top)
    )
    both.legend(fontsize=6.5, loc="lower right")
    bands = grid[1, 2]
    for point, _, colour, label in marked:
        bands.plot(point.frequency, point.shells, color=colour, label=f"FSC, {label}")
        bands.plot(
            point.frequency,
            point.log_ratio,
            color=colour,
            linestyle="--",
            label=f"log10 power ratio, {label}",
        )
    bands.axhline(0.0, color="grey", linewidth=0.6)
    bands.set(xlabel="spatial frequency, cycles a voxel", ylabel="by band", ylim=(-1.05, 1.05))
    bands.legend(fontsize=7)
    figure.suptitle(title, fontsize=11)
    return figure


def _labelled(curve: Curve) -> Iterable[tuple[str, Point]]:
    """Every setting with its name, cheapest first, then the model's own and the reference."""
    for point in sorted(curve.points, key=lambda point: point.evaluations):
        yield solver_name(point.sampling), point
    yield "as it was", curve.own
    yield "reference", curve.reference


def _lines(points: Iterable[Point]) -> dict[tuple[str, str], list[Point]]:
    """Points by (solver, noise range), in the order of their evaluations.

    One evaluation is the same for all of a start, so the first line's point begins the others too.
    """
    lines: dict[tuple[str, str], list[Point]] = {}
    points = list(points)
    for point in points:
        way = point.sampling
        span = f"{way.sigma_max:g} to {way.sigma_min:g}" if way.schedule == "karras" else ""
        lines.setdefault((solver_name(way), span), []).append(point)
    first = {point.sampling.sigma_max: point for point in points if point.evaluations == 1}
    for line in lines.values():
        start = first.get(line[0].sampling.sigma_max)
        if start is not None and line[0].evaluations > 1:
            line.append(start)
        line.sort(key=lambda point: point.evaluations)
    return lines


def _record(point: Point) -> dict[str, Any]:
    return {
        "sampling": point.sampling.model_dump(mode="json"),
        "evaluations": point.evaluations,
        "seconds": round(point.seconds, 4),
        **{name: round(getattr(point, name), 5) for name in FIGURES},
        "frequency": point.frequency.round(5).tolist(),
        "log10_power_ratio": point.log_ratio.round(4).tolist(),
        "fourier_shell_correlation": point.shells.round(4).tolist(),
    }
