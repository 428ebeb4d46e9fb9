"""The pictures of an evaluation: figures by row, spectra, denoising errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from scorefusion.evaluate.denoise_error import SIGMAS
from scorefusion.evaluate.shared_start import first_rows, plane_row
from scorefusion.evaluate.summary import Summary
from scorefusion.metrics import shown
from scorefusion.models.strategies import ALTERNATE, AVERAGE
from scorefusion.optional import need

SHOWN = 7
"""Most columns of a side-by-side picture."""

_COLOURS = {"baseline": "#8c8c8c", "sample": "#1f77b4", "one-step": "#d95f02"}


def columns_of(rows: Sequence[str], main: str) -> list[str]:
    """Which rows a side-by-side picture shows: baselines' ends, a plane, the average, the fused, the main."""
    wanted = ["nearest", "input", "pseudo-inverse", "intensity regression", "trilinear+consistency"]
    wanted += [*first_rows(), main]
    found = list(dict.fromkeys(name for name in wanted if name in rows)) or list(rows[:SHOWN])
    while len(found) >= SHOWN:
        found.pop(next((k for k, name in enumerate(found) if name in ("nearest", ALTERNATE.name)), 1))
    return found


def figures_by_row(summary: Summary) -> Any:
    """Metrics shown with intervals, PSNR's difference from the main row, bars of the first set distance.

    A dot is a person, the bar reaches from quartile to quartile, the tick is the median.
    """
    sets = next((name for line in summary.lines for name in line.sets), None)
    values = summary.values
    panels = [
        (metric.label, {name: np.array(each[metric.name]) for name, each in values.items()})
        for metric in shown("intervals")
        if all(metric.name in each for each in values.values())
    ]
    close = {name: np.array(each["psnr"]) for name, each in values.items()}
    apart = {name: each - close[summary.main] for name, each in close.items()}
    panels.insert(1, (f"PSNR less {summary.main}'s, dB", apart))
    names = [line.name for line in summary.lines]
    height = 0.9 + 0.24 * len(names)
    figure = need("matplotlib.figure", "a figure").Figure(figsize=(15, height), layout="constrained")
    axes = figure.subplots(1, len(panels) + (sets is not None), sharey=True)
    places = np.arange(len(names))[::-1]
    colours = [_COLOURS[line.kind] for line in summary.lines]
    for axis, (label, numbers) in zip(axes, panels, strict=False):
        for place, name, colour in zip(places, names, colours, strict=True):
            low, middle, high = np.percentile(numbers[name], (25, 50, 75))
            axis.plot([low, high], [place, place], color=colour, linewidth=5, alpha=0.35)
            axis.plot(numbers[name], [place] * len(numbers[name]), ".", color=colour, markersize=3)
            axis.plot(middle, place, "|", color="black", markersize=9, markeredgewidth=1.5)
        axis.set_xlabel(label)
    sampled = [apart[line.name] for line in summary.lines if line.kind != "baseline"]
    if sampled:  # Baselines may lie beyond the edge.
        low, high = float(np.min(sampled)), float(np.max(sampled))
        margin = 0.05 * (high - low) or 0.1
        axes[1].set_xlim(low - margin, high + margin)
    if sets is not None:
        estimates = [line.sets[sets] for line in summary.lines]
        axes[-1].barh(places, [each.mean for each in estimates], color=colours, height=0.6)
        for place, each in zip(places, estimates, strict=True):
            if np.isfinite(each.low):
                ends = [max(each.low, 0.0), each.high]
                axes[-1].plot(ends, [place, place], color="black", linewidth=0.8)
        axes[-1].set_xlabel(sets.replace("fid", "FID,"))
    axes[0].set_yticks(places, labels=names, fontsize=8)
    for axis in axes:
        axis.grid(axis="x", linewidth=0.4, alpha=0.5)
    return figure


def spectra(summary: Summary, rows: Sequence[str]) -> Any:
    """Power ratio and Fourier shell correlation by spatial frequency."""
    figure, left, right = _two_panels("spatial frequency, cycles per voxel")
    for name in rows:
        frequency, ratio, correlation = summary.bands[name]
        left.plot(frequency, ratio, linewidth=1.3, label=name)
        right.plot(frequency, correlation, linewidth=1.3, label=name)
    left.axhline(0.0, color="black", linewidth=0.6)
    left.set(ylabel="log10(power / true power)")
    right.set(ylabel="Fourier shell correlation", ylim=(-0.05, 1.05))
    right.legend(fontsize=7)
    return figure


def denoising_curves(summary: Summary) -> Any:
    """Squared error of the denoised residual against noise level, and over that of the average."""
    figure, left, right = _two_panels("noise level sigma")
    names = [name for name in summary.denoising if not plane_row(name)]
    base = summary.denoising.get(AVERAGE.name) or next(iter(summary.denoising.values()))
    for name in names:
        values = summary.denoising[name]
        left.loglog(SIGMAS, values, marker="o", markersize=3, linewidth=1.3, label=name)
        right.semilogx(SIGMAS, np.divide(values, base), marker="o", markersize=3, linewidth=1.3, label=name)
    left.set(ylabel="mean squared error of the residual")
    right.set(ylabel="the same over the average's")
    right.axhline(1.0, color="black", linewidth=0.6)
    right.legend(fontsize=7)
    return figure


def _two_panels(xlabel: str) -> tuple[Any, Any, Any]:
    figure = need("matplotlib.figure", "a figure").Figure(figsize=(12, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axis in (left, right):
        axis.set_xlabel(xlabel)
    return figure, left, right
