"""Datasets: a frozen description, its subjects found, checked, split and read on one grid."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from pydantic import field_validator, model_validator

from scorefusion.data.layouts import SPLITS, LayoutName, Subject, Volume, below, list_volumes
from scorefusion.errors import BadInput
from scorefusion.io.nifti import Grid, Scan, corner_distance, ras_grid, read_grid, read_scan
from scorefusion.models.config import Frozen
from scorefusion.models.domain import LABELS, canonical, in_order
from scorefusion.optional import need

Progress = Callable[[int, int], None]  #: what is called with (done, total)


class DatasetConfig(Frozen):
    """Which volumes, of whom, and what to do with those that cannot be used."""

    root: str  #: a folder, a CSV or TSV file, or one NIfTI file
    layout: LayoutName = "auto"  #: how files are named (docs/data.md); ``auto`` finds out
    #: what every subject must have, in this order; the first one's grid counts. Empty: whatever each has.
    #: Usual spellings are alike: ``T1w`` is ``t1``.
    contrasts: tuple[str, ...] = ()
    #: where a subject has several files of a contrast, parts of the path of the one that is meant
    choose: tuple[str, ...] = ()
    split: Literal["all", "train", "validation", "test"] = "all"  #: which subjects
    #: of train, validation and test, of the persons; a person's share is decided by the seed and the person's
    #: name alone, so the sizes are approximate
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    seed: int = 0  #: of the splits
    #: a subject's volumes on different grids are refused, or resampled onto the first's
    on_misaligned: Literal["refuse", "resample"] = "refuse"
    tolerance: float = 0.01  #: how far apart two grids' corners may be, in millimetres, to count as one
    interpolation: Literal["linear", "cubic"] = "linear"  #: of images; label maps take the nearest voxel
    nan: Literal["error", "zero"] = "error"  #: refuse a volume with NaN or infinity, or count these as 0
    assume_affine: bool = False  #: for headers without orientation, take the voxel size and RAS axes
    skip_broken: bool = True  #: leave out subjects that cannot be used; else the first is an error

    @field_validator("contrasts")
    @classmethod
    def _spell(cls, contrasts: tuple[str, ...]) -> tuple[str, ...]:
        names = tuple(canonical(name) for name in contrasts)
        if len(set(names)) < len(names):
            raise ValueError(f"a contrast is named twice in {', '.join(contrasts)}")
        return names

    @model_validator(mode="after")
    def _check(self) -> DatasetConfig:
        if min(self.fractions) < 0 or not math.isclose(sum(self.fractions), 1.0, abs_tol=1e-6):
            raise ValueError(f"fractions {self.fractions} are not three shares that sum to 1")
        if not self.tolerance >= 0:
            raise ValueError(f"tolerance is {self.tolerance} mm; it must not be negative")
        return self


@dataclass(frozen=True)
class Refusal:
    """A subject that cannot be used: which file, why, and what to do about it."""

    subject: str
    file: Path
    reason: str
    fix: str

    @classmethod
    def of(cls, subject: str, error: BadInput) -> Refusal:
        """The refusal of a subject for an error."""
        return cls(subject, Path(error.file), error.problem, error.fix)

    def __str__(self) -> str:
        return f"{self.subject}: {self.file}: {self.reason}. {self.fix}".rstrip()


Refused = Callable[[Refusal], None]  #: what is called with each subject that is left out


@dataclass(frozen=True)
class Found:
    """The subjects of a dataset."""

    layout: str  #: name of its layout
    subjects: tuple[Subject, ...]  #: subjects that can be used, sorted by name
    refused: tuple[Refusal, ...]  #: subjects of the chosen split that cannot be used
    splits: Mapping[str, str]  #: split of each person
    ignored: tuple[Path, ...] = ()  #: NIfTI files that the layout does not know
    people_unknown: str = ""  #: why files cannot be assigned to subjects; empty where they can


def find_subjects(config: DatasetConfig, *, voxels: bool = False, progress: Progress | None = None) -> Found:
    """Find a dataset's subjects and check their files.

    Headers, shapes and affines are checked; damage further inside a file, and NaN, show when it is read, as
    ``voxels`` does now. ``progress`` is called with (done, total) subjects.

    Raises BadInput if no subject can be used, or for the first that cannot unless ``config.skip_broken``; if
    the split is empty, or persons are unknown and so cannot be split.
    """
    root = Path(config.root).expanduser()
    layout, listing, ignored = list_volumes(root, config.layout, config.contrasts)
    if listing.people_unknown and config.split != "all":
        file, _, problem = listing.people_unknown.partition(": ")
        raise BadInput(root / file, f"no split by person can be made: {problem}")
    groups = sorted({volume.group for volume in listing.volumes})
    splits = {g: listing.splits.get(g) or split_of(g, config.fractions, config.seed) for g in groups}
    if groups and config.split != "all" and config.split not in splits.values():
        share, seed = config.fractions[SPLITS.index(config.split)], better_seed(groups, config.fractions)
        fix = "Add subjects, or change fractions."
        fix = fix if seed is None else f"Set seed = {seed}, which fills every split."
        problem = f"split {config.split} ({share:.0%} of {len(groups)} persons, seed {config.seed}) is empty"
        raise BadInput(root, problem, fix)
    refused = [Refusal.of(subject, error) for subject, error in listing.problems]
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
            refused.append(Refusal.of(subject.name, error))
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


def assemble(
    root: Path, volumes: Sequence[Volume], config: DatasetConfig, refused: list[Refusal]
) -> Iterator[tuple[Subject, list[str]]]:
    """Yield subjects whose files are unambiguous, each with the contrasts to be checked.

    ``refused`` takes the subjects that lack a file, or have several where one is needed; messages name files
    below ``root``, the dataset's folder.
    """
    named: dict[str, dict[str, list[Volume]]] = defaultdict(lambda: defaultdict(list))
    for volume in volumes:
        named[volume.subject][volume.contrast].append(volume)
    for contrasts in named.values():
        for contrast in contrasts:
            for part in config.choose:
                several = contrasts[contrast]
                fitting = [v for v in several if part.lower() in below(root, v.path).lower()]
                contrasts[contrast] = fitting if fitting and len(several) > 1 else several
    # The first variant that a subject has whole, so that all subjects' volumes were made alike.
    whole, any_at_all = set[int](), set[int]()
    for contrasts in named.values():
        variants = [{v.variant for v in contrasts.get(name, ())} for name in config.contrasts or contrasts]
        whole |= set.intersection(*variants)
        any_at_all |= set.union(*variants)
    variant = min(whole or any_at_all or {0})
    for name in sorted(named):
        files = {
            contrast: fitting
            for contrast, several in named[name].items()
            if (fitting := [volume for volume in several if volume.variant == variant])
        }
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
            problem = f"has {count} files of {double[0]}: {below(root, one)}, {below(root, other)}"
            problem += ", ..." if count > 2 else ""
            fix = "Set choose (--choose) to a part of the path that only the right one has."
            refused.append(Refusal(name, one, problem, fix))
        else:
            single = {contrast: several[0].path for contrast, several in files.items() if len(several) == 1}
            yield Subject(name, anything.group, dict(sorted(single.items()))), needed


def _nobody(
    root: Path, layout: str, config: DatasetConfig, refused: Sequence[Refusal], ignored: Sequence[Path]
) -> BadInput:
    wanted = f" with {', '.join(config.contrasts)}" if config.contrasts else ""
    if refused:
        more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        return BadInput(root, f"holds no usable subject{wanted} in layout '{layout}': {refused[0]}{more}")
    some = f", but {len(ignored)} NIfTI file(s), such as {ignored[0].name}" if ignored else ""
    seen = some or " and no NIfTI file"
    fix = "Check the names against docs/data.md, or list the files in a CSV."
    return BadInput(root, f"holds no subject{wanted} in layout '{layout}'{seen}", fix)


def split_of(group: str, fractions: Sequence[float], seed: int) -> str:
    """The split of a person, by a hash of the seed and the name alone, whoever else comes or goes."""
    digest = hashlib.sha256(f"{seed}:{group}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    train, validation, test = fractions
    if place < train or not (validation or test):
        return "train"
    return "validation" if place < train + validation or not test else "test"


def better_seed(groups: Iterable[str], fractions: Sequence[float], tries: int = 1000) -> int | None:
    """The first seed that fills every split to within one person of its fraction, if there is one."""
    names = sorted(set(groups))
    for seed in range(tries):
        counts = Counter(split_of(name, fractions, seed) for name in names)
        sizes = [(counts[split], share) for split, share in zip(SPLITS, fractions, strict=True)]
        if all(abs(n - share * len(names)) <= 1 and (n > 0) == (share > 0) for n, share in sizes):
            return seed
    return None


_DEFAULT = DatasetConfig(root="")


def check_grids(subject: Subject, contrasts: Sequence[str], config: DatasetConfig = _DEFAULT) -> Grid:
    """Check from the headers that a subject's volumes can be used together; return the first one's grid.

    Raises BadInput for a file that cannot be a volume, or that lies on another grid, with both grids.
    """
    files = [subject.files[contrast] for contrast in contrasts]
    grids = [read_grid(file, assume_affine=config.assume_affine) for file in files]
    if config.on_misaligned == "refuse":
        for file, grid in zip(files[1:], grids[1:], strict=True):
            _check_aligned(file, grid, grids[0], config.tolerance)
    return grids[0]


def read_subject(
    subject: Subject, contrasts: Sequence[str] = (), config: DatasetConfig = _DEFAULT
) -> dict[str, Scan]:
    """Read a subject's volumes, all on the first one's grid.

    Without ``contrasts`` it reads all, by name, labels last. Of the config, ``on_misaligned``, ``tolerance``,
    ``interpolation``, ``nan`` and ``assume_affine`` count. A volume that was resampled has the grid and
    header of the first; outside its own field of view it holds its least value (label maps: 0). It is not
    smoothed first, so let the first contrast be the finer.

    Raises BadInput for a volume that cannot be read, labels that are not whole numbers, or a volume on
    another grid that is not to be resampled or does not overlap the first.
    """
    first, scans, order = None, {}, 1 if config.interpolation == "linear" else 3
    for contrast in list(contrasts) or in_order(subject.files):
        path = subject.files[contrast]
        labels = contrast == LABELS
        scan = read_scan(path, nan=config.nan, assume_affine=config.assume_affine, constant=labels)
        if labels and not (scan.values == np.rint(scan.values)).all():
            fix = "Give a label map, made with nearest-neighbour interpolation."
            raise BadInput(path, "holds labels that are not whole numbers", fix)
        first = scan if first is None else first
        try:
            _check_aligned(path, _grid(scan), _grid(first), config.tolerance)
        except BadInput:
            if config.on_misaligned == "refuse":
                raise
            scan = resample(scan, first, order=0 if labels else order)
        scans[contrast] = scan
    return scans


def resample(scan: Scan, onto: Scan, order: int = 1) -> Scan:
    """Interpolate a volume at the voxels of another, by both affines and a spline of order 0, 1 or 3."""
    need("scipy.ndimage", "resampling")
    from nibabel.processing import resample_from_to

    def onto_grid(image: Any, order: int, low: float) -> np.ndarray:
        # grid-constant: a voxel on the very edge is not lost to rounding
        values = resample_from_to(image, target, order=order, mode="grid-constant", cval=low)
        return np.asarray(values.dataobj)

    low, high = (0.0 if order == 0 else float(scan.values.min())), float(scan.values.max())
    image = nib.Nifti1Image(scan.values.transpose(2, 1, 0), scan.ras_affine)
    target = (onto.values.shape[::-1], onto.ras_affine)
    array = onto_grid(image, order, low).astype(np.float32, copy=False).transpose(2, 1, 0)
    if order > 1:
        array = array.clip(low, high)
    everywhere = nib.Nifti1Image(np.ones(image.shape, np.uint8), image.affine)
    if array.min() == array.max() and not onto_grid(everywhere, 0, 0.0).any():
        problem = f"does not overlap {onto.name}: {_grid(scan)} against {_grid(onto)}"
        raise BadInput(scan.name, problem, "Register it first, or correct its affine.")
    return replace(
        scan,
        values=np.ascontiguousarray(array),
        affine=onto.affine,
        affine_assumed=onto.affine_assumed,
        shape=onto.shape,
        header=onto.header.copy(),
        dtype=np.dtype(np.float32),
        slope=1.0,
        intercept=0.0,
    )


def _grid(scan: Scan) -> Grid:
    return ras_grid(scan.name, scan.shape, scan.affine)


def _check_aligned(file: Path, grid: Grid, first: Grid, tolerance: float) -> None:
    what = "shapes differ"
    if grid.shape == first.shape:
        distance = corner_distance(first.affine, grid.affine, grid.shape)
        if distance <= tolerance:
            return
        what = f"corners are {distance:.3g} mm apart"
    problem = f"lies on another grid than {Path(first.name).name} ({what}): {grid} against {first}"
    raise BadInput(file, problem, "Resample it first, or set on_misaligned = 'resample' (--resample).")
