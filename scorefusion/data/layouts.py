"""The files of a dataset's folder, what a layout makes of them, and tables of subjects."""

import csv
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from scorefusion.errors import BadInput, unknown_name
from scorefusion.io import LISTED, READABLE, check_fetched, volume_stem, written_beside
from scorefusion.models.domain import LABELS, canonical, in_order, is_known

SPLITS = ("train", "validation", "test")
LayoutName = Literal["auto", "folder", "csv", "brats", "hcp", "ixi", "fastmri", "bids"]


@dataclass(frozen=True)
class Subject:
    """Volumes of one person taken at one time."""

    name: str  #: unique in its dataset, such as ``sub-001`` or ``sub-001_ses-2``
    group: str  #: the person; sessions of one person share it, and splits go by it
    files: Mapping[str, Path] = field(hash=False)  #: contrast (``t1``, ``flair``, ``labels``, ...) to file


@dataclass(frozen=True)
class Volume:
    """A file as a layout understands it."""

    subject: str  #: one session of one person; unique in the dataset
    group: str  #: the person
    contrast: str  #: its canonical name
    path: Path  #: the file
    variant: int = 0  #: of several versions of the whole dataset, the one this belongs to; 0 is the best


@dataclass(frozen=True)
class Listing:
    """What a layout found."""

    volumes: tuple[Volume, ...]  #: every file that it understands
    problems: tuple[tuple[str, BadInput], ...] = ()  #: subjects that cannot be used, each with the reason
    splits: dict[str, str] = field(default_factory=dict)  #: the split of a person, where the dataset says it
    people_unknown: str = ""  #: why files cannot be assigned to subjects; empty where they can

    @property
    def count(self) -> int:
        """How many files were understood."""
        return len(self.problems) + len({volume.path for volume in self.volumes})


Layout = Callable[[Path, Sequence[Path], Sequence[str]], Listing]


def volume_files(
    root: Path, *, skip: Callable[[Path], bool] | None = None, unreadable: list[BadInput] | None = None
) -> list[Path]:
    """Every volume's file below a folder, sorted by path; of a pair the header.

    Links to folders are followed after all else, and each folder is entered once, so loops end. Hidden files
    and folders are left out, AppleDouble files (``._name``) among them; links that lead nowhere are kept, to
    be reported. ``skip`` says which folders below are not entered. A folder that cannot be read is a
    BadInput, raised or appended to ``unreadable``.
    """
    found, waiting, links = list[Path](), [root], list[Path]()
    entered: set[tuple[int, int]] = set()
    while waiting or links:
        folder = waiting.pop() if waiting else links.pop(0)
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in entered or (skip and folder != root and skip(folder)):
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                visible = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            fix = "Check its permissions, or move it out of the dataset."
            problem = BadInput(folder, f"cannot be read ({error.strerror or error})", fix)
            if unreadable is None:
                raise problem from None
            unreadable.append(problem)
            continue
        for entry in visible:
            try:
                is_folder = entry.is_dir()
            except OSError:  # a link that leads to itself
                is_folder = False
            if is_folder:
                (links if entry.is_symlink() else waiting).append(Path(entry.path))
            elif entry.name.lower().endswith(LISTED):
                found.append(Path(entry.path))
    return sorted(found)


def is_volume(name: str) -> bool:
    """Whether a file's name ends as a volume's does."""
    return name.lower().endswith(READABLE)


def stem(path: Path) -> str:
    """A volume's file name without its ending, such as ``.nii.gz``."""
    return volume_stem(path.name)


def _one_by_one(volume_of: Callable[[Path, Path, Sequence[str]], Iterable[Volume]]) -> Layout:
    """A layout whose files are understood one at a time, from (root, file, contrasts)."""

    def listed(root: Path, files: Sequence[Path], contrasts: Sequence[str]) -> Listing:
        return Listing(tuple(volume for path in files for volume in volume_of(root, path, contrasts)))

    return listed


def _named(*patterns: str) -> Layout:
    """Volumes whose names match a pattern with groups ``scan``, ``person`` and ``contrast``."""

    def volume_of(root: Path, path: Path, contrasts: Sequence[str]) -> Iterator[Volume]:
        for pattern in patterns:
            if match := re.fullmatch(pattern, stem(path), re.I):
                yield Volume(match["scan"], match["person"], canonical(match["contrast"]), path)
                return

    return _one_by_one(volume_of)


_BIDS = re.compile(
    r"(?P<group>sub-[a-z0-9+]+)(?:_(?P<session>ses-[a-z0-9+]+))?(?P<entities>(?:_[a-z]+-[a-z0-9+]+)*)"
    r"_(?P<suffix>T1w|T2w|FLAIR|PDw|T2starw|UNIT1|angio|dseg)",
    re.I,
)


