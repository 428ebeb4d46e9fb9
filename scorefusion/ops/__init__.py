"""Operations with several implementations: one file an op, and `backends` for the choice among them."""

from scorefusion.ops.noise import normal

__all__ = ["normal"]
