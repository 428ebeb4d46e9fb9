"""A row for each kernel, configuration and architecture: what was compiled, counted, and what is wrong."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from benchmarks.evidence.architectures import ARCHITECTURES
from benchmarks.evidence.cache import Answers, fingerprint
from benchmarks.evidence.case import Case, Work
from benchmarks.evidence.catalogue import cases_of
from benchmarks.evidence.machine_code import MachineCode, Source, compile_source, source_of
from benchmarks.evidence.traffic import Counted, Record, count_in_process, from_json

if TYPE_CHECKING:
    from scorefusion.kernels.launch import Config

Report = Callable[[int, int], None]


@dataclass
class Row:
    """One kernel in one case with one configuration on one architecture.

    Args:
        stem: the operation.
        kernel: the kernel's function name.
        case: the case's name.
        config: the configuration's name.
        why: what it is for.
        capability: 80, 90, 100 or 120.
        work: at the size compiled.
        source: what is compiled; None if nothing was launched.
        code: what that came to.
        problems: what is wrong, one phrase each.
        raw: bytes of all loads and stores over the compulsory ones; None if not counted.
        moved: bytes that reach memory over the compulsory ones.
        sectors: the same in whole sectors.
        unfused: bytes of separate PyTorch operations over the compulsory ones.
        occupancy: estimated resident warps over the most there can be.
    """

    stem: str
    kernel: str
    case: str
    config: str
    why: str
    capability: int
    work: Work | None = None
    source: Source | None = None
    code: MachineCode = field(default_factory=MachineCode)
    problems: list[str] = field(default_factory=list)
    raw: float | None = None
    moved: float | None = None
    sectors: float | None = None
    unfused: float | None = None
    occupancy: float = 0.0


def recorded(stem: str, capabilities: Sequence[int], fast: bool) -> Iterator[Row]:
    """Record an operation's launches on each architecture; a failure to record is a row with a problem."""
    for case in cases_of(stem, "meta", fast):
        for capability in capabilities:
            configs = [config for config in case.configs if capability in config.architectures]
            if not configs:
                problems = ["no configuration for this architecture"]
                yield Row(stem, "-", case.name, "-", "", capability, problems=problems)
            for config in configs[:1] if fast else configs:
                yield from _launched(case, config, capability)


def _launched(case: Case, config: Config, capability: int) -> Iterator[Row]:
    """Record one call: a row for each kernel that it launches or should have launched."""
    from scorefusion.kernels.launch import recording

    def row(kernel: str, source: Source | None, problem: str) -> Row:
        problems = [problem] if problem else []
        return Row(
            case.stem, kernel, case.name, config.name, config.why, capability,
            work=case.work.get(kernel), source=source, problems=problems,
        )  # fmt: skip

    sources: dict[tuple[str, str], Source] = {}
    try:
        with recording(capability) as launches:
            case.run(config)
        for launch in launches:
            source = source_of(launch, capability)
            sources[launch.kernel.__name__, source.key] = source
    except Exception as error:
        yield row("-", None, f"cannot be recorded: {type(error).__name__}: {error}"[:300])
        return
    for (kernel, _), source in sources.items():
        yield row(kernel, source, "" if kernel in case.work else "no work is declared for it")
    for kernel in sorted(case.work.keys() - {kernel for kernel, _ in sources}):
        yield row(kernel, None, "declared, but not launched")


