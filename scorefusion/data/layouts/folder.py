"""Plain folders, by subject or by contrast:
``SUBJECT/SUBJECT_t1.nii.gz``, ``SUBJECT/t1.nii.gz``, ``SUBJECT_t1.nii.gz`` or ``t1/SUBJECT[_t1].nii.gz``.

A name that ends in ``_ses-...`` is a session of the person before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from scorefusion.data.listing import Volume, layout, stem
from scorefusion.models.contrast import canonical, is_known


@layout
def list_folder(root: Path, files: Sequence[Path], contrasts: Sequence[str]) -> Iterator[Volume]:
    """Volumes whose folder or name ends in a contrast: a usual one, or one of ``contrasts``."""

    def is_contrast(word: str) -> bool:
        return is_known(word) or canonical(word) in contrasts

    for path in files:
        name = stem(path)
        inside = path.parent != root
        folder = path.parent.name
        subject, _, ending = name.rpartition("_")
        if inside and is_contrast(folder):
            same = subject and canonical(ending) == canonical(folder)
            subject, contrast = (subject if same else name), folder
        elif subject and (is_contrast(ending) or (inside and subject == folder)):
            contrast = ending
        elif inside and is_contrast(name):
            subject, contrast = folder, name
        else:
            continue
        yield Volume(subject, person(subject), canonical(contrast), path)


def person(subject: str) -> str:
    """The person of ``sub-001_ses-2``: ``sub-001``."""
    return re.sub(r"_ses-[^_]+$", "", subject, flags=re.I)
