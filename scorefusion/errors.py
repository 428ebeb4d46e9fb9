"""Errors that a user can cause. The command line prints them and exits with status 2."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable


class ScoreFusionError(ValueError):
    """Any problem the user can put right: a bad file, a wrong name, an impossible combination."""


class BadInput(ScoreFusionError):
    """A file that cannot be used: which one, what is wrong with it, and what to do about it.

    Args:
        file: path of the offending file.
        problem: what is wrong, naming what was expected and what was found; no full stop.
        fix: one sentence on what to do, with its full stop; may be empty.
    """

    def __init__(self, file: str | os.PathLike[str], problem: str, fix: str = "") -> None:
        self.file = os.fspath(file)
        self.problem = problem.rstrip(".")
        self.fix = fix
        super().__init__(f"{self.file}: {self.problem}. {self.fix}".rstrip())

    def __reduce__(self) -> tuple[type[BadInput], tuple[str, str, str]]:
        return BadInput, (self.file, self.problem, self.fix)


class Cancelled(Exception):
    """Raise it in a callback to stop a translation; the pipeline can be used again at once.

    It is no :class:`ScoreFusionError`, so that who catches these does not swallow a cancellation.
    """


def one_line(error: BaseException) -> str:
    """What went wrong, in one line: the system's reason, the message, or else the name of the error."""
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


def unknown_name(kind: str, name: str, valid: Iterable[str]) -> ScoreFusionError:
    """Return (not raise) the error for a name that is not among the valid ones.

    Args:
        kind: what the name stands for, such as "solver".
        name: what was given.
        valid: every accepted name.

    Returns:
        An error such as "unknown solver 'ddmi'; did you mean 'ddim'? valid: ddim, ddpm".
    """
    names = sorted(valid)
    folded = {candidate.lower(): candidate for candidate in names}
    near = difflib.get_close_matches(str(name).lower(), list(folded), n=5, cutoff=0.5)
    nearest = min(near, key=lambda candidate: _typing_slips(str(name).lower(), candidate), default=None)
    hint = ";" if nearest is None else f"; did you mean '{folded[nearest]}'?"
    return ScoreFusionError(f"unknown {kind} '{name}'{hint} valid: {', '.join(names)}")


def _typing_slips(typed: str, meant: str) -> int:
    """Return how many letters were added, left out, replaced or swapped with a neighbour."""
    before: list[int] = []
    row = list(range(len(meant) + 1))
    for i, letter in enumerate(typed, start=1):
        before, last, row = row, before, [i]
        for j, wanted in enumerate(meant, start=1):
            slips = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and letter == meant[j - 2] and typed[i - 2] == wanted:
                slips = min(slips, last[j - 2] + 1)
            row.append(slips)
    return row[-1]
