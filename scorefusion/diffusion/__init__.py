"""Noise schedules, solvers as tables, the four predictions, and the plain sampling loop.

A name is imported from its module when it is first used.
"""

# ruff: noqa: F403
from __future__ import annotations

from typing import TYPE_CHECKING

from scorefusion.optional import lazily

if TYPE_CHECKING:
    from scorefusion.diffusion.level import *
    from scorefusion.diffusion.schedule import *
    from scorefusion.diffusion.solvers import *

__all__, __getattr__ = lazily(
    __name__,
    {
        "level": "PREDICTIONS NoiseLevel add_noise input_scale prediction_coefficients training_target",
        "schedule": "Karras Levels Schedule make_schedule paper_sampling paper_training",
        "solvers": "SOLVERS Table make_table",
    },
)
