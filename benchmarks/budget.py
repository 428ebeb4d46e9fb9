"""The time that a timed run of the benchmarks may take, shared out over its cases, and what is left of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

CASE_SECONDS = 1.0
"""Longest that a body is repeated, seconds."""
COMPILE_SECONDS = 20.0
"""Expected time of a case with `torch.compile`, seconds, before any was seen and unless it says another."""
EVERY = 10.0
"""Between two lines of progress, seconds."""


@dataclass
class Budget:
    """Clock of a run.

    Attributes:
        seconds: time for the whole run.
        expected: name of each case to run, in order, and its expected seconds if it is a compiled baseline.
        clock: seconds since some moment.
    """

    seconds: float
    expected: dict[str, float | None] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.start = self.clock()
        self.begun = self.shown = self.start
        self.count = len(self.expected)
        self.pace = 1.0
        self.spent: dict[bool, list[float]] = {False: [], True: []}

    def plan(self, expected: dict[str, float | None]) -> None:
        """Set the cases of the run."""
        self.expected, self.count = dict(expected), len(expected)

    @property
    def left(self) -> float:
        """Seconds left of the budget."""
        return self.seconds - (self.clock() - self.start)

    def begin(self, name: str) -> str | None:
        """Start a case; return why there is no time for it, or None."""
        self.begun = self.clock()
        expected = self.expected.get(name)
        if self.left > (0.0 if expected is None else self.pace * expected):
            return None
        needs = "" if expected is None else f" for the {self.pace * expected:.0f} s that compiling may take"
        return f"not timed: no time left of {self.seconds / 60:g} minutes{needs} (--minutes)"

    def end(self, name: str, ran: bool) -> None:
        """Finish a case; what compiled baselines took corrects what is expected of the next."""
        planned, expected = name in self.expected, self.expected.pop(name, None)
        if planned and ran:
            seconds = self.clock() - self.begun
            self.spent[expected is not None].append(seconds)
            if expected is not None:
                pace = seconds / expected
                self.pace = pace if len(self.spent[True]) == 1 else max(self.pace, pace)

    def allowance(self) -> float:
        """Seconds that the case at hand may be repeated."""
        return min(CASE_SECONDS, max(self.left, 0.0) / max(len(self.expected), 1))

    def remaining(self) -> float:
        """Seconds that the cases to come will take, judged by those before."""
        quick = [name for name, expected in self.expected.items() if expected is None]
        compiled = [expected for expected in self.expected.values() if expected is not None]
        mean = _mean(self.spent[False], 2 * CASE_SECONDS)
        return min(max(self.left, 0.0), mean * len(quick) + self.pace * sum(compiled))

    def progress(self) -> str | None:
        """Return a line of progress if the last is `EVERY` seconds ago."""
        now = self.clock()
        if now - self.shown < EVERY or not self.expected:
            return None
        self.shown = now
        done = self.count - len(self.expected)
        return (
            f"{done} of {self.count} cases, {_minutes(now - self.start)} gone, "
            f"about {_minutes(self.remaining())} left"
        )


def _mean(values: Sequence[float], default: float) -> float:
    return sum(values) / len(values) if values else default


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