def _bids(root: Path, path: Path, contrasts: Sequence[str]) -> Iterator[Volume]:
    """``sub-01/[ses-1/]anat/sub-01[_ses-1][_acq-...][_run-...]_T1w.nii.gz``; ``ce-`` T1w is ``t1c``.

    Phase images (``part-phase``) are left out; ``derivatives/`` and ``sourcedata/`` are other datasets.
    """
    parts, match = path.relative_to(root).parts, _BIDS.fullmatch(stem(path))
    if not match or "anat" not in parts[:-1] or {"derivatives", "sourcedata", "code"} & set(parts):
        return
    entities, contrast = match["entities"].lower(), canonical(match["suffix"])
    if "_part-phase" not in entities:
        contrast = "t1c" if contrast == "t1" and "_ce-" in entities else contrast
        subject = "_".join(part for part in (match["group"], match["session"]) if part)
        yield Volume(subject, match["group"], contrast, path)


PATIENTS = "patients.csv"
_FASTMRI = re.compile(
    r"(?P<scan>file_brain_(?P<contrast>AXT1PRE|AXT1POST|AXT1|AXT2|AXFLAIR)_(?P<number>\d+_\d+))"
    r"(?P<rest>|_rss|_recon\w*|_seg)",
    re.I,
)
_NOT_A_PERSON = re.compile(r"(single|multi)coil.*|train.*|val.*|test.*|brain.*", re.I)


def _fastmri(root: Path, files: Sequence[Path], contrasts: Sequence[str]) -> Listing:
    """Volumes reconstructed from fastMRI brain data: ``file_brain_AXT2_200_2000019.nii.gz``.

    fastMRI names scans, not persons, so names alone do not say which files belong together. The person comes
    from ``patients.csv`` beside the volumes (columns ``file`` and ``patient_id``, an attribute of the HDF5
    files), or from a folder for each person.
    """
    matches = [(path, match) for path in files if (match := _FASTMRI.fullmatch(stem(path)))]
    table = root / PATIENTS
    people = dict(_patients(table)) if matches and table.is_file() else None
    volumes, problems, unknown = [], [], ""
    for path, match in matches:
        contrast = LABELS if match["rest"].lower() == "_seg" else canonical(match["contrast"])
        if people is not None:
            person = people.get(match["scan"].lower(), "")
            if not person:
                fix = f"Add its patient_id to {PATIENTS}."
                problems.append((match["scan"], BadInput(path, f"is not in {PATIENTS}", fix)))
                continue
        elif path.parent != root and not _NOT_A_PERSON.fullmatch(path.parent.name):
            person = path.parent.name
        else:
            person = match["number"]
            problem = "fastMRI names scans, not persons, so one person's files cannot be told"
            fix = f"add {PATIENTS} (columns file, patient_id) or a folder for each person"
            unknown = f"{path.name}: {problem}; {fix}"
        volumes.append(Volume(person, person, contrast, path))
    return Listing(tuple(volumes), tuple(problems), people_unknown=unknown)


def _patients(table: Path) -> Iterator[tuple[str, str]]:
    """Each scan, its name in lower case without folder and ending, with the person's."""
    for number, row in read_rows(table, ("file", "patient_id")):
        name, person = row["file"], row["patient_id"]
        if not (name and person):
            raise BadInput(table, f"line {number} has no file or no patient_id", "Fill it in.")
        yield re.split(r"\.(?:nii|h5)", Path(name).name, flags=re.I)[0].lower(), person


_HCP = re.compile(r"(T1w|T2w)_(acpc_dc_restore|acpc_dc_restore_brain|acpc_dc)", re.I)
_HCP_RAW = re.compile(r"(?P<person>.+)_[37]T_(?P<contrast>T1w|T2w)_(?:MPR|SPC)\d*", re.I)
_VERSIONS = ("acpc_dc_restore", "acpc_dc_restore_brain", "acpc_dc")


def _hcp(root: Path, path: Path, contrasts: Sequence[str]) -> Iterator[Volume]:
    """Human Connectome Project: a folder for each person, preprocessed volumes in ``T1w/``.

    All subjects use one version of a scan, the first of these that some subject has complete: aligned to the
    AC-PC line and corrected for bias; the same without skull; aligned only; as scanned.
    ``MNINonLinear/`` is left out. ``HCA6002236_V1_MR`` is a visit of person ``HCA6002236``.
    """
    name, folder = stem(path), path.parent
    aligned, raw = _HCP.fullmatch(name), _HCP_RAW.fullmatch(name)
    person = (folder.parent if folder.name == "T1w" else folder).name
    if raw:
        person, contrast, variants = raw["person"], canonical(raw["contrast"]), [len(_VERSIONS)]
    elif aligned:
        contrast, variants = canonical(aligned[1]), [_VERSIONS.index(aligned[2].lower())]
    else:
        contrast, variants = LABELS, list(range(len(_VERSIONS)))
    if raw or ((aligned or name == "aparc+aseg") and person != "MNINonLinear"):
        group = re.sub(r"_V\d+(_[A-Z]+)?$", "", person, flags=re.I)
        for variant in variants:
            yield Volume(person, group, contrast, path, variant)


