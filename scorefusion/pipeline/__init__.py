"""From an image to its translation: :class:`Pipeline`, its four stages, and its options."""

# ruff: noqa: F403
from typing import TYPE_CHECKING

from scorefusion.optional import lazily

if TYPE_CHECKING:
    from scorefusion.pipeline.footprint import *
    from scorefusion.pipeline.options import *
    from scorefusion.pipeline.pipeline import *
    from scorefusion.pipeline.settings import *
    from scorefusion.pipeline.translation import *

__all__, __getattr__ = lazily(
    __name__,
    {
        "footprint": "compared_with_this_machine missing_voxels",
        "options": "CallOptions Machine OWN Option Options declared described documented filled type_of",
        "pipeline": "Job Pipeline Progress draw_residuals whole_patches",
        "settings": "Settings",
        "translation": "Consistency Translation side_path",
    },
)
