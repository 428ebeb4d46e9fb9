"""From a dataset's description to its subjects, and to the reasons why others were left out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scorefusion.data.config import DatasetConfig
from scorefusion.data.grid import check_grids, read_subject
from scorefusion.data.layouts.registry import LAYOUTS, detect
from scorefusion.data.listing import Listing, Volume, is_volume, stem, volume_files
from scorefusion.data.rows import TABLES
from scorefusion.data.split import SPLITS, better_seed, split_of
from scorefusion.data.subject import Subject
from scorefusion.data.table import list_table
from scorefusion.errors import BadInput
from scorefusion.io.placeholders import check_fetched
from scorefusion.models.contrast import canonical, in_order

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Refusal:
    """A subject that cannot be used: which file, why, and what to do about it."""

    subject: str
    file: Path
    reason: str
    fix: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.file}: {self.reason}. {self.fix}".rstrip()


@dataclass(frozen=True)
class Found:
    """What is in a dataset.

    Attributes:
        layout: its name.
        subjects: those that can be used, sorted by name.
        refused: those that cannot, of the chosen split.
        splits: the split of each person.
        ignored: NIfTI files that the layout does not know.
        people_unknown: why files of one person cannot be told, if so.
    """

    layout: str
    subjects: tuple[Subject, ...]
    refused: tuple[Refusal, ...]
    splits: Mapping[str, str]
    ignored: tuple[Path, ...] = ()
    people_unknown: str = ""


def find_subjects(config: DatasetConfig, *, voxels: bool = False, progress: Progress | None = None) -> Found:
    """Find a dataset's subjects and check their files.

    Headers, shapes and affines are checked; damage further inside a file, and NaN, show when it is read.

    Args:
        config: the dataset.
        voxels: read every volume now.
        progress: called with (done, total) subjects.

    Raises:
        BadInput: if no subject can be used, or the first that cannot unless ``config.skip_broken``; if the
            split is empty, or persons are unknown and so cannot be split.
    """
    root = Path(config.root).expanduser()
    layout, listing, ignored = _list(root, config)
    if listing.people_unknown and config.split != "all":
        file, _, problem = listing.people_unknown.partition(": ")
        raise BadInput(root / file, f"no split by person can be made: {problem}")
    groups = sorted({volume.group for volume in listing.volumes})
    splits = {g: listing.splits.get(g) or split_of(g, config.fractions, config.seed) for g in groups}
    if groups and config.split != "all" and config.split not in splits.values():
        raise _empty_split(root, config, groups)
    refused = [_refusal(subject, error) for subject, error in listing.problems]
    chosen = [v for v in listing.volumes if config.split in ("all", splits[v.group])]
    candidates = list(assemble(root, chosen, config, refused))
    subjects = []
    for done, (subject, contrasts) in enumerate(candidates, start=1):
        try:
            check_grids(subject, contrasts, config)
            if voxels:
                read_subject(subject, contrasts, config)
            subjects.append(subject)
        except BadInput as error:
            refused.append(_refusal(subject.name, error))
        if progress:
            progress(done, len(candidates))
        if refused and not config.skip_broken:
            break
    refused.sort(key=lambda refusal: refusal.subject)
    if refused and not config.skip_broken:
        bad = refused[0]
        raise BadInput(bad.file, f"subject {bad.subject} cannot be used: {bad.reason}", bad.fix)
    if not subjects:
        raise _nobody(root, layout, config, refused, ignored)
    return Found(layout, tuple(subjects), tuple(refused), splits, ignored, listing.people_unknown)


def find_subjects_at(path: str | Path, contrasts: Sequence[str], *, voxels: bool = False) -> Found:
    """Find the subjects of a folder in any known layout, a CSV or TSV, or a single NIfTI file.

    Args:
        path: where; a NIfTI file is one subject whose only contrast is the first of ``contrasts``.
        contrasts: what each must have.
        voxels: read every volume now.

    Raises:
        BadInput: if no subject can be used.
    """
    return find_subjects(DatasetConfig(root=str(path), contrasts=tuple(contrasts)), voxels=voxels)


def _list(root: Path, config: DatasetConfig) -> tuple[str, Listing, tuple[Path, ...]]:
    """The layout's name, what it found, and the NIfTI files that it does not know."""
    check_fetched(root)
    if not root.exists():
        raise BadInput(root, "does not exist", "Give a folder, a CSV, a TSV or a NIfTI file.")
    if not root.is_dir():
        if root.suffix.lower() in TABLES and config.layout in ("auto", "csv"):
            return "csv", list_table(root, config.contrasts), ()
        if is_volume(root.name) and config.layout in ("auto", "folder"):
            contrast = config.contrasts[0] if config.contrasts else canonical(stem(root).rpartition("_")[2])
            return "file", Listing((Volume(stem(root), stem(root), contrast, root),)), ()
        raise BadInput(root, f"is not what layout '{config.layout}' needs", "Give a folder, a CSV or a TSV.")
    if config.layout == "csv":
        raise BadInput(root, "is a folder; layout 'csv' needs a file", "Name the CSV or TSV inside.")
    files = volume_files(root)
    if config.layout == "auto":
        layout, listing = detect(root, files, config.contrasts)
    else:
        layout, listing = config.layout, LAYOUTS[config.layout](root, files, config.contrasts)
    known = {volume.path for volume in listing.volumes}
    known |= {Path(error.file) for _, error in listing.problems}
    return layout, listing, tuple(file for file in files if file not in known)