def _folder(root: Path, path: Path, contrasts: Sequence[str]) -> Iterator[Volume]:
    """Plain folders: ``SUBJECT/SUBJECT_t1.nii.gz``, ``SUBJECT/t1.nii.gz``, ``SUBJECT_t1.nii.gz`` or
    ``t1/SUBJECT[_t1].nii.gz``, the contrast a usual one or one of ``contrasts``.
    """

    def is_contrast(word: str) -> bool:
        return is_known(word) or canonical(word) in contrasts

    name, folder, inside = stem(path), path.parent.name, path.parent != root
    subject, _, ending = name.rpartition("_")
    if inside and is_contrast(folder):
        same = subject and canonical(ending) == canonical(folder)
        subject, contrast = (subject if same else name), folder
    elif subject and (is_contrast(ending) or (inside and subject == folder)):
        contrast = ending
    elif inside and is_contrast(name):
        subject, contrast = folder, name
    else:
        return
    yield Volume(subject, _person(subject), canonical(contrast), path)


def _person(subject: str) -> str:
    """The person of ``sub-001_ses-2``: ``sub-001``."""
    return re.sub(r"_ses-[^_]+$", "", subject, flags=re.I)


LAYOUTS: dict[str, Layout] = {
    "bids": _one_by_one(_bids),
    # CASE/CASE_t1.nii.gz up to 2021, CASE/CASE-t1n.nii.gz from 2023 on, where BraTS-GLI-00005-001 is the
    # second time point of person BraTS-GLI-00005
    "brats": _named(
        r"(?P<scan>(?P<person>brats-[a-z]+-\d+)-\d+)-(?P<contrast>t1n|t1c|t2w|t2f|seg)",
        r"(?P<scan>(?P<person>brats\d*_.+))_(?P<contrast>t1|t1ce|t2|flair|seg)",
    ),
    # IXI002-Guys-0828-T1.nii.gz: person, hospital, scan; in one folder or one for each contrast. T1 lies on
    # another grid than T2 and PD; diffusion volumes (DTI) are left out.
    "ixi": _named(r"(?P<scan>(?P<person>IXI\d+)-[a-z]+-\d+)-(?P<contrast>T1|T2|PD|MRA)"),
    "fastmri": _fastmri,
    "hcp": _one_by_one(_hcp),
    "folder": _one_by_one(_folder),
}
"""Of the layouts of folders, the most particular first."""


def detect(root: Path, files: Sequence[Path], contrasts: Sequence[str]) -> tuple[str, Listing]:
    """The particular layout that understands most of the files; plain folders if none understands any."""
    found = {name: layout(root, files, contrasts) for name, layout in LAYOUTS.items()}
    particular = [name for name in LAYOUTS if name != "folder" and found[name].count]
    best = max(particular, key=lambda name: found[name].count, default="folder")
    return best, found[best]


# Tables: a line for each subject, a column for each contrast. ``subject`` is needed; ``group`` (the person)
# and ``split`` may be there; every other column whose cells are NIfTI files is a contrast. Relative paths
# start at the table's folder.

TABLES = (".csv", ".tsv")
_RESERVED = ("subject", "group", "split")


