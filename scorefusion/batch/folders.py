"""Scans in folders: each file one scan, or the conditions of a subject in a known layout; BIDS among them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import scorefusion
from scorefusion.batch.dicom import holds_dicom, list_dicom
from scorefusion.batch.item import Item, Problem, shown
from scorefusion.batch.listing import Source, below
from scorefusion.batch.wanted import Wanted
from scorefusion.data.config import DatasetConfig
from scorefusion.data.find import Refusal, assemble
from scorefusion.data.layouts.registry import LAYOUTS, detect
from scorefusion.data.listing import Listing, Volume, stem, volume_files
from scorefusion.data.subject import Subject
from scorefusion.errors import BadInput, unknown_name
from scorefusion.io.atomic import written_beside

STATE = ".scorefusion"
"""The folder inside OUT where a batch keeps its books; folders that have it hold outputs, never inputs."""

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
