"""The DICOM series in a folder, found by their headers; nothing is decoded and nothing is written."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scorefusion.errors import BadInput
from scorefusion.io.dicom import frames
from scorefusion.io.dicom.file import DAMAGED, PathLike, pydicom, read_header, reading, why_not_dicom

_TAGS = [*frames.OBJECT_TAGS, "SeriesInstanceUID", "StudyInstanceUID", "SeriesDescription", "SeriesNumber"]
_LISTED = 12
_TAIL = 4


@dataclass(frozen=True)
class PassedOver:
    """A file that was found and not used."""

    file: Path  # where it is
    reason: str  # such as ``is empty (0 bytes)``


@dataclass(frozen=True)
class SeriesDescription:
    """A series, as the headers of its files describe it."""

    uid: str  # SeriesInstanceUID
    study_uid: str  # StudyInstanceUID
    folder: Path  # where it was looked for
    files: tuple[Path, ...]  # its files, by path
    modality: str  # such as ``MR``
    number: int | None  # SeriesNumber; None where there is none
    description: str  # SeriesDescription, often the name of the protocol
    images: int  # how many single-frame images and frames of multi-frame ones it has
    rows: int  # pixels down a column, of the first file; 0 where it holds no image
    columns: int  # pixels along a row
    problem: str  # why it cannot be read as a volume; empty if the headers give no reason
    slices: int = 0  # files with slices, also mosaics; a problem and none: a localizer, a report ...
    passed: tuple[PassedOver, ...] = ()  # files in the same folders that are not used

    def __str__(self) -> str:
        grid = f", {self.images} of {self.columns} × {self.rows}" if self.rows else ""
        title = f" '{self.description}'" if self.description else ""
        number = "" if self.number is None else f", SeriesNumber {self.number}"
        problem = f": {self.problem}" if self.problem else ""
        return f"{self.uid or 'without UID'} ({self.modality or 'no modality'}{title}{grid}){number}{problem}"


def find_series(
    folder: PathLike,
    *,
    damaged: list[BadInput] | None = None,
    passed: list[PassedOver] | None = None,
    skip: Callable[[Path], bool] | None = None,
) -> list[SeriesDescription]:
    """Find every DICOM series in a folder and the folders in it.

    A file is DICOM by its content, whatever its name, with a preamble or without, also inside gzip. Links to
    folders are not followed. The series are in the order of their numbers and UIDs, also those that cannot be
    volumes, with their ``problem``.

    Args:
        folder: where to look; or one file.
        damaged: takes the errors of files that cannot be read, instead of raising them.
        passed: takes files that are not used: other files, empty ones, links that lead nowhere, DICOMDIR.
        skip: returns whether a folder below is not entered.

    Raises BadInput if there is no such folder, or a DICOM file in it is damaged or cannot be read;
    ScoreFusionError without pydicom.
    """
    pydicom("uid")
    root = Path(folder)
    if not root.exists():
        raise BadInput(root, "does not exist", "Check the name.")
    members: dict[str, list[tuple[Path, Any]]] = defaultdict(list)
    passed = [] if passed is None else passed
    for path in _files(root, damaged, passed, skip):
        try:
            if reason := why_not_dicom(path):
                passed.append(PassedOver(path, reason))
                continue
            header = read_header(path, _TAGS)
            with reading(path):
                kind, uid = frames.sop_class(header), str(header.get("SeriesInstanceUID") or "")
                if kind in frames.FAMILIES and not uid:
                    raise BadInput(path, "is an image without SeriesInstanceUID", DAMAGED)
        except BadInput as error:
            if damaged is None:
                raise
            damaged.append(error)
            passed.append(PassedOver(path, error.problem))
            continue
        if kind == frames.DICOMDIR:
            passed.append(PassedOver(path, "is an index of other files (DICOMDIR)"))
        else:
            members[uid].append((path, header))
    described = [_describe(root, uid, files, passed) for uid, files in members.items()]
    return sorted(described, key=lambda series: (series.number is None, series.number or 0, series.uid))


def choose_series(folder: PathLike, key: str | None = None) -> SeriesDescription:
    """Return the one series of a folder that can be a volume, or the one that a key names (:func:`matching`).

    It lists all files that are not used. Raises BadInput, with the series that exist, if there is none or
    several, or the named one does not exist or is no volume.
    """
    passed: list[PassedOver] = []
    found = find_series(folder, passed=passed)
    if not found:
        others = f" ({'; '.join(summaries(passed, Path(folder)))})" if passed else ""
        what = "is not a file and " if Path(folder).is_dir() else ""
        fix = "Give a folder with the files of a series; for NIfTI files, the output is to be a folder, too."
        if key is not None:
            fix = "--series chooses from DICOM series: give a folder of them, or leave it out."
        raise BadInput(folder, f"{what}holds no DICOM file{others}", fix)
    named = found
    if key is not None:
        named = matching(found, key)
        if not named:
            raise BadInput(folder, f"holds no series '{key}', only {_listed(found)}", "Name one of these.")
    good = [series for series in named if not series.problem]
    if len(good) == 1:
        if key is None:
            passed += (PassedOver(file, s.problem) for s in found if s.problem for file in s.files)
        return replace(good[0], passed=tuple(passed))
    if good:
        fix = "Choose one by --series (series= in Python), or give a folder as the output to translate each."
        which = "" if key is None else f" that match '{key}'"
        raise BadInput(folder, f"holds {len(good)} series{which}: {_listed(good)}", fix)
    problem = f"holds no series that is a volume: {_listed(named)}"
    raise BadInput(folder, problem, "Give a folder with the slices of a CT, MR or PET volume.")


def matching(found: Sequence[SeriesDescription], key: str) -> list[SeriesDescription]:
    """Return the series that a key names: by UID, else SeriesNumber, the end of the UID, or a description.

    The end is the UID's last components or at least four characters, a description any part in any case.
    """
    tests: tuple[Callable[[SeriesDescription], bool], ...] = (
        lambda series: series.uid == key,
        lambda series: str(series.number) == key,
        lambda series: series.uid.endswith(f".{key}") or (len(key) >= _TAIL and series.uid.endswith(key)),
        lambda series: bool(key) and key.lower() in series.description.lower(),
    )
    return next((hits for test in tests if (hits := [series for series in found if test(series)])), [])


def summaries(passed: Iterable[PassedOver], root: Path) -> list[str]:
    """Return one line per reason why files were not used, with their names below ``root``."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for over in passed:
        inside = over.file.is_relative_to(root) and over.file != root
        name = over.file.relative_to(root).as_posix() if inside else str(over.file)
        reasons[over.reason].append(_printable(name))
    lines = []
    for reason, names in reasons.items():
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        files = "1 file was" if len(names) == 1 else f"{len(names)} files were"
        lines.append(f"{files} not used: {', '.join(names[:_LISTED])}{more} ({reason})")
    return lines


