"""The tables of an evaluation: Markdown to paste, and coloured columns for a terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from scorefusion.evaluate.statistics import Comparison, Estimate
from scorefusion.evaluate.summary import Line, Summary


@dataclass(frozen=True)
class Column:
    """A column of figures.

    Attributes:
        figure: its key in a line's figures or sets.
        title: its head.
        digits: after the decimal point; None for three significant ones.
        ends: whether the interval is shown.
        best: ``high`` or ``low`` where one end is better.
    """

    figure: str
    title: str
    digits: int | None
    ends: bool = False
    best: str = ""


CLOSENESS = (
    Column("psnr", "PSNR, dB", 2, True, "high"),
    Column("ssim", "SSIM", 4, True, "high"),
    Column("psnr_inside", "PSNR inside, dB", 2, False, "high"),
    Column("ssim_inside", "SSIM inside", 4, False, "high"),
    Column("psnr_outside", "PSNR outside, dB", 2, False, "high"),
    Column("psnr_fitted", "PSNR fitted, dB", 2, False, "high"),
    Column("correlation", "FSC, upper half", 3, False, "high"),
)
REALISM = (
    Column("spectrum", "spectrum error", 3, True, "low"),
    Column("spectrum_signed", "signed", 3),
    Column("patches", "patch distance", None, False, "low"),
)
COST = (
    Column("consistency", "consistency", None, False, "low"),
    Column("seconds", "seconds", 2),
)
TESTED = (
    ("psnr", "PSNR, dB", 2),
    ("ssim", "SSIM", 4),
    ("spectrum", "spectrum error", 3),
    ("correlation", "FSC, upper half", 3),
    ("patches", "patch distance", 5),
)


def markdown(summary: Summary, head: str, notes: Sequence[str]) -> str:
    """All tables as Markdown, ready to paste.

    Args:
        summary: what was found.
        head: few words that stand in the corner of every table, such as ``synthetic, 12 subjects``.
        notes: lines below the tables.
    """
    blocks = [
        "### How close to the truth",
        grid(*measured(summary, CLOSENESS, head)),
        "### How much like true volumes, and at what cost",
        grid(*measured(summary, (*set_columns(summary), *REALISM, *COST), head, flop=True)),
    ]
    if summary.order:
        blocks += ["### The paper's order", grid(*tested(summary.order, head))]
    if summary.against:
        blocks += [f"### Every row less {summary.main}", grid(*tested(summary.against, head))]
    if summary.denoising:
        blocks += ["### Denoising error by noise level", grid(*denoising(summary, head))]
    return "\n\n".join([*blocks, *notes]) + "\n"


def grid(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [_row(titles), _row(["---"] * len(titles)), *(_row(row) for row in rows)]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def set_columns(summary: Summary) -> tuple[Column, ...]:
    """A column for each distance of sets that some row has."""
    names = dict.fromkeys(name for line in summary.lines for name in line.sets)
    return tuple(
        Column(
            name,
            f"{name.split(' ', 1)[0].upper()}, {name.split(' ', 1)[1]}",
            None,
            name.startswith("fid"),
            "low",
        )
        for name in names
    )


def measured(
    summary: Summary, columns: Sequence[Column], head: str, *, flop: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of a table of figures; columns that no row has are left out."""
    shown = [column for column in columns if any(_estimate(line, column) for line in summary.lines)]
    titles = [head, *(column.title for column in shown), *(["TFLOP"] if flop else [])]
    rows = []
    for line in summary.lines:
        cells = [line.name, *(_cell(_estimate(line, column), column) for column in shown)]
        if flop:
            cells.append("" if line.flop is None else f"{line.flop / 1e12:.3g}")
        rows.append(cells)
    return titles, rows


def tested(comparisons: dict[str, tuple[Comparison, ...]], head: str) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of differences with their intervals, and p after Holm's correction."""
    shown = [(figure, title, digits) for figure, title, digits in TESTED if figure in comparisons]
    titles = [head, *(title for _, title, _ in shown)]
    pairs = dict.fromkeys((each.name, each.other) for figure, *_ in shown for each in comparisons[figure])
    rows = []
    for name, other in pairs:
        cells = [f"{name} − {other}"]
        for figure, _, digits in shown:
            match = [each for each in comparisons[figure] if (each.name, each.other) == (name, other)]
            cells.append(_difference(match[0], digits) if match else "")
        rows.append(cells)
    return titles, rows


def denoising(summary: Summary, head: str) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of squared errors by noise level."""
    from scorefusion.evaluate.denoise_error import SIGMAS

    titles = [f"{head}: sigma", *(f"{sigma:g}" for sigma in SIGMAS)]
    rows = [[name, *(f"{value:.4f}" for value in values)] for name, values in summary.denoising.items()]
    return titles, rows


def rich_table(summary: Summary, head: str, title: str) -> Any:
    """The main figures as a ``rich.table.Table``; the best sample's of each column is bold."""
    from rich.table import Table

    columns = (
        *CLOSENESS[:3],
        CLOSENESS[-2],
        *set_columns(summary)[:1],
        REALISM[0],
        CLOSENESS[-1],
        REALISM[-1],
        *COST,
    )
    titles, rows = measured(summary, columns, head, flop=True)
    shown = [column for column in columns if column.title in titles]
    best = [_best(summary, column) for column in shown]
    table = Table(title=_plain(title), title_justify="left", caption_justify="left")
    for number, text in enumerate(titles):
        table.add_column(_plain(text), justify="left" if number == 0 else "right", no_wrap=number > 0)
    previous = None
    for line, row in zip(summary.lines, rows, strict=True):
        if previous not in (None, line.kind):
            table.add_section()
        previous = line.kind
        cells = [
            f"[bold]{_plain(cell)}[/bold]"
            if 0 < n <= len(best) and best[n - 1] == line.name
            else _plain(cell)
            for n, cell in enumerate(row)
        ]
        table.add_row(*cells)
    return table


def _plain(text: str) -> str:
    """Text in which rich sees no markup."""
    return text.replace("[", "\\[")


def _best(summary: Summary, column: Column) -> str | None:
    if not column.best:
        return None
    found = [(each.mean, line.name) for line in summary.lines if (each := _estimate(line, column))]
    choose: Callable[..., tuple[float, str]] = max if column.best == "high" else min
    return choose(found)[1]


def _estimate(line: Line, column: Column) -> Estimate | None:
    return line.figures.get(column.figure) or line.sets.get(column.figure)


def _cell(estimate: Estimate | None, column: Column) -> str:
    if estimate is None:
        return ""
    text = number(estimate.mean, column.digits)
    if not column.ends or math.isnan(estimate.low):
        return text
    return f"{text} [{number(estimate.low, column.digits)}, {number(estimate.high, column.digits)}]"


def _difference(comparison: Comparison, digits: int) -> str:
    change = comparison.difference
    text = f"{change.mean:+.{digits}f}"
    if not math.isnan(change.low):
        text += f" [{change.low:+.{digits}f}, {change.high:+.{digits}f}]"
    if not math.isnan(comparison.adjusted):
        text += f", p {comparison.adjusted:.2g}"
    return text


def number(value: float, digits: int | None) -> str:
    """A figure with so many digits after the point, or three significant ones."""
    return f"{value:.3g}" if digits is None else f"{value:.{digits}f}"
