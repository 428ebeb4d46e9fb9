"""Volumes reconstructed from fastMRI brain data: ``file_brain_AXT2_200_2000019.nii.gz``.

fastMRI names scans, not persons, so names alone do not say which files belong together. The person comes from
``patients.csv`` beside the volumes (columns ``file`` and ``patient_id``, an attribute of the HDF5 files), or
from a folder for each person.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from scorefusion.data.layouts.table import read_rows
from scorefusion.data.listing import Listing, Volume, stem
from scorefusion.errors import BadInput
from scorefusion.models.contrast import LABELS, canonical

TABLE = "patients.csv"
_NAME = re.compile(
    r"(?P<scan>file_brain_(?P<contrast>AXT1PRE|AXT1POST|AXT1|AXT2|AXFLAIR)_(?P<number>\d+_\d+))"
    r"(?P<rest>|_rss|_recon\w*|_seg)",
    re.I,
)
_NOT_A_PERSON = re.compile(r"(single|multi)coil.*|train.*|val.*|test.*|brain.*", re.I)


def list_fastmri(root: Path, files: Sequence[Path], contrasts: Sequence[str]) -> Listing:
    """Brain volumes exported from fastMRI."""
    matches = [(path, match) for path in files if (match := _NAME.fullmatch(stem(path)))]
    table = root / TABLE
    people = dict(_rows(table)) if matches and table.is_file() else None
    volumes, problems, unknown = [], [], ""
    for path, match in matches:
        contrast = LABELS if match["rest"].lower() == "_seg" else canonical(match["contrast"])
        if people is not None:
            person = people.get(match["scan"].lower(), "")
            if not person:
                fix = f"Add its patient_id to {TABLE}."
                problems.append((match["scan"], BadInput(path, f"is not in {TABLE}", fix)))
                continue
        elif path.parent != root and not _NOT_A_PERSON.fullmatch(path.parent.name):
            person = path.parent.name
        else:
            person = match["number"]
            unknown = (
                f"{path.name}: fastMRI names scans, not persons, so one person's files cannot be told; "
                f"add {TABLE} (columns file, patient_id) or a folder for each person"
            )
        volumes.append(Volume(person, person, contrast, path))
    return Listing(tuple(volumes), tuple(problems), people_unknown=unknown)


def _rows(table: Path) -> Iterator[tuple[str, str]]:
    """Each scan, its name in lower case without folder and ending, with the person's."""
    for number, row in read_rows(table, ("file", "patient_id")):
        name, person = row["file"], row["patient_id"]
        if not (name and person):
            raise BadInput(table, f"line {number} has no file or no patient_id", "Fill it in.")
        yield re.split(r"\.(?:nii|h5)", Path(name).name, flags=re.I)[0].lower(), person
