"""The HTML report of a batch."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import threading
import time
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path, PurePath
from string import Template
from typing import Any
from urllib.parse import quote

import numpy as np

from scorefusion.batch import outliers
from scorefusion.batch.files import STATE
from scorefusion.batch.outliers import Row
from scorefusion.batch.queue import Entry, merged_entries
from scorefusion.errors import BadInput, ScoreFusionError, one_line
from scorefusion.io.atomic import replace_file, written_beside

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


LONGEST = 600
"""Characters of a name, a warning or an error that are shown."""

MOST = 12
"""Warnings of a scan that are shown."""

COLUMNS = 6
"""Figures that have a column; further ones are listed below the enlarged pictures."""

LABELS = {"residual": "Residual", "seconds": "Time"}

_RANK = {"failed": 0, "outlier": 1, "done": 2, "waiting": 3}
_KINDS = {b"RIFF": "webp", b"\xff\xd8\xff\xe0": "jpeg"}
_BIDI = {0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xFEFF}


def write_report(
    path: str | os.PathLike[str],
    rows: Sequence[Row],
    *,
    title: str,
    facts: Mapping[str, str],
    ignored: Sequence[str] = (),
) -> Path:
    """Write the report of a batch beside ``path`` and rename it; the same rows give the same bytes.

    Failures come first, then outliers (:func:`.outliers.flag`), then the rest, each in the order given.

    Args:
        path: the page; outputs are linked relative to its folder.
        rows: one a scan.
        title: heads the page.
        facts: what holds for all of the batch: model, settings, when it was started.
        ignored: names of the files that were left out, all of which are listed.

    Returns:
        The path.

    Raises:
        BadInput: if it cannot be written.
        ScoreFusionError: if an output does not lie in the page's folder, or a thumbnail is neither WebP nor
            JPEG.
    """
    final = Path(path)
    text = report_page(rows, title=title, facts=facts, ignored=ignored)
    with written_beside(final) as beside:
        beside.write_text(text, encoding="utf-8", newline="\n")
    return final


def report_page(
    rows: Sequence[Row], *, title: str, facts: Mapping[str, str], ignored: Sequence[str] = ()
) -> str:
    """The page of :func:`write_report` as text."""
    unusual = outliers.unusual(rows)
    states = ["outlier" if row.name in unusual else row.state for row in rows]
    order = sorted(range(len(rows)), key=lambda place: _RANK[states[place]])
    figures = outliers.figures(rows)
    data = {
        "figures": [_clean(_label(figure)) for figure in figures],
        "columns": COLUMNS,
        "rows": [_row(rows[place], states[place], figures, unusual) for place in order],
    }
    pictures = [_pictures(number, rows[place]) for number, place in enumerate(order)]
    style, script = _part("report.css"), _part("report.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return Template(_part("report.html")).substitute(
        policy=policy,
        title=_markup(title),
        style=style,
        script=script,
        summary=_summary(rows, states),
        facts="".join(f"<div><dt>{_markup(k)}</dt><dd>{_markup(v)}</dd></div>" for k, v in facts.items()),
        ignored=_ignored(ignored),
        histograms="".join(_histogram(rows, figure) for figure in ("residual", "seconds")),
        data=_json(data),
        pictures="\n".join(block for block in pictures if block),
    )


def _row(
    row: Row, state: str, figures: Sequence[str], unusual: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    """What the page's script is told of a scan; all text is shown as it stands here."""
    found = unusual.get(row.name, {})
    shown = [_figure(figure, outliers.value_of(row, figure), figure in found) for figure in figures]
    warnings = [_clean(text) for text in row.warnings[:MOST]]
    if len(row.warnings) > MOST:
        warnings.append(f"and {len(row.warnings) - MOST} more")
    return {
        "name": _clean(row.name),
        "state": state,
        "inputs": _inputs(row),
        "output": _clean(row.output or ""),
        "link": _link(row.output) if row.output else "",
        "error": [_clean(row.error)] if row.error else [],
        "fix": [_clean(row.fix)] if row.fix else [],
        "flags": [_clean(text) for text in found.values()],
        "warnings": warnings,
        "figures": shown,
        "pictures": ["before" if row.before else "", "after" if row.after else ""],
    }


def _figure(figure: str, value: float | None, unusual: bool) -> tuple[float | None, str, bool] | None:
    if value is None:
        return None
    return (float(value) if math.isfinite(value) else None), outliers.shown(figure, value), unusual


def _inputs(row: Row) -> str:
    """The files a scan came from, unless its name says it."""
    if tuple(row.inputs) in ((), (row.name,)):
        return ""
    rest = f" and {len(row.inputs) - 3} more" if len(row.inputs) > 3 else ""
    return f"from {_clean(', '.join(row.inputs[:3]))}{rest}"


def _pictures(number: int, row: Row) -> str:
    """Both thumbnails as text in a block that the browser does not look into."""
    if not (row.before or row.after):
        return ""
    both = " ".join(_data_url(row.name, picture) for picture in (row.before, row.after))
    return f'<script type="text/plain" id="p{number}">{both}</script>'


def _data_url(name: str, picture: bytes | None) -> str:
    if not picture:
        return ""
    kind = _KINDS.get(picture[:4])
    if kind is None:
        raise ScoreFusionError(
            f"the thumbnail of {name} is neither WebP nor JPEG; make it by thumbnails.strip"
        )
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def _link(output: str) -> str:
    """A relative URL; a colon, a hash, a question mark and bytes that are not UTF-8 are percent-encoded."""
    place = PurePath(output)
    if place.is_absolute() or ".." in place.parts:
        raise ScoreFusionError(f"{output} does not lie in the report's folder; give it relative to that")
    return quote(os.fsencode(place.as_posix()))