def examine(
    stems: Sequence[str],
    capabilities: Sequence[int],
    *,
    fast: bool,
    answers: Answers,
    report: Report = lambda done, total: None,
) -> tuple[list[Row], int, int]:
    """Compile and count everything, in as many processes as there are processors.

    Args:
        stems: operations.
        capabilities: architectures.
        fast: only the slice that continuous integration runs.
        answers: what is known already, and where to keep what is found.
        report: called with (pieces of work done, in all).

    Returns:
        The rows, the number of different compilations, and how many answers had to be found anew.
    """
    import triton

    version = f"{triton.__version__} {fingerprint('scorefusion.kernels')}"
    rows = [row for stem in stems for row in recorded(stem, capabilities, fast)]
    sources = {row.source.key: row.source for row in rows if row.source is not None}
    codes: dict[str, MachineCode] = {}
    counts: dict[str, list[Record] | str] = {}
    kept = {key: answers.get(f"code {version} {key}") for key in sources}
    codes.update({key: MachineCode(**found) for key, found in kept.items() if found})
    counted = f"{version} {fingerprint('benchmarks.evidence')} {fast}"
    for stem in stems:
        lines = answers.get(f"traffic {counted} {stem}")
        if lines:
            counts[stem] = [from_json(line) for line in lines]
    missing = [key for key in sources if key not in codes]
    uncounted = [stem for stem in stems if stem not in counts]
    total = len(missing) + len(uncounted)
    if total:
        # Spawned: a process that has used threads must not be forked.
        with ProcessPoolExecutor(min(total, processors()), mp_context=get_context("spawn")) as pool:
            work: dict[Any, str] = {pool.submit(count_in_process, stem, fast): stem for stem in uncounted}
            fresh = answers.folder is None
            work |= {pool.submit(compile_source, sources[key], fresh): key for key in missing}
            for done, future in enumerate(as_completed(work), start=1):
                name = work[future]
                if name in sources:
                    codes[name] = future.result()
                    answers.put(f"code {version} {name}", asdict(codes[name]))
                else:
                    counts[name] = _counted(future, f"traffic {counted} {name}", answers)
                report(done, total)
    for row in rows:
        complete(row, codes, counts[row.stem])
    return rows, len(sources), total


def _counted(future: Any, key: str, answers: Answers) -> list[Record] | str:
    """Return an operation's counts, kept if all went well, or why there are none."""
    import json

    try:
        found: list[Record] = future.result()
    except Exception as error:
        return str(error)
    if not any(record.error for record in found):
        answers.put(key, [json.dumps(asdict(record)) for record in found])
    return found


def complete(row: Row, codes: Mapping[str, MachineCode], counts: list[Record] | str) -> None:
    """Fill in what was compiled and counted, and say what is wrong with it."""
    if row.source is None:
        return
    row.code = codes[row.source.key]
    row.problems += code_problems(row.code, row.capability, row.work is not None and row.work.dot)
    if not row.code.error:
        code = row.code
        architecture = ARCHITECTURES[row.capability]
        row.occupancy = architecture.occupancy(code.registers, code.shared, code.warps, code.tensor_columns)
    if isinstance(counts, str):
        row.problems.append(counts)
        return
    records = matching(row, counts)
    errors = [record.error for record in records if record.error]
    pairs = [(each.kernels[row.kernel], each.work[row.kernel]) for each in records if not each.error]
    row.problems += [f"not counted: {error}" for error in errors[:1]]
    if not pairs:
        row.problems += [] if errors else ["bytes are not counted by any case"]
        return
    counted, work = max(pairs, key=lambda pair: pair[0].ratio(pair[1], row.capability))
    _take(row, counted, work)


def _take(row: Row, counted: Counted, work: Work) -> None:
    row.raw, row.unfused = counted.raw(work), work.unfused / work.compulsory
    row.moved, row.sectors = counted.ratio(work, row.capability), counted.sectors(work, row.capability)
    if row.moved > work.limit:
        row.problems.append(f"moves {row.moved:.3f} x the compulsory bytes, more than {work.limit:g}")


def matching(row: Row, counts: list[Record]) -> list[Record]:
    """Return the counts that speak for a row: same case and configuration, else the nearest that there are.

    Cases may be counted under fewer names than are compiled; then the worst of the same kernel with the same
    configuration stands for them, or, failing that, of the same kernel.
    """
    having = [
        each for each in counts if row.kernel in each.kernels or (each.error and row.kernel in each.work)
    ]
    for wanted in (
        [each for each in having if (each.case, each.config) == (row.case, row.config)],
        [each for each in having if each.config == row.config],
        having,
    ):
        if wanted:
            return wanted
    return []


def code_problems(code: MachineCode, capability: int, dot: bool) -> list[str]:
    """Return what is wrong with a compilation."""
    if code.error:
        return [f"does not compile: {code.error}"]
    limit, problems = ARCHITECTURES[capability].shared_block, []
    if code.stack:
        problems.append(f"{code.stack} bytes of stack")
    if code.spills:
        problems.append(f"{code.spills} spill instructions")
    if code.shared > limit:
        problems.append(f"{code.shared} bytes of shared memory, the limit is {limit}")
    if dot and not code.tensor_cores:
        problems.append("no tensor-core instructions")
    return problems


def processors() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
