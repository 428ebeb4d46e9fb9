"""``scorefusion translate`` for many scans: what is shown meanwhile and at the end, signals, exit codes."""

from __future__ import annotations

import functools
import json
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from scorefusion.cli.console import Pace, note, now_and_then, shielded, stderr_console

if TYPE_CHECKING:
    from scorefusion.batch import Batch, Event, Listener, StopFlag
    from scorefusion.cli.translate import Beside, Many
    from scorefusion.pipeline import CallOptions, Machine, Options


def translate_many(
    inputs: Sequence[Path],
    out: Path,
    model: str,
    machine: Machine,
    options: CallOptions,
    many: Many,
    beside: Beside,
    quiet: bool,
) -> int:
    """Translate a batch and say how it went.

    Returns:
        The exit code: 0 if no item failed, 1 if some did, 3 if the run had to stop, 128 and the signal's
        number if it was interrupted.
    """
    from scorefusion.batch import StopFlag, translate_batch
    from scorefusion.engine.planning.memory import keep_freed_memory
    from scorefusion.errors import ScoreFusionError

    alone = {"spread": beside.spread, "error-bar": beside.error_bar, "figure": beside.figure}
    for name, value in {"mask": options.pop("mask"), **alone}.items():
        if value is not None:
            instead = "; a table's column 'mask' is for many" if name == "mask" else ""
            raise ScoreFusionError(f"--{name} is for one volume, and {out} is a folder of many{instead}")
    batch = _batch(inputs, out, model, machine, options, many)
    ray = many.ray_address or ("local" if many.ray else None)
    if many.workers is not None and ray is None:
        raise ScoreFusionError("--workers is for --ray; without it one process does all")
    if machine["max_memory"] is None:
        keep_freed_memory()
    stop = StopFlag()
    with view(as_json=many.as_json, quiet=quiet) as listener, ExitStack() as held:
        cluster = None
        if ray is not None:
            from scorefusion.batch.ray import connected

            # Ray prints what happens to its processes on standard output, where events may go.
            held.enter_context(redirect_stdout(sys.stderr))
            device, workers = batch.work.device, many.workers
            cluster = held.enter_context(connected(ray, device=device, workers=workers))
        caught = held.enter_context(_signals(stop))
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
        return 128 + caught[0] if caught else 3
    return 1 if summary.failed else 0


