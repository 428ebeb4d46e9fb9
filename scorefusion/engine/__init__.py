"""A denoising step as one planned unit: static buffers, streamed features, CUDA graphs, TensorRT engines.

A name is imported from its module when it is first used.
"""

# ruff: noqa: F403
from __future__ import annotations

from typing import TYPE_CHECKING

from scorefusion.optional import lazily

if TYPE_CHECKING:
    from scorefusion.engine.engine import *
    from scorefusion.engine.graph import *
    from scorefusion.engine.isolation import *
    from scorefusion.engine.planning.fit import *
    from scorefusion.engine.planning.forecast import *
    from scorefusion.engine.planning.plan import *
    from scorefusion.engine.planning.tiles import *
    from scorefusion.engine.pool import *
    from scorefusion.engine.prepack import *
    from scorefusion.engine.runners import *
    from scorefusion.engine.step import *

__all__, __getattr__ = lazily(
    __name__,
    {
        "engine": "Engine PlaneDeviation",
        "graph": "CapturedStep CudaGraphs Segment",
        "isolation": "isolated",
        "planning.fit": "Fit fit parse_memory",
        "planning.forecast": "Forecast forecast",
        "planning.plan": "Plan plan slab_pixels",
        "planning.tiles": "Tiling tiling",
        "pool": "Around EnginePool Limit",
        "prepack": "packed_bytes packed_model prepacked",
        "runners": "RUNNERS",
        "step": "denoising_step",
    },
)
