"""What became of one scan of a batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Row:
    """A line of the report.

    Attributes:
        name: what the scan is called; unique in a batch.
        state: ``done``, ``failed`` or ``waiting`` (not reached yet).
        inputs: the files it was read from.
        output: where the result lies, relative to the report's folder; None where there is none.
        seconds: how long it took.
        residual: mean consistency residual as a share of the input's intensity range; None where nothing is
            measured.
        warnings: a sentence each.
        error: what went wrong.
        fix: what to do about it.
        before: the input as a small picture, from :func:`.thumbnails.strip`.
        after: the result as one, of the same planes and grey scale.
        numbers: other figures, by the name that heads their column.
    """

    name: str
    state: Literal["done", "failed", "waiting"]
    inputs: tuple[str, ...] = ()
    output: str | None = None
    seconds: float | None = None
    residual: float | None = None
    warnings: tuple[str, ...] = ()
    error: str | None = None
    fix: str | None = None
    before: bytes | None = None
    after: bytes | None = None
    numbers: dict[str, float] = field(default_factory=dict)
