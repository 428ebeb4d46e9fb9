"""The networks: what a model is (config), the 2D and 3D U-Nets, and how their scores are fused.

A name is imported from its module when it is first used.
"""

# ruff: noqa: F403
from __future__ import annotations

from typing import TYPE_CHECKING

from scorefusion.optional import lazily

if TYPE_CHECKING:
    from scorefusion.models.config import *
    from scorefusion.models.folder import *
    from scorefusion.models.presets import *
    from scorefusion.models.score_fusion import *
    from scorefusion.models.strategies import *
    from scorefusion.models.table import *
    from scorefusion.models.unet import *

__all__, __getattr__ = lazily(
    __name__,
    {
        "config": "PLANES BranchConfig DomainConfig ModelConfig Plane ResidualConfig SamplingConfig "
        "TimeConfig UNetConfig parse read_config",
        "folder": "bundled_models channels_last check_folder find_folder load_config write_config",
        "presets": "PRESETS preset",
        "score_fusion": "Inputs ScoreFusion",
        "strategies": "STRATEGIES Strategy register require_strategy strategies_of strategy_named unregister",
        "table": "table_for",
        "unet": "UNet",
    },
)
