"""Scans whose figures are unlike those of the others."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from scorefusion.batch.queue import Entry

FEWEST = 8
"""With fewer scans there is no saying what is usual."""

FARTHEST = 5.0
"""Robust standard deviations from the median that are not unusual yet."""

RARE = 0.1
"""If more than this share of the scans is that far off it is a group, and unusual is who is twice as far."""

SHARE = 0.1
"""Less than this share of the median away is never unusual, however alike the others are."""

SMALLEST = 1e-6
"""Nor is less than this, in the figure's own unit: rounding, where the median is 0."""

_OWN = ("residual", "seconds")


def flag(rows: Sequence[Entry]) -> dict[str, list[str]]:
    """What is unusual about each scan, in words.

    Args:
        rows: the batch; only what is done counts.

    Returns:
        Name to sentences such as "residual 9.0 times the median (2.8% against 0.31%)"; the unremarkable are
        left out.
    """
    return {name: list(found.values()) for name, found in unusual(rows).items()}


def unusual(rows: Sequence[Entry]) -> dict[str, dict[str, str]]:
    """What :func:`flag` says, by figure: ``residual``, ``seconds`` or a name of :attr:`.Outcome.numbers`.

    A figure is unusual if it is not finite, or if it is more than :data:`FARTHEST` robust standard deviations
    from the median of at least :data:`FEWEST` scans: 1.4826 times the median absolute deviation, or 1.2533
    times the mean absolute one where over half of the scans are alike (Iglewicz and Hoaglin, 1993). See
    :data:`RARE`, :data:`SHARE` and :data:`SMALLEST` for what is not.
    """
    done = [row for row in rows if row.state == "done"]
    found: dict[str, dict[str, str]] = {}
    for figure in figures(done):
        values = {row.name: value for row in done if (value := value_of(row, figure)) is not None}
        finite = np.array([value for value in values.values() if math.isfinite(value)], dtype=np.float64)
        median, usual = _usual(finite)
        for name, value in values.items():
            if not math.isfinite(value):
                found.setdefault(name, {})[figure] = f"{_said(figure)} is {value}"
            elif len(finite) >= FEWEST and abs(value - median) > usual:
                found.setdefault(name, {})[figure] = f"{_said(figure)} {_compared(figure, value, median)}"
    return found


def figures(rows: Sequence[Entry]) -> list[str]:
    """The figures that at least one row has: ``residual``, ``seconds``, then numbers as they first appear."""
    numbers = dict.fromkeys(name for row in rows for name in row.numbers if name not in _OWN)
    return [*(name for name in _OWN if any(value_of(row, name) is not None for row in rows)), *numbers]


def value_of(row: Entry, figure: str) -> float | None:
    """One figure of a row; None where it has none."""
    if figure == "residual":
        return row.residual
    if figure == "seconds":
        return sum(row.seconds.values()) if row.seconds and row.state == "done" else None
    return row.numbers.get(figure)


def shown(figure: str, value: float) -> str:
    """A figure as the report prints it: residuals in percent, seconds as a time, others to three digits."""
    if not math.isfinite(value):
        return str(value)
    if figure == "residual":
        return f"{_digits(100 * value, 2)}%"
    return duration(value) if figure == "seconds" else _digits(value, 3)


def duration(seconds: float) -> str:
    """A time such as "0.4 s", "48 s", "3 min 08 s" or "2 h 05 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _usual(values: np.ndarray) -> tuple[float, float]:
    """The median, and how far from it is not unusual."""
    if not len(values):
        return 0.0, 0.0
    median = float(np.median(values))
    away = np.abs(values - median)
    spread = 1.4826 * float(np.median(away))
    if spread < SMALLEST:
        spread = 1.2533 * float(away.mean())
    many = float(np.quantile(away, 1 - RARE, method="lower"))
    return median, max(FARTHEST * spread, 2 * many, SHARE * abs(median), SMALLEST)


def _said(figure: str) -> str:
    return "time" if figure == "seconds" else figure


def _compared(figure: str, value: float, median: float) -> str:
    both = f"({shown(figure, value)} against {shown(figure, median)})"
    ratio = value / median if median else 0.0
    if ratio >= 1.5:
        return f"{_digits(ratio, 2)} times the median {both}"
    if 0 < ratio <= 1 / 1.5:
        return f"{_digits(ratio, 2)} of the median {both}"
    return f"{'above' if value > median else 'below'} the others {both}"


def _digits(value: float, count: int) -> str:
    """A number to so many digits, without an exponent where it is short without."""
    if value and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{count - 1}e}"
    places = count - 1 - math.floor(math.log10(abs(value))) if value else 0
    return f"{round(value, places):.{max(places, 0)}f}" if value else "0"
