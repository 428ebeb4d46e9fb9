"""What a batch shows while it runs: a live line on a terminal, plain lines elsewhere, or JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from scorefusion.cli.bars import stderr_console
from scorefusion.cli.streams import shielded

if TYPE_CHECKING:
    from scorefusion.batch import Event, Listener

_COUNTED = ("item-done", "item-failed", "item-kept")


@contextmanager
def view(*, as_json: bool = False, quiet: bool = False, every: float = 10.0) -> Iterator[Listener]:
    """Yield a listener that shows a batch's events.

    Args:
        as_json: print every event as a line of JSON on standard output, and nothing else.
        quiet: show nothing but failures and why a run was stopped, on standard error.
        every: where there is no terminal, seconds between lines about progress.
    """
    console = stderr_console()
    if as_json:
        stdout = shielded(sys.stdout)  # the stream of now: it may be redirected meanwhile
        yield lambda event: print(json.dumps(event), file=stdout, flush=True)
    elif quiet:
        yield _Lines(float("inf"), console.file, quiet=True)
    elif console.is_terminal:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn("translating"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
        )
        with Progress(*columns, TimeElapsedColumn(), console=console) as bar:
            yield _Bar(bar)
    else:
        yield _Lines(every, console.file)


class Tally:
    """Counts a batch's events, and from them its rate and the time left."""

    def __init__(self) -> None:
        self.total = self.todo = self.done = self.failed = self.kept = self.handled = 0
        self.start = time.monotonic()

    def take(self, event: Event) -> None:
        """Count an event."""
        kind = event["event"]
        if kind == "started":
            self.total, self.todo = event["items"], event["todo"]
            self.start = time.monotonic()
        self.done += kind == "item-done"
        self.failed += kind == "item-failed"
        self.kept += kind == "item-kept"

    @property
    def seen(self) -> int:
        """Items that are over."""
        return self.done + self.failed + self.kept

    def text(self) -> str:
        """Such as ``12 done, 1 failed, 3 there already, 4.2/min, about 9 min left``."""
        parts = [f"{self.done} done", f"{self.failed} failed"]
        parts += [f"{self.kept} there already"] if self.kept else []
        minutes = (time.monotonic() - self.start) / 60
        if self.done and minutes > 0:
            rate = self.done / minutes
            left = (self.total - self.seen) / rate
            parts.append(f"{rate:.3g}/min")
            parts += [f"about {_minutes(left)} left"] if self.seen < self.total else []
        return ", ".join(parts)


class _Bar:
    """One live line, and a line for each failure above it."""

    def __init__(self, bar: Any):
        self.bar, self.tally = bar, Tally()
        self.task = bar.add_task("", total=None)

    def __call__(self, event: Event) -> None:
        self.tally.take(event)
        text = _line(event)
        if text is not None:
            self.bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        if event["event"] in ("started", *_COUNTED):
            tally = self.tally
            self.bar.update(self.task, total=tally.total, completed=tally.seen, description=tally.text())


class _Lines:
    """A line for each failure, and one about progress now and then."""

    def __init__(self, every: float, file: IO[str], *, quiet: bool = False):
        self.every, self.file, self.quiet, self.tally = every, file, quiet, Tally()
        self.last = time.monotonic()

    def __call__(self, event: Event) -> None:
        self.tally.take(event)
        kind, now = event["event"], time.monotonic()
        text = _line(event)
        if text is not None and not (self.quiet and kind in ("started", "note", "item-done")):
            print(text, file=self.file, flush=True)
        if kind in _COUNTED and not self.quiet and now - self.last >= self.every:
            self.last = now
            seen = f"{self.tally.seen} of {self.tally.total}"
            print(f"translating: {seen}: {self.tally.text()}", file=self.file, flush=True)


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
    if kind == "note":
        return f"note: {event['text']}"
    return None


def _minutes(minutes: float) -> str:
    if minutes < 2:
        return f"{60 * minutes:.0f} s"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
