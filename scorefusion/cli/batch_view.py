"""What a batch shows while it runs: a live line on a terminal, plain lines elsewhere, or JSON."""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from scorefusion.cli.bars import Pace, stderr_console
from scorefusion.cli.streams import shielded

if TYPE_CHECKING:
    from scorefusion.batch import Event, Listener


@contextmanager
def view(*, as_json: bool = False, quiet: bool = False, every: float = 10.0) -> Iterator[Listener]:
    """Yield a listener that shows a batch's events.

    Args:
        as_json: print every event as a line of JSON on standard output, and nothing else.
        quiet: show nothing but failures and why a run was stopped, on standard error.
        every: where there is no terminal, seconds between lines about progress.
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
        last = time.monotonic()

        def line(now: _View) -> None:
            nonlocal last
            if now.seen and time.monotonic() - last >= every:
                last = time.monotonic()
                say(f"translating: {now.seen} of {now.total}: {now.text()}")

        yield _View(say, line)


class _View:
    """Counts a batch's events, and shows what a reader must know of each.

    Args:
        show: prints a line.
        update: shows how far the batch is, called when that has changed.
        quiet: show failures only.
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
        """Items that are over."""
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
