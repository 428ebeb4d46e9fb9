"""A tiny model of thick slices, and scans that are thick along any axis."""

from __future__ import annotations

import nibabel as nib
import numpy as np

from scorefusion.models.config import ModelConfig
from scorefusion.models.presets import preset


def tiny_iso(**changes: object) -> ModelConfig:
    """The bundled model of thick slices with a few thousand parameters."""
    values = preset("brain-iso").model_dump() | changes
    for network in (*values["slice_networks"].values(), values["fusion"]):
        network |= {"widths": (8, 16), "time": network["time"] | {"channels": 8, "hidden": 16}}
    return ModelConfig.model_validate(values)


def thick_scan(
    shape: tuple[int, int, int] = (14, 16, 5),
    edges: tuple[float, float, float] = (0.9, 0.9, 4.5),
    turn: float = 0.0,
) -> nib.Nifti1Image:
    """A bright ball of ``shape`` (i, j, k) voxels of ``edges`` mm, turned about the first axis."""
    c, s = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ np.diag(edges)
    affine[:3, 3] = (-3.0, 5.0, 7.0)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    ball = np.sqrt((grid**2).sum(axis=0)) < 1.1
    texture = np.random.default_rng(0).uniform(200, 1000, shape)
    return nib.Nifti1Image((ball * texture).astype(np.float32), affine)
