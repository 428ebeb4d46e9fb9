"""Print the rows of evidence: aligned lines anywhere, a ruled table on a terminal that is wide enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.evidence.architectures import ARCHITECTURES
from benchmarks.evidence.rows import Row

HEAD = (
    "operation",
    "kernel",
    "case",
    "configuration",
    "arch",
    "regs",
    "stack",
    "spills",
    "shared",
    "tensor cores",
    "ld/st",
    "moved",
    "sectors",
    "raw",
    "unfused",
    "occ.",
    "MB",
    "GFLOP",
    "result",
)
LEFT = frozenset((0, 1, 2, 3, 4, 9, 18))

LEGEND = (
    "shared: bytes a block. ld/st: widest global load and store, bits. moved, sectors, raw, unfused: bytes "
    "that reach memory, the same in 32-byte sectors, all loads and stores, and separate PyTorch operations', "
    "each over the compulsory bytes. occ.: estimated occupancy. MB, GFLOP: compulsory bytes and operations "
    "of the case; no time is estimated."
)


def cells(row: Row) -> tuple[str, ...]:
    """Return a row's text, column by column."""
    code, work = row.code, row.work
    compiled = row.source is not None and not code.error
    numbers = ["-"] * 6
    if compiled:
        kinds = " ".join(f"{count} {kind}" for kind, count in sorted(code.tensor_cores.items()))
        width = f"{'TMA ' if code.bulk else ''}{code.load_bits}/{code.store_bits}"
        numbers = [str(n) for n in (code.registers, code.stack, code.spills, code.shared)]
        numbers += [kinds or "none", width]
    ratios = [_ratio(value) for value in (row.moved, row.sectors, row.raw, row.unfused)]
    size = ["-", "-"] if work is None else [f"{work.compulsory / 1e6:.1f}", f"{work.flop / 1e9:.2f}"]
    return (
        row.stem,
        row.kernel,
        row.case,
        row.config,
        ARCHITECTURES[row.capability].name,
        *numbers,
        *ratios,
        f"{row.occupancy:.0%}" if compiled else "-",
        *size,
        "; ".join(row.problems) or "ok",
    )


def lines(rows: Sequence[Row]) -> list[str]:
    """Return the table as aligned lines, a heading first; a row is one line whatever the width."""
    table = [HEAD, *map(cells, rows)]
    widths = [max(len(each[column]) for each in table) for column in range(len(HEAD))]
    return [
        "  ".join(
            text.ljust(width) if column in LEFT else text.rjust(width)
            for column, (text, width) in enumerate(zip(each, widths, strict=True))
        ).rstrip()
        for each in table
    ]


def show(rows: Sequence[Row]) -> None:
    """Print the table on standard output."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    plain = lines(rows)
    if not console.is_terminal or console.width < max(map(len, plain)) + len(HEAD) + 4:
        print("\n".join(plain))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, name in enumerate(HEAD):
        table.add_column(name, justify="left" if column in LEFT else "right", no_wrap=True)
    for row in rows:
        table.add_row(*cells(row), style="bold red" if row.problems else None)
    console.print(table, markup=False)


def summary(rows: Sequence[Row], compilations: int, found: int, seconds: float) -> str:
    """Return the last line: how much was looked at, and how much is wrong."""
    wrong = sum(bool(row.problems) for row in rows)
    configurations = len({(row.stem, row.kernel, row.case, row.config) for row in rows})
    architectures = len({row.capability for row in rows})
    verdict = "nothing wrong" if not wrong else f"{wrong} rows with something wrong"
    return (
        f"{len(rows)} rows: {configurations} kernels x configurations on {architectures} architectures, "
        f"{compilations} different compilations; {found} answers found anew in {seconds:.0f} s; {verdict}"
    )


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the rows as plain dictionaries, figures not rounded."""
    return [
        {
            "stem": row.stem,
            "kernel": row.kernel,
            "case": row.case,
            "config": row.config,
            "why": row.why,
            "architecture": ARCHITECTURES[row.capability].name,
            "registers": row.code.registers,
            "stack": row.code.stack,
            "spills": row.code.spills,
            "shared": row.code.shared,
            "tensor_cores": dict(row.code.tensor_cores),
            "load_bits": row.code.load_bits,
            "store_bits": row.code.store_bits,
            "tensor_memory_accelerator": row.code.bulk,
            "warps": row.code.warps,
            "occupancy": row.occupancy,
            "moved": row.moved,
            "sectors": row.sectors,
            "raw": row.raw,
            "unfused": row.unfused,
            "limit": None if row.work is None else row.work.limit,
            "bytes": None if row.work is None else row.work.compulsory,
            "flop": None if row.work is None else row.work.flop,
            "problems": row.problems,
        }
        for row in rows
    ]


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if value < 10 else f"{value:.1f}"
