"""``scorefusion translate`` for many scans: signals, exit codes, and what is printed at the end."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from scorefusion.cli.batch_view import view
from scorefusion.cli.streams import note

if TYPE_CHECKING:
    from scorefusion.batch import Batch, StopFlag
    from scorefusion.batch.ray import Cluster
    from scorefusion.cli.translate import Many
    from scorefusion.pipeline import Machine, Options

SOME_FAILED, STOPPED = 1, 3


def run_batch(batch: Batch, many: Many, *, quiet: bool) -> int:
    """Translate a batch and say how it went.

    Returns:
        The exit code: 0 if no item failed, 1 if some did, 3 if the run had to stop, 128 and the signal's
        number if it was interrupted.
    """
    from scorefusion.batch import StopFlag, translate_batch
    from scorefusion.engine.planning.memory import keep_freed_memory
    from scorefusion.errors import ScoreFusionError

    ray = many.ray_address or ("local" if many.ray else None)
    if many.workers is not None and ray is None:
        raise ScoreFusionError("--workers is for --ray; without it one process does all")
    if batch.work.max_memory is None:
        keep_freed_memory()
    stop = StopFlag()
    with (
        view(as_json=many.as_json, quiet=quiet) as listener,
        _cluster(ray, batch.work.device, many.workers) as cluster,
        _signals(stop) as caught,
    ):
        summary = translate_batch(batch, listener=listener, stop=stop, cluster=cluster)
    if summary.stopped is not None:
        note(f"{summary.stopped} Resume with: {shlex.join(['scorefusion', *sys.argv[1:]])}")
    for problem in summary.unreported:
        note(problem)
    if not (many.as_json or quiet):
        parts = [f"{summary.done} translated", f"{summary.kept} there already", f"{summary.failed} failed"]
        parts += [f"{summary.left} not reached"] if summary.left else []
        print(f"{batch.out}: {', '.join(parts)}")
    if summary.stopped is not None:
        return 128 + caught[0] if caught else STOPPED
    return SOME_FAILED if summary.failed else 0


def make_batch(
    inputs: Sequence[Path],
    out: Path,
    model: str,
    machine: Machine,
    options: Options,
    many: Many,
    refused: Mapping[str, object],
) -> Batch:
    """Return the batch that a command line describes.

    Args:
        inputs: a folder, a table, or files.
        out: the folder of the outputs.
        model: a name or a folder.
        machine: where to compute.
        options: of each translation.
        many: of the batch.
        refused: options that are for one volume, each None if it was not given.
    """
    from scorefusion.batch import Batch, Limits, Shard, Work
    from scorefusion.engine.planning.fit import parse_memory
    from scorefusion.errors import ScoreFusionError, unknown_name
    from scorefusion.io import WRITABLE, check_ending

    given = [option for option, value in refused.items() if value is not None]
    if given:
        instead = "; a table's column 'mask' is for many" if given[0] == "--mask" else ""
        raise ScoreFusionError(f"{given[0]} is for one volume, and {out} is a folder of many{instead}")
    if many.ending not in WRITABLE:
        raise unknown_name("ending", many.ending, WRITABLE)
    check_ending(many.ending)
    several = options["samples"] > 1
    if several and not options["disagreement"]:
        options = {**options, "disagreement": _runs_all_planes(model, options)}
    engines = machine["engines"]
    where: dict[str, Any] = {**machine, "engines": None if engines is None else str(engines)}
    work = Work(
        model,
        options,
        **where,
        level=many.level,
        spread=several,
        dicom=many.dicom,
        deidentify=many.deidentify,
    )
    memory = None if many.prefetch_memory is None else parse_memory(many.prefetch_memory)
    return Batch(
        tuple(inputs),
        out,
        work,
        ending=many.ending,
        layout=many.layout,
        choose=tuple(many.choose or ()),
        series=many.series,
        shard=None if many.shard is None else Shard.parse(many.shard),
        limits=Limits(many.prefetch, memory),
        verify=many.verify,
        keep_failed=many.keep_failed,
    )


@contextmanager
def _cluster(address: str | None, device: str, workers: int | None) -> Iterator[Cluster | None]:
    if address is None:
        yield None
        return
    from scorefusion.batch.ray import connected

    # Ray prints what happens to its processes on standard output, where events may go.
    with redirect_stdout(sys.stderr), connected(address, device=device, workers=workers) as cluster:
        yield cluster


def _runs_all_planes(model: str, options: Options) -> bool:
    """Whether the planes' disagreement can be written: nothing is evaluated for it, so it always is."""
    from scorefusion.models.folder import load_config
    from scorefusion.models.strategies import strategy_named

    config = load_config(model)
    strategy = strategy_named(options["strategy"] or config.sampling.strategy)
    return strategy.every_plane and len(config.planes) > 1


@contextmanager
def _signals(stop: StopFlag) -> Iterator[list[int]]:
    """Let Ctrl-C and SIGTERM end a run after what is being written, and a second one at once."""
    from scorefusion.batch import Stopped

    caught: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if caught:
            os._exit(128 + number)
        caught.append(number)
        stop.set(Stopped(f"interrupted by {signal.Signals(number).name}"))

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {}
    try:
        for number in numbers:
            before[number] = signal.signal(number, handle)
    except ValueError:  # not the main thread: signals are somebody else's
        pass
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
