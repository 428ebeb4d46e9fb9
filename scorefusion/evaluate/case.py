"""A subject to be evaluated on: what the model is given, the truth, the box, and what of it is foreground."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scorefusion.data import (
    DatasetConfig,
    Intensity,
    Prepared,
    Subject,
    find_subjects,
    prepare_conditions,
    read_subject,
)
from scorefusion.errors import ScoreFusionError
from scorefusion.evaluate.known_truth import KnownTruth, files_needed, known_truth, makes_its_input
from scorefusion.models.config import ModelConfig, parse
from scorefusion.models.contrast import LABELS

FOREGROUND = -0.95
"""Normalised intensity above which a true voxel is foreground: 2.5% of the way from black to white."""

_MARK = "phantom.json"


@dataclass(frozen=True)
class Where:
    """Which part of each volume is evaluated.

    Attributes:
        size: of the box (z, y, x) in voxels; None for as much as there is.
        slab: (first, last + 1) slice along z that the box must lie in; None for all.
        coarsen: blocks of this edge are averaged first.
    """

    size: tuple[int, int, int] | None = (64, 80, 80)
    slab: tuple[int, int] | None = None
    coarsen: int = 1


@dataclass(frozen=True, eq=False)
class Case:
    """A subject as a model of one configuration sees it.

    Attributes:
        subject: its name and files.
        known: the model's input and the truth, in a box.
        config: the model's.
        labels: int64 ``[d, h, w]`` of the box, or None.
        digest: of the files' bytes and of ``where``: what a stored result of it is valid for.
    """

    subject: Subject
    known: KnownTruth
    config: ModelConfig
    labels: np.ndarray | None
    digest: str

    @property
    def name(self) -> str:
        """The subject's."""
        return self.subject.name

    @property
    def truth(self) -> np.ndarray:
        """float32 ``[d, h, w]`` of the box, normalised."""
        return self.known.truth

    @property
    def data_range(self) -> float:
        """White less black of the whole true volume, normalised: what PSNR and SSIM are relative to."""
        return self.known.data_range

    def from_black_to_white(self, volume: np.ndarray) -> np.ndarray:
        """A normalised volume on the scale on which the whole true volume reaches from 0 to 1."""
        return np.asarray((volume - self.known.black) / self.known.data_range)

    @cached_property
    def inside(self) -> np.ndarray:
        """bool ``[d, h, w]``: the foreground."""
        return self.truth > FOREGROUND

    @property
    def deep_inside(self) -> bool:
        """Whether any foreground voxel has a whole 7-voxel cube around it."""
        return bool(self.inside[3:-3, 3:-3, 3:-3].any())

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size (z, y, x) in mm."""
        x, y, z = (float(n) for n in np.linalg.norm(self.known.affine[:3, :3], axis=0))
        return z, y, x

    def prepared_for(self, config: ModelConfig) -> tuple[Prepared, Intensity]:
        """What another model is given of this subject, and how its results are normalised.

        Args:
            config: a model of the same target, that takes some of the same conditions.
        """
        if config == self.config:
            return self.known.prepared, self.known.intensity
        prepared = prepare_conditions([self.known.given[name] for name in config.conditions], config)
        if makes_its_input(config):
            return prepared, prepared.intensity
        return prepared, Intensity.of(self.known.target, config.intensity)

    def consistency(self, volume: np.ndarray) -> float | None:
        """How far a result is from what was measured; None where nothing was.

        Args:
            volume: float32 ``[d, h, w]`` of the box, normalised.

        Returns:
            The greatest difference between the degraded result and the measurement in the box, as a share of
            white less black of the whole true volume.
        """
        known, degradation = self.known, self.config.degradation
        operator = known.prepared.operator
        if operator is None:
            return None
        inside = operator.inside(known.box.index)
        place = known.box.coarser(degradation.factors) if degradation.coarse else known.box
        given = known.intensity.normalise(known.given[self.config.conditions[0]][place.index].float())
        result = torch.from_numpy(volume)[None, None].to(given)
        return degradation.disagreement(inside, result, given)[0] / self.data_range


def find_cases(
    data: Path,
    config: ModelConfig,
    *,
    count: int | None = None,
    labels: bool = False,
    split: str = "all",
    fractions: Sequence[float] | None = None,
) -> list[Subject]:
    """The subjects of a dataset, or a single NIfTI file, that have what a model needs.

    Args:
        data: a folder in a known layout, a CSV or TSV, or a NIfTI file of the target.
        config: the model.
        count: take only so many, the first by name.
        labels: whether a label map is needed too.
        split: ``all``, or train, validation or test, as a training run splits the same dataset.
        fractions: of the three splits; :class:`~scorefusion.data.DatasetConfig`'s by default.

    Raises:
        BadInput: if there is none, or for fractions that are not shares.
        ScoreFusionError: for a count below 1.
    """
    if count is not None and count < 1:
        raise ScoreFusionError(f"an evaluation needs at least 1 subject, got {count}")
    wanted = [*reversed(files_needed(config)), *([LABELS] if labels else [])]
    values: dict[str, Any] = {"root": str(data), "contrasts": wanted, "split": split}
    values |= {} if fractions is None else {"fractions": fractions}
    return list(find_subjects(parse(DatasetConfig, values, data)).subjects)[:count]


def is_synthetic(data: Path) -> bool:
    """Whether a dataset says of itself that it is made up: it holds a ``phantom.json``."""
    return (data / _MARK).is_file() if data.is_dir() else (data.parent / _MARK).is_file()


def label_names(data: Path) -> dict[int, str]:
    """What a dataset's ``phantom.json`` calls the values of its label maps; empty without one."""
    try:
        labels = json.loads((data / _MARK).read_text(encoding="utf-8"))["labels"]
        return {int(value): str(name) for name, value in labels.items()}
    except (OSError, ValueError, KeyError, AttributeError):
        return {}


def read_case(
    subject: Subject, config: ModelConfig, where: Where, *, device: torch.device | str = "cpu"
) -> Case:
    """Read a subject and make of it what a model needs.

    Args:
        subject: from :func:`find_cases`.
        config: the model.
        where: which part.
        device: where the tensors go.

    Raises:
        BadInput: for a file that cannot be used.
        ScoreFusionError: for a box that does not fit.
    """
    names = files_needed(config)
    labelled = LABELS in subject.files
    scans = read_subject(subject, [names[-1], *names[:-1], *([LABELS] if labelled else [])])
    known = known_truth(
        [scans[name] for name in names],
        config,
        coarsen=where.coarsen,
        size=where.size,
        slab=where.slab,
        device=device,
    )
    labels = None
    if labelled and where.coarsen == 1:
        labels = scans[LABELS].values[known.box.index].astype(np.int64)
    files = [subject.files[name] for name in (*names, *([LABELS] if labelled else []))]
    return Case(subject, known, config, labels, _digest(files, repr(where)))


def _digest(files: Sequence[Path], text: str) -> str:
    """SHA-256 of files and a text, in hexadecimal."""
    found = hashlib.sha256(text.encode())
    for file in files:
        found.update(hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()
