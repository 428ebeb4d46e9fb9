"""Cases of known truth: a model's input, the true volume, the box to sample, and the subject they are of.

The input is made of the truth where a model's first condition is its degraded target, else read from a file.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scorefusion.data import (
    Box,
    DatasetConfig,
    Intensity,
    Prepared,
    Subject,
    find_subjects,
    foreground_box,
    prepare_conditions,
    read_subject,
)
from scorefusion.degradations import Factor, block_edges, block_mean
from scorefusion.errors import BadInput, ScoreFusionError
from scorefusion.io.nifti import Scan, check_same_grid, read_scan
from scorefusion.metrics import Pair
from scorefusion.models.config import ModelConfig, parse
from scorefusion.models.domain import LABELS

FOREGROUND = -0.95  #: a true voxel above it, normalised, is foreground: 2.5% of the way from black to white
_LEAST = 8
_MARK = "phantom.json"


@dataclass(frozen=True)
class Where:
    """Which part of each volume is evaluated."""

    size: tuple[int, int, int] | None = (64, 80, 80)  #: of the box (z, y, x) in voxels; None for all
    slab: tuple[int, int] | None = None  #: (first, last + 1) slice along z of it; None for all
    coarsen: int = 1  #: blocks of this edge are averaged first


@dataclass(frozen=True, eq=False)
class Case:
    """What a model is given, and what it should make of it, inside a box."""

    file: str  #: name of the target's file, and how it was coarsened
    config: ModelConfig  #: the model's
    prepared: Prepared  #: what sampling needs, on the whole grid
    box: Box  #: where to sample
    truth: np.ndarray  #: float32 ``[d, h, w]`` of the box, normalised
    black: float  #: least value of the whole true volume, normalised
    data_range: float  #: its greatest less its least value, normalised: what PSNR and SSIM are relative to
    intensity: Intensity  #: how ``truth`` was normalised
    given: Mapping[str, Tensor]  #: condition to ``[1, 1, ...]``, image units; the first as it was measured
    target: Tensor  #: ``[1, 1, D, H, W]``, the whole true volume, image units
    affine: np.ndarray  #: float64 ``[4, 4]``, (x, y, z) index of the whole target in RAS order to millimetres
    subject: Subject | None = None  #: of a dataset, its name, person and files
    labels: np.ndarray | None = None  #: int64 ``[d, h, w]`` of the box, or None
    digest: str = ""  #: of the subject's files and where they are evaluated: a stored result is valid for it

    @property
    def name(self) -> str:
        """The subject's; the file's without one."""
        return self.subject.name if self.subject else self.file

    @property
    def measured(self) -> Tensor:
        """The first condition, image units."""
        return self.given[self.config.conditions[0]]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size (z, y, x) in mm."""
        x, y, z = (float(n) for n in np.linalg.norm(self.affine[:3, :3], axis=0))
        return z, y, x

    @cached_property
    def inside(self) -> np.ndarray:
        """bool ``[d, h, w]``: the foreground."""
        return self.truth > FOREGROUND

    def volume(self, residual: Tensor) -> np.ndarray:
        """The normalised volume ``[d, h, w]`` that a residual ``[1, 1, d, h, w]`` of the box stands for."""
        return as_array(self.config.residual.added_to(self.prepared.base[self.box.index], residual))

    def residual(self) -> Tensor:
        """The true residual ``[1, 1, d, h, w]`` of the box, in units of ``residual.scale``."""
        truth = self.intensity.normalise(self.target[self.box.index])
        return self.config.residual.of(truth, self.prepared.base[self.box.index])

    def pair(self, volume: np.ndarray) -> Pair:
        """A normalised result ``[d, h, w]`` of the box with its truth, as metrics take them."""
        # The whole truth reaches from 0 to 1: SSIM takes black for 0, and the range is no box's own.
        scaled, truth = ((each - self.black) / self.data_range for each in (volume, self.truth))
        translated = not self.config.degradation.measures
        return Pair(scaled, truth, 1.0, self.inside, translated, self.consistency(volume))

    def seen_by(self, config: ModelConfig) -> Case:
        """The same case for another model of this target and some of these conditions."""
        if config == self.config:
            return self
        prepared = prepare_conditions([self.given[name] for name in config.conditions], config)
        made = makes_its_input(config)
        intensity = prepared.intensity if made else Intensity.of(self.target, config.intensity)
        truth = as_array(intensity.normalise(self.target)[self.box.index])
        return replace(self, config=config, prepared=prepared, intensity=intensity, truth=truth)

    def consistency(self, volume: np.ndarray) -> float | None:
        """Greatest difference of a degraded result ``[d, h, w]`` from what was measured, over the range."""
        operator, degradation = self.prepared.operator, self.config.degradation
        if operator is None:
            return None
        inside = operator.inside(self.box.index)
        place = self.box.coarser(degradation.factors) if degradation.coarse else self.box
        given = self.intensity.normalise(self.measured[place.index].float())
        result = torch.from_numpy(volume)[None, None].to(given)
        return degradation.disagreement(inside, result, given)[0] / self.data_range


