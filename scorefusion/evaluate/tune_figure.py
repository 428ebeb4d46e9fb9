"""The picture of tuning: quality against evaluations and seconds, and PSNR and realism at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from scorefusion.evaluate.tune import Curve, Point, noise_range, solver_name
from scorefusion.optional import need

_PANELS = (
    ("psnr", "PSNR, dB"),
    ("ssim", "SSIM"),
    ("spectrum", "spectrum error, |log10 power ratio|"),
    ("patches", "distance of the patches"),
    ("correlation", "Fourier shell correlation, upper half"),
)
_COLOURS = ("#1f77b4", "#d95f02", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f")
_STYLES = ("-", "--", ":", "-.")
_CHOSEN = "crimson"


def curve_figure(curve: Curve, title: str) -> Any:
    """Five figures of quality against evaluations, PSNR against the spectrum error, and the bands.

    Args:
        curve: what was found.
        title: of the picture.

    Returns:
        A ``matplotlib.figure.Figure``: a colour a solver, a line style a noise range; the reference is a
        dashed line or a diamond, the choice a star.
    """
    figure = need("matplotlib.figure", "a figure").Figure(figsize=(18, 8.5), layout="constrained")
    axes = list(figure.subplots(2, 4).flat)
    lines = _lines(curve.points)
    for axis, (name, label) in zip(axes, _PANELS, strict=False):
        _against_evaluations(axis, curve, lines, name, label)
    _both_at_once(axes[5], curve, lines)
    _by_band(axes[6], curve)
    axes[7].set_axis_off()
    axes[7].legend(*axes[5].get_legend_handles_labels(), loc="center", fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=11)
    return figure


def _against_evaluations(
    axis: Any, curve: Curve, lines: dict[tuple[str, str], list[Point]], name: str, label: str
) -> None:
    """One figure of quality against evaluations below, and seconds above."""
    for key, points in lines.items():
        axis.plot([p.evaluations for p in points], [getattr(p, name) for p in points], **_look(lines, key))
    reference = curve.reference
    value = getattr(reference, name)
    axis.axhline(value, color="black", linewidth=0.9, linestyle=(0, (6, 2)))
    if curve.chosen is not None:
        place = (curve.chosen.evaluations, getattr(curve.chosen, name))
        axis.plot(*place, marker="*", markersize=14, color=_CHOSEN, zorder=5)
    counts = sorted({point.evaluations for point in curve.points})
    axis.set_xscale("log", base=2)
    axis.set_xticks(counts, labels=[str(count) for count in counts])
    axis.minorticks_off()
    axis.set(xlabel="network evaluations", ylabel=label)
    each = reference.seconds / reference.evaluations
    seconds = axis.secondary_xaxis("top", functions=(lambda x: x * each, lambda x: x / each))
    seconds.set_xticks([n * each for n in counts], labels=[f"{n * each:.3g}" for n in counts])
    seconds.minorticks_off()
    seconds.set_xlabel("seconds", fontsize=8)
    seconds.tick_params(labelsize=7)


def _both_at_once(axis: Any, curve: Curve, lines: dict[tuple[str, str], list[Point]]) -> None:
    """PSNR against the spectrum error; what is no worse than the reference in both lies in the shade."""
    for key, points in lines.items():
        look = _look(lines, key)
        axis.plot([p.spectrum for p in points], [p.psnr for p in points], label=", ".join(key), **look)
        for point in points:
            axis.annotate(
                str(point.evaluations), (point.spectrum, point.psnr), (3, 2), textcoords="offset points",
                fontsize=6, color=look["color"],
            )  # fmt: skip
    reference = curve.reference
    label = f"{reference.evaluations} ancestral steps"
    axis.plot(reference.spectrum, reference.psnr, "D", color="black", zorder=5, label=label)
    if curve.chosen is not None:
        chosen = curve.chosen
        axis.plot(
            chosen.spectrum, chosen.psnr, "*", markersize=14, color=_CHOSEN, zorder=6, label="chosen",
            linestyle="none",
        )  # fmt: skip
    left, top = axis.get_xlim()[0], axis.get_ylim()[1]
    axis.fill_between([left, reference.spectrum], reference.psnr, top, color="black", alpha=0.06)
    axis.set(xlim=(left, None), ylim=(None, top))
    axis.set(xlabel="spectrum error (numbers: evaluations)", ylabel="PSNR, dB")


def _by_band(axis: Any, curve: Curve) -> None:
    """Fourier shell correlation and power ratio of the reference and the choice, by spatial frequency."""
    shown = [(curve.reference, "black", f"{curve.reference.evaluations} steps")]
    shown += [] if curve.chosen is None else [(curve.chosen, _CHOSEN, "chosen")]
    for point, colour, label in shown:
        axis.plot(point.frequency, point.shells, color=colour, label=f"shell correlation, {label}")
        axis.plot(point.frequency, point.log_ratio, "--", color=colour, label=f"log10 power ratio, {label}")
    axis.axhline(0.0, color="grey", linewidth=0.6)
    axis.set(xlabel="spatial frequency, cycles a voxel", ylabel="by band", ylim=(-1.05, 1.05))
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