def assemble(
    root: Path, volumes: Sequence[Volume], config: DatasetConfig, refused: list[Refusal]
) -> Iterator[tuple[Subject, list[str]]]:
    """Subjects whose files are named without doubt, each with the contrasts to be checked.

    Args:
        root: the dataset's folder, for messages.
        volumes: what a layout found.
        config: which contrasts are needed, and which of several files is meant.
        refused: takes the subjects that lack a file, or have several where one is needed.
    """
    named: dict[str, dict[str, list[Volume]]] = defaultdict(lambda: defaultdict(list))
    for volume in volumes:
        named[volume.subject][volume.contrast].append(volume)
    for contrasts in named.values():
        for contrast, several in contrasts.items():
            contrasts[contrast] = _preferred(root, several, config.choose)
    variant = _best_variant(named, config.contrasts)
    for name in sorted(named):
        files = {
            contrast: [volume for volume in several if volume.variant == variant]
            for contrast, several in named[name].items()
        }
        files = {contrast: several for contrast, several in files.items() if several}
        needed = list(config.contrasts) or in_order(files)
        anything = next(iter(named[name].values()))[0]
        missing = [contrast for contrast in needed if contrast not in files]
        double = [contrast for contrast in needed if len(files.get(contrast, ())) > 1]
        if missing or not files:
            has = ", ".join(sorted(files)) or "no other version"
            problem = f"has no {' and no '.join(missing) or 'volume of the version used'}, only {has}"
            place = anything.path.parent
            refused.append(Refusal(name, place, problem, "Add the file, or leave the contrast out."))
        elif double:
            one, other = (volume.path for volume in files[double[0]][:2])
            count = len(files[double[0]])
            problem = f"has {count} files of {double[0]}: {_below(root, one)}, {_below(root, other)}"
            problem += ", ..." if count > 2 else ""
            fix = "Set choose (--choose) to a part of the path that only the right one has."
            refused.append(Refusal(name, one, problem, fix))
        else:
            single = {contrast: several[0].path for contrast, several in files.items() if len(several) == 1}
            yield Subject(name, anything.group, dict(sorted(single.items()))), needed


def _preferred(root: Path, several: list[Volume], choose: Sequence[str]) -> list[Volume]:
    for part in choose:
        if len(several) > 1:
            fitting = [v for v in several if part.lower() in _below(root, v.path).lower()]
            several = fitting or several
    return several


def _best_variant(named: Mapping[str, Mapping[str, list[Volume]]], needed: Sequence[str]) -> int:
    """The first variant that a subject has whole, so that all subjects' volumes were made alike."""
    whole, any_at_all = set(), set()
    for contrasts in named.values():
        variants = [{volume.variant for volume in contrasts.get(name, ())} for name in needed or contrasts]
        whole |= set.intersection(*variants)
        any_at_all |= set.union(*variants)
    return min(whole or any_at_all or {0})


def _below(root: Path, path: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _refusal(subject: str, error: BadInput) -> Refusal:
    return Refusal(subject, Path(error.file), error.problem, error.fix)


def _empty_split(root: Path, config: DatasetConfig, groups: Sequence[str]) -> BadInput:
    share = dict(zip(SPLITS, config.fractions, strict=True))[config.split]
    seed = better_seed(groups, config.fractions)
    fix = "Add subjects, or change fractions."
    if seed is not None:
        fix = f"Set seed = {seed}, which fills every split."
    problem = f"split {config.split} ({share:.0%} of {len(groups)} persons, seed {config.seed}) is empty"
    return BadInput(root, problem, fix)


def _nobody(
    root: Path, layout: str, config: DatasetConfig, refused: Sequence[Refusal], ignored: Sequence[Path]
) -> BadInput:
    wanted = f" with {', '.join(config.contrasts)}" if config.contrasts else ""
    if refused:
        more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        return BadInput(root, f"holds no usable subject{wanted} in layout '{layout}': {refused[0]}{more}")
    seen = (
        f", but {len(ignored)} NIfTI file(s), such as {ignored[0].name}" if ignored else " and no NIfTI file"
    )
    fix = "Check the names against docs/data.md, or list the files in a CSV."
    return BadInput(root, f"holds no subject{wanted} in layout '{layout}'{seen}", fix)
