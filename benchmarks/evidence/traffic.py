"""How many bytes a kernel moves, counted in Triton's interpreter, as a process of its own.

    python -m benchmarks.evidence.traffic fuse_scores [--fast]

prints a line of JSON for each case and configuration. Three figures come of it, each over the compulsory
bytes (each input element once, each output element once):

    raw      every lane of every load and store that is not masked
    moved    what reaches memory: see `memory.py` for the model of the cache
    sectors  the same in whole 32-byte sectors, which is what memory moves

The cache is half of the architecture's level-2 cache (`architectures.py`), cold at each launch, with programs
one after another in launch order. What is counted is smaller than what is compiled, so a re-read that comes
after more than half of the launch's compulsory bytes is taken to come later on a larger volume in proportion:
it is excused only if it would be at the compiled size too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field

from benchmarks.evidence.architectures import ARCHITECTURES
from benchmarks.evidence.case import Case, Work
from benchmarks.evidence.catalogue import cases_of
from benchmarks.evidence.memory import Memory, Moved
from scorefusion.errors import ScoreFusionError


@dataclass
class Counted:
    """Bytes of one kernel in one case with one configuration, all launches together.

    Args:
        raw_read: loaded by lanes that are not masked.
        raw_written: stored by them.
        moved: what reaches memory, by architecture.
    """

    raw_read: int = 0
    raw_written: int = 0
    moved: dict[int, Moved] = field(default_factory=dict)

    def raw(self, work: Work) -> float:
        """Return all loads and stores over the compulsory bytes."""
        return (self.raw_read + self.raw_written) / work.compulsory

    def ratio(self, work: Work, capability: int) -> float:
        """Return the bytes that reach memory over the compulsory ones."""
        moved = self.moved[capability]
        return (moved.read + moved.written) / work.compulsory

    def sectors(self, work: Work, capability: int) -> float:
        """Return the bytes of whole sectors that reach memory over the compulsory bytes."""
        moved = self.moved[capability]
        return (moved.read_sectors + moved.written_sectors) / work.compulsory


@dataclass(frozen=True)
class Record:
    """What one case came to with one configuration.

    Args:
        case: its name.
        config: the configuration's name.
        kernels: what was counted, by kernel.
        work: what there was to do, by kernel, at the size counted.
        error: why nothing was counted; empty if all went well.
    """

    case: str
    config: str
    kernels: Mapping[str, Counted]
    work: Mapping[str, Work]
    error: str = ""


def capacities(work: Work, scale: float) -> dict[int, int]:
    """Return the bytes of cache to count with, by architecture.

    Args:
        work: at the size counted.
        scale: compulsory bytes at the size compiled over those at the size counted.
    """
    half = work.compulsory // 2
    return {
        capability: min(each.usable_l2, max(half, int(each.usable_l2 / max(scale, 1.0))))
        for capability, each in ARCHITECTURES.items()
    }


def count(case: Case, config_index: int, scales: Mapping[str, float]) -> dict[str, Counted]:
    """Run a case in the interpreter, and count.

    Args:
        case: on CPU tensors.
        config_index: which of its configurations.
        scales: how much larger the compiled size is, by kernel.

    Raises:
        ScoreFusionError: if it launches a kernel that it declares no work for.
    """
    from benchmarks.evidence.interpreter import watching

    launches: list[tuple[str, dict[int, int], Memory]] = []

    def open_memory(kernel: str, size: int) -> Memory:
        if kernel not in case.work:
            raise ScoreFusionError(f"{case.stem}, {case.name}: no work is declared for {kernel}")
        wanted = capacities(case.work[kernel], scales.get(kernel, 1.0))
        wanted = {capability: min(each, size) for capability, each in wanted.items()}
        launches.append((kernel, wanted, Memory(size, sorted(set(wanted.values())))))
        return launches[-1][2]

    with watching(open_memory):
        case.run(case.configs[config_index])
    found: dict[str, Counted] = {}
    for kernel, wanted, memory in launches:
        counted = found.setdefault(kernel, Counted(moved={capability: Moved() for capability in wanted}))
        counted.raw_read += memory.raw_read
        counted.raw_written += memory.raw_written
        order = sorted(set(wanted.values()))
        for capability, capacity in wanted.items():
            total, moved = counted.moved[capability], memory.caches[order.index(capacity)].moved
            total.read += moved.read
            total.written += moved.written
            total.read_sectors += moved.read_sectors
            total.written_sectors += moved.written_sectors
    return found


def count_stem(stem: str, fast: bool = False) -> Iterator[Record]:
    """Count every case of an operation; in the slice for continuous integration, its first configurations."""
    paper = list(cases_of(stem, "meta"))
    for case in cases_of(stem, "cpu", fast):
        scales = {kernel: _scale(kernel, case, paper) for kernel in case.work}
        for index, config in enumerate(case.configs[:1] if fast else case.configs):
            try:
                kernels, error = count(case, index, scales), ""
            except Exception as problem:
                kernels, error = {}, f"{type(problem).__name__}: {problem}"[:300]
            yield Record(case.name, config.name, kernels, case.work, error)


def _scale(kernel: str, case: Case, paper: list[Case]) -> float:
    """Return how many times the bytes of a kernel grow from the size counted to the size compiled."""
    having = [each for each in paper if kernel in each.work]
    same = [each for each in having if each.name == case.name]
    sizes = [each.work[kernel].compulsory for each in same or having]
    return max(sizes, default=0) / case.work[kernel].compulsory


def count_in_process(stem: str, fast: bool = False) -> list[Record]:
    """Count an operation's cases in another Python, whose Triton interprets.

    Raises:
        ScoreFusionError: if that process fails.
    """
    command = [sys.executable, "-m", "benchmarks.evidence.traffic", stem, *(["--fast"] if fast else [])]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if run.returncode:
        lines = run.stderr.strip().splitlines()
        raise ScoreFusionError(f"counting {stem} failed: {lines[-1] if lines else 'no reason given'}")
    return [from_json(line) for line in run.stdout.splitlines() if line.startswith("{")]


def from_json(line: str) -> Record:
    """Read what `asdict` and `json` made of a `Record`."""
    fields = json.loads(line)
    kernels = {
        kernel: Counted(
            found["raw_read"],
            found["raw_written"],
            {int(capability): Moved(**moved) for capability, moved in found["moved"].items()},
        )
        for kernel, found in fields["kernels"].items()
    }
    work = {kernel: Work(**given) for kernel, given in fields["work"].items()}
    return Record(fields["case"], fields["config"], kernels, work, fields["error"])


def main(arguments: list[str]) -> None:
    """Print a line of JSON for each case and configuration of an operation."""
    fast = "--fast" in arguments
    for stem in (each for each in arguments if each != "--fast"):
        for record in count_stem(stem, fast):
            print(json.dumps(asdict(record)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
