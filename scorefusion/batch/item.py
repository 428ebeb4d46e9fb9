"""One thing to translate: which files make it up, and where its translation goes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scorefusion.errors import BadInput, OutOfMemory, ScoreFusionError

if TYPE_CHECKING:
    from scorefusion.io.dicom.find import SeriesDescription


@dataclass(frozen=True)
class Problem:
    """Why an item cannot be translated, and what to do about it."""

    error: str
    fix: str = ""

    @classmethod
    def of(cls, error: BaseException) -> Problem:
        """What an exception says, in one line."""
        if isinstance(error, BadInput | OutOfMemory):
            name = error.file if isinstance(error, BadInput) else error.subject
            return cls(" ".join(f"{name}: {error.problem}".split()), " ".join(error.fix.split()))
        text = " ".join(str(error).split()) or type(error).__name__
        return cls(text if isinstance(error, ScoreFusionError) else f"{type(error).__name__}: {text}")


@dataclass(frozen=True)
class Item:
    """A scan, or the conditions of one subject.

    Attributes:
        name: unique in its batch; what reports and events call it.
        files: one a condition of the model, in its order; then the mask, if there is one.
        output: where the translation goes.
        problem: why it cannot be translated, if that is known already.
        series: where the conditions are DICOM series, these; ``files`` are then all of theirs, and the mask.
        masked: whether the last file is the mask of what is missing.
    """

    name: str
    files: tuple[Path, ...]
    output: Path
    problem: Problem | None = None
    series: tuple[SeriesDescription, ...] = ()
    masked: bool = False

    @property
    def inputs(self) -> list[str]:
        """The files, as text; for a series its folder and UID."""
        if self.series:
            return [f"{shown(series.files[0].parent)} ({series.uid})" for series in self.series]
        return [shown(file) for file in self.files]


@dataclass(frozen=True)
class Shard:
    """One of several processes that share a batch: the ``number``-th, from 1, of ``count``."""

    number: int
    count: int

    def __post_init__(self) -> None:
        """Refuse a shard that is none."""
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
        """Whether an item is this shard's; its name alone decides."""
        digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.number - 1

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def shown(path: str | Path) -> str:
    """A path as text that any encoding of Unicode takes, bytes that are no UTF-8 as ``\\udc80``."""
    return str(path).encode("utf-8", "backslashreplace").decode()
