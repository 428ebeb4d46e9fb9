"""BIDS: ``sub-01/[ses-1/]anat/sub-01[_ses-1][_acq-...][_run-...]_T1w.nii.gz``.

The subject and session are read off the name; ``derivatives/`` and ``sourcedata/`` are datasets of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from scorefusion.data.listing import Volume, layout, stem
from scorefusion.models.contrast import canonical

_NAME = re.compile(
    r"(?P<group>sub-[a-z0-9+]+)(?:_(?P<session>ses-[a-z0-9+]+))?(?P<entities>(?:_[a-z]+-[a-z0-9+]+)*)"
    r"_(?P<suffix>T1w|T2w|FLAIR|PDw|T2starw|UNIT1|angio|dseg)",
    re.I,
)

_OTHER = {"derivatives", "sourcedata", "code"}


@layout
def list_bids(root: Path, files: Sequence[Path], contrasts: Sequence[str]) -> Iterator[Volume]:
    """Anatomical volumes of BIDS; ``ce-`` T1w is ``t1c``; phase images (``part-phase``) are left out."""
    for path in files:
        parts = path.relative_to(root).parts
        match = _NAME.fullmatch(stem(path))
        if not match or "anat" not in parts[:-1] or _OTHER & set(parts):
            continue
        entities = match["entities"].lower()
        if "_part-phase" in entities:
            continue
        contrast = canonical(match["suffix"])
        if contrast == "t1" and "_ce-" in entities:
            contrast = "t1c"
        subject = "_".join(part for part in (match["group"], match["session"]) if part)
        yield Volume(subject, match["group"], contrast, path)
