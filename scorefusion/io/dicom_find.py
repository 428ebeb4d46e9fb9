"""The DICOM series in a folder, found by their headers; nothing is decoded and nothing is written."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scorefusion.errors import BadInput
from scorefusion.io.dicom_file import DAMAGED, is_dicom, read_header, reading
from scorefusion.io.dicom_kind import DICOMDIR, KIND_TAGS, family, frame_count, obstacle, sop_class
from scorefusion.optional import need

PathLike = str | os.PathLike[str]

_TAGS = (*KIND_TAGS, "SeriesInstanceUID", "StudyInstanceUID", "SeriesDescription", "SeriesNumber")
_LISTED = 12


@dataclass(frozen=True)
class SeriesDescription:
    """A series, as the headers of its files tell.

    Attributes:
        uid: SeriesInstanceUID.
        study_uid: StudyInstanceUID.
        folder: where it was looked for.
        files: its files, by path.
        modality: such as ``MR``.
        number: SeriesNumber; None where there is none.
        description: SeriesDescription, often the name of the protocol.
        images: single-frame images and frames of multi-frame ones, together.
        rows: pixels down a column, of the first file; 0 where it holds no image.
        columns: pixels along a row.
        problem: why it cannot be read as a volume; empty where the headers tell of nothing.
    """

    uid: str
    study_uid: str
    folder: Path
    files: tuple[Path, ...]
    modality: str
    number: int | None
    description: str
    images: int
    rows: int
    columns: int
    problem: str

    def __str__(self) -> str:
        grid = f", {self.images} of {self.columns} × {self.rows}" if self.rows else ""
        told = f" '{self.description}'" if self.description else ""
        problem = f": {self.problem}" if self.problem else ""
        return f"{self.uid or 'without UID'} ({self.modality or 'no modality'}{told}{grid}){problem}"


def find_series(folder: PathLike, *, damaged: list[BadInput] | None = None) -> list[SeriesDescription]:
    """Find every DICOM series in a folder and the folders in it.

    A file is DICOM by its content, whatever its name; other files and DICOMDIR are passed over. Links to
    folders are not followed.

    Args:
        folder: where to look; or one file.
        damaged: takes what is wrong with files that cannot be read, instead of an error.

    Returns:
        The series by number and UID, those that cannot be volumes too, with their ``problem``.

    Raises:
        BadInput: if there is no such folder, or a DICOM file in it is damaged or cannot be read.
        ScoreFusionError: without pydicom, naming the extra that brings it.
    """
    need("pydicom", "reading DICOM")
    root = Path(folder)
    if not root.exists():
        raise BadInput(root, "does not exist", "Check the name.")
    members: dict[str, list[tuple[Path, Any]]] = {}
    for path in _files(root, damaged):
        try:
            if not is_dicom(path):
                continue
            header = read_header(path, _TAGS)
            with reading(path):
                kind, uid = sop_class(header), str(header.get("SeriesInstanceUID") or "")
                if family(kind) and not uid:
                    raise BadInput(path, "is an image without SeriesInstanceUID", DAMAGED)
        except BadInput as error:
            if damaged is None:
                raise
            damaged.append(error)
            continue
        if kind != DICOMDIR:
            members.setdefault(uid, []).append((path, header))
    found = [_describe(root, uid, files) for uid, files in members.items()]
    return sorted(found, key=lambda series: (series.number is None, series.number or 0, series.uid))


def choose_series(folder: PathLike, uid: str | None = None) -> SeriesDescription:
    """The one series of a folder that can be a volume, or the one named.

    Args:
        folder: as for :func:`find_series`.
        uid: its SeriesInstanceUID; None where there is only one.

    Raises:
        BadInput: if there is none, several, or the named one is not there or no volume; the series that
            there are are listed.
    """
    found = find_series(folder)
    if not found:
        raise BadInput(folder, "holds no DICOM file", "Give a folder with the files of a series.")
    if uid is not None:
        named = [series for series in found if series.uid == uid]
        if not named:
            raise BadInput(folder, f"holds no series {uid}, only {_listed(found)}", "Name one of these.")
        found = named
    good = [series for series in found if not series.problem]
    if len(good) == 1:
        return good[0]
    if good:
        fix = "Name one by its SeriesInstanceUID (series= in Python, --series on the command line)."
        raise BadInput(folder, f"holds {len(good)} series: {_listed(good)}", fix)
    problem = f"holds no series that is a volume: {_listed(found)}"
    raise BadInput(folder, problem, "Give a folder with the slices of a CT, MR or PET volume.")


def _files(root: Path, damaged: list[BadInput] | None = None) -> Iterator[Path]:
    if not root.is_dir():
        yield root
        return

    def refuse(error: OSError) -> None:
        place = error.filename or root
        problem = BadInput(place, f"cannot be read ({error.strerror})", "Check its permissions.")
        if damaged is None:
            raise problem
        damaged.append(problem)

    for place, folders, names in os.walk(root, onerror=refuse):
        folders.sort()
        for name in sorted(names):
            yield Path(place) / name


def _describe(root: Path, uid: str, members: Sequence[tuple[Path, Any]]) -> SeriesDescription:
    problems: Counter[str] = Counter()
    images = 0
    for path, header in members:
        with reading(path):
            problems[obstacle(header)] += 1
            images += frame_count(header)
    first_path, first = members[0]
    with reading(first_path):
        number = first.get("SeriesNumber")
        return SeriesDescription(
            uid=uid,
            study_uid=str(first.get("StudyInstanceUID") or ""),
            folder=root,
            files=tuple(path for path, _ in members),
            modality=_printable(first.get("Modality")),
            number=None if number is None else int(number),
            description=_printable(first.get("SeriesDescription")),
            images=images,
            rows=int(first.get("Rows") or 0),
            columns=int(first.get("Columns") or 0),
            problem=_problem(uid, problems, len(members)),
        )


def _problem(uid: str, problems: Counter[str], count: int) -> str:
    named = [problem for problem in problems if problem]
    if not named:
        return ""
    first = named[0]
    return first if problems[first] == count else f"{problems[first]} of its {count} files: {first}"


def _printable(value: Any) -> str:
    return "".join(letter for letter in str(value or "") if letter.isprintable())


def _listed(found: Sequence[SeriesDescription]) -> str:
    more = f"; and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    return "; ".join(str(series) for series in found[:_LISTED]) + more
