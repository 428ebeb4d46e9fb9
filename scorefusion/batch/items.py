"""Items of a batch, what became of them, and whether an error fails one item or stops the run."""

from __future__ import annotations

import errno
import hashlib
import sqlite3
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from scorefusion.errors import BadInput, OutOfMemory, ScoreFusionError

if TYPE_CHECKING:
    from scorefusion.io.dicom.find import SeriesDescription

_ITEM_ERRORS = ("EEXIST", "EFBIG", "EILSEQ", "EISDIR", "ENAMETOOLONG", "ENOTDIR", "ENOTEMPTY")
"""System errors while writing that another output of the batch need not meet."""

_FIXES = {
    errno.ENOSPC: "Free some space",
    errno.EDQUOT: "Free some of your quota",
    errno.EROFS: "Make the file system writable",
    errno.EACCES: "Restore the permission to write",
    errno.EPERM: "Restore the permission to write",
    errno.ENOENT: "Bring the folder back",
    errno.EIO: "Check the disk",
    errno.ESTALE: "Mount the file system again",
}


@dataclass(frozen=True)
class Problem:
    """Why an item cannot be translated, and what to do about it."""

    error: str
    fix: str = ""

    @classmethod
    def of(cls, error: BaseException) -> Problem:
        """Return what an exception says, in one line."""
        if isinstance(error, BadInput | OutOfMemory):
            return cls(" ".join(f"{error.subject}: {error.problem}".split()), " ".join(error.fix.split()))
        text = " ".join(str(error).split()) or type(error).__name__
        return cls(text if isinstance(error, ScoreFusionError) else f"{type(error).__name__}: {text}")


@dataclass(frozen=True)
class Item:
    """A scan, or the conditions of one subject."""

    name: str  #: unique in its batch; reports and events use it
    #: one for each condition of the model, in its order; then the mask, if there is one
    files: tuple[Path, ...]
    output: Path  #: where the translation goes
    problem: Problem | None = None  #: why it cannot be translated, if that is known already
    #: the DICOM series that are the conditions; ``files`` are then all of theirs, and the mask
    series: tuple[SeriesDescription, ...] = ()
    masked: bool = False  #: whether the last file is the mask of what is missing

    @property
    def inputs(self) -> list[str]:
        """The files, as text; of a series its folder and UID."""
        if self.series:
            return [f"{shown(series.files[0].parent)} ({series.uid})" for series in self.series]
        return [shown(file) for file in self.files]


@dataclass(frozen=True)
class Outcome:
    """A translation that is on the disk, or the reason why there is none. Pickles."""

    name: str  #: the item's
    work: str | None = None  #: hash of all that decides the outputs' bits; None if it is not known
    #: (bytes, sha256) of what was written: ``volume``, and those of :data:`.files.SIDES` beside it
    outputs: dict[str, tuple[int, str]] = field(default_factory=dict)
    error: str | None = None  #: what went wrong, in one line
    fix: str | None = None  #: what to do about it
    #: by stage: hash, read, prepare, sample, finish, write
    seconds: dict[str, float] = field(default_factory=dict)
    #: mean disagreement with the measurement, as a share of the input's data range
    residual: float | None = None
    warnings: tuple[str, ...] = ()  #: one sentence each
    numbers: dict[str, float] = field(default_factory=dict)  #: other figures by name
    before: bytes | None = None  #: small picture of the input
    after: bytes | None = None  #: small picture of the result


@dataclass(frozen=True)
class Shard:
    """One of several processes that share a batch: the ``number``-th, from 1, of ``count``."""

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise ScoreFusionError(f"a shard is i/n with 1 ≤ i ≤ n, got {self}")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read ``3/8``.

        Raises:
            ScoreFusionError: for anything else.
        """
        number, _, count = text.partition("/")
        try:
            return cls(int(number), int(count))
        except ValueError:
            raise ScoreFusionError(f"a shard is i/n with 1 ≤ i ≤ n, such as 3/8; got '{text}'") from None

    def holds(self, name: str) -> bool:
        """Return whether an item belongs to this shard; its name alone decides."""
        digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.number - 1

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


class Stopped(Exception):
    """The batch must end here and can be resumed; no item is to blame.

    Args:
        reason: why, in one line.
        fix: what to do before resuming; may be empty.
    """

    def __init__(self, reason: str, fix: str = "") -> None:
        self.reason, self.fix = reason, fix
        super().__init__(f"{reason}. {fix}".rstrip())

    def __reduce__(self) -> tuple[type[Stopped], tuple[str, str]]:
        return Stopped, (self.reason, self.fix)


class StopFlag:
    """Set by whoever finds that a batch must end; the first reason counts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.reason: Stopped | None = None

    def set(self, reason: Stopped) -> None:
        """End the batch."""
        with self._lock:
            self.reason = self.reason or reason

    def check(self, *_: object) -> None:
        """Raise the reason, if there is one."""
        if self.reason is not None:
            raise self.reason


def stop_for(error: BaseException, place: str) -> Stopped | None:
    """Return why an error met while writing to ``place`` stops the run; None where it fails one item.

    A :class:`ScoreFusionError` made from a system error counts as that one.
    """
    cause = error.__cause__ if isinstance(error, ScoreFusionError) else error
    if isinstance(cause, sqlite3.Error):
        return Stopped(f"the queue in {place} cannot be written ({cause})", "See that the disk is not full.")
    if not isinstance(cause, OSError) or errno.errorcode.get(cause.errno or 0) in _ITEM_ERRORS:
        return None
    fix = _FIXES.get(cause.errno or 0, "See what the system says about it")
    return Stopped(f"{place} cannot be written ({cause.strerror or cause})", f"{fix}.")


def failure(item: Item, error: BaseException | Problem, work: str | None = None) -> Outcome:
    """Return the outcome of an item that cannot be translated."""
    problem = error if isinstance(error, Problem) else Problem.of(error)
    return Outcome(item.name, work=work, error=shown(problem.error), fix=shown(problem.fix) or None)


def shown(path: str | Path, root: Path | None = None) -> str:
    """Return a path, below ``root`` where it lies there, as text; bytes that are not UTF-8 as ``\\udc80``."""
    if root is not None and Path(path).is_relative_to(root):
        path = Path(path).relative_to(root).as_posix()
    return str(path).encode("utf-8", "backslashreplace").decode()