def _batch(
    inputs: Sequence[Path], out: Path, model: str, machine: Machine, options: Options, many: Many
) -> Batch:
    """Return the batch that a command line describes."""
    from scorefusion.batch import Batch, Limits, Shard, Work
    from scorefusion.engine.planning.fit import parse_memory
    from scorefusion.errors import unknown_name
    from scorefusion.io import WRITABLE, check_ending
    from scorefusion.models.folder import load_config
    from scorefusion.models.strategies import strategy_named

    if many.ending not in WRITABLE:
        raise unknown_name("ending", many.ending, WRITABLE)
    check_ending(many.ending)
    several = options["samples"] > 1
    if several and not options["disagreement"]:  # nothing is evaluated for it: write it where it can be
        config = load_config(model)
        strategy = strategy_named(options["strategy"] or config.sampling.strategy)
        options = {**options, "disagreement": strategy.every_plane and len(config.planes) > 1}
    engines = machine["engines"]
    where: dict[str, Any] = {**machine, "engines": None if engines is None else str(engines)}
    written = {name: getattr(many, name) for name in ("level", "dicom", "deidentify")}
    chosen = {name: getattr(many, name) for name in ("ending", "layout", "series", "verify", "keep_failed")}
    memory = None if many.prefetch_memory is None else parse_memory(many.prefetch_memory)
    return Batch(
        tuple(inputs),
        out,
        Work(model, options, spread=several, **where, **written),
        choose=tuple(many.choose or ()),
        shard=None if many.shard is None else Shard.parse(many.shard),
        limits=Limits(many.prefetch, memory),
        **chosen,
    )


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

    here = threading.current_thread() is threading.main_thread()  # else signals are somebody else's
    numbers = (signal.SIGINT, signal.SIGTERM) if here else ()
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def view(*, as_json: bool = False, quiet: bool = False, every: float = 10.0) -> Iterator[Listener]:
    """Yield a listener that shows a batch's events on standard error.

    ``as_json`` prints every event as a line of JSON on standard output, and nothing else; ``quiet`` shows
    failures alone. Where there is no terminal, there are ``every`` seconds between lines about progress.
    """
    console = stderr_console()
    say = functools.partial(print, file=console.file, flush=True)
    if as_json:
        stdout = shielded(sys.stdout)  # the stream of now: it may be redirected meanwhile
        yield lambda event: print(json.dumps(event), file=stdout, flush=True)
    elif quiet:
        yield _View(say, quiet=True)
    elif console.is_terminal:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        text = TextColumn("{task.description}")
        columns = (TextColumn("translating"), BarColumn(), MofNCompleteColumn(), text, TimeElapsedColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("", total=None)
            show = functools.partial(bar.console.print, markup=False, highlight=False, soft_wrap=True)
            yield _View(
                show,
                lambda now: bar.update(task, total=now.total, completed=now.seen, description=now.text()),
            )
    else:
        due = now_and_then(every, time.monotonic())

        def line(now: _View) -> None:
            if now.seen and due(time.monotonic()):
                say(f"translating: {now.seen} of {now.total}: {now.text()}")

        yield _View(say, line)


class _View:
    """Counts a batch's events, and shows what a reader must know of each; if ``quiet`` failures only.

    ``show`` prints a line, ``update`` shows how far the batch is when that has changed.
    """

    def __init__(
        self,
        show: Callable[[str], object],
        update: Callable[[_View], None] | None = None,
        quiet: bool = False,
    ):
        self.show, self.update, self.quiet = show, update, quiet
        self.counts = {"item-done": 0, "item-failed": 0, "item-kept": 0}
        self.total, self.pace = 0, Pace()

    def __call__(self, event: Event) -> None:
        kind = event["event"]
        if kind == "started":
            self.total, self.pace = event["items"], Pace()
        elif kind in self.counts:
            self.counts[kind] += 1
        text = _line(event)
        if text is not None and not (self.quiet and kind in ("started", "note", "item-done")):
            self.show(text)
        if self.update is not None and kind in ("started", *self.counts):
            self.update(self)

    @property
    def seen(self) -> int:
        """How many items are over."""
        return sum(self.counts.values())

    def text(self) -> str:
        """Such as ``12 done, 1 failed, 3 there already, 4.2/min, about 9 min left``."""
        done, failed, kept = self.counts.values()
        parts = [f"{done} done", f"{failed} failed"]
        parts += [f"{kept} there already"] if kept else []
        _, rate, left = self.pace.at(done, self.total - self.seen)
        if rate:
            parts.append(f"{60 * rate:.3g}/min")
            parts += [f"about {_minutes(left / 60)} left"] * (self.seen < self.total)
        return ", ".join(parts)


def _line(event: Event) -> str | None:
    kind = event["event"]
    if kind == "started":
        shard = f", shard {event['shard']}" if event["shard"] else ""
        where = f", on {event['device']} in {event['dtype']}" if event["device"] else ""
        items = f"{event['items']} item" + "s" * (event["items"] != 1)
        return f"{items}, {event['todo']} to do{shard}{where}"
    if kind == "item-failed":
        fix = f" {event['fix']}" if event["fix"] else ""
        return f"failed: {event['name']}: {event['error']}.{fix}"
    if kind == "item-done" and event.get("warnings"):
        return "\n".join(f"warning: {event['name']}: {warning}" for warning in event["warnings"])
    return f"note: {event['text']}" if kind == "note" else None


def _minutes(minutes: float) -> str:
    if minutes < 2:
        return f"{60 * minutes:.0f} s"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
