"""The tables of the documents, made of a run's file and put between their markers.

    <!-- gpu table: step -->
    ...
    <!-- /gpu table -->

A table whose figures the run did not reach stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scorefusion.errors import BadInput
from scorefusion.io.atomic import written_beside

from .run import NOT_REACHED

MARKED = re.compile(r"(<!-- gpu table: (\S+) -->\n).*?(<!-- /gpu table -->)", re.S)
Content = Mapping[str, Any]


def results(content: Content, section: str) -> Content:
    """Return what a section found."""
    return content["sections"].get(section, {}).get("results", {})


def source(content: Content) -> str:
    """Return where and with what a run was made, in a line."""
    machine = results(content, "machine")
    known = [f"{name} {machine[name]}" for name in ("CUDA", "cuDNN", "Triton") if machine.get(name)]
    commit = (machine.get("commit") or "unknown")[:10]
    libraries = ", ".join([f"PyTorch {machine.get('torch')}", *known])
    day, device = content.get("started", "")[:10], machine.get("device")
    return f"Measured by `python -m benchmarks.gpu` on {day}: {device} ({libraries}), commit {commit}."


def step(content: Content) -> list[str]:
    """A step of the bundled model: plainly, and by the engine, by dtype and runner."""
    plain: Content = next(iter(results(content, "plain").values()), {})
    name, rows = next(iter(results(content, "step").items()), ("", {}))
    found = [(f"plain, {way}", row) for way, row in plain.items()]
    found += [(f"engine, {way}", row) for way, row in rows.items()]
    times = {way: _median(row, "ms") for way, row in found}
    if not any(times.values()):
        return []
    base = times.get("plain, float32")
    lines = [f"A step of `{name}`.", "", "| what | a step | times as fast |", "| --- | --- | --- |"]
    for way, ms in times.items():
        ratio = f"{base / ms:.2g}" if base and ms else ""
        lines.append(f"| {way} | {_ms(ms)} | {ratio} |")
    return lines


def slabs(content: Content) -> list[str]:
    """Every step: milliseconds, launches, memory, and where the time goes."""
    lines = [
        "| model and box | runner, slab, dtype | a step | launches | most of the time | GiB reserved |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, rows in results(content, "step").items():
        for way, row in rows.items():
            lines.append(f"| {name} | {way} | {' | '.join(_step_cells(row))} |")
    return lines if len(lines) > 2 else []


def _step_cells(row: Any) -> list[str]:
    if not isinstance(row, Mapping) or "ms" not in row:
        return [_missing(row), "", "", ""]
    kernels = list(row["kernels"].items())[:3]
    shares = ", ".join(f"{kind} {found['us'] / 1e3:.3g} ms" for kind, found in kernels)
    reserved = row["peak, bytes"].get("reserved")
    return [
        _ms(_median(row, "ms")),
        str(row["launches"]),
        shares,
        f"{reserved / 2**30:.2f}" if reserved else "",
    ]


def operations(content: Content) -> list[str]:
    """Each of this project's operations in each traced step, at its largest: against PyTorch's operations."""
    copying = results(content, "ceilings").get("copying")
    rate = copying["median"] if isinstance(copying, Mapping) and "median" in copying else None
    lines = [
        "| step | operation and tensors | PyTorch | this | times as fast | of copying | TFLOP/s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, traced in results(content, "ops").items():
        for call, row in _largest(traced.get("calls", {})).items():
            own, theirs = (row["ways"].get(way) for way in ("as it is", "PyTorch's operations"))
            mine, other = _median(own, "us"), _median(theirs, "us")
            ratio = f"{other / mine:.2g}" if mine and other else ""
            share = f"{own['bytes/s'] / rate:.0%}" if rate and mine else ""
            flop = f"{own['FLOP/s'] / 1e12:.3g}" if mine and row["flop"] else ""
            cells = [name, f"`{call}`", _us(other), _us(mine), ratio, share, flop]
            lines.append(f"| {' | '.join(cells)} |")
    return lines if len(lines) > 2 else []


def _largest(calls: Content) -> dict[str, Any]:
    """The call of each own operation that moves most, of those that were timed."""
    best: dict[str, tuple[str, Any]] = {}
    for call, row in calls.items():
        if isinstance(row, Mapping) and "PyTorch's operations" in row.get("ways", {}):
            operation = call.split(" ")[0]
            if operation not in best or row["bytes"] > best[operation][1]["bytes"]:
                best[operation] = call, row
    return dict(best.values())


def volumes(content: Content) -> list[str]:
    """Whole volumes, and folders."""
    lines = ["| what | seconds per volume | volumes per minute | GPU busy |", "| --- | --- | --- | --- |"]
    for name, row in results(content, "volume").items():
        if not isinstance(row, Mapping):
            continue
        if "volumes per minute" in row:
            busy = row.get("GPU busy, %")
            each = row["seconds"] / row["volumes"]
            cells = [
                f"{each:.3g}",
                f"{row['volumes per minute']:.3g}",
                f"{busy:.0f}%" if busy is not None else "",
            ]
        elif "seconds" in row:
            seconds = row["seconds"]
            cells = [f"{seconds['median'] if isinstance(seconds, Mapping) else seconds:.3g}", "", ""]
        else:
            cells = [_missing(row), "", ""]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines if len(lines) > 2 else []


TABLES: dict[str, Callable[[Content], list[str]]] = {
    "step": step,
    "slabs": slabs,
    "operations": operations,
    "volumes": volumes,
}


def made(content: Content, name: str) -> str:
    """Return a table with its source; empty if the run has no figure of it.

    Raises:
        BadInput: for no such table.
    """
    if name not in TABLES:
        raise BadInput(name, "is no table", f"Choose one of {', '.join(TABLES)}.")
    lines = TABLES[name](content)
    return "\n".join([source(content), "", *lines]) + "\n" if lines else ""


def report(content: Content) -> str:
    """Return all tables as a page."""
    parts = ["# A GPU, measured", source(content)]
    for name in TABLES:
        lines = TABLES[name](content)
        parts += [f"## {name}", "\n".join(lines) if lines else f"{NOT_REACHED}."]
    correct = results(content, "correct")
    if "wrong" not in correct:
        parts.append(f"Correctness: {NOT_REACHED}.")
    else:
        parts.append(f"Wrong: {', '.join(correct['wrong']) or 'nothing that was checked'}.")
    return "\n\n".join(parts) + "\n"


def put(content: Content, documents: Sequence[str | Path]) -> list[str]:
    """Put a run's tables between the markers of documents; return a line for each table.

    Raises:
        BadInput: for a document that cannot be read or has no markers, before any is written.
    """
    pages: list[tuple[Path, str]] = []
    said: list[str] = []
    for document in documents:
        file = Path(document)
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise BadInput(file, f"cannot be read ({error})", "Give a page of docs/.") from None
        if not MARKED.search(text):
            names = ", ".join(TABLES)
            fix = f"Put <!-- gpu table: NAME --> and <!-- /gpu table --> around one of {names}."
            raise BadInput(file, "has no markers of a table", fix)

        def replaced(match: re.Match[str], file: Path = file) -> str:
            table = made(content, match[2])
            said.append(f"{file}: {match[2]}: {'written' if table else f'kept, {NOT_REACHED} in this run'}")
            return f"{match[1]}{table}{match[3]}" if table else match[0]

        pages.append((file, MARKED.sub(replaced, text)))
    for file, text in pages:
        with written_beside(file) as beside:
            beside.write_text(text, encoding="utf-8")
    return said


def _median(row: Any, name: str) -> float | None:
    entry = row.get(name) if isinstance(row, Mapping) else None
    return entry["median"] if isinstance(entry, Mapping) else None


def _missing(row: Any) -> str:
    return "failed" if isinstance(row, Mapping) and "error" in row else NOT_REACHED


def _ms(ms: float | None) -> str:
    return NOT_REACHED if ms is None else f"{ms:.3g} ms" if ms < 1000 else f"{ms / 1e3:.3g} s"


def _us(us: float | None) -> str:
    return NOT_REACHED if us is None else f"{us:.3g} µs" if us < 1000 else f"{us / 1e3:.3g} ms"
