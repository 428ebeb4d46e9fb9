"""A subject: one session of one person, and the file of each contrast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Subject:
    """Volumes of one person taken at one time.

    Attributes:
        name: unique in its dataset, such as ``sub-001`` or ``sub-001_ses-2``.
        group: the person; sessions of one person share it, and splits go by it.
        files: contrast (``t1``, ``t1c``, ``t2``, ``flair``, ``pd``, ``labels``, ...) to NIfTI file.
    """

    name: str
    group: str
    files: Mapping[str, Path] = field(hash=False)
