"""One translation on its way through the pipeline."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from scorefusion.data import Box, Prepared
from scorefusion.errors import memory_named
from scorefusion.io import Scan
from scorefusion.pipeline.footprint import Footprint
from scorefusion.pipeline.settings import Settings


@dataclass(eq=False, repr=False)
class Job:
    """One translation, filled by ``read``, ``prepare`` and ``sample``; ``finish`` takes the result."""

    settings: Settings  #: how it is to be made
    #: the images as they were read, on the host, one per condition; after ``prepare`` the first only
    scans: tuple[Scan, ...] = ()
    mask: Scan | None = None  #: where voxels are missing, for a model that fills in; None after ``prepare``
    timings: dict[str, float] = field(default_factory=dict)  #: seconds by stage
    #: what of the input or of the run may have harmed the result, a sentence each
    warnings: tuple[str, ...] = ()
    prepared: Prepared = field(init=False)  #: conditions and base on the output's whole grid, on the device
    box: Box = field(init=False)  #: where to sample
    footprint: Footprint = field(init=False)  #: the memory that the translation takes besides its engine
    #: the residual of the box, ``[1, 1, d, h, w]``, averaged over the samples, in units of ``residual.scale``
    mean: Tensor = field(init=False)
    deviation: Tensor | None = None  #: its standard deviation over the samples; None for a single one
    #: the standard deviation over planes of the predicted clean volume; None if not asked for
    planes_apart: Tensor | None = None

    @property
    def scan(self) -> Scan:
        """The first image."""
        return self.scans[0]

    @contextmanager
    def stage(self, name: str, doing: str, subject: str = "") -> Iterator[None]:
        """Time a stage, and name the image where memory runs out in it."""
        start = time.perf_counter()
        with memory_named(subject or self.scan.name, doing):
            yield
        self.timings[name] = time.perf_counter() - start
