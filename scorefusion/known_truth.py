"""Volumes whose truth is known, for models of every task: pooled, or read as conditions and their target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scorefusion.demo import choose_box, make_case
from scorefusion.errors import ScoreFusionError
from scorefusion.io.nifti import check_same_grid, read_scan
from scorefusion.models.config import ModelConfig
from scorefusion.preprocess import Box, Intensity, Prepared, prepare_conditions


@dataclass(frozen=True, eq=False)
class Subject:
    """What a model is given, and what it should make of it, inside a box.

    Attributes:
        name: of the file, or of the target's.
        prepared: what sampling needs, on the whole grid.
        box: where to sample.
        truth: float32 ``[d, h, w]`` of the box, normalised.
        data_range: greatest less least value of the whole true volume, normalised.
    """

    name: str
    prepared: Prepared
    box: Box
    truth: np.ndarray
    data_range: float

    def volume(self, residual: Tensor, config: ModelConfig) -> np.ndarray:
        """The volume ``[d, h, w]``, normalised, that a residual ``[1, 1, d, h, w]`` of the box stands for."""
        return _array(self.prepared.base[self.box.index] + config.residual.scale * residual)


def files_per_subject(config: ModelConfig) -> int:
    """How many files a subject takes: 1 where the model's input is made of the truth, else its conditions
    and the target.
    """
    return 1 if _pooled(config) else len(config.conditions) + 1


def read_subjects(
    files: Sequence[Path],
    config: ModelConfig,
    *,
    coarsen: int = 1,
    size: Sequence[int],
    start: Sequence[int] | None = None,
    nan: str = "error",
    device: torch.device | str = "cpu",
) -> list[Subject]:
    """Read volumes with known truth.

    Args:
        files: for a model that restores one block-pooled volume, the true volumes, each a subject; for any
            other, each subject's conditions and then its target, all on one grid.
        config: the model.
        coarsen: average blocks of this edge first (block-pooled models only).
        size: of the box (z, y, x), as :func:`scorefusion.demo.make_case` takes it.
        start: its first voxel; in the middle of the head by default.
        nan: ``error`` or ``zero``.
        device: where the tensors go.

    Raises:
        ScoreFusionError: for a number of files that does not fit the model.
        BadInput: for a file that cannot be used.
    """
    count = files_per_subject(config)
    if not files or len(files) % count:
        names = ", ".join([*config.conditions, config.target])
        each = "a volume each" if count == 1 else f"{count} files each ({names})"
        raise ScoreFusionError(
            f"model '{config.name}' is tuned on subjects of {each}; got {len(files)} files"
        )
    if count == 1:
        subjects = []
        for file in files:
            case = make_case(read_scan(file, nan=nan), config, coarsen=coarsen, size=size, start=start)
            case = case.to(torch.device(device))
            intensity, truth = case.prepared.intensity, case.truth[case.box.index]
            subjects.append(
                Subject(
                    case.name,
                    case.prepared,
                    case.box,
                    _array(intensity.normalise(truth)),
                    case.data_range / intensity.half_range,
                )
            )
        return subjects
    if coarsen != 1:
        raise ScoreFusionError(
            f"only a block-pooled volume can be coarsened; model '{config.name}' takes {count} files"
        )
    groups = (files[at : at + count] for at in range(0, len(files), count))
    return [_pair(group, config, size, start, nan, torch.device(device)) for group in groups]


def _pooled(config: ModelConfig) -> bool:
    return config.degradation.kind == "block-mean" and len(config.conditions) == 1


def _pair(
    files: Sequence[Path],
    config: ModelConfig,
    size: Sequence[int],
    start: Sequence[int] | None,
    nan: str,
    device: torch.device,
) -> Subject:
    """Conditions and a target, the target normalised by its own intensities."""
    scans = [read_scan(file, nan=nan) for file in files]
    factor = config.degradation.factor
    for other in scans[1:]:
        check_same_grid(scans[0], other, factor if other.values.shape != scans[0].values.shape else 1)
    check_same_grid(scans[0], scans[-1], factor)
    volumes = [torch.from_numpy(scan.values)[None, None].to(device) for scan in scans]
    prepared = prepare_conditions(volumes[:-1], config)
    multiple = math.lcm(factor, config.multiple)
    box = choose_box(prepared.condition, size, start, multiple, factor)
    truth = Intensity.of(volumes[-1], config.intensity).normalise(volumes[-1])
    span = float(truth.max() - truth.min())
    return Subject(scans[-1].name, prepared, box, _array(truth[box.index]), span)


def _array(volume: Tensor) -> np.ndarray:
    return np.ascontiguousarray(volume[0, 0].float().cpu().numpy())
