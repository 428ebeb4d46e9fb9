"""From what the user names, a folder, a table, BIDS, DICOM or files, to the items of a batch."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import scorefusion
from scorefusion.batch.files import STATE, length_problem, name_problem, side_path
from scorefusion.batch.items import Item, Problem, shown
from scorefusion.data import (
    LAYOUTS,
    TABLES,
    DatasetConfig,
    Listing,
    Refusal,
    Subject,
    Volume,
    assemble,
    contrast_columns,
    detect,
    is_volume,
    read_rows,
    stem,
    volume_files,
)
from scorefusion.errors import BadInput, ScoreFusionError, unknown_name
from scorefusion.io.atomic import output_target, written_beside
from scorefusion.io.dicom.file import is_dicom
from scorefusion.io.dicom.find import (
    PassedOver,
    SeriesDescription,
    choose_series,
    find_series,
    matching,
    summaries,
)
from scorefusion.io.formats import WRITABLE
from scorefusion.io.placeholders import check_fetched


@dataclass(frozen=True)
class Wanted:
    """What a source is read for.

    Attributes:
        out: the folder of the outputs.
        conditions: the model's, by their canonical names.
        target: what the model makes, such as ``t1``.
        ending: of the outputs: ``.nii.gz`` or ``.nii``.
        layout: of a folder: ``auto``, ``files`` (each file is a scan), ``dicom``, or one of ``LAYOUTS``.
        choose: where a subject has several files of a condition, parts of the right one's path.
        series: of DICOM, only the series that this means to :func:`.dicom_find.matching`; None for all.
        masks: whether a table's column ``mask`` says what is missing, for a model that fills in.
    """

    out: Path
    conditions: tuple[str, ...]
    target: str
    ending: str = ".nii.gz"
    layout: str = "auto"
    choose: tuple[str, ...] = ()
    series: str | None = None
    masks: bool = False


def is_batch(inputs: Sequence[Path], output: str) -> bool:
    """Whether a command line's inputs and output mean many scans.

    They do where the output is not named as a volume, and an input is a folder or a table, or the output is a
    folder, ends in a slash, or has no ending at all.
    """
    if is_volume(output):
        return False
    if any(path.is_dir() or path.suffix.lower() in TABLES for path in inputs):
        return True
    return output.endswith(("/", "\\")) or Path(output).is_dir() or not Path(output).suffix


def find_items(inputs: Sequence[Path], wanted: Wanted, *, sides: Sequence[str] = ()) -> Source:
    """List what is to be translated, sorted by name; no file is opened but a table.

    Args:
        inputs: a folder, a CSV or TSV, or NIfTI files.
        wanted: what for.
        sides: the volumes that will be written beside each translation.

    Raises:
        BadInput: for a source that is not there, cannot be read, or holds no scan.
    """
    first = inputs[0]
    check_fetched(first)
    if len(inputs) > 1 and not all(is_volume(path.name) and not path.is_dir() for path in inputs):
        raise BadInput(first, "is given with others", "Give one folder, one table, or NIfTI files.")
    if first.is_dir():
        if wanted.out.exists() and wanted.out.samefile(first):
            raise BadInput(wanted.out, "is the folder of the inputs", "Choose another for the outputs.")
        source = list_folder(first, wanted)
    elif first.suffix.lower() in TABLES:
        source = list_table(first, wanted)
    elif first.exists() or len(inputs) > 1:
        source = list_files(inputs, wanted)
    else:
        raise BadInput(first, "does not exist", "Give a folder, a CSV, a TSV or NIfTI files.")
    if not source.items:
        others = "".join(f"; {note}" for note in source.notes)
        wanted_text = ", ".join(wanted.conditions)
        raise BadInput(first, f"holds nothing to translate ({wanted_text}){others}", "Check its name.")
    return replace(source, items=checked(source.items, sides))


@dataclass(frozen=True)
class Source:
    """What is to be translated.

    Attributes:
        kind: ``folder``, ``table``, ``bids``, ``dicom`` or ``files``.
        items: sorted by name, each with a name and an output of its own.
        ignored: files that are none of the model's conditions.
        notes: a sentence each: what was left out, and why.
    """

    kind: str
    items: tuple[Item, ...]
    ignored: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


def below(root: Path, files: Iterable[Path]) -> list[str]:
    """Files as text, by their paths below a folder where they lie in it."""
    return [shown(file.relative_to(root) if file.is_relative_to(root) else file) for file in files]


def checked(items: Iterable[Item], sides: Sequence[str] = ()) -> tuple[Item, ...]:
    """Sort items; those that would overwrite an input or each other become items with a problem.

    Args:
        items: whose names are their own.
        sides: of :data:`SIDES`, those that will be written.
    """
    ordered = sorted(items, key=lambda item: item.name)
    real = _Places()
    inputs = {real.of(file): item.name for item in ordered for file in item.files}
    owners: dict[str, list[str]] = defaultdict(list)
    for item in ordered:
        for path in _outputs(item, sides) if item.problem is None else ():
            owners[real.of(path)].append(item.name)
    return tuple(_check(item, sides, real, inputs, owners) for item in ordered)


class _Places:
    """Paths without links, each folder resolved once."""

    def __init__(self) -> None:
        self._folders: dict[Path, str] = {}

    def of(self, path: Path) -> str:
        """The file that is read or written under this name: a link is followed."""
        if path.is_symlink():
            return os.path.realpath(path)
        folder = self._folders.get(path.parent)
        if folder is None:
            folder = self._folders[path.parent] = os.path.realpath(path.parent)
        return os.path.join(folder, path.name)


def _check(
    item: Item, sides: Sequence[str], real: _Places, inputs: dict[str, str], owners: dict[str, list[str]]
) -> Item:
    if item.problem is not None:
        return item
    for path in _outputs(item, sides):
        place = real.of(path)
        if place in inputs:
            problem = f"its output {shown(path)} is an input ({inputs[place]})"
            return replace(item, problem=Problem(problem, "Choose another folder for the outputs."))
        if len(owners[place]) > 1:
            other = next((name for name in owners[place] if name != item.name), item.name)
            problem = f"would give the same output as {other}: {shown(path)}"
            return replace(item, problem=Problem(problem, "Rename one of them."))
        if path.is_symlink():
            try:
                output_target(path)
            except BadInput as error:
                return replace(item, problem=Problem.of(error))
    return replace(item, problem=length_problem(item.output.name))


def _outputs(item: Item, sides: Sequence[str]) -> list[Path]:
    return [item.output, *(side_path(item.output, side) for side in sides)]


_SUFFIXES = {"t1": "T1w", "t1c": "T1w", "t2": "T2w", "flair": "FLAIR", "pd": "PDw", "mra": "angio"}


def list_folder(root: Path, wanted: Wanted) -> Source:
    """What a folder holds. Nothing but names is read: what is wrong with a file shows when its turn comes.

    Raises:
        BadInput: if the folder itself cannot be read.
        ScoreFusionError: for an unknown layout.
    """
    choices = ("auto", "files", "dicom", *LAYOUTS)
    if wanted.layout not in choices:
        raise unknown_name("layout", wanted.layout, choices)
    unreadable: list[BadInput] = []

    def skip(folder: Path) -> bool:
        return _is_output(folder, wanted.out)

    files = volume_files(root, skip=skip, unreadable=unreadable)
    if unreadable and Path(unreadable[0].file) == root:
        raise unreadable[0]
    mixed = wanted.layout == "auto" and holds_dicom(root, skip=skip)
    if wanted.layout == "dicom" or (mixed and (not files or wanted.series is not None)):
        return list_dicom(root, wanted, skip=skip)
    broken = [_broken(root, error, wanted) for error in unreadable]
    single = len(wanted.conditions) == 1
    layout = wanted.layout
    if layout == "auto":
        layout = "bids" if _is_bids(root, files) else "files" if single else "auto"
    if layout == "bids":
        source = _bids(root, files, wanted, single)
    elif layout == "files" and single:
        source = Source("folder", tuple(_file(root, file, wanted) for file in files))
    else:
        source = _subjects(root, files, wanted, layout)
    notes = ["left out: DICOM files, which --layout dicom translates"] * mixed
    notes += _left_out(below(root, source.ignored))
    return replace(source, items=(*source.items, *broken), notes=tuple(notes))


def _left_out(names: Sequence[str], most: int = 10) -> list[str]:
    """A sentence that names the first files that are left out; none where there are none."""
    if not names:
        return []
    more = f" and {len(names) - most} more" if len(names) > most else ""
    files = "1 file" if len(names) == 1 else f"{len(names)} files"
    which = "not known by name to the layout, or no condition of the model"
    return [f"left out: {files}, {which}: {', '.join(names[:most])}{more}"]


def list_files(files: Sequence[Path], wanted: Wanted) -> Source:
    """Files named one by one: each a scan of a model with one condition, else together one subject."""
    if len(wanted.conditions) == 1:
        items = (Item(shown(f.as_posix()), (f,), wanted.out / (stem(f) + wanted.ending)) for f in files)
        return Source("files", tuple(items))
    name = stem(files[0])
    return Source("files", (Item(shown(name), tuple(files), wanted.out / f"{name}{wanted.ending}"),))


def describe_bids(out: Path, model: str) -> None:
    """Write what makes a folder a BIDS derivative.

    Raises:
        BadInput: if it cannot be written.
    """
    made = {"Name": "scorefusion", "Version": scorefusion.__version__, "Description": f"model {model}"}
    content = {
        "Name": f"Translations by scorefusion ({model})",
        "BIDSVersion": "1.9.0",
        "DatasetType": "derivative",
        "GeneratedBy": [made],
    }
    for name, text in (
        ("dataset_description.json", json.dumps(content, indent=2) + "\n"),
        (".bidsignore", "report.html\n"),
    ):
        if not (out / name).exists() or (out / name).read_text(encoding="utf-8") != text:
            with written_beside(out / name) as beside:
                beside.write_text(text, encoding="utf-8")


def _is_output(folder: Path, out: Path) -> bool:
    return os.path.isdir(folder / STATE) or (out.is_dir() and folder.samefile(out))


def _is_bids(root: Path, files: Sequence[Path]) -> bool:
    known = LAYOUTS["bids"](root, files, ()).count
    return bool(known) and ((root / "dataset_description.json").exists() or 2 * known >= len(files))


def _file(root: Path, file: Path, wanted: Wanted) -> Item:
    below = file.relative_to(root)
    return Item(shown(below.as_posix()), (file,), wanted.out / below.with_name(stem(file) + wanted.ending))


def _broken(root: Path, error: BadInput, wanted: Wanted) -> Item:
    """An item for a folder that cannot be read, so that it is not passed over in silence."""
    below = Path(error.file).relative_to(root)
    return Item(f"{shown(below.as_posix())}/", (), wanted.out / below, Problem.of(error))


def _bids(root: Path, files: Sequence[Path], wanted: Wanted, single: bool) -> Source:
    if not single:
        return _subjects(root, files, wanted, "bids")
    volumes = LAYOUTS["bids"](root, files, wanted.conditions).volumes
    chosen = [volume for volume in volumes if volume.contrast == wanted.conditions[0]]
    items = []
    for file in (volume.path for volume in chosen):
        output = _derivative(root, file, stem(file), wanted)
        items.append(Item(shown(file.relative_to(root).as_posix()), (file,), output))
    kept = {volume.path for volume in chosen}
    return Source("bids", tuple(items), tuple(file for file in files if file not in kept))


def _derivative(root: Path, file: Path, name: str, wanted: Wanted) -> Path:
    """``OUT/sub-01/anat/sub-01_acq-x_desc-scorefusion_T1w.nii.gz`` for ``sub-01_acq-x_T1w``."""
    suffix = _SUFFIXES.get(wanted.target, wanted.target)
    start = "_".join(part for part in name.split("_")[:-1] if not part.startswith("desc-"))
    folder = wanted.out / file.parent.relative_to(root)
    return folder / f"{start}_desc-scorefusion_{suffix}{wanted.ending}"


def _subjects(root: Path, files: Sequence[Path], wanted: Wanted, layout: str) -> Source:
    """Subjects that have every condition; those that lack one are items that fail."""
    listing: Listing
    if layout in ("auto", "files"):
        layout, listing = detect(root, files, wanted.conditions)
    else:
        listing = LAYOUTS[layout](root, files, wanted.conditions)
    config = DatasetConfig(root=str(root), contrasts=wanted.conditions, choose=wanted.choose)
    refused = [Refusal(name, Path(e.file), e.problem, e.fix) for name, e in listing.problems]
    subjects = [subject for subject, _ in assemble(root, listing.volumes, config, refused)]
    items = [_subject(root, subject, wanted, layout) for subject in subjects]
    items += [_refused(refusal, wanted) for refusal in refused]
    used = {file for item in items for file in item.files}
    kind = "bids" if layout == "bids" else "folder"
    return Source(kind, tuple(items), _unused(files, used, listing.volumes))


def _subject(root: Path, subject: Subject, wanted: Wanted, layout: str) -> Item:
    files = tuple(subject.files[condition] for condition in wanted.conditions)
    output = wanted.out / f"{subject.name}{wanted.ending}"
    if layout == "bids":
        output = _derivative(root, files[0], f"{subject.name}_{wanted.target}", wanted)
    return Item(shown(subject.name), files, output)


def _refused(refusal: Refusal, wanted: Wanted) -> Item:
    problem = Problem(shown(f"{refusal.file}: {refusal.reason}"), refusal.fix)
    return Item(shown(refusal.subject), (), wanted.out / f"{refusal.subject}{wanted.ending}", problem)


def _unused(files: Sequence[Path], used: set[Path], volumes: Sequence[Volume]) -> tuple[Path, ...]:
    known = {volume.path for volume in volumes}
    return tuple(file for file in files if file not in used and file not in known)


def list_table(table: Path, wanted: Wanted) -> Source:
    """The lines of a table; one that cannot be used is an item that fails.

    Raises:
        BadInput: for a table that cannot be read, or that lacks a column.
    """
    rows = read_rows(table, ("subject",))
    columns = {contrast: name for name, contrast in contrast_columns(table, rows, wanted.conditions).items()}
    missing = [condition for condition in wanted.conditions if condition not in columns]
    if missing and rows:
        names = ", ".join(rows[0][1])
        problem = f"has no column of files '{missing[0]}'; its columns are {names}"
        raise BadInput(table, problem, "Name the columns as the model's conditions, in the first line.")
    taken: dict[str, int] = {}
    for _, row in rows:
        taken[row["subject"]] = taken.get(row["subject"], 0) + 1
    items = []
    for number, row in rows:
        subject = row["subject"]
        cells = [row[columns[condition]] for condition in wanted.conditions]
        found = name_problem(subject, wanted.ending)
        alone = found is None and taken[subject] == 1
        name = shown(subject) if alone else f"line {number}: {shown(subject)}"
        if found is None and not all(cells):
            lacking = wanted.conditions[cells.index("")]
            found = Problem(f"line {number} names no file of {lacking}", "Fill it in.")
        masked = wanted.masks and bool(row.get("mask"))
        cells += [row["mask"]] if masked else []
        if found is None and any("\0" in cell for cell in cells):
            found = Problem(f"line {number} names a file with a NUL character", "Correct it.")
        # A refused name never becomes part of a path.
        output = wanted.out / ((subject if found is None else f"line-{number}") + wanted.ending)
        files = () if found is not None else tuple(table.parent / cell for cell in cells)
        series: tuple[SeriesDescription, ...] = ()
        if wanted.series is not None:
            try:
                files, series = _chosen(files, wanted)
            except BadInput as error:
                files, found = (), Problem.of(error)
        items.append(Item(name, files, output, found, series, masked=masked and found is None))
    return Source("table", tuple(items))


def _chosen(
    files: tuple[Path, ...], wanted: Wanted
) -> tuple[tuple[Path, ...], tuple[SeriesDescription, ...]]:
    """A line's files with folders replaced by the files of the series wanted in each, and these series."""
    count = len(wanted.conditions)
    conditions, mask = files[:count], files[count:]
    if not any(file.is_dir() for file in conditions):
        return files, ()
    series = tuple(choose_series(file, wanted.series) for file in conditions)
    return (*(file for each in series for file in each.files), *mask), series


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
