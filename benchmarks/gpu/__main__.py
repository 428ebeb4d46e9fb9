"""Measure a GPU in one command: correctness, ceilings, every operation, steps, volumes, baselines.

    python -m benchmarks.gpu --out gpu.json --minutes 8
    python -m benchmarks.gpu --out new.json --only ops,step --compare gpu.json
    python -m benchmarks.gpu --tables gpu.json docs/engine.md docs/kernels.md

Sections run in order of value, each until a deadline. The JSON file is written before the first and after
each, so a run that is cut short leaves what it found, with "not reached" for the rest; the tables are written
next to it as Markdown. No setting of the card is changed.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from scorefusion.errors import ScoreFusionError, unknown_name
from scorefusion.io.atomic import check_output, written_beside

from . import compare, tables
from .correct import correctness
from .device import device_named
from .operations import operations
from .run import FORMAT, Run, Section, finite, perform
from .sections import ceilings, compilation, machine
from .sizes import FULL, TINY
from .steps import plain, steps
from .tools import extra
from .volumes import volumes

SECTIONS: dict[str, tuple[float, Section]] = {
    "machine": (10, machine),
    "ceilings": (25, ceilings),
    "compile": (45, compilation),
    "correct": (60, correctness),
    "ops": (100, operations),
    "step": (110, steps),
    "volume": (60, volumes),
    "plain": (40, plain),
    "extra": (30, extra),
}
"""Share of the time, in seconds of eight minutes, and function of each section, in order of value."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, compare or make tables; return 0, 1 for errors or wrong results, 2 for what cannot be done."""
    given = _parser().parse_args(arguments)
    try:
        if given.tables:
            print("\n".join(tables.put(compare.read(given.tables), given.documents)))
            return 0
        return _measured(given)
    except ScoreFusionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _measured(given: argparse.Namespace) -> int:
    if given.out is None:
        raise ScoreFusionError("give --out FILE for the figures, or --tables FILE and documents")
    if given.documents:
        raise ScoreFusionError(f"{given.documents[0]} is given without --tables FILE")
    only = [name for name in (given.only or "").split(",") if name]
    for name in only:
        if name not in SECTIONS:
            raise unknown_name("section", name, SECTIONS)
    old = compare.read(given.compare) if given.compare else None
    out = check_output(given.out, [".json"])
    run = Run(device_named(given.device), TINY if given.tiny else FULL, out)
    run.tools = tuple(tool for tool in ("ncu", "sanitize") if getattr(given, tool))
    run.content = {"format": FORMAT, "minutes": given.minutes, "only": only, "tiny": given.tiny}
    torch.manual_seed(0)
    status = 0
    try:
        chosen = ["machine", *only] if only else []
        perform(run, SECTIONS, given.minutes, chosen, progress=lambda line: print(line, flush=True))
    except KeyboardInterrupt:
        print("interrupted; what was found is on file", file=sys.stderr)
        status = 130
    content = finite(run.content)
    records = content["sections"].values()
    if not status and any(record.get("errors") or record.get("wrong") for record in records):
        status = 1
    with written_beside(out.with_suffix(".md")) as page:
        page.write_text(tables.report(content), encoding="utf-8")
    if old is not None:
        lines, both = compare.compared(old, content)
        moved = f"{len(lines)} of {both} figures moved by more than three times their spread and 2%"
        print("\n".join([*compare.machines(old, content), *lines, moved]))
    return status


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not (math.isfinite(minutes) and minutes > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number above 0")
    return minutes


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON file of the figures")
    parser.add_argument("--minutes", type=_minutes, default=8.0, help="for all sections (default: 8)")
    parser.add_argument("--compare", metavar="OLD", help="print the figures that moved since an earlier run")
    parser.add_argument(
        "--only", metavar="NAMES", help=f"sections that run besides machine, of {','.join(SECTIONS)}"
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu (default: cuda)")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to try the command")
    parser.add_argument("--ncu", action="store_true", help="run Nsight Compute on a step as well")
    parser.add_argument("--sanitize", action="store_true", help="run compute-sanitizer as well")
    parser.add_argument("--tables", metavar="FILE", help="put the tables of a run into the documents")
    parser.add_argument("documents", nargs="*", type=Path, help="with --tables: pages with markers")
    return parser


if __name__ == "__main__":
    sys.exit(main())
