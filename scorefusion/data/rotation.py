"""Rotations of volumes."""

from __future__ import annotations

import numpy as np


def rotation(angles: np.ndarray) -> np.ndarray:
    """Rotation matrix ``[3, 3]`` over (z, y, x) of three angles in radians, about z, then y, then x."""
    turns = np.eye(3)
    for (i, j), angle in zip(((1, 2), (0, 2), (0, 1)), angles, strict=True):
        turn = np.eye(3)
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        turns = turns @ turn
    return turns
