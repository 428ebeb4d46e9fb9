"""Progress on standard error: a bar with the remaining time on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from scorefusion.cli.streams import shielded

if TYPE_CHECKING:
    from rich.console import Console

Report = Callable[[int, int], None]
StageReport = Callable[[str, int, int, float], None]


class Pace:
    """Estimates the rate and the time left from what was done since it was made."""

    def __init__(self, done: int = 0) -> None:
        self.start, self.first = time.monotonic(), done

    def at(self, done: int, left: int) -> tuple[float, float, float]:
        """Return the seconds since the start, how many are done per second, and the seconds left."""
        seconds = time.monotonic() - self.start
        rate = (done - self.first) / seconds if seconds > 0 else 0.0
        return seconds, rate, left / rate if rate else math.inf


def stderr_console(*, quiet: bool = False) -> Console:
    """A console on standard error that stops writing, and raises nothing, where that fails."""
    from rich.console import Console

    console = Console(stderr=True)
    console.file, console.quiet = shielded(console.file), quiet
    return console


@contextmanager
def progress(label: str, *, quiet: bool = False, every: float = 10.0) -> Iterator[Report]:
    """Yield a callback ``(done, total)`` that shows progress.

    Args:
        label: what is being done.
        quiet: show nothing.
        every: where there is no terminal, seconds between lines; the first and the last are always printed.
    """
    console = stderr_console()
    if quiet:
        yield lambda done, total: None
    elif console.is_terminal:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(label, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
    else:
        yield _plain(label, every, console.file)


def _plain(label: str, every: float, file: IO[str]) -> Report:
    pace, last = Pace(), -every

    def report(done: int, total: int) -> None:
        nonlocal last
        elapsed, _, seconds = pace.at(done, total - done)
        if done < total and elapsed - last < every:
            return
        last = elapsed
        left = f"about {seconds:.0f} s left" if done < total else f"{elapsed:.0f} s"
        print(f"{label}: {done} of {total}, {left}", file=file, flush=True)

    return report


@contextmanager
def stages(console: Console, *, every: float = 30.0) -> Iterator[StageReport]:
    """Yield a callback ``(stage, step, steps, loss)``: a bar for each stage with its rate and time left.

    Args:
        console: on standard error; where that is no terminal, a line is printed now and then.
        every: seconds between these lines; a stage's last step always has one.
    """
    if not console.is_terminal:
        yield _stage_lines(console, every)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), "{task.fields[rate]}")
    loss_column = TextColumn("loss {task.fields[loss]:.4f}")
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, TimeRemainingColumn(), loss_column, console=console) as bars:

        def show(stage: str, step: int, steps: int, loss: float) -> None:
            if stage not in tasks or bars.tasks[tasks[stage]].finished:
                tasks[stage] = bars.add_task(stage, total=steps, completed=step - 1, loss=loss, rate="")
            speed = bars.tasks[tasks[stage]].speed
            bars.update(tasks[stage], completed=step, loss=loss, rate=f"{speed:.3g}/s" if speed else "")

        yield show


def _stage_lines(console: Console, every: float) -> StageReport:
    paces: dict[str, Pace] = {}
    last = -every

    def show(stage: str, step: int, steps: int, loss: float) -> None:
        nonlocal last
        pace = paces.setdefault(stage, Pace(step))
        elapsed, rate, seconds = pace.at(step, steps - step)
        if step < steps and pace.start + elapsed - last < every:
            return
        last = pace.start + elapsed
        left = f", {rate:.3g}/s, about {seconds / 60:.0f} min left" if rate else ""
        loss_text = "" if math.isnan(loss) else f", loss {loss:.4f}"
        console.print(f"{stage}: {step} of {steps}{loss_text}{left}", highlight=False, soft_wrap=True)
        if step == steps:
            paces.pop(stage)

    return show
