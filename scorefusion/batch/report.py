"""The HTML report of a batch: written from its queues at the end, and now and then while it runs."""

import json
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote

import numpy as np
from markupsafe import Markup

from scorefusion.batch.files import STATE
from scorefusion.batch.queue import Entry, merged_entries
from scorefusion.errors import BadInput, ScoreFusionError, one_line
from scorefusion.io.atomic import replace_file, written_beside
from scorefusion.io.pages import clean, data_url, render

REPORT = "report.html"
EVERY = 300.0
"""Seconds between reports while a batch runs."""

MOST = 12
"""Warnings of a scan that are shown."""

COLUMNS = 6
"""Figures that have a column; further ones are listed below the enlarged pictures."""

LABELS = {"residual": "Residual", "seconds": "Time"}

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

_RANK = {"failed": 0, "outlier": 1, "done": 2, "waiting": 3}
_KINDS = {b"RIFF": "webp", b"\xff\xd8\xff\xe0": "jpeg"}
_WIDTH, _FLOOR, _BINS = 340, 74, 34


class Reporter:
    """Writes the report of ``out`` in its own thread while a batch goes on; see :func:`write_report`."""

    def __init__(self, out: Path, key: str = ""):
        self.out, self.key = out, key
        self._last = time.monotonic()
        self._thread: threading.Thread | None = None

    def now_and_then(self) -> None:
        """Start a report if the last one is old; the last report makes up for one that fails."""
        if time.monotonic() - self._last < EVERY or (self._thread and self._thread.is_alive()):
            return
        self._last = time.monotonic()
        self._thread = threading.Thread(target=self._write, name="scorefusion-report", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # the system has no thread to spare
            self._thread = None

    def finish(self) -> str | None:
        """Write the last report; return why it could not be written, None if it was."""
        if self._thread is not None:
            self._thread.join()
        return self._write()

    def _write(self) -> str | None:
        try:
            write_report(self.out, key=self.key)
        except Exception as error:
            return f"the report was not written ({one_line(error)}); --report-only writes it again"
        return None


def write_report(out: Path, *, key: str = "") -> Path:
    """Write OUT/report.html from the queues of all shards; whole or not at all.

    Args:
        out: the folder of the outputs.
        key: part of the name of the file that is written first, so that shards do not meet there.

    Raises:
        BadInput: if there is no queue, or the page cannot be written.
    """
    entries, facts = merged_entries(out / STATE)
    shown = {
        "title": f"scorefusion: {out.resolve().name}",
        "facts": {**json.loads(facts.get("report", "{}")), "written": time.strftime("%Y-%m-%d %H:%M")},
        "ignored": json.loads(facts.get("ignored", "[]")),
    }
    final = out / REPORT
    if final.is_symlink():  # perhaps onto another file system, where nothing can be renamed to
        return write_page(final, entries, **shown)
    temporary = write_page(out / STATE / f"report{key}.html", entries, **shown)
    try:
        replace_file(temporary, final)
    except OSError as error:
        fix = "Move what has this name, or free some space."
        raise BadInput(final, f"could not be written ({one_line(error)})", fix) from error
    return final


def write_page(path: Path, entries: Sequence[Entry], **shown: Any) -> Path:
    """Write :func:`report_page`, with these arguments, to a file; return its path."""
    text = report_page(entries, **shown)
    with written_beside(path) as beside:
        beside.write_text(text, encoding="utf-8", newline="\n")
    return path


def report_page(
    entries: Sequence[Entry], *, title: str, facts: Mapping[str, str], ignored: Sequence[str] = ()
) -> str:
    """Return the report of a batch as one HTML page; the same entries give the same text.

    Failures come first, then outliers (:func:`unusual`), then the rest, each in the order given.
    ``facts`` hold for all of the batch; all files that were left out, ``ignored``, are listed.
    """
    flags = unusual(entries)
    known = {entry.name: entry.state if entry.state in _RANK else "waiting" for entry in entries}
    states = known | dict.fromkeys(flags, "outlier")
    ordered = sorted(entries, key=lambda entry: _RANK[states[entry.name]])
    names = figures(entries)
    rows = [_row(entry, states[entry.name], names, flags.get(entry.name, {})) for entry in ordered]
    labels = [clean(LABELS.get(figure, figure[:1].upper() + figure[1:])) for figure in names]
    charts = [_histogram(entries, figure) for figure in LABELS]
    times, seconds = "", _values(entries, "seconds")
    if len(seconds):
        median = duration(float(np.median(seconds)))
        times = f"{duration(math.fsum(seconds))} in all, median {median} a scan"
    return render(
        "batch.html",
        title=title,
        counts=Counter(states.values()),
        times=times,
        facts=facts,
        ignored=ignored,
        histograms=[chart for chart in charts if chart],
        data={"figures": labels, "columns": COLUMNS, "rows": rows},
        pictures=[
            (number, _picture(entry, entry.before), _picture(entry, entry.after))
            for number, entry in enumerate(ordered)
            if entry.before or entry.after
        ],
    )


def _row(entry: Entry, state: str, figures: Sequence[str], flags: Mapping[str, str]) -> dict[str, Any]:
    """Return what the page's script gets of a scan; it shows all text as it stands here."""
    warnings = [clean(text) for text in entry.warnings[:MOST]]
    if len(entry.warnings) > MOST:
        warnings.append(f"and {len(entry.warnings) - MOST} more")
    inputs = "" if entry.inputs in ((), (entry.name,)) else f"from {clean(', '.join(entry.inputs[:3]))}"
    inputs += f" and {len(entry.inputs) - 3} more" if len(entry.inputs) > 3 else ""
    link = _link(entry.output) if entry.state == "done" else ""
    return {
        "name": clean(entry.name),
        "state": state,
        "inputs": inputs,
        "output": clean(entry.output) if link else "",
        "link": link,
        "error": [clean(entry.error)] if entry.error else [],
        "fix": [clean(entry.fix)] if entry.fix else [],
        "flags": [clean(text) for text in flags.values()],
        "warnings": warnings,
        "figures": [_figure(figure, value_of(entry, figure), figure in flags) for figure in figures],
        "pictures": ["before" if entry.before else "", "after" if entry.after else ""],
    }


def _figure(figure: str, value: float | None, unusual: bool) -> tuple[float | None, str, bool] | None:
    if value is None:
        return None
    return (float(value) if math.isfinite(value) else None), figure_text(figure, value), unusual


def _link(output: str) -> str:
    """Return a relative URL, percent-encoded, of a file; empty for one outside the report's folder."""
    place = PurePath(output)
    if not output or place.is_absolute() or ".." in place.parts:
        return ""
    return quote(os.fsencode(place.as_posix()))


def _picture(entry: Entry, picture: bytes | None) -> Markup | str:
    if not picture:
        return ""
    if kind := _KINDS.get(picture[:4]):
        return data_url(kind, picture)
    raise ScoreFusionError(f"the thumbnail of {entry.name} is neither WebP nor JPEG; use thumbnails.strip")


def _values(entries: Iterable[Entry], figure: str) -> np.ndarray:
    """Return the finite values of a figure among the scans that are done."""
    values = (value_of(entry, figure) for entry in entries if entry.state == "done")
    return np.array([value for value in values if value is not None and math.isfinite(value)], np.float64)


def _histogram(entries: Iterable[Entry], figure: str) -> dict[str, Any] | None:
    """Return how a figure is distributed, for the template; None for fewer than two different values.

    The tail goes into a last bar where it would squeeze the rest.
    """
    values = _values(entries, figure)
    if len(values) < 2:
        return None
    low, median, high = float(values.min()), float(np.median(values)), float(values.max())
    usual = median + 4 * (float(np.percentile(values, 90)) - median)
    top = usual if median < usual < high else high
    if not top > low:
        return None
    bins = _BINS - 2 if top < high else _BINS
    counts, edges = np.histogram(values[values <= top], bins=bins, range=(low, top))
    texts = [figure_text(figure, edge) for edge in edges]
    bars = [(k, f"{texts[k]} to {texts[k + 1]}", n) for k, n in enumerate(counts.tolist()) if n]
    if top < high:
        bars.append((_BINS - 1, f"above {texts[-1]}", len(values) - int(counts.sum())))
    tallest, step = max(count for *_, count in bars), _WIDTH / _BINS
    return {
        "title": LABELS[figure],
        "low": figure_text(figure, low),
        "median": figure_text(figure, median),
        "high": figure_text(figure, high),
        "width": _WIDTH,
        "floor": _FLOOR,
        "step": step,
        "at": (median - low) / (top - low) * bins * step,
        "bars": [  # x, height (never invisible), whether it is the tail's, label, count
            (place * step + 0.5, max(1.5, (_FLOOR - 6) * count / tallest), place >= bins, label, count)
            for place, label, count in bars
        ],
    }


# Scans whose figures are unlike those of the others.


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


def figure_text(figure: str, value: float) -> str:
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
    both = f"({figure_text(figure, value)} against {figure_text(figure, median)})"
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
