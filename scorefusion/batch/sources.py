"""From what the user names, a folder, a table, BIDS, DICOM or files, to the items of a batch."""

import hashlib
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import scorefusion
from scorefusion import data
from scorefusion.batch.files import SIDECAR, STATE, VOLUME, length_problem, name_problem
from scorefusion.batch.items import Item, Problem, shown
from scorefusion.errors import BadInput, ScoreFusionError, unknown_name
from scorefusion.io.atomic import output_target, written_beside
from scorefusion.io.dicom import find as dicom
from scorefusion.io.dicom.file import is_dicom
from scorefusion.io.formats import WRITABLE
from scorefusion.io.nifti import sidecar_path
from scorefusion.io.placeholders import check_fetched
from scorefusion.models.domain import ANY_MR, stands_for
from scorefusion.pipeline import side_path

Skip = Callable[[Path], bool]

_SUFFIXES = {"t1": "T1w", "t1c": "T1w", "t2": "T2w", "flair": "FLAIR", "pd": "PDw", "mra": "angio"}
_NOT_DICOM = (*WRITABLE, ".json", ".tsv", ".csv", ".bval", ".bvec")


@dataclass(frozen=True)
class Query:
    """What a source is read for."""

    out: Path  #: the folder of the outputs
    conditions: tuple[str, ...]  #: the model's, by their canonical names
    target: str  #: what the model makes, such as ``t1``
    ending: str = ".nii.gz"  #: of the outputs: ``.nii.gz`` or ``.nii``
    #: of a folder: ``auto``, ``files`` (each file is a scan), ``dicom``, or one of ``LAYOUTS``
    layout: str = "auto"
    #: where a subject has several files of a condition, parts of the right one's path
    choose: tuple[str, ...] = ()
    #: of DICOM, only the series that this means to :func:`.dicom.find.matching`; None for all
    series: str | None = None
    masks: bool = False  #: whether a table's column ``mask`` says what is missing, for a model that fills in


@dataclass(frozen=True)
class Source:
    """What is to be translated."""

    kind: str  #: ``folder``, ``table``, ``bids``, ``dicom`` or ``files``
    items: tuple[Item, ...]  #: sorted by name, each with its own name and output
    ignored: tuple[Path, ...] = ()  #: files that are none of the model's conditions
    notes: tuple[str, ...] = ()  #: one sentence each: what was left out, and why


def is_batch(inputs: Sequence[Path], output: str) -> bool:
    """Return whether a command line's inputs and output mean many scans.

    They do where the output is not named as a volume, and an input is a folder or a table, or the output is a
    folder, ends in a slash, or has no ending at all.
    """
    if data.is_volume(output):
        return False
    if any(path.is_dir() or path.suffix.lower() in data.TABLES for path in inputs):
        return True
    return output.endswith(("/", "\\")) or Path(output).is_dir() or not Path(output).suffix


def find_items(inputs: Sequence[Path], query: Query, *, sides: Sequence[str] = ()) -> Source:
    """List what is to be translated, sorted by name; no file is opened but a table.

    ``inputs`` are a folder, a CSV or TSV, or NIfTI files; ``sides`` of :data:`.files.SIDES` will be written.
    """
    first = inputs[0]
    check_fetched(first)
    if len(inputs) > 1 and not all(data.is_volume(path.name) and not path.is_dir() for path in inputs):
        raise BadInput(first, "is given with others", "Give one folder, one table, or NIfTI files.")
    if first.is_dir():
        if query.out.exists() and query.out.samefile(first):
            raise BadInput(query.out, "is the folder of the inputs", "Choose another for the outputs.")
        source = list_folder(first, query)
    elif first.suffix.lower() in data.TABLES:
        source = _list_table(first, query)
    elif first.exists() or len(inputs) > 1:
        source = _list_files(inputs, query)
    else:
        raise BadInput(first, "does not exist", "Give a folder, a CSV, a TSV or NIfTI files.")
    if not source.items:
        notes = "".join(f"; {note}" for note in source.notes)
        conditions = ", ".join(query.conditions)
        raise BadInput(first, f"holds nothing to translate ({conditions}){notes}", "Check its name.")
    return replace(source, items=_checked(source.items, (VOLUME, *sides)))


# What holds for every source: no output overwrites an input or another output.


