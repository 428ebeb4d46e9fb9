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
    near = difflib.get_close_matches(str(name).lower(), list(folded), n=1, cutoff=0.5)
    hint = f"; did you mean '{folded[near[0]]}'?" if near else ";"
    return ScoreFusionError(f"unknown {kind} '{name}'{hint} valid: {', '.join(names)}")
