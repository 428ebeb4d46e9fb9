"""Import checkpoints of the authors' code."""

from scorefusion.models.official.convert import load_official, official_card

__all__ = ["load_official", "official_card"]
