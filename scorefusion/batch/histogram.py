"""A small histogram as inline SVG, which needs neither script nor style of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

import numpy as np

WIDTH, HEIGHT, FLOOR = 340, 92, 74
BINS = 34


def histogram(title: str, values: Sequence[float], shown: Callable[[float], str]) -> str:
    """A figure of how values are distributed, as HTML; empty for fewer than two finite values.

    The tail is gathered in a last bar of its own where it would squeeze the rest.

    Args:
        title: what the values are.
        values: those that are not finite are left out.
        shown: prints a value with its unit.
    """
    finite = np.array([value for value in values if math.isfinite(value)], dtype=np.float64)
    if len(finite) < 2:
        return ""
    low, median, high = float(finite.min()), float(np.median(finite)), float(finite.max())
    usual = median + 4 * (float(np.percentile(finite, 90)) - median)
    top = usual if median < usual < high else high
    if not top > low:
        return ""
    inside = finite[finite <= top]
    bins = BINS - 2 if top < high else BINS
    counts, edges = np.histogram(inside, bins=bins, range=(low, top))
    step = WIDTH / BINS
    tallest = max(int(counts.max()), len(finite) - len(inside))
    bars = [
        _bar(place * step, step, count, tallest, f"{shown(edges[place])} to {shown(edges[place + 1])}")
        for place, count in enumerate(counts.tolist())
        if count
    ]
    if top < high:
        bars.append(
            _bar(WIDTH - step, step, len(finite) - len(inside), tallest, f"above {shown(top)}", "beyond")
        )
    at = (median - low) / (top - low) * bins * step
    label = f"{title}: {shown(low)} to {shown(high)}, median {shown(median)}"
    parts = [
        f'<line x1="0" y1="{FLOOR}" x2="{WIDTH}" y2="{FLOOR}"/>',
        *bars,
        f'<line class="median" x1="{at:.1f}" y1="4" x2="{at:.1f}" y2="{FLOOR}"/>',
        f'<text x="0" y="{FLOOR + 14}">{escape(shown(low))}</text>',
        f'<text x="{WIDTH}" y="{FLOOR + 14}" text-anchor="end">{escape(shown(high))}</text>',
    ]
    return (
        f'<figure class="histogram"><figcaption>{escape(title)} '
        f"<span>median {escape(shown(median))}</span></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg></figure>"
    )


def _bar(x: float, width: float, count: int, tallest: int, label: str, look: str = "") -> str:
    """A bar whose height is proportional to its count, and never invisible."""
    height = max(1.5, (FLOOR - 6) * count / tallest)
    scans = "1 scan" if count == 1 else f"{count} scans"
    return (
        f'<rect class="{look}" x="{x + 0.5:.1f}" y="{FLOOR - height:.1f}" width="{width - 1:.1f}" '
        f'height="{height:.1f}"><title>{escape(label)}: {scans}</title></rect>'
    )
