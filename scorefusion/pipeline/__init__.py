"""From an image to its translation: :class:`Pipeline`, its four stages, and its options."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scorefusion.optional import lazily

if TYPE_CHECKING:
    from scorefusion.pipeline.job import Job
    from scorefusion.pipeline.options import Option, Options
    from scorefusion.pipeline.pipeline import Pipeline
    from scorefusion.pipeline.settings import Settings
    from scorefusion.pipeline.translation import Consistency, Translation

__all__ = ["Consistency", "Job", "Option", "Options", "Pipeline", "Settings", "Translation"]

__getattr__ = lazily(
    __name__,
    {
        "Consistency": "translation",
        "Job": "job",
        "Option": "options",
        "Options": "options",
        "Pipeline": "pipeline",
        "Settings": "settings",
        "Translation": "translation",
    },
)
