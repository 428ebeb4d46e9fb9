"""A dataset as a frozen, validated description."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import field_validator, model_validator

from scorefusion.models.config import Frozen
from scorefusion.models.contrast import canonical

LayoutName = Literal["auto", "folder", "csv", "brats", "hcp", "ixi", "fastmri", "bids"]


class DatasetConfig(Frozen):
    """Which volumes, of whom, and what to do with those that cannot be used.

    Attributes:
        root: a folder, a CSV or TSV file, or one NIfTI file.
        layout: how files are named (docs/data.md); ``auto`` finds out.
        contrasts: what every subject must have, in this order; the first one's grid counts. Empty: whatever
            each has. Usual spellings are alike: ``T1w`` is ``t1``.
        choose: where a subject has several files of a contrast, parts of the path of the one that is meant.
        split: which subjects; ``all`` of them, or one of the splits.
        fractions: of train, validation and test, of the persons; a person's share is decided by the seed and
            the person's name alone, so the sizes are approximate.
        seed: of the splits.
        on_misaligned: a subject's volumes on different grids are refused, or resampled onto the first's.
        tolerance: how far apart two grids' corners may be, in millimetres, to count as one.
        interpolation: of resampled images; label maps take the nearest voxel.
        nan: refuse a volume with NaN or infinite voxels, or count them as 0.
        assume_affine: for headers without orientation, take the voxel size and RAS axes.
        skip_broken: leave subjects out that cannot be used, with the reason; else the first is an error.
    """

    root: str
    layout: LayoutName = "auto"
    contrasts: tuple[str, ...] = ()
    choose: tuple[str, ...] = ()
    split: Literal["all", "train", "validation", "test"] = "all"
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    seed: int = 0
    on_misaligned: Literal["refuse", "resample"] = "refuse"
    tolerance: float = 0.01
    interpolation: Literal["linear", "cubic"] = "linear"
    nan: Literal["error", "zero"] = "error"
    assume_affine: bool = False
    skip_broken: bool = True

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
