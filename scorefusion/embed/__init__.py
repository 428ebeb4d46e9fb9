"""A pipeline as a part of other frameworks: MONAI, nipype, and processes that load it when they need it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scorefusion.optional import lazily

if TYPE_CHECKING:
    from scorefusion.embed.bundle import export_bundle
    from scorefusion.embed.lazy import LazyPipeline

__all__ = ["LazyPipeline", "export_bundle"]

__getattr__ = lazily(__name__, {"LazyPipeline": "lazy", "export_bundle": "bundle"})
