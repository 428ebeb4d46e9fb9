"""A pipeline as a part of other frameworks: MONAI, nipype, and processes that load it when they need it."""

# ruff: noqa: F401
from typing import TYPE_CHECKING

from scorefusion.optional import lazily

if TYPE_CHECKING:
    from scorefusion.embed.bundle import export_bundle
    from scorefusion.embed.lazy import LazyPipeline

__all__, __getattr__ = lazily(__name__, {"bundle": "export_bundle", "lazy": "LazyPipeline"})
