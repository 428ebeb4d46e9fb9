"""Sampling of prepared volumes by the pipeline's own function."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from scorefusion.data import Box, Prepared
from scorefusion.diffusion.solvers import Table
from scorefusion.engine.pool import EnginePool
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.pipeline import Settings, draw_residuals


def drawn(model: ScoreFusion, prepared: Prepared, box: Box, table: Table, **options: Any) -> Tensor:
    """The mean residual of a box by a solver's table; `options` as a pipeline's call takes them."""
    settings = Settings(model.config, table=table, **options)
    return draw_residuals(EnginePool(model), prepared, box, settings)[0]
