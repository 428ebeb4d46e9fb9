"""A benchmark file as a table and a picture: each body's speed over the reference's.

The file is what `pytest benchmarks --benchmark --benchmark-json=FILE` writes. A body's time is the best of
its runs; the ratio is the reference's time over its own.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from scorefusion.errors import BadInput, ScoreFusionError
from scorefusion.io.atomic import check_output, written_beside
from scorefusion.io.figures import FIGURE_ENDINGS, save_figure
from scorefusion.optional import need

REMEDY = "Make one with `pytest benchmarks --benchmark --benchmark-json=FILE`."
UNITS = ("bytes", "FLOP")
_INK, _SOFT, _FASTER, _SLOWER = "#222222", "#666666", "#2b6ca3", "#b8552f"


@dataclass(frozen=True)
class Result:
    """One body of a group.

    Args:
        name: what sets it apart within the group.
        seconds: the best of its runs.
        ratio: the reference's time over its own; None where the group has no reference.
        reference: whether it is the reference.
        rates: (unit, units a second, fraction of the ceiling or None, the ceiling's name) of each unit given.
        note: why its time is less certain than others; empty for most.
    """

    name: str
    seconds: float
    ratio: float | None
    reference: bool
    rates: tuple[tuple[str, float, float | None, str], ...]
    note: str = ""


@dataclass(frozen=True)
class Report:
    """A benchmark file, read.

    Args:
        machine: processor, instruction set, threads and PyTorch, in one line.
        commit: of the code that was timed; may be empty.
        date: of the run.
        groups: results by group, in the file's order.
        not_timed: reason for each case that was left out, by its name.
    """

    machine: str
    commit: str
    date: str
    groups: Mapping[str, Sequence[Result]]
    not_timed: Mapping[str, str] = field(default_factory=dict)


def read_report(path: str | os.PathLike[str]) -> Report:
    """Read a benchmark file.

    Raises:
        BadInput: if there is no such file, or it is not one.
    """
    file = Path(path)
    if not file.is_file():
        raise BadInput(file, "is a folder" if file.is_dir() else "does not exist", REMEDY)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(file, f"is not a JSON file ({error})", REMEDY) from None
    benchmarks = content.get("benchmarks") if isinstance(content, dict) else None
    if not isinstance(benchmarks, list):
        raise BadInput(file, "is JSON, but not a benchmark file: it has no list 'benchmarks'", REMEDY)
    if not benchmarks:
        raise BadInput(file, "has no benchmark in it", REMEDY)
    groups: dict[str, list[dict[str, Any]]] = {}
    try:
        for bench in benchmarks:
            groups.setdefault(str(bench["group"]), []).append(bench)
        results = {group: _results(members) for group, members in groups.items()}
        not_timed = {str(case["name"]): str(case["reason"]) for case in content.get("not_timed", [])}
    except (KeyError, TypeError, AttributeError, ValueError, ZeroDivisionError) as error:
        problem = f"is not a benchmark file of this project ({type(error).__name__}: {error})"
        raise BadInput(file, problem, REMEDY) from None
    commit = content.get("commit_info") or {}
    identity = str(commit.get("id") or "")[:10] + (" with changes" if commit.get("dirty") else "")
    machine, date = _machine(content.get("machine_info") or {}), str(content.get("datetime", ""))[:10]
    return Report(machine, identity, date, results, not_timed)


def _results(members: Sequence[Mapping[str, Any]]) -> list[Result]:
    bases = [float(each["stats"]["min"]) for each in members if each["extra_info"].get("reference")]
    names = _told_apart([str(each["name"]) for each in members])
    found = []
    for name, each in zip(names, members, strict=True):
        seconds, info = float(each["stats"]["min"]), each["extra_info"]
        ratio = bases[0] / seconds if bases else None
        reference, note = bool(info.get("reference")), str(info.get("once", ""))
        found.append(Result(name, seconds, ratio, reference, rates(seconds, info), note))
    return sorted(found, key=lambda result: not result.reference)


def _told_apart(names: Sequence[str]) -> list[str]:
    """Return the part of each name that the others do not share: of test_noise[cpp-box], cpp."""
    inner = [name[name.index("[") + 1 : -1] if name.endswith("]") and "[" in name else name for name in names]
    parts = [name.split("-") for name in inner]
    if len(names) > 1 and len({len(part) for part in parts}) == 1:
        differing = [place for place, column in enumerate(zip(*parts, strict=True)) if len(set(column)) > 1]
        if differing:
            return [", ".join(part[place] for place in differing) for part in parts]
    return inner


def rates(seconds: float, info: Mapping[str, Any]) -> tuple[tuple[str, float, float | None, str], ...]:
    """Return (unit, units a second, fraction of the ceiling or None, its name) of each unit given."""
    found = []
    for unit in UNITS:
        if unit in info:
            rate, limit = float(info[unit]) / seconds, (info.get("ceilings") or {}).get(unit)
            share = rate / limit["rate"] if limit and limit["rate"] > 0 else None
            found.append((unit, rate, share, limit["kind"] if limit else ""))
    return tuple(found)


def result_line(name: str, seconds: float, base: float | None, info: Mapping[str, Any]) -> str:
    """Return a body's line for a terminal; `base` is the reference's time, if there is one."""
    ratio = "      -" if base is None else f"{base / seconds:6.2f}×"
    line = f"{name:<58} {seconds * 1e3:10.2f} ms  {ratio}"
    for unit, rate, share, kind in rates(seconds, info):
        part = "" if share is None else f", {share:.0%} of {kind}"
        line += f"  {rate / 1e9:7.1f} {_per_second(unit)}{part}"
    return line + (f"  ({info['once']})" if "once" in info else "")


def markdown(report: Report) -> str:
    """Return the report as a markdown table a group."""
    parts = [f"{report.machine}. {report.date}{', ' + report.commit if report.commit else ''}."]
    parts.append("Times are the best of several runs; the ratio is the reference's time over the body's.")
    for group, results in report.groups.items():
        rows = [f"### {group}", "", "| | time | ratio | rate | of the ceiling |"]
        rows.append("| --- | --: | --: | --: | --- |")
        for result in results:
            time, speed, share = _speed(result)
            ratio = "" if result.ratio is None else _three(result.ratio)
            notes = [*(["reference"] if result.reference else []), *([result.note] if result.note else [])]
            name = result.name + (f" ({'; '.join(notes)})" if notes else "")
            rows.append(f"| {name} | {time} | {ratio} | {speed} | {share} |")
        parts.append("\n".join(rows))
    if report.not_timed:
        rows = ["### Not timed", "", "| case | reason |", "| --- | --- |"]
        parts.append("\n".join(rows + [f"| {name} | {why} |" for name, why in report.not_timed.items()]))
    return "\n\n".join(parts) + "\n"


def draw(report: Report) -> Any:
    """Draw horizontal bars, from the reference's speed to each body's, on a logarithmic axis.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        ScoreFusionError: without matplotlib, naming the extra that brings it.
    """
    figures = need("matplotlib.figure", "a figure")
    results = [result for members in report.groups.values() for result in members]
    height = 1.3 + 0.25 * len(results) + 0.42 * len(report.groups)
    figure = figures.Figure(figsize=(12, height))
    axes = figure.add_axes((0.25, 0.42 / height, 0.36, 1 - 1.25 / height))
    across = axes.get_yaxis_transform()
    ratios = [result.ratio for result in results if result.ratio]
    low, high = min([0.8, *ratios]), max([1.25, *ratios])
    axes.set_xscale("log")
    axes.set_xlim(low / (high / low) ** 0.06, high * (high / low) ** 0.16)
    place = 0.0
    for group, members in report.groups.items():
        heading = {"weight": "bold", "fontsize": 10, "va": "center", "color": _INK}
        behind = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}  # a long name crosses the line at 1
        axes.text(-0.66, place, group, transform=across, bbox=behind, **heading)
        place += 1.1
        for result in members:
            ratio = result.ratio or 1.0
            axes.barh(place, ratio - 1, left=1, height=0.7, color=_FASTER if ratio >= 1 else _SLOWER)
            label = "no reference" if result.ratio is None else f"{_three(ratio)}×"
            style = {"va": "center", "fontsize": 9}
            axes.annotate(
                label, (max(ratio, 1.0), place), (4, 0), textcoords="offset points", color=_INK, **style
            )
            axes.text(-0.015, place, result.name, transform=across, ha="right", color=_INK, **style)
            for left, side, text in zip(
                (1.18, 1.4, 1.44), ("right", "right", "left"), _speed(result), strict=True
            ):
                axes.text(left, place, text, transform=across, ha=side, color=_SOFT, **style)
            place += 1.0
        place += 0.5
    axes.axvline(1.0, color=_INK, linewidth=0.8)
    axes.set_ylim(place - 0.6, -0.8)
    axes.set_yticks([])
    _name_ratios(axes)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_SOFT)
    top = "How many times as fast as the reference, the first row of each group"
    figure.text(0.012, 1 - 0.26 / height, top, fontsize=13, va="center", color=_INK)
    about = f"{report.machine}. {report.date}{', ' + report.commit if report.commit else ''}."
    for reason, count in Counter(report.not_timed.values()).items():
        about += f" {count} {'case' if count == 1 else 'cases'} {reason}."
    figure.text(0.012, 1 - 0.54 / height, about, fontsize=9, va="center", color=_SOFT)
    return figure


def _name_ratios(axes: Any) -> None:
    """Mark 0.5, 1, 2, 5, 10 ... on the axis, as far as it goes, in plain figures; about eight of them."""
    low, high = axes.get_xlim()
    every = [step * 10.0**power for power in range(-3, 7) for step in (1, 2, 5)]
    ticks = [tick for tick in every if low <= tick <= high]
    if len(ticks) > 8:
        ticks = [tick for tick in ticks if f"{tick:e}".startswith("1")]
    axes.minorticks_off()
    axes.set_xticks(ticks, labels=[f"{tick:g}×" for tick in ticks])
    axes.tick_params(labelsize=8.5, colors=_SOFT)


def write_report(report: Report, output: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write the picture, and the table beside it under the same name with .md; each whole or not at all.

    Raises:
        BadInput: if one of them cannot be written.
    """
    picture = check_output(output, FIGURE_ENDINGS)
    table = check_output(picture.with_suffix(".md"), (".md",))
    figure = draw(report)
    save_figure(figure, picture)
    with written_beside(table) as beside:
        beside.write_text(markdown(report), encoding="utf-8")
    return picture, table


def _speed(result: Result) -> tuple[str, str, str]:
    """Return time, rates and fractions of the ceiling, as a line's last three columns."""
    speeds = [f"{_three(rate / 1e9)} {_per_second(unit)}" for unit, rate, _, _ in result.rates]
    shares = [f"{share:.0%} of {kind}" for _, _, share, kind in result.rates if share is not None]
    return f"{_three(result.seconds * 1e3)} ms", ", ".join(speeds), ", ".join(shares)


def _three(value: float) -> str:
    """Return a number to three figures, without an exponent."""
    digits = 2 - math.floor(math.log10(abs(value))) if value else 2
    return f"{value:,.{min(max(digits, 0), 2)}f}"


def _per_second(unit: str) -> str:
    return "GB/s" if unit == "bytes" else "GFLOP/s"


def _machine(info: Mapping[str, Any]) -> str:
    processor = (info.get("cpu") or {}).get("brand_raw") or info.get("processor") or "unknown processor"
    parts = [
        str(processor).strip(),
        ", ".join(info.get("instructions") or []) or "instruction set not recorded",
    ]
    if info.get("threads"):
        parts.append(f"{info['threads']} threads")
    if info.get("gpu"):
        parts.append(str(info["gpu"]))
    if info.get("torch"):
        parts.append(f"PyTorch {info['torch']}")
    return "; ".join(parts)


def bench_report(
    file: Annotated[Path, typer.Argument(help="What --benchmark-json wrote.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The picture, .png; the table goes beside it as .md. FILE's name."
        ),
    ] = None,
) -> None:
    """Draw a benchmark file: how many times as fast as the reference, and how near to the ceiling.

    Makes a picture of horizontal bars, a group for each operation and size, and the same as a markdown table.

    \b
    Examples:
      pytest benchmarks/ --benchmark --benchmark-json=bench.json
      python -m benchmarks.report bench.json
      python -m benchmarks.report bench.json -o docs/bench.png
    """
    report = read_report(file)
    for written in write_report(report, output or file.with_suffix(".png")):
        print(written)


program = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
program.command()(bench_report)

if __name__ == "__main__":
    try:
        program()
    except ScoreFusionError as error:
        sys.exit(f"benchmarks.report: {error}")