def makes_its_input(config: ModelConfig) -> bool:
    """Whether a model's first condition is its degraded target, so that the truth is enough to make it."""
    return config.degradation.measures and config.conditions[0] == config.target


def files_needed(config: ModelConfig) -> tuple[str, ...]:
    """What a subject consists of: the conditions that are not made of the target, then the target."""
    return (*config.conditions[makes_its_input(config) :], config.target)


def make_case(
    scans: Sequence[Scan],
    config: ModelConfig,
    *,
    coarsen: int = 1,
    size: Sequence[int] | None,
    start: Sequence[int] | None = None,
    slab: tuple[int, int] | None = None,
    device: torch.device | str = "cpu",
) -> Case:
    """Make a model's input of scans with known truth, as :func:`files_needed` names them; choose the box.

    The target is normalised by the first condition's intensity if that is made of it, all else by its own.
    Everything is in voxels (z, y, x) after averaging blocks of edge ``coarsen``; ``size`` is rounded down.
    """
    target, made = scans[-1], makes_its_input(config)
    if coarsen < 1 or min(size or (1,)) < 1 or (start is not None and min(start) < 0):
        raise ScoreFusionError(f"coarsen {coarsen}, box {size} at {start}: a number is out of range")
    factors = config.degradation.factors
    for scan in scans[:-1]:
        if scan.values.shape == target.values.shape:
            check_same_grid(target, scan)
        else:
            check_same_grid(scan, target, (1, 1, 1) if made or coarsen > 1 else factors)
    fine = target.values.shape
    steps = [coarsen * factor for factor in factors]
    kept = [n // step * step for n, step in zip(fine, steps, strict=True)]
    if min(kept) // coarsen < max(math.lcm(*factors, config.multiple), _LEAST):
        shape, pooled = (" × ".join(str(n) for n in numbers) for numbers in (fine, factors))
        problem = f"has {shape} voxels, too few to coarsen {coarsen} times and to pool by {pooled}"
        raise BadInput(target.name, problem, "Give a larger volume.")
    volumes = [torch.from_numpy(scan.values)[None, None].to(device) for scan in scans]
    *conditions, truth = (
        block_mean(volume[:, :, : kept[0], : kept[1], : kept[2]], coarsen)
        if volume.shape[2:] == fine
        else volume
        for volume in volumes
    )
    if made and config.degradation.noise:  # in normalised intensity
        own = Intensity.of(truth, config.intensity)
        conditions.insert(0, own.denormalise(config.degradation.image(own.normalise(truth))))
    elif made:
        conditions.insert(0, config.degradation.image(truth))
    prepared = prepare_conditions(conditions, config)
    intensity = prepared.intensity if made else Intensity.of(truth, config.intensity)
    normal = intensity.normalise(truth)
    box = _choose_box(prepared.condition, size, start, slab, config)
    return Case(
        file=f"{target.name}{f' averaged over {coarsen}×{coarsen}×{coarsen} voxels' if coarsen > 1 else ''}",
        config=config,
        prepared=prepared,
        box=box,
        truth=as_array(normal[box.index]),
        black=float(normal.min()),
        data_range=float(normal.max() - normal.min()),
        intensity=intensity,
        given=dict(zip(config.conditions, conditions, strict=True)),
        target=truth,
        affine=coarser_affine(target.ras_affine, coarsen),
    )


def make_cases(files: Sequence[Path], config: ModelConfig, *, nan: str = "error", **where: Any) -> list[Case]:
    """Read the files of each subject, as :func:`files_needed` orders them; ``where`` is :func:`make_case`'s.

    Raises BadInput for a file that cannot be used, ScoreFusionError for a number that does not fit the model.
    """
    names = files_needed(config)
    if not files or len(files) % len(names):
        each = "a volume each" if len(names) == 1 else f"{len(names)} files each ({', '.join(names)})"
        wanted = f"model '{config.name}' is measured on subjects of {each}"
        raise ScoreFusionError(f"{wanted}; got {len(files)} files")
    groups = (files[at : at + len(names)] for at in range(0, len(files), len(names)))
    return [make_case([read_scan(file, nan=nan) for file in group], config, **where) for group in groups]


def find_cases(
    data: Path,
    config: ModelConfig,
    *,
    count: int | None = None,
    labels: bool = False,
    split: str = "all",
    fractions: Sequence[float] | None = None,
) -> list[Subject]:
    """The subjects of a dataset, or a single NIfTI file of the target, that have what a model needs.

    ``count`` takes the first so many by name, ``labels`` those that have a label map too. ``split`` and
    ``fractions`` are as in :class:`~scorefusion.data.DatasetConfig`.

    Raises BadInput for none, or fractions that are not shares; ScoreFusionError for a count below 1.
    """
    if count is not None and count < 1:
        raise ScoreFusionError(f"an evaluation needs at least 1 subject, got {count}")
    contrasts = [*reversed(files_needed(config)), *([LABELS] if labels else [])]
    values: dict[str, Any] = {"root": str(data), "contrasts": contrasts, "split": split}
    values |= {} if fractions is None else {"fractions": fractions}
    return list(find_subjects(parse(DatasetConfig, values, data)).subjects)[:count]


def read_case(
    subject: Subject, config: ModelConfig, where: Where, *, device: torch.device | str = "cpu"
) -> Case:
    """Read a subject from :func:`find_cases` and make a case of it, or raise ScoreFusionError."""
    names = files_needed(config)
    labelled = [LABELS] if LABELS in subject.files else []
    scans = read_subject(subject, [names[-1], *names[:-1], *labelled])
    case = make_case([scans[name] for name in names], config, device=device, **vars(where))
    labels = None
    if labelled and where.coarsen == 1:
        labels = scans[LABELS].values[case.box.index].astype(np.int64)
    digest = hashlib.sha256(repr(where).encode())
    for name in (*names, *labelled):
        digest.update(hashlib.sha256(subject.files[name].read_bytes()).digest())
    return replace(case, subject=subject, labels=labels, digest=digest.hexdigest())


def is_synthetic(data: Path) -> bool:
    """Whether a dataset says of itself that it is made up: it holds a ``phantom.json``."""
    return ((data if data.is_dir() else data.parent) / _MARK).is_file()


def label_names(data: Path) -> dict[int, str]:
    """What a dataset's ``phantom.json`` calls the values of its label maps; empty without one."""
    try:
        labels = json.loads((data / _MARK).read_text(encoding="utf-8"))["labels"]
        return {int(value): str(name) for name, value in labels.items()}
    except (OSError, ValueError, KeyError, AttributeError):
        return {}


def as_array(volume: Tensor) -> np.ndarray:
    """``[1, 1, D, H, W]`` as a float32 array ``[D, H, W]``."""
    return np.ascontiguousarray(volume[0, 0].float().cpu().numpy())


def coarser_affine(affine: np.ndarray, factor: Factor) -> np.ndarray:
    """The affine of the grid whose voxels are blocks of ``affine``'s, of one edge or of edges (z, y, x)."""
    edges = np.array(block_edges(factor)[::-1], dtype=np.float64)
    step = np.diag([*edges, 1.0])
    step[:3, 3] = (edges - 1.0) / 2.0
    return affine @ step


def _choose_box(
    condition: Tensor,
    size: Sequence[int] | None,
    start: Sequence[int] | None,
    slab: tuple[int, int] | None,
    config: ModelConfig,
) -> Box:
    """A box inside the slab that begins on whole blocks, at ``start`` or in the middle of the head.

    It takes all of the volume along axes that the measurement mixes.
    """
    degradation, full = config.degradation, condition.shape[2:]
    block = math.lcm(*degradation.factors)
    low, high = slab or (0, full[0])
    if not 0 <= low < high <= full[0]:
        raise ScoreFusionError(f"slices {low}:{high} are not inside the volume, which has {full[0]}")
    if slab is not None and degradation.whole[0]:
        problem = "mixes all slices, so it cannot be cut into slabs"
        raise ScoreFusionError(f"degradation {degradation.kind} {problem}")
    low = -(-low // block) * block
    within = condition[:, :, low:high]
    whole = within.shape[2:]
    limits = zip(size or whole, whole, config.multiples, strict=True)
    edges = [min(n, most) // multiple * multiple for n, most, multiple in limits]
    needed = [max(multiple, _LEAST) for multiple in config.multiples]
    if any(edge < least for edge, least in zip(edges, needed, strict=True)):
        least = f"at least {max(needed)} voxels along each axis"
        if len(set(needed)) > 1:
            least = "at least {} × {} × {} voxels (z, y, x)".format(*needed)
        raise ScoreFusionError(f"a box needs {least}, and no more than the volume has; got {tuple(edges)}")
    if start is None:
        head = foreground_box(within, margin=0)
        start = [(a + b - n) // 2 for a, b, n in zip(head.start, head.stop, edges, strict=True)]
    else:
        start = (max(start[0] - low, 0), *start[1:])
    z, y, x = (max(0, min(at, m - n)) // block * block for at, m, n in zip(start, whole, edges, strict=True))
    box = Box((z + low, y, x), (z + low + edges[0], y + edges[1], x + edges[2]))
    return box.whole_along(degradation.whole, full)