def _files(
    root: Path, damaged: list[BadInput] | None, passed: list[PassedOver], skip: Callable[[Path], bool] | None
) -> Iterator[Path]:
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
        links = [Path(place, name) for name in sorted(folders) if os.path.islink(os.path.join(place, name))]
        passed += (PassedOver(link, "is a link to a folder, which is not followed") for link in links)
        folders[:] = sorted(name for name in folders if skip is None or not skip(Path(place, name)))
        for name in sorted(names):
            yield Path(place) / name


def _describe(
    root: Path, uid: str, members: Sequence[tuple[Path, Any]], passed: Sequence[PassedOver]
) -> SeriesDescription:
    problems: dict[str, list[Path]] = defaultdict(list)
    images = slices = 0
    for path, header in members:
        with reading(path):
            problem = frames.obstacle(header)
            problems[problem].append(path)
            images += frames.frame_count(header)
            slices += not problem or frames.is_mosaic(header)
    problem = next((problem for problem in problems if problem), "")
    files = problems.get(problem, [])
    if problem and len(files) < len(members):
        problem = f"{len(files)} of its {len(members)} files: {problem} ({files[0].name})"
    folders = {path.parent for path, _ in members}
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
            problem=problem,
            slices=slices,
            passed=tuple(over for over in passed if over.file.parent in folders),
        )


def _printable(value: Any) -> str:
    return "".join(letter for letter in str(value or "") if letter.isprintable())


def _listed(found: Sequence[SeriesDescription]) -> str:
    more = f"; and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    return "; ".join(str(series) for series in found[:_LISTED]) + more
