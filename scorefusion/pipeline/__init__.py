"""From an image to its translation: :class:`Pipeline`, its four stages, and its options."""

# ruff: noqa: F403
from __future__ import annotations

from typing import TYPE_CHECKING

from scorefusion.optional import lazily

if TYPE_CHECKING:
    from scorefusion.pipeline.footprint import *
    from scorefusion.pipeline.job import *
    from scorefusion.pipeline.options import *
    from scorefusion.pipeline.pipeline import *
    from scorefusion.pipeline.sample import *
    from scorefusion.pipeline.settings import *
    from scorefusion.pipeline.translation import *

__all__, __getattr__ = lazily(
    __name__,
    {
        "footprint": "compared_with_this_machine",
        "job": "Job",
        "options": "CallOptions Machine OWN Option Options declared described documented filled type_of",
        "pipeline": "Pipeline",
        "sample": "Progress draw_residuals missing_voxels whole_patches",
        "settings": "Settings",
        "translation": "Consistency Translation side_path",
    },
)
