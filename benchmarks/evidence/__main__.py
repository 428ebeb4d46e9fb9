"""``python -m benchmarks.evidence``: what can be proven of the Triton kernels on a machine without a GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from scorefusion.errors import ScoreFusionError


def evidence(
    stem: Annotated[
        list[str] | None, typer.Option(help="Only this operation; give it again for more.")
    ] = None,
    arch: Annotated[
        list[str] | None, typer.Option(help="Only this architecture: sm_80, sm_90, sm_100 or sm_120.")
    ] = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="One case and configuration of each kernel, as in CI.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the rows, figures not rounded, to this file.")
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Compile and count everything again, and keep nothing.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Compile every Triton kernel for four GPU architectures, and count the bytes it moves.

    Needs triton, but no GPU. One row for each kernel, configuration and architecture: registers, stack,
    spills, shared memory, tensor-core instructions, width of global accesses, bytes moved over compulsory
    bytes, occupancy. Ends with status 1 if anything does not compile, uses stack, spills, exceeds the
    architecture's shared memory, lacks tensor-core instructions it should have or moves more bytes than it
    may; the row says which. Answers are kept in the user's cache folder until the kernels change. See
    docs/evidence.md.

    \b
    Examples:
      python -m benchmarks.evidence
      python -m benchmarks.evidence --stem fuse_step --arch sm_90
      python -m benchmarks.evidence --fast --no-cache
      python -m benchmarks.evidence --json kernels.json | grep sm_100
    """
    import json
    import time

    from benchmarks.evidence.architectures import ARCHITECTURES
    from benchmarks.evidence.cache import Answers, user_cache_folder
    from benchmarks.evidence.catalogue import require_stem, stems
    from scorefusion.cli.console import progress, require_stdout
    from scorefusion.io.atomic import check_output, written_beside
    from scorefusion.ops.backends import interpreting, missing

    began = time.perf_counter()
    reason = missing("triton")
    if reason is not None:
        raise ScoreFusionError(f"the kernels cannot be compiled: {reason}")
    if interpreting():
        raise ScoreFusionError("TRITON_INTERPRET replaces Triton's compiler; unset it for this")
    from benchmarks.evidence.rows import examine
    from benchmarks.evidence.table import LEGEND, as_json, show, summary

    wanted = [require_stem(name) for name in dict.fromkeys(stem)] if stem else stems()
    capabilities = _capabilities(arch) if arch else list(ARCHITECTURES)
    target = None if json_file is None else check_output(json_file, [".json"])
    answers = Answers(None if no_cache else user_cache_folder() / "kernels")
    with progress("compiling and counting", quiet=quiet) as report:
        rows, compilations, found = examine(wanted, capabilities, fast=fast, answers=answers, report=report)
    show(rows)
    print(f"\n{LEGEND}\n{summary(rows, compilations, found, time.perf_counter() - began)}")
    if target is not None:
        with written_beside(target) as file:
            file.write_text(json.dumps(as_json(rows), indent=1), encoding="utf-8")
    require_stdout()
    if any(row.problems for row in rows):
        raise typer.Exit(1)


def _capabilities(names: list[str]) -> list[int]:
    """Return the compute capabilities of architectures named as sm_90, in the order of the list."""
    from benchmarks.evidence.architectures import ARCHITECTURES
    from scorefusion.errors import unknown_name

    known = {each.name: capability for capability, each in ARCHITECTURES.items()}
    for name in names:
        if name not in known:
            raise unknown_name("architecture", name, known)
    return [capability for name, capability in known.items() if name in names]


program = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
program.command()(evidence)

if __name__ == "__main__":
    try:
        program()
    except ScoreFusionError as error:
        sys.exit(f"benchmarks.evidence: {error}")
