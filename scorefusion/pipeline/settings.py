"""How a translation is to be made: every choice, checked before any file is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scorefusion.diffusion.solvers import Table
from scorefusion.errors import ScoreFusionError, unknown_name
from scorefusion.io.header import MAX_VOXELS
from scorefusion.io.nifti import NAN_CHOICES, OUTPUT_DTYPES
from scorefusion.models.config import PLANES, ModelConfig, Plane
from scorefusion.models.strategies import STRATEGIES, require_strategy, strategy_named
from scorefusion.models.table import table_for

CLIPS = ("none", "input")


@dataclass(frozen=True, eq=False)
class Settings:
    """The choices of :meth:`scorefusion.Pipeline.__call__`, with the model's own filled in.

    Attributes:
        strategy: how scores are fused.
        table: the solver.
        planes: for ``single`` and ``alternate``; all when None.
        samples: how many are drawn and averaged.
        seed: of the noise.
        batch: samples drawn at once.
        disagreement: keep how far the planes are from each other.
        crop: compute only in a box around the foreground.
        nan: ``error``, or ``zero`` to count NaN and infinite voxels as 0.
        assume_affine: accept an image without orientation.
        output_dtype: ``float32``, or ``input`` for the input's own type.
        max_voxels: refuse larger inputs and outputs.
        clip: ``none``, or ``input`` for a result within the input's range.
        strict: refuse an input that is not what the model was made for, instead of a warning.
    """

    strategy: str
    table: Table
    planes: tuple[Plane, ...] | None = None
    samples: int = 1
    seed: int = 0
    batch: int = 1
    disagreement: bool = False
    crop: bool = True
    nan: str = "error"
    assume_affine: bool = False
    output_dtype: str = "float32"
    max_voxels: int = MAX_VOXELS
    clip: str = "none"
    strict: bool = False

    def __post_init__(self) -> None:
        """Refuse what would only be found after reading or sampling."""
        if self.samples < 1 or self.batch < 1:
            raise ScoreFusionError(
                f"samples and batch must be at least 1, got {self.samples} and {self.batch}"
            )
        if not -(2**63) <= self.seed < 2**64:
            raise ScoreFusionError(f"a seed must be within [-2^63, 2^64), got {self.seed}")
        for plane in self.planes or ():
            if plane not in PLANES:
                raise unknown_name("plane", plane, PLANES)
        strategy = strategy_named(self.strategy)
        if self.planes and not strategy.takes_planes:
            able = " and ".join(name for name, each in STRATEGIES.items() if each.takes_planes)
            raise ScoreFusionError(f"planes are for strategies {able}; '{strategy}' uses them all")
        if self.disagreement and not strategy.every_plane:
            able = ", ".join(name for name, each in STRATEGIES.items() if each.every_plane)
            raise ScoreFusionError(
                f"the planes' disagreement needs a strategy that runs them all at each step: {able}; "
                f"'{strategy}' does not"
            )
        if self.nan not in NAN_CHOICES:
            raise unknown_name("treatment of NaN", self.nan, NAN_CHOICES)
        if self.clip not in CLIPS:
            raise unknown_name("clip", self.clip, CLIPS)
        if self.output_dtype not in OUTPUT_DTYPES:
            raise unknown_name("output dtype", self.output_dtype, OUTPUT_DTYPES)

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        *,
        strategy: str | None = None,
        planes: Sequence[Plane] | None = None,
        solver: str | None = None,
        steps: int | None = None,
        eta: float | None = None,
        start_abar: float | None = None,
        **others: Any,
    ) -> Settings:
        """Fill in a model's own choices where None.

        Args:
            config: the model.
            strategy: one of ``config.strategies``.
            planes: for ``single`` and ``alternate``.
            solver: with ``steps``, ``eta`` and ``start_abar`` as :func:`~scorefusion.models.table.table_for`.
            steps: number of noise levels.
            eta: how much fresh noise some solvers add.
            start_abar: start late, at this cumulative alpha.
            others: the other attributes.

        Raises:
            ScoreFusionError: for an unknown name or an impossible combination.
        """
        chosen = require_strategy(strategy, config).name
        if others.get("disagreement") and len({branch.plane for branch in config.branches}) < 2:
            raise ScoreFusionError(f"model '{config.name}' has one plane; there is no disagreement of planes")
        table = table_for(config, solver=solver, steps=steps, eta=eta, start_abar=start_abar)
        return cls(chosen, table, tuple(planes) if planes else None, **others)

    @property
    def identity(self) -> dict[str, Any]:
        """What of it decides the result's bits, as JSON takes it: the choices, and the solver's numbers."""
        return {
            "strategy": self.strategy,
            "planes": list(self.planes) if self.planes else None,
            "solver": self.table.name,
            "table": self.table.rows.tolist(),
            "samples": self.samples,
            "seed": self.seed,
            "crop": self.crop,
            "nan": self.nan,
            "assume_affine": self.assume_affine,
            "output_dtype": self.output_dtype,
            "clip": self.clip,
        }
