"""Score-Fusion: translate 3D medical images by fusing the scores of 2D diffusion models.

The public names below are imported when first used, so ``import scorefusion`` itself is quick.
"""

from typing import TYPE_CHECKING

from scorefusion._version import __version__
from scorefusion.optional import lazily

if TYPE_CHECKING:
    from scorefusion.diffusion.sample import sample
    from scorefusion.diffusion.solvers import make_table
    from scorefusion.errors import BadInput, Cancelled, OutOfMemory, ScoreFusionError
    from scorefusion.io.dicom import find_series, read_dicom_series, save_dicom_series
    from scorefusion.models.config import ModelConfig
    from scorefusion.models.official import load_official
    from scorefusion.models.score_fusion import ScoreFusion
    from scorefusion.pipeline import Pipeline, Translation

__all__ = [
    "BadInput",
    "Cancelled",
    "ModelConfig",
    "OutOfMemory",
    "Pipeline",
    "ScoreFusion",
    "ScoreFusionError",
    "Translation",
    "__version__",
    "find_series",
    "load_official",
    "make_table",
    "read_dicom_series",
    "sample",
    "save_dicom_series",
]

_, __getattr__ = lazily(
    __name__,
    {
        "diffusion.sample": "sample",
        "diffusion.solvers": "make_table",
        "errors": "BadInput Cancelled OutOfMemory ScoreFusionError",
        "io.dicom": "find_series read_dicom_series save_dicom_series",
        "models.config": "ModelConfig",
        "models.official": "load_official",
        "models.score_fusion": "ScoreFusion",
        "pipeline": "Pipeline Translation",
    },
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