def _checked(items: Iterable[Item], kinds: Sequence[str]) -> tuple[Item, ...]:
    """Sort items; those that would overwrite an input or each other get a problem."""
    ordered = sorted(items, key=lambda item: item.name)
    folders: dict[Path, str] = {}

    def place_of(path: Path) -> str:  # links resolved, each folder's once
        if path.is_symlink():
            return os.path.realpath(path)
        if path.parent not in folders:
            folders[path.parent] = os.path.realpath(path.parent)
        return os.path.join(folders[path.parent], path.name)

    inputs = {place_of(file): item.name for item in ordered for file in item.files}
    if SIDECAR in kinds:
        inputs |= {place_of(sidecar_path(file)): item.name for item in ordered for file in item.files}
    owners: dict[str, list[str]] = defaultdict(list)
    for item in ordered:
        for kind in kinds if item.problem is None else ():
            owners[place_of(side_path(item.output, kind))].append(item.name)

    def problem_of(item: Item) -> Problem | None:
        for path in (side_path(item.output, kind) for kind in kinds):
            place = place_of(path)
            if place in inputs:
                error = f"its output {shown(path)} is an input ({inputs[place]})"
                return Problem(error, "Choose another folder for the outputs.")
            if len(owners[place]) > 1:
                other = next((name for name in owners[place] if name != item.name), item.name)
                error = f"would give the same output as {other}: {shown(path)}"
                return Problem(error, "Rename one of them.")
            try:
                if path.is_symlink():
                    output_target(path)
            except BadInput as error:
                return Problem.of(error)
        return length_problem(item.output.name)

    return tuple(replace(item, problem=item.problem or problem_of(item)) for item in ordered)


# Folders: each file one scan, or the conditions of a subject in a known layout, BIDS among them.


def list_folder(root: Path, query: Query) -> Source:
    """List a folder by names alone: what is wrong with a file shows when its turn comes."""
    choices = ("auto", "files", "dicom", *data.LAYOUTS)
    if query.layout not in choices:
        raise unknown_name("layout", query.layout, choices)
    unreadable: list[BadInput] = []

    def skip(folder: Path) -> bool:  # outputs are no inputs
        return os.path.isdir(folder / STATE) or (query.out.is_dir() and folder.samefile(query.out))

    files = data.volume_files(root, skip=skip, unreadable=unreadable)
    if unreadable and Path(unreadable[0].file) == root:
        raise unreadable[0]
    mixed = query.layout == "auto" and _holds_dicom(root, skip)
    if query.layout == "dicom" or (mixed and (not files or query.series is not None)):
        return _list_dicom(root, query, skip)
    single, layout = len(query.conditions) == 1, query.layout
    if layout == "auto":
        known = data.LAYOUTS["bids"](root, files, ()).count
        bids = known and ((root / "dataset_description.json").exists() or 2 * known >= len(files))
        layout = "bids" if bids else "files" if single else "auto"
    list_ = _scans if single and layout in ("bids", "files") else _subjects
    source = list_(root, files, query, layout)
    items = list(source.items)
    for error in unreadable:  # an item that fails, so that the folder is not passed over in silence
        place = query.out / Path(error.file).relative_to(root)
        items.append(Item(f"{shown(place, query.out)}/", (), place, Problem.of(error)))
    notes = ["left out: DICOM files, which --layout dicom translates"] * mixed
    if ignored := [shown(file, root) for file in source.ignored]:
        count = "1 file" if len(ignored) == 1 else f"{len(ignored)} files"
        more = f" and {len(ignored) - 10} more" if len(ignored) > 10 else ""
        which = "not known by name to the layout, or no condition of the model"
        notes.append(f"left out: {count}, {which}: {', '.join(ignored[:10])}{more}")
    return replace(source, items=tuple(items), notes=tuple(notes))


def _list_files(files: Sequence[Path], query: Query) -> Source:
    """List files named one by one: each a scan of a model with one condition, else together one subject."""
    if len(query.conditions) == 1:
        items = (Item(shown(f.as_posix()), (f,), query.out / (data.stem(f) + query.ending)) for f in files)
        return Source("files", tuple(items))
    name = data.stem(files[0])
    return Source("files", (Item(shown(name), tuple(files), query.out / f"{name}{query.ending}"),))


def describe_bids(out: Path, model: str) -> None:
    """Write what makes a folder a BIDS derivative."""
    generator = {"Name": "scorefusion", "Version": scorefusion.__version__, "Description": f"model {model}"}
    content: dict[str, Any] = {"Name": f"Translations by scorefusion ({model})", "BIDSVersion": "1.9.0"}
    content |= {"DatasetType": "derivative", "GeneratedBy": [generator]}
    described = json.dumps(content, indent=2) + "\n"
    for name, text in (("dataset_description.json", described), (".bidsignore", "report.html\n")):
        if not (out / name).exists() or (out / name).read_text(encoding="utf-8") != text:
            with written_beside(out / name) as beside:
                beside.write_text(text, encoding="utf-8")