def _summary(rows: Sequence[Row], states: Sequence[str]) -> str:
    counts = {state: states.count(state) for state in _RANK}
    done = counts["done"] + counts["outlier"]
    parts = [f"<b>{done}</b> of <b>{len(rows)}</b> done"]
    if counts["failed"]:
        parts.append(f'<b class="failed">{counts["failed"]} failed</b>')
    if counts["waiting"]:
        parts.append(f"<b>{counts['waiting']}</b> waiting")
    if counts["outlier"]:
        parts.append(f'<b class="outlier">{counts["outlier"]} unlike the others</b>')
    seconds = _finite(row.seconds for row in rows if row.state == "done")
    if seconds:
        median = outliers.duration(float(np.median(seconds)))
        parts.append(f"{outliers.duration(math.fsum(seconds))} in all, median {median} a scan")
    return " · ".join(parts)


def _ignored(names: Sequence[str]) -> str:
    """All files that were left out, folded away."""
    if not names:
        return ""
    items = "".join(f"<li>{_markup(name)}</li>" for name in names)
    files = "1 file" if len(names) == 1 else f"{len(names)} files"
    return f'<details class="ignored"><summary>{files} left out</summary><ul>{items}</ul></details>'


def _histogram(rows: Sequence[Row], figure: str) -> str:
    values = _finite(outliers.value_of(row, figure) for row in rows if row.state == "done")
    return histogram(LABELS[figure], values, lambda value: outliers.shown(figure, value))


def _finite(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


def _label(figure: str) -> str:
    return LABELS.get(figure, figure[:1].upper() + figure[1:])


def _clean(text: str) -> str:
    """Text without what would not be seen or would turn its neighbours round, and of bounded length.

    Line breaks and runs of blanks become a blank; control characters, direction marks and bytes that are not
    UTF-8 are spelled as ``\\u202e``.
    """
    spelled = "".join(_spelled(character) for character in " ".join(text[: 4 * LONGEST].split()))
    return spelled if len(spelled) <= LONGEST else f"{spelled[:LONGEST]} …"


def _spelled(character: str) -> str:
    code = ord(character)
    if code in _BIDI or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"):
        return f"\\u{code:04x}"
    return character


def _markup(text: str) -> str:
    return escape(_clean(text), quote=True)


def _json(data: Any) -> str:
    """JSON in ASCII that ends no script element and begins no comment."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _part(name: str) -> str:
    return files("scorefusion.batch").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


REPORT = "report.html"
EVERY = 300.0
"""Seconds between reports while a batch runs."""


def report(out: Path, *, key: str = "") -> Path:
    """Write OUT/report.html from the queues of all shards; whole or not at all.

    Args:
        out: the folder of the outputs.
        key: of the file that it is written to first, so that shards do not meet there.

    Raises:
        BadInput: if there is no queue, or the page cannot be written.
    """
    entries, facts = merged_entries(out / STATE)
    told = {**json.loads(facts.get("report", "{}")), "written": time.strftime("%Y-%m-%d %H:%M")}
    title = f"scorefusion: {out.resolve().name}"
    final = out / REPORT
    what = {"title": title, "facts": told, "ignored": json.loads(facts.get("ignored", "[]"))}
    if final.is_symlink():  # perhaps onto another file system, where nothing can be renamed to
        return write_report(final, rows_of(entries), **what)
    beside = write_report(out / STATE / f"report{key}.html", rows_of(entries), **what)
    try:
        replace_file(beside, final)
    except OSError as error:
        fix = "Move what has this name, or free some space."
        raise BadInput(final, f"could not be written ({one_line(error)})", fix) from error
    return final


def rows_of(entries: Iterable[Entry]) -> list[Row]:
    """The report's rows of a queue's entries."""
    return [_row_of(entry) for entry in entries]


class Reporter:
    """Writes the report in a thread of its own, while a batch goes on.

    Args:
        out: the folder of the outputs.
        key: see :func:`report`.
        every: seconds between reports.
    """

    def __init__(self, out: Path, key: str = "", every: float = EVERY):
        self.out, self.key, self.every = out, key, every
        self._last = time.monotonic()
        self._thread: threading.Thread | None = None

    def now_and_then(self) -> None:
        """Begin a report if the last one is old; one that fails is made up for by the last."""
        if time.monotonic() - self._last < self.every or (self._thread and self._thread.is_alive()):
            return
        self._last = time.monotonic()
        self._thread = threading.Thread(target=self._write, name="scorefusion-report", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # the system has no thread to spare
            self._thread = None

    def finish(self) -> str | None:
        """Write the last one.

        Returns:
            Why it could not be written; None if it was.
        """
        if self._thread is not None:
            self._thread.join()
        return self._write()

    def _write(self) -> str | None:
        try:
            report(self.out, key=self.key)
        except Exception as error:
            return f"the report was not written ({one_line(error)}); --report-only writes it again"
        return None


def _row_of(entry: Entry) -> Row:
    outcome = entry.outcome
    done = entry.state == "done"
    return Row(
        name=entry.name,
        state="done" if done else "failed" if entry.state == "failed" else "waiting",
        inputs=entry.inputs,
        output=entry.output if done and not Path(entry.output).is_absolute() else None,
        seconds=sum(outcome.seconds.values()) if done else None,
        residual=outcome.residual,
        warnings=outcome.warnings,
        error=outcome.error,
        fix=outcome.fix,
        before=outcome.before,
        after=outcome.after,
        numbers=outcome.numbers,
    )
