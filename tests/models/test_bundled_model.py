"""The bundled model as people get it: it loads, it is small, it beats splines on a real volume."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from scorefusion import Pipeline
from scorefusion.data import interpolate
from scorefusion.degradations import block_mean
from scorefusion.io.nifti import read_scan
from scorefusion.metrics import psnr
from scorefusion.models.domain import made_for
from scorefusion.models.folder import ASSETS, load_config
from scorefusion.models.presets import preset
from scorefusion.models.score_fusion import ScoreFusion

ANATOMICAL = Path(nibabel.__file__).parent / "tests/data/anatomical.nii"
"""A real T1 head of 33×41×25 voxels of 4 mm that nibabel carries; the model never saw it."""


@pytest.mark.parametrize("name", ["t1-sr4", "t1-t2", "t1sr4-t2", "video-sr"])
def test_it_is_small_and_has_a_card(name: str) -> None:
    folder = ASSETS / name
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 12_000_000
    card = (folder / "README.md").read_text()
    assert all(part in card for part in ("## What it saw", "## What it is not for", "## Measured"))
    config = load_config(name)
    assert made_for(config) in card and set(config.domain) == set(config.conditions)


@pytest.mark.parametrize("name", ["t1-t2", "t1sr4-t2", "video-sr"])
def test_its_networks_are_the_presets(name: str) -> None:
    config = ScoreFusion.from_pretrained(name).config
    assert config.model_copy(update={"domain": {}}) == preset(name)


def test_it_restores_a_real_volume(tmp_path: Path) -> None:
    truth = torch.from_numpy(read_scan(ANATOMICAL).values)[None, None, :24, :40, :32]
    pooled = block_mean(truth, 4)
    image = nibabel.Nifti1Image(pooled[0, 0].numpy().transpose(2, 1, 0), np.diag([16.0, 16, 16, 1]))
    pipeline = Pipeline("t1-sr4", dtype="float32")
    results = {
        strategy: pipeline(image, strategy=strategy, seed=1)
        for strategy in ("average", "fuse", "fuse+features")
    }
    span = float(truth.max() - truth.min())
    close = {
        name: psnr(result.volume.transpose(2, 1, 0), truth[0, 0].numpy(), span)
        for name, result in results.items()
    }
    spline = psnr(interpolate(pooled, "b-spline", 4)[0, 0].numpy(), truth[0, 0].numpy(), span)
    assert min(close.values()) > spline, (close, spline)
    for result in results.values():
        assert result.consistency_residual is not None
        assert result.consistency_residual.max < 1e-3 * span
    again = pipeline(image, seed=1)
    np.testing.assert_array_equal(again.volume, results["fuse+features"].volume)
    results["fuse"].save(tmp_path / "fine.nii.gz")
    saved = nibabel.load(tmp_path / "fine.nii.gz")
    assert saved.shape == (32, 40, 24) and saved.header.get_zooms() == (4.0, 4.0, 4.0)
