"""First stage of a translation: read and check the images. Needs no device, only the host."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

from scorefusion.data import check_domain, warnings_of
from scorefusion.errors import BadInput, ScoreFusionError
from scorefusion.io import Affine, Image, Scan, affines_for, check_same_grid, listed, scan_of, shape_of
from scorefusion.models.config import ModelConfig
from scorefusion.pipeline.footprint import Room
from scorefusion.pipeline.job import Job
from scorefusion.pipeline.settings import Settings


def read(
    images: Image | Sequence[Image],
    settings: Settings,
    room: Room,
    *,
    affine: Affine | Sequence[Affine] | None = None,
    mask: Image | None = None,
) -> Job:
    """Read the images of one translation; see :meth:`scorefusion.Pipeline.read`."""
    given, config, job = listed(images), room.config, Job(settings)
    _check_count(given, config)
    if mask is not None and not config.degradation.takes_mask:
        raise ScoreFusionError(f"a mask is for a model that fills in; '{config.name}' does not")
    name = _name(given[0])
    with job.stage("read", "reading it", name):
        shapes = [shape_of(image, settings.max_voxels) for image in given]
        if shapes[0] is not None:
            _check_size(name, shapes[0], settings, config)
        room.check_reading(name, shapes, settings)
        limits: dict[str, Any] = {"assume_affine": settings.assume_affine, "max_voxels": settings.max_voxels}
        affines = affines_for(affine, len(given))
        job.scans = scans = tuple(
            scan_of(image, affine=own, nan=settings.nan, **limits)
            for image, own in zip(given, affines, strict=True)
        )
        _check_size(scans[0].name, scans[0].shape, settings, config)
        _check_grids(scans, config)
        if mask is not None:
            job.mask = scan_of(mask, affine=affines[0], **limits)
            check_same_grid(scans[0], job.mask)
        unsuited = warnings_of(check_domain(scans, config), strict=settings.strict)
    own = (text if len(scans) == 1 else f"{scan.name}: {text}" for scan in scans for text in scan.warnings)
    job.warnings = (*own, *unsuited)
    return job


def _name(image: Image) -> str:
    return str(image) if isinstance(image, str | os.PathLike) else str(getattr(image, "name", "") or "image")


def _check_count(given: Sequence[Image], config: ModelConfig) -> None:
    names = config.conditions
    if len(given) != len(names):
        files = ", ".join(str(image) for image in given if isinstance(image, str | os.PathLike))
        raise ScoreFusionError(
            f"model '{config.name}' takes {len(names)} image{'s' * (len(names) != 1)} "
            f"({', '.join(names)}), got {len(given)}{': ' + files if files else ''}"
        )


def _check_size(name: str, shape: Sequence[int], settings: Settings, config: ModelConfig) -> None:
    factors, limit = config.degradation.factors, settings.max_voxels
    count = math.prod(shape) * math.prod(factors)
    if count > limit:
        finer = " × ".join(str(factor) for factor in dict.fromkeys(factors))
        raise BadInput(
            name, f"would become {count:,} voxels, {finer}× finer; the limit is {limit:,}", "Crop it first."
        )


def _check_grids(scans: Sequence[Scan], config: ModelConfig) -> None:
    """Check that all lie on the first one's grid, or for a coarser first one on the output's."""
    factors = config.degradation.factors
    for other in scans[1:]:
        on_output = max(factors) > 1 and other.values.shape != scans[0].values.shape
        check_same_grid(scans[0], other, factors if on_output else 1)
