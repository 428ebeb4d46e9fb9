"""Progress on standard error: a bar with the remaining time on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[[int, int], None]


@contextmanager
def progress(label: str, *, quiet: bool = False, every: float = 10.0) -> Iterator[Report]:
    """Yield a callback ``(done, total)`` that shows progress.

    Args:
        label: what is being done.
        quiet: show nothing.
        every: where there is no terminal, seconds between lines; the first and the last are always printed.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if quiet:
        yield lambda done, total: None
    elif console.is_terminal:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(label, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
    else:
        yield _plain(label, every)


def _plain(label: str, every: float) -> Report:
    start = time.monotonic()
    last = -every

    def report(done: int, total: int) -> None:
        nonlocal last
        elapsed = time.monotonic() - start
        if done < total and elapsed - last < every:
            return
        last = elapsed
        left = f"about {elapsed / done * (total - done):.0f} s left" if done < total else f"{elapsed:.0f} s"
        print(f"{label}: {done} of {total}, {left}", file=sys.stderr, flush=True)

    return report