def _scans(root: Path, files: Sequence[Path], query: Query, layout: str) -> Source:
    """List files that are one scan each: all, or in BIDS those of the condition."""
    if layout == "files":
        places = ((file, query.out / file.parent.relative_to(root)) for file in files)
        each = (Item(shown(f, root), (f,), place / (data.stem(f) + query.ending)) for f, place in places)
        return Source("folder", tuple(each))
    volumes = data.LAYOUTS["bids"](root, files, query.conditions).volumes
    fits = (volume for volume in volumes if stands_for(query.conditions[0], volume.contrast))
    chosen = dict.fromkeys(volume.path for volume in fits)
    each = (Item(shown(f, root), (f,), _derivative(root, f, data.stem(f), query)) for f in chosen)
    return Source("bids", tuple(each), tuple(file for file in files if file not in chosen))


def _derivative(root: Path, file: Path, name: str, query: Query) -> Path:
    """Return ``OUT/sub-01/anat/sub-01_acq-x_desc-scorefusion_T1w.nii.gz`` for ``sub-01_acq-x_T1w``."""
    own = name.split("_")[-1]  # of a model that takes any contrast, and keeps it
    suffix = own if query.target == ANY_MR else _SUFFIXES.get(query.target, query.target)
    start = "_".join(part for part in name.split("_")[:-1] if not part.startswith("desc-"))
    folder = query.out / file.parent.relative_to(root)
    return folder / f"{start}_desc-scorefusion_{suffix}{query.ending}"


def _subjects(root: Path, files: Sequence[Path], query: Query, layout: str) -> Source:
    """List subjects that have every condition; those that lack one are items that fail."""
    if layout in ("auto", "files"):
        layout, listing = data.detect(root, files, query.conditions)
    else:
        listing = data.LAYOUTS[layout](root, files, query.conditions)
    config = data.DatasetConfig(root=str(root), contrasts=query.conditions, choose=query.choose)
    refused = [data.Refusal(name, Path(e.file), e.problem, e.fix) for name, e in listing.problems]
    items = []
    for subject, _ in data.assemble(root, listing.volumes, config, refused):
        inputs = tuple(subject.files[condition] for condition in query.conditions)
        output = query.out / f"{subject.name}{query.ending}"
        if layout == "bids":
            output = _derivative(root, inputs[0], f"{subject.name}_{query.target}", query)
        items.append(Item(shown(subject.name), inputs, output))
    for refusal in refused:
        problem = Problem(shown(f"{refusal.file}: {refusal.reason}"), refusal.fix)
        output = query.out / f"{refusal.subject}{query.ending}"
        items.append(Item(shown(refusal.subject), (), output, problem))
    known = {file for item in items for file in item.files} | {volume.path for volume in listing.volumes}
    ignored = tuple(file for file in files if file not in known)
    return Source("bids" if layout == "bids" else "folder", tuple(items), ignored)


# Tables: one item in each line, one column for each condition; ``subject`` names the output.


def _list_table(table: Path, query: Query) -> Source:
    """List the lines of a CSV or TSV; one that cannot be used is an item that fails."""
    rows = data.read_rows(table, ("subject",))
    named = data.contrast_columns(table, rows, query.conditions)
    columns = {contrast: name for name, contrast in named.items()}
    missing = [condition for condition in query.conditions if condition not in columns]
    if missing and rows:
        problem = f"has no column of files '{missing[0]}'; its columns are {', '.join(rows[0][1])}"
        raise BadInput(table, problem, "Name the columns as the model's conditions, in the first line.")
    taken = Counter(row["subject"] for _, row in rows)
    items = [_line(table, query, columns, number, row, taken[row["subject"]] == 1) for number, row in rows]
    return Source("table", tuple(items))


