"""Scans in a tree of DICOM files: each series that is a volume is one."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from pathlib import Path

from scorefusion.batch.item import Item, Problem, shown
from scorefusion.batch.listing import Source
from scorefusion.batch.wanted import Wanted
from scorefusion.errors import BadInput, ScoreFusionError
from scorefusion.io.dicom_file import is_dicom
from scorefusion.io.dicom_find import SeriesDescription, find_series


def holds_dicom(root: Path) -> bool:
    """Whether a folder or one in it holds a DICOM file; looks until it finds one."""
    for place, _, names in os.walk(root):
        for name in names:
            try:
                if is_dicom(Path(place) / name):
                    return True
            except BadInput:
                continue
    return False


def list_dicom(root: Path, wanted: Wanted) -> Source:
    """The series of a tree, found by their headers. A damaged file is an item that fails.

    An output is called by the folder of its series, where it is alone there, else by its number and
    description in a folder of that name. Series that are no volumes (localizers, reports) are left out.

    Raises:
        ScoreFusionError: without pydicom, or for a model with several conditions.
    """
    if len(wanted.conditions) != 1:
        raise ScoreFusionError(
            f"{root}: series do not say which condition of the model they are; convert them to NIfTI, and "
            "list them in a CSV"
        )
    damaged: list[BadInput] = []
    found = find_series(root, damaged=damaged)
    volumes = [series for series in found if not series.problem]
    places = {series.uid: _place(root, series) for series in volumes}
    alone = Counter(places.values())
    labels = {series.uid: places[series.uid] / _label(series) for series in volumes}
    twice = Counter(labels.values())
    items = []
    for series in volumes:
        place, label = places[series.uid], labels[series.uid]
        name = place if alone[place] == 1 and place != Path() else label
        if name == label and twice[label] > 1:
            name = label.with_name(f"{label.name}-{hashlib.sha256(series.uid.encode()).hexdigest()[:8]}")
        output = wanted.out / name.with_name(name.name + wanted.ending)
        items.append(Item(shown(name.as_posix()), series.files, output, series=(series,)))
    for error in damaged:
        below = Path(error.file).relative_to(root)
        items.append(Item(shown(below.as_posix()), (), wanted.out / below, Problem.of(error)))
    left = tuple(series.files[0] for series in found if series.problem)
    return Source("dicom", tuple(items), left)


def _place(root: Path, series: SeriesDescription) -> Path:
    """The innermost folder that all files of a series lie in, below the root."""
    folder = Path(os.path.commonpath([file.parent for file in series.files]))
    return folder.relative_to(root)


def _label(series: SeriesDescription) -> str:
    """Such as ``5-t1_mprage``; letters, digits, dots and dashes alone come from the header."""
    described = re.sub(r"[^A-Za-z0-9.-]+", "_", series.description).strip("._-")[:60]
    parts = [str(series.number)] * (series.number is not None) + [described] * bool(described)
    return "-".join(parts) or "series"
