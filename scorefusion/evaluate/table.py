"""The tables of an evaluation: Markdown to paste, and coloured columns for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from scorefusion.evaluate.denoise_error import SIGMAS
from scorefusion.evaluate.output import grid
from scorefusion.evaluate.statistics import Comparison, Estimate
from scorefusion.evaluate.summary import Line, Summary
from scorefusion.metrics import METRICS, Metric, shown

SECONDS = Metric(
    "seconds", "seconds", lambda pair: None, digits=2, table="cost", places=frozenset({"terminal"})
)


class Table(NamedTuple):
    """A table under its heading."""

    heading: str  #: above it
    titles: list[str]  #: of the columns; what is evaluated stands in the corner
    rows: list[list[str]]  #: of cells


def tables(summary: Summary, head: str, segmentation: Table | None = None) -> list[Table]:
    """All tables of a report, in order, with ``head`` in the corner of each."""
    realism = (*set_columns(summary), *columns("realism"), *columns("cost"))
    made = [
        measured("How close to the truth", summary, columns("closeness"), head),
        measured("How much like true volumes, and at what cost", summary, realism, head, flop=True),
        *([] if segmentation is None else [segmentation]),
    ]
    if summary.order:
        made.append(tested("The paper's order", summary.order, head))
    if summary.against:
        made.append(tested(f"Every row less {summary.main}", summary.against, head))
    if summary.denoising:
        titles = [f"{head}: sigma", *(f"{sigma:g}" for sigma in SIGMAS)]
        rows = [[name, *(f"{value:.4f}" for value in values)] for name, values in summary.denoising.items()]
        made.append(Table("Denoising error by noise level", titles, rows))
    return made


def markdown(title: str, several: Sequence[Table], notes: Sequence[str]) -> str:
    """Tables as Markdown, ready to paste, with lines of notes after them."""
    blocks = [f"### {heading}\n\n{grid(titles, rows)}" for heading, titles, rows in several]
    return "\n\n".join([f"## {title}", *blocks, *notes]) + "\n"


def columns(table: str) -> tuple[Metric, ...]:
    """The metrics of one table, ``closeness``, ``realism`` or ``cost``."""
    return tuple(metric for metric in (*METRICS.values(), SECONDS) if metric.table == table)


def set_columns(summary: Summary) -> tuple[Metric, ...]:
    """A column for each distance of sets that some row has."""
    made = []
    for name in dict.fromkeys(name for line in summary.lines for name in line.sets):
        kind, network = name.split(" ", 1)
        places = frozenset({"intervals"} if kind == "fid" else ())
        title = f"{kind.upper()}, {network}"
        made.append(Metric(name, title, lambda pair: None, digits=None, better="lower", places=places))
    return tuple(made)


def measured(
    heading: str, summary: Summary, several: Sequence[Metric], head: str, *, flop: bool = False
) -> Table:
    """A table of figures with one row per method; columns that no row has are left out."""
    kept = [metric for metric in several if any(_estimate(line, metric) for line in summary.lines)]
    titles = [head, *(metric.label for metric in kept), *(["TFLOP"] if flop else [])]
    rows = []
    for line in summary.lines:
        cells = [line.name]
        for metric in kept:
            if (found := _estimate(line, metric)) is None:
                cells.append("")
            elif "intervals" in metric.places:
                cells.append(interval_text(found, metric))
            else:
                cells.append(metric.format(found.mean))
        if flop:
            cells.append("" if line.flop is None else f"{line.flop / 1e12:.3g}")
        rows.append(cells)
    return Table(heading, titles, rows)


def tested(heading: str, comparisons: dict[str, tuple[Comparison, ...]], head: str) -> Table:
    """A table of differences with their intervals, and p after Holm's correction."""
    kept = [metric for metric in shown("tests") if metric.name in comparisons]
    cells: dict[tuple[str, str], list[str]] = {}
    for number, metric in enumerate(kept):
        for each in comparisons[metric.name]:
            text = interval_text(each.difference, metric, signed=True)
            text += "" if math.isnan(each.adjusted) else f", p {each.adjusted:.2g}"
            cells.setdefault((each.name, each.other), [""] * len(kept))[number] = text
    rows = [[f"{name} − {other}", *row] for (name, other), row in cells.items()]
    return Table(heading, [head, *(metric.label for metric in kept)], rows)


def rich_table(summary: Summary, head: str, title: str) -> Any:
    """The main figures as a ``rich.table.Table``; the best sample's of each column is bold."""
    from rich.markup import escape
    from rich.table import Table as RichTable

    brief = [*shown("terminal"), SECONDS]
    first = next((k for k, metric in enumerate(brief) if metric.table != "closeness"), len(brief))
    brief[first:first] = set_columns(summary)[:1]
    _, titles, rows = measured("", summary, brief, head, flop=True)
    best = []
    for metric in (metric for metric in brief if metric.label in titles):
        means = [(each.mean, line.name) for line in summary.lines if (each := _estimate(line, metric))]
        best.append((max if metric.better == "higher" else min)(means)[1] if metric.better else None)
    table = RichTable(title=escape(title), title_justify="left", caption_justify="left")
    for number, text in enumerate(titles):
        table.add_column(escape(text), justify="left" if number == 0 else "right", no_wrap=number > 0)
    previous = None
    for line, row in zip(summary.lines, rows, strict=True):
        if previous not in (None, line.kind):
            table.add_section()
        previous = line.kind
        bold = [False, *(name == line.name for name in best), False]
        cells = zip(map(escape, row), bold, strict=True)
        table.add_row(*(f"[bold]{cell}[/bold]" if is_best else cell for cell, is_best in cells))
    return table


def interval_text(estimate: Estimate, metric: Metric, *, signed: bool = False) -> str:
    """A mean with its interval, where there is one."""
    ends = (estimate.mean, estimate.low, estimate.high)
    mean, low, high = (metric.format(end, signed=signed) for end in ends)
    return mean if math.isnan(estimate.low) else f"{mean} [{low}, {high}]"


def _estimate(line: Line, metric: Metric) -> Estimate | None:
    return line.figures.get(metric.name) or line.sets.get(metric.name)
