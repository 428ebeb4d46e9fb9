"""``scorefusion bench-report``: a benchmark file as a picture and a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


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
      scorefusion bench-report bench.json
      scorefusion bench-report bench.json -o docs/bench.png
    """
    from scorefusion.bench_report import read_report, write_report

    report = read_report(file)
    for written in write_report(report, output or file.with_suffix(".png")):
        print(written)
