"""Find scans of a batch whose figures are unlike those of the others."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from scorefusion.batch.queue import Entry

FEWEST = 8
"""Fewer scans do not show what is usual."""
FARTHEST = 5.0
"""Robust standard deviations from the median that are not unusual yet."""
RARE = 0.1
"""If more than this share of the scans is that far off it is a group, and twice as far is unusual."""
SHARE = 0.1
"""Less than this share of the median away is never unusual, however alike the others are."""
SMALLEST = 1e-6
"""Nor is less than this, in the figure's own unit: rounding, where the median is 0."""

_OWN = ("residual", "seconds")


def unusual(entries: Sequence[Entry]) -> dict[str, dict[str, str]]:
    """Return what is unusual about each scan in words, by figure; unremarkable scans are left out.

    Such as "residual 9.0 times the median (2.8% against 0.31%)". A figure is unusual if it is not finite, or
    more than :data:`FARTHEST` robust standard deviations from the median of at least :data:`FEWEST` scans:
    1.4826 times the median absolute deviation, or 1.2533 times the mean absolute one where over half of the
    scans are alike (Iglewicz and Hoaglin, 1993). See :data:`RARE`, :data:`SHARE` and :data:`SMALLEST` for
    what is not.
    """
    done = [entry for entry in entries if entry.state == "done"]
    flags: dict[str, dict[str, str]] = {}
    for figure in figures(done):
        values = {entry.name: value for entry in done if (value := value_of(entry, figure)) is not None}
        finite = np.array([value for value in values.values() if math.isfinite(value)], dtype=np.float64)
        median, usual = _usual(finite)
        title = "time" if figure == "seconds" else figure
        for name, value in values.items():
            if not math.isfinite(value):
                flags.setdefault(name, {})[figure] = f"{title} is {value}"
            elif len(finite) >= FEWEST and abs(value - median) > usual:
                flags.setdefault(name, {})[figure] = f"{title} {_compared(figure, value, median)}"
    return flags


def figures(entries: Sequence[Entry]) -> list[str]:
    """Return the figures that a scan has: ``residual``, ``seconds``, then numbers as they first appear."""
    numbers = dict.fromkeys(name for entry in entries for name in entry.numbers if name not in _OWN)
    own = [name for name in _OWN if any(value_of(entry, name) is not None for entry in entries)]
    return [*own, *numbers]


def value_of(entry: Entry, figure: str) -> float | None:
    """Return one figure of a scan; None where it has none."""
    if figure == "residual":
        return entry.residual
    if figure == "seconds":
        return sum(entry.seconds.values()) if entry.seconds and entry.state == "done" else None
    return entry.numbers.get(figure)


def shown(figure: str, value: float) -> str:
    """Format a figure for the report: residuals in percent, seconds as a time, others to three digits."""
    if not math.isfinite(value):
        return str(value)
    if figure == "residual":
        return f"{_digits(100 * value, 2)}%"
    return duration(value) if figure == "seconds" else _digits(value, 3)


def duration(seconds: float) -> str:
    """Format a time: "0.4 s", "48 s", "3 min 08 s" or "2 h 05 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole, minutes = round(seconds), round(seconds / 60)
    if whole < 3600:
        return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _usual(values: np.ndarray) -> tuple[float, float]:
    """Return the median, and how far from it is not unusual."""
    if not len(values):
        return 0.0, 0.0
    median = float(np.median(values))
    away = np.abs(values - median)
    spread = 1.4826 * float(np.median(away))
    if spread < SMALLEST:
        spread = 1.2533 * float(away.mean())
    many = float(np.quantile(away, 1 - RARE, method="lower"))
    return median, max(FARTHEST * spread, 2 * many, SHARE * abs(median), SMALLEST)


def _compared(figure: str, value: float, median: float) -> str:
    both = f"({shown(figure, value)} against {shown(figure, median)})"
    ratio = value / median if median else 0.0
    if ratio >= 1.5:
        return f"{_digits(ratio, 2)} times the median {both}"
    if 0 < ratio <= 1 / 1.5:
        return f"{_digits(ratio, 2)} of the median {both}"
    return f"{'above' if value > median else 'below'} the others {both}"


def _digits(value: float, count: int) -> str:
    """Format a number to so many digits, without an exponent where it is short without."""
    if value and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{count - 1}e}"
    places = count - 1 - math.floor(math.log10(abs(value))) if value else 0
    return f"{round(value, places):.{max(places, 0)}f}" if value else "0"
