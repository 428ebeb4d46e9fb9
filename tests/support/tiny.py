"""Tiny models with random weights and small images, for tests of everything around the networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from scorefusion.degradations import BlockMean, Nothing
from scorefusion.models.config import (
    PLANES,
    BranchConfig,
    ModelConfig,
    ResidualConfig,
    SamplingConfig,
    TimeConfig,
    UNetConfig,
)
from scorefusion.models.score_fusion import ScoreFusion

AFFINE = np.array([[1.5, 0.1, 0, -8], [-0.1, 1.5, 0.2, -9], [0, -0.2, 2.0, -7], [0, 0, 0, 1.0]])


def tiny_config(**changes: Any) -> ModelConfig:
    """A 2x super-resolution model of one level and 8 channels, every part present."""
    network = UNetConfig(widths=(8,), blocks=1, norm="channel", time=TimeConfig(channels=8, hidden=8))
    values: dict[str, Any] = {
        "name": "tiny",
        "conditions": ("t1",),
        "target": "t1",
        "context": 1,
        "branches": tuple(BranchConfig(plane=plane) for plane in PLANES),
        "slice_networks": {"slice": network},
        "fusion": network,
        "feature_scales": (1,),
        "residual": ResidualConfig(base="trilinear+consistency", scale=0.1),
        "degradation": BlockMean(factor=2),
        "intensity": "minmax",
        "sampling": SamplingConfig(steps=2),
        **changes,
    }
    return ModelConfig.model_validate(values)


def same_grid_config(**changes: Any) -> ModelConfig:
    """A model that translates two conditions into a third image on their grid."""
    values: dict[str, Any] = {
        "conditions": ("t1", "t2"),
        "target": "flair",
        "branches": tuple(BranchConfig(plane=plane, conditions=(0, 1)) for plane in PLANES),
        "residual": ResidualConfig(base="identity", scale=2.0),
        "degradation": Nothing(),
    }
    return tiny_config(**{**values, **changes})


def tiny_model(config: ModelConfig | None = None, seed: int = 0) -> ScoreFusion:
    """A model in evaluation mode, all of whose weights are small random numbers."""
    model = ScoreFusion(config or tiny_config()).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return model


def tiny_image(shape: tuple[int, int, int] = (7, 6, 5), affine: np.ndarray = AFFINE) -> Any:
    """A bright ball with some texture on black, int16."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    ball = np.sqrt((grid**2).sum(axis=0)) < 0.9
    texture = np.random.default_rng(0).uniform(200, 1000, shape)
    return nib.Nifti1Image((ball * texture).astype(np.int16), affine)


def write_tiny(folder: Path) -> tuple[Path, Path]:
    """Write a tiny model folder and a tiny image; returns both paths."""
    tiny_model().save_pretrained(folder / "tiny", card="# tiny\n\nRandom weights, for tests.")
    nib.save(tiny_image(), folder / "in.nii.gz")
    return folder / "tiny", folder / "in.nii.gz"
