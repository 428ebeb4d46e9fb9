"""Scans in a tree of DICOM files: each series that is a volume is one."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from scorefusion.batch.item import Item, Problem, shown
from scorefusion.batch.listing import Source
from scorefusion.batch.wanted import Wanted
from scorefusion.errors import BadInput, ScoreFusionError
from scorefusion.io.dicom.file import is_dicom
from scorefusion.io.dicom.find import PassedOver, SeriesDescription, find_series, matching, summaries
from scorefusion.io.formats import WRITABLE

_OTHERS = (*WRITABLE, ".json", ".tsv", ".csv", ".bval", ".bvec")


def holds_dicom(root: Path, *, skip: Callable[[Path], bool] | None = None) -> bool:
    """Whether a folder or one in it holds a DICOM file; looks until it finds one, by what files hold.

    Files that are called as NIfTI files and their companions are not opened.
    """
    for place, folders, names in os.walk(root):
        folders[:] = [name for name in folders if skip is None or not skip(Path(place, name))]
        for name in names:
            try:
                if not name.lower().endswith(_OTHERS) and is_dicom(Path(place) / name):
                    return True
            except BadInput:
                continue
    return False


def list_dicom(root: Path, wanted: Wanted, *, skip: Callable[[Path], bool] | None = None) -> Source:
    """The series of a tree, found by their headers. A damaged file is an item that fails.

    An output is called by the folder of its series, where it is alone there, else by its number and
    description in a folder of that name. Series that are no volumes (localizers, reports) are left out and
    named in the notes, as are files that are not DICOM; of a series' own folders, in its item's warnings.

    Args:
        root: the tree.
        wanted: what for.
        skip: says which folders are not entered.

    Raises:
        BadInput: if no series is the one wanted.
        ScoreFusionError: without pydicom, or for a model with several conditions.
    """
    if len(wanted.conditions) != 1:
        raise ScoreFusionError(
            f"{root}: series do not say which condition of the model they are; list them in a CSV, each by "
            "the folder of its series"
        )
    damaged: list[BadInput] = []
    passed: list[PassedOver] = []
    found = find_series(root, damaged=damaged, passed=passed, skip=skip)
    chosen = found if wanted.series is None else matching(found, wanted.series)
    if not chosen and wanted.series is not None:
        others = "; ".join(str(series) for series in found)
        raise BadInput(
            root, f"holds no series '{wanted.series}', only {others or 'none'}", "Name one of these."
        )
    volumes = [series for series in found if not series.problem]
    places = {series.uid: _place(root, series) for series in volumes}
    alone = Counter(places.values())
    labels = {series.uid: places[series.uid] / _label(series) for series in volumes}
    twice = Counter(labels.values())
    items = []
    for series in volumes:
        if series not in chosen:
            continue
        place, label = places[series.uid], labels[series.uid]
        name = place if alone[place] == 1 and place != Path() else label
        if name == label and twice[label] > 1:
            name = _with_hash(label, series)
        output = wanted.out / name.with_name(name.name + wanted.ending)
        items.append(Item(shown(name.as_posix()), series.files, output, series=(series,)))
    for series in (series for series in chosen if series.problem and series.slices):
        name = _place(root, series) / _label(series)
        if shown(name.as_posix()) in {item.name for item in items}:
            name = _with_hash(name, series)
        fix = "Take out the files that are not slices of it; convert mosaics to NIfTI with dcm2niix."
        problem = Problem(shown(f"{root}: {series}"), fix)
        items.append(Item(shown(name.as_posix()), (), wanted.out / name, problem))
    for error in damaged:
        below = Path(error.file).relative_to(root)
        items.append(Item(shown(below.as_posix()), (), wanted.out / below, Problem.of(error)))
    left = [series for series in chosen if series.problem and not series.slices]
    told = {each.file for series in volumes for each in series.passed}
    told |= {Path(error.file) for error in damaged}
    notes = [f"left out: {series}" for series in left]
    notes += summaries((each for each in passed if each.file not in told), root)
    return Source("dicom", tuple(items), tuple(series.files[0] for series in left), tuple(map(shown, notes)))


def _place(root: Path, series: SeriesDescription) -> Path:
    """The innermost folder that all files of a series lie in, below the root."""
    folder = Path(os.path.commonpath([file.parent for file in series.files]))
    return folder.relative_to(root)


def _with_hash(name: Path, series: SeriesDescription) -> Path:
    return name.with_name(f"{name.name}-{hashlib.sha256(series.uid.encode()).hexdigest()[:8]}")


def _label(series: SeriesDescription) -> str:
    """Such as ``5-t1_mprage``; letters, digits, dots and dashes alone come from the header."""
    described = re.sub(r"[^A-Za-z0-9.-]+", "_", series.description).strip("._-")[:60]
    parts = [str(series.number)] * (series.number is not None) + [described] * bool(described)
    return "-".join(parts) or "series"
