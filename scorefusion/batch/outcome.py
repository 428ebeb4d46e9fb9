"""What came of one item."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Outcome:
    """A translation that is on the disk, or the reason why there is none. Pickles.

    Attributes:
        name: the item's.
        work: hash of all that decides the outputs' bits; None if that was not found out.
        outputs: (bytes, sha256) of what was written: ``volume``, and those of ``listing.SIDES`` beside it.
        error: what went wrong, in one line.
        fix: what to do about it.
        seconds: by stage: hash, read, prepare, sample, finish, write.
        residual: mean disagreement with what was measured, as a share of the input's range of intensities.
        warnings: a sentence each.
        numbers: other figures by name.
        before: small picture of the input.
        after: small picture of the result.
    """

    name: str
    work: str | None = None
    outputs: dict[str, tuple[int, str]] = field(default_factory=dict)
    error: str | None = None
    fix: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    residual: float | None = None
    warnings: tuple[str, ...] = ()
    numbers: dict[str, float] = field(default_factory=dict)
    before: bytes | None = None
    after: bytes | None = None
