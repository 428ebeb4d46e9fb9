"""Standard streams that may fail without ending the work, and progress on them: bars, or plain lines."""

from __future__ import annotations

import errno
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, TextIO, cast

from scorefusion.errors import ScoreFusionError, one_line

if TYPE_CHECKING:
    from rich.console import Console

READER_GONE = 141
"""Exit status where the reader of a result has gone, as a shell reports a process that SIGPIPE ended."""

Report = Callable[[int, int], None]
StageReport = Callable[[str, int, int, float], None]


class Shield:
    """A text stream whose first failure switches it off; what is written afterwards is discarded.

    Characters that its encoding lacks are written as ``?``. None stands for one closed before the program.
    """

    def __init__(self, stream: IO[str] | None):
        self.error: OSError | ValueError | None = None
        if stream is None:
            self.error = OSError(errno.EBADF, os.strerror(errno.EBADF))
        self.stream: IO[str] = stream or open(os.devnull, "w", encoding="utf-8")

    def __getattr__(self, name: str) -> Any:
        """Everything else is the stream's own, but its binary side, which would bypass the shield."""
        if name in ("buffer", "stream"):
            raise AttributeError(name)
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write text, if the stream still takes any."""
        self._attempt(self._write, text)
        return len(text)

    def flush(self) -> None:
        """Flush, if the stream still takes anything."""
        self._attempt(self.stream.flush)

    def isatty(self) -> bool:
        """Whether it is a terminal that still takes text."""
        try:
            return self.error is None and self.stream.isatty()
        except (OSError, ValueError):
            return False

    def _attempt(self, action: Callable[..., object], *arguments: str) -> None:
        if self.error is None:
            try:
                action(*arguments)
            except (OSError, ValueError) as error:
                self.error = error

    def _write(self, text: str) -> None:
        try:
            self.stream.write(text)
        except UnicodeEncodeError:
            encoding = getattr(self.stream, "encoding", None) or "ascii"
            self.stream.write(text.encode(encoding, "replace").decode(encoding))


def shielded(stream: IO[str] | None) -> TextIO:
    """The stream behind a :class:`Shield`; one that has a shield is returned as it is."""
    return cast(TextIO, stream if isinstance(stream, Shield) else Shield(stream))


def shield_standard_streams() -> None:
    """Put both standard streams of this process behind a :class:`Shield`, until it ends.

    Descriptors 0 to 2 that are closed are opened on the null device, so that no output file gets one of these
    numbers, to which libraries and child processes write their messages.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdout, sys.stderr = shielded(sys.stdout), shielded(sys.stderr)


def require_stdout() -> None:
    """Check that standard output took the text that a verb was run for."""
    error = _stdout_error()
    if isinstance(error, BrokenPipeError):
        raise SystemExit(READER_GONE)
    if error is not None:
        raise ScoreFusionError(f"standard output cannot be written ({one_line(error)})")


def note(problem: str | None) -> None:
    """Print what went wrong beside the work, if anything did, on standard error."""
    if problem is not None:
        print(f"scorefusion: {problem}", file=shielded(sys.stderr))


def note_lost_output() -> None:
    """Say on standard error that the rest of standard output was lost, unless it was closed on purpose."""
    error = _stdout_error()
    if error is not None and getattr(error, "errno", None) not in (errno.EPIPE, errno.EBADF):
        note(f"standard output could not be written ({one_line(error)}); the work went on without it")


def _stdout_error() -> OSError | ValueError | None:
    sys.stdout.flush()
    return sys.stdout.error if isinstance(sys.stdout, Shield) else None


class Pace:
    """Estimates the rate and the time left from what was done since it was made."""

    def __init__(self, done: int = 0) -> None:
        self.start, self.first = time.monotonic(), done

    def at(self, done: int, left: int) -> tuple[float, float, float]:
        """Return the seconds since the start, how many are done per second, and the seconds left."""
        seconds = time.monotonic() - self.start
        rate = (done - self.first) / seconds if seconds > 0 else 0.0
        return seconds, rate, left / rate if rate else math.inf


def now_and_then(every: float, last: float = -math.inf) -> Callable[[float], bool]:
    """Return a function of the time, true ``every`` seconds after ``last``, and after it was true."""

    def due(now: float) -> bool:
        nonlocal last
        if now - last < every:
            return False
        last = now
        return True

    return due


def stderr_console(*, quiet: bool = False) -> Console:
    """A console on standard error that stops writing, and raises nothing, where that fails."""
    from rich.console import Console

    console = Console(stderr=True)
    console.file, console.quiet = shielded(console.file), quiet
    return console


@contextmanager
def progress(label: str, *, quiet: bool = False, every: float = 10.0) -> Iterator[Report]:
    """Yield a callback ``(done, total)`` that shows progress, unless ``quiet``.

    Where there is no terminal there are ``every`` seconds between lines; the first and the last are always
    printed.
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
        pace, due = Pace(), now_and_then(every)

        def report(done: int, total: int) -> None:
            elapsed, _, seconds = pace.at(done, total - done)
            if due(elapsed) or done >= total:
                left = f"about {seconds:.0f} s left" if done < total else f"{elapsed:.0f} s"
                print(f"{label}: {done} of {total}, {left}", file=console.file, flush=True)

        yield report


@contextmanager
def stages(console: Console, *, every: float = 30.0) -> Iterator[StageReport]:
    """Yield a callback ``(stage, step, steps, loss)``: a bar for each stage with its rate and time left.

    ``console`` is on standard error; where that is no terminal, there are ``every`` seconds between lines,
    and a stage's last step always has one.
    """
    if not console.is_terminal:
        paces: dict[str, Pace] = {}
        due = now_and_then(every)

        def line(stage: str, step: int, steps: int, loss: float) -> None:
            pace = paces.setdefault(stage, Pace(step))
            elapsed, rate, seconds = pace.at(step, steps - step)
            if not due(pace.start + elapsed) and step < steps:
                return
            left = f", {rate:.3g}/s, about {seconds / 60:.0f} min left" if rate else ""
            loss_text = "" if math.isnan(loss) else f", loss {loss:.4f}"
            console.print(f"{stage}: {step} of {steps}{loss_text}{left}", highlight=False, soft_wrap=True)
            if step == steps:
                paces.pop(stage)

        yield line
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
