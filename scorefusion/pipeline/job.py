"""One translation on its way through the pipeline: what was read, what is sampled, what was drawn."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from scorefusion.data import Box, Prepared
from scorefusion.io.nifti import Scan
from scorefusion.pipeline.footprint import Footprint

STAGES = ("read", "prepare", "sample", "finish")


@dataclass(frozen=True, eq=False)
class Reading:
    """Images as they were read, on the host.

    Attributes:
        scans: one a condition.
        mask: where voxels are missing, for a model that fills in.
        timings: seconds by stage, of those that are over.
        warnings: a sentence each.
    """

    scans: tuple[Scan, ...]
    mask: Scan | None = None
    timings: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Job:
    """What sampling needs of one translation, on the device.

    Attributes:
        scan: the first image.
        prepared: conditions and base on the output's whole grid.
        box: where to sample.
        footprint: what the translation takes besides its engine.
        timings: seconds by stage, of those that are over.
        warnings: those of the reading and the preparation.
    """

    scan: Scan
    prepared: Prepared
    box: Box
    footprint: Footprint
    timings: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Drawn:
    """Residuals of a job's box.

    Attributes:
        mean: ``[1, 1, d, h, w]``, over the samples, in units of ``residual.scale``.
        deviation: their standard deviation; None for a single sample.
        planes_apart: the standard deviation over planes of what each takes for the clean volume; None if it
            was not asked for.
        timings: seconds by stage, of those that are over.
        warnings: what was changed to make it fit into memory, a sentence each.
    """

    mean: Tensor
    deviation: Tensor | None
    planes_apart: Tensor | None
    timings: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@contextmanager
def timed(stage: str, timings: dict[str, float]) -> Iterator[None]:
    """Add the seconds of the block to ``timings[stage]``."""
    start = time.perf_counter()
    yield
    timings[stage] = timings.get(stage, 0.0) + time.perf_counter() - start