def read_rows(path: Path, needed: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Read a table; column names come in lower case, everything without blanks around it.

    A ``.tsv`` has tabs between cells; else the header tells commas from semicolons. Each row comes with the
    number of its line; empty rows are left out. Raises BadInput if it cannot be read, lacks a column that is
    needed, names one twice, or has a row too long.
    """
    check_fetched(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            head = file.readline()
            file.seek(0)
            comma = "\t" if path.suffix.lower() == ".tsv" else ";" if ";" in head and "," not in head else ","
            reader = csv.reader(file, delimiter=comma, strict=True)
            names = [name.strip().lower() for name in next(reader, [])]
            cells = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(path, f"cannot be read as a table ({error})", "Save it as UTF-8 CSV.") from None
    for name in needed:
        if name not in names:
            problem = f"has no column '{name}'; its columns are {', '.join(names) or 'none'}"
            raise BadInput(path, problem, "Name the columns in its first line.")
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise BadInput(path, f"names the column '{twice[0]}' twice", "Remove one.")
    rows = []
    for number, row in cells:
        if len(row) > len(names):
            problem = f"line {number} has {len(row)} cells, the header {len(names)}"
            raise BadInput(path, problem, "Quote cells that contain commas.")
        if any(row):
            rows.append((number, dict(zip(names, row + [""] * (len(names) - len(row)), strict=True))))
    return rows


def list_table(table: Path, contrasts: Sequence[str]) -> Listing:
    """The subjects of a table."""
    rows = read_rows(table, ("subject",))
    columns = contrast_columns(table, rows, contrasts)
    volumes, problems = list[Volume](), list[tuple[str, BadInput]]()
    splits, lines = dict[str, str](), dict[str, int]()
    for number, row in rows:
        subject = row["subject"]
        if not subject:
            raise BadInput(table, f"line {number} has no subject", "Give every line a name.")
        if subject in lines:
            problem = f"names subject '{subject}' in lines {lines[subject]} and {number}"
            fix = "Give each line its own name, and a column 'group' for the person."
            raise BadInput(table, problem, fix)
        lines[subject] = number
        group = row.get("group") or _person(subject)
        split = row.get("split", "").lower()
        if split:
            if split not in SPLITS:
                raise BadInput(table, f"line {number}: {unknown_name('split', split, SPLITS)}")
            if splits.setdefault(group, split) != split:
                problem = f"line {number}: person '{group}' is in split {split} and in {splits[group]}"
                raise BadInput(table, problem, "Keep all of a person in one split.")
        named = [(contrast, row[column]) for column, contrast in columns.items() if row[column]]
        files = [Volume(subject, group, contrast, table.parent / file) for contrast, file in named]
        volumes += files
        if not files:
            problems.append((subject, BadInput(table, f"line {number} names no file", "Fill it in.")))
    return Listing(tuple(volumes), tuple(problems), splits)


def contrast_columns(
    table: Path, rows: Sequence[tuple[int, dict[str, str]]], contrasts: Sequence[str]
) -> dict[str, str]:
    """Which columns of a table name files, and of which contrast; BadInput if two are of one."""
    names = [name for name in (rows[0][1] if rows else ()) if name not in _RESERVED]
    columns = {
        name: canonical(name)
        for name in names
        if canonical(name) in contrasts or any(is_volume(row[name]) for _, row in rows)
    }
    for name, contrast in columns.items():
        other = next(key for key, value in columns.items() if value == contrast)
        if other != name:
            raise BadInput(table, f"columns '{other}' and '{name}' both hold {contrast}", "Remove one.")
    return columns


def write_table(path: Path, subjects: Sequence[Subject], splits: Mapping[str, str]) -> None:
    """Write subjects, with the split of each person, as a CSV that :func:`list_table` reads.

    Paths in it are relative where they lie below its folder, else absolute. It is written whole or not at
    all; BadInput if it cannot be.
    """
    contrasts = in_order({contrast for subject in subjects for contrast in subject.files})
    folder = path.absolute().parent
    with written_beside(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*_RESERVED, *contrasts])
        for subject in subjects:
            files = (subject.files.get(contrast) for contrast in contrasts)
            cells = ["" if name is None else below(folder, name.absolute()) for name in files]
            writer.writerow([subject.name, subject.group, splits[subject.group], *cells])


def below(folder: Path, path: Path) -> str:
    """A path from a folder that it lies in; else as it is."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def list_volumes(
    root: Path, layout: LayoutName, contrasts: Sequence[str]
) -> tuple[str, Listing, tuple[Path, ...]]:
    """The layout's name, what it found, and the NIfTI files that it does not know."""
    check_fetched(root)
    if not root.exists():
        raise BadInput(root, "does not exist", "Give a folder, a CSV, a TSV or a NIfTI file.")
    if not root.is_dir():
        if root.suffix.lower() in TABLES and layout in ("auto", "csv"):
            return "csv", list_table(root, contrasts), ()
        if is_volume(root.name) and layout in ("auto", "folder"):
            contrast = contrasts[0] if contrasts else canonical(stem(root).rpartition("_")[2])
            return "file", Listing((Volume(stem(root), stem(root), contrast, root),)), ()
        raise BadInput(root, f"is not what layout '{layout}' needs", "Give a folder, a CSV or a TSV.")
    if layout == "csv":
        raise BadInput(root, "is a folder; layout 'csv' needs a file", "Name the CSV or TSV inside.")
    files = volume_files(root)
    given = (root, files, contrasts)
    name, listing = detect(*given) if layout == "auto" else (layout, LAYOUTS[layout](*given))
    known = {volume.path for volume in listing.volumes}
    known |= {Path(error.file) for _, error in listing.problems}
    return name, listing, tuple(file for file in files if file not in known)
