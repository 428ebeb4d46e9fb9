"""Score-Fusion: translate 3D medical images by fusing the scores of 2D diffusion models.

The public names below are imported when first used, so ``import scorefusion`` itself is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from scorefusion._version import __version__

if TYPE_CHECKING:
    from scorefusion.diffusion.sample import sample
    from scorefusion.diffusion.solvers import make_table
    from scorefusion.errors import BadInput, Cancelled, OutOfMemory, ScoreFusionError
    from scorefusion.io.dicom import find_series, read_dicom_series, save_dicom_series
    from scorefusion.models.config import ModelConfig
    from scorefusion.models.official.convert import load_official
    from scorefusion.models.score_fusion import ScoreFusion
    from scorefusion.pipeline import Pipeline, Translation


_HOME = {
    "BadInput": "errors",
    "Cancelled": "errors",
    "ModelConfig": "models.config",
    "OutOfMemory": "errors",
    "Pipeline": "pipeline.pipeline",
    "ScoreFusion": "models.score_fusion",
    "ScoreFusionError": "errors",
    "Translation": "pipeline.pipeline",
    "find_series": "io.dicom",
    "load_official": "models.official.convert",
    "make_table": "diffusion.solvers",
    "read_dicom_series": "io.dicom",
    "sample": "diffusion.sample",
    "save_dicom_series": "io.dicom",
}

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


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'scorefusion' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"scorefusion.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