def _line(
    table: Path, query: Query, columns: dict[str, str], number: int, row: dict[str, str], alone: bool
) -> Item:
    subject = row["subject"]
    cells = [row[columns[condition]] for condition in query.conditions]
    problem = name_problem(subject, query.ending)
    name = shown(subject) if alone and problem is None else f"line {number}: {shown(subject)}"
    if problem is None and not all(cells):
        condition = query.conditions[cells.index("")]
        problem = Problem(f"line {number} names no file of {condition}", "Fill it in.")
    masked = query.masks and bool(row.get("mask"))
    cells += [row["mask"]] if masked else []
    if problem is None and any("\0" in cell for cell in cells):
        problem = Problem(f"line {number} names a file with a NUL character", "Correct it.")
    # A refused name never becomes part of a path.
    output = query.out / ((subject if problem is None else f"line-{number}") + query.ending)
    files = tuple(table.parent / cell for cell in cells) if problem is None else ()
    series: tuple[dicom.SeriesDescription, ...] = ()
    conditions, mask = files[: len(query.conditions)], files[len(query.conditions) :]
    if query.series is not None and any(file.is_dir() for file in conditions):
        try:
            series = tuple(dicom.choose_series(file, query.series) for file in conditions)
            files = (*(file for one in series for file in one.files), *mask)
        except BadInput as error:
            files, problem = (), Problem.of(error)
    return Item(name, files, output, problem, series, masked=masked and problem is None)


# DICOM: each series of a tree that is a volume is one item.


def _holds_dicom(root: Path, skip: Skip) -> bool:
    """Look for a DICOM file in a tree; files called as NIfTI files and their companions are not opened."""
    for place, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not skip(Path(place, name))]
        for name in names:
            with suppress(BadInput):
                if not name.lower().endswith(_NOT_DICOM) and is_dicom(Path(place) / name):
                    return True
    return False


def _list_dicom(root: Path, query: Query, skip: Skip) -> Source:
    """List the series of a tree, found by their headers. A damaged file is an item that fails.

    An output is named as the folder where its series is alone, else by number and description in a folder of
    that name. What is left out (localizers, reports, other files) is in the notes or an item's warnings.
    """
    if len(query.conditions) != 1:
        raise ScoreFusionError(
            f"{root}: series do not say which condition of the model they are; list them in a CSV, each by "
            "the folder of its series"
        )
    damaged: list[BadInput] = []
    passed: list[dicom.PassedOver] = []
    found = dicom.find_series(root, damaged=damaged, passed=passed, skip=skip)
    chosen = found if query.series is None else dicom.matching(found, query.series)
    if not chosen and query.series is not None:
        others = "; ".join(str(series) for series in found) or "none"
        raise BadInput(root, f"holds no series '{query.series}', only {others}", "Name one of these.")
    volumes = [series for series in found if not series.problem]
    places = {series.uid: _place(root, series) for series in volumes}
    labels = {series.uid: places[series.uid] / _label(series) for series in volumes}
    alone, twice = Counter(places.values()), Counter(labels.values())
    items = []
    for series in [series for series in volumes if series in chosen]:
        place, label = places[series.uid], labels[series.uid]
        name = place if alone[place] == 1 and place != Path() else label
        if name == label and twice[label] > 1:
            name = _with_hash(label, series)
        output = query.out / name.with_name(name.name + query.ending)
        items.append(Item(shown(name.as_posix()), series.files, output, series=(series,)))
    for series in (series for series in chosen if series.problem and series.slices):
        name = _place(root, series) / _label(series)
        if shown(name.as_posix()) in {item.name for item in items}:
            name = _with_hash(name, series)
        fix = "Take out the files that are not slices of it; convert mosaics to NIfTI with dcm2niix."
        problem = Problem(shown(f"{root}: {series}"), fix)
        items.append(Item(shown(name.as_posix()), (), query.out / name, problem))
    for error in damaged:
        place = query.out / Path(error.file).relative_to(root)
        items.append(Item(shown(place, query.out), (), place, Problem.of(error)))
    left = [series for series in chosen if series.problem and not series.slices]
    reported = {file.file for series in volumes for file in series.passed}
    reported |= {Path(error.file) for error in damaged}
    notes = [f"left out: {series}" for series in left]
    notes += dicom.summaries((file for file in passed if file.file not in reported), root)
    return Source("dicom", tuple(items), tuple(series.files[0] for series in left), tuple(map(shown, notes)))


def _place(root: Path, series: dicom.SeriesDescription) -> Path:
    """Return the innermost folder that holds all files of a series, below the root."""
    return Path(os.path.commonpath([file.parent for file in series.files])).relative_to(root)


def _with_hash(name: Path, series: dicom.SeriesDescription) -> Path:
    return name.with_name(f"{name.name}-{hashlib.sha256(series.uid.encode()).hexdigest()[:8]}")


def _label(series: dicom.SeriesDescription) -> str:
    """Such as ``5-t1_mprage``; letters, digits, dots and dashes alone come from the header."""
    described = re.sub(r"[^A-Za-z0-9.-]+", "_", series.description).strip("._-")[:60]
    parts = [str(series.number)] * (series.number is not None) + [described] * bool(described)
    return "-".join(parts) or "series"
