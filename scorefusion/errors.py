"""Errors that a user can cause. The command line prints them and exits with status 2."""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class ScoreFusionError(ValueError):
    """Any problem the user can put right: a bad file, a wrong name, an impossible combination."""


class _OfSubject(ScoreFusionError):
    """A problem of something that is named, and what to do about it."""

    def __init__(self, subject: str | os.PathLike[str], problem: str, fix: str = "") -> None:
        self.subject = os.fspath(subject)
        self.problem = problem.rstrip(".")
        self.fix = fix
        super().__init__(f"{self.subject}: {self.problem}. {self.fix}".rstrip())

    def __reduce__(self) -> tuple[type[_OfSubject], tuple[str, str, str]]:
        return type(self), (self.subject, self.problem, self.fix)


class BadInput(_OfSubject):
    """A file that cannot be used: which one, what is wrong with it, and what to do about it.

    Args:
        file: path of the offending file.
        problem: what is wrong, naming what was expected and what was found; no full stop.
        fix: one sentence on what to do, with its full stop; may be empty.
    """

    def __init__(self, file: str | os.PathLike[str], problem: str, fix: str = "") -> None:
        super().__init__(file, problem, fix)
        self.file = self.subject


class OutOfMemory(_OfSubject):
    """Memory ran out, or would have: what needed how much, and what to do about it.

    Args:
        subject: what was being worked on: a file's path, or words such as "the model t1-sr4".
        problem: what was needed and what there was; no full stop.
        fix: one sentence on what to do, with its full stop; may be empty.
    """


_ALLOCATION = (
    "can't allocate memory",
    "cannot allocate memory",
    "could not allocate memory",
    "failed to allocate memory",
    "insufficient memory",
    "not enough memory",
    "out of memory",
    "alloc_failed",
    "bad_alloc",
)
"""What the errors of PyTorch, CUDA's libraries, C++ and decoders say where an allocation fails."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    if isinstance(error, MemoryError | OutOfMemory):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    if isinstance(error, ScoreFusionError):
        cause = error.__cause__
        return cause is not None and not isinstance(cause, ScoreFusionError) and out_of_memory(cause)
    text = str(error).lower()
    return type(error).__name__ == "OutOfMemoryError" or any(words in text for words in _ALLOCATION)


@contextmanager
def memory_named(subject: str | os.PathLike[str], doing: str, fix: str = "") -> Iterator[None]:
    """Around work on something: an allocation that fails becomes an :class:`OutOfMemory` that names it.

    ``doing`` is how, such as "reading it"; an empty ``fix`` is smaller images or a machine with more memory.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OutOfMemory) or not out_of_memory(error):
            raise
        raise shortage_of(error, subject, f" while {doing}", fix) from error


def shortage_of(
    error: BaseException, subject: str | os.PathLike[str], doing: str = "", fix: str = ""
) -> OutOfMemory:
    """Return (not raise) the :class:`OutOfMemory` of an allocation that failed; see :func:`memory_named`."""
    smaller = "Crop it, free some memory, or use a machine with more; `scorefusion plan` says what is needed."
    return OutOfMemory(subject, f"memory ran out{doing}{_asked(error)}", fix or smaller)


def _asked(error: BaseException) -> str:
    """How much the allocation that failed asked for, where its error says so."""
    found = re.search(r"allocate (?:about )?([\d.,]+ ?[KMGTkmgt]?i?)(B|b)(?:ytes)?\b", str(error))
    if found is None:
        return ""
    amount, unit = re.fullmatch(r"([\d.,]+) ?(\w*)", found[1]).groups()  # type: ignore[union-attr]
    asked = f"{float(amount) / 1e9:.2f} GB" if not unit else f"{amount} {unit}B"
    return f" ({asked} more were asked for)"


class Cancelled(Exception):
    """Raise it in a callback to stop a translation; whoever handles ScoreFusionError does not catch it."""


def one_line(error: BaseException) -> str:
    """What went wrong, in one line: the system's reason, the message, or else the name of the error."""
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


def unknown_name(kind: str, name: str, valid: Iterable[str]) -> ScoreFusionError:
    """Return (not raise) an error such as "unknown solver 'ddmi'; did you mean 'ddim'? valid: ddim, ddpm".

    Args:
        kind: what the name stands for, such as "solver".
        name: what was given.
        valid: every accepted name.
    """
    names, typed = sorted(valid), str(name).lower()
    folded = {candidate.lower(): candidate for candidate in names}
    near = difflib.get_close_matches(typed, list(folded), n=5, cutoff=0.5)
    # The nearest, but first one of the same letters: the usual slip is to swap two.
    nearest = min(near, key=lambda candidate: sorted(candidate) != sorted(typed), default=None)
    hint = ";" if nearest is None else f"; did you mean '{folded[nearest]}'?"
    return ScoreFusionError(f"unknown {kind} '{name}'{hint} valid: {', '.join(names)}")
