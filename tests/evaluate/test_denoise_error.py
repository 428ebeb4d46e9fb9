"""The denoising error against closed forms, its table, and its verb."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from scorefusion.cli import app
from scorefusion.evaluate.denoise_error import DenoisingErrors, denoising_errors
from scorefusion.models.score_fusion import ScoreFusion
from tests.support import tiny


def fusing_model(seed: int = 0) -> ScoreFusion:
    torch.manual_seed(seed)
    return ScoreFusion(tiny.tiny_config()).eval()


def test_a_network_that_says_nothing_has_the_closed_form_error() -> None:
    """F = 0 makes the estimate c_skip·x: its error is (c_skip - 1)²·r² + c_skip²·sigma² on average."""
    model = fusing_model()
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    residual = 0.7 * torch.randn(1, 1, 24, 24, 24)
    condition = torch.zeros(1, len(model.config.conditions), 24, 24, 24)
    sigmas = (0.3, 1.0, 4.0)
    found = denoising_errors(model, residual, condition, sigmas=sigmas)
    power = residual.square().mean().item()
    for strategy in ("single", "average", "fuse", "fuse+features"):
        for sigma, error in zip(sigmas, found.errors[strategy], strict=True):
            skip = 1 / (1 + sigma**2)
            assert error == pytest.approx((skip - 1) ** 2 * power + (skip * sigma) ** 2, rel=0.05)
    assert found.ratio("fuse", "average") == 1.0


def test_before_training_fusing_is_averaging_and_averaging_helps() -> None:
    model = fusing_model()
    for parameter in model.slice_networks.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    residual = torch.randn(1, 1, 16, 16, 16)
    condition = torch.zeros(1, len(model.config.conditions), 16, 16, 16)
    found = denoising_errors(model, residual, condition, sigmas=(1.0,))
    assert found.errors["fuse"] == found.errors["fuse+features"]
    assert found.ratio("fuse", "average") == pytest.approx(1.0, abs=1e-6)
    assert found.errors["average"][0] < found.errors["single"][0], "the mean's squared error is less (Jensen)"


def test_ratio_is_of_geometric_means_and_the_table_says_so() -> None:
    found = DenoisingErrors((1.0, 2.0), {"single": (1.0, 4.0), "average": (0.5, 0.5)})
    assert found.ratio("average", "single") == pytest.approx(0.25)
    assert "| average | 0.5000 | 0.5000 |" in found.table() and "average / single: 0.250" in found.table()


def test_verb_prints_the_table(tmp_path: Path) -> None:
    values = np.random.default_rng(0).uniform(0, 100, (32, 32, 32)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "truth.nii.gz")
    fusing_model().save_pretrained(tmp_path / "model", card="test")
    arguments = ["denoise-error", str(tmp_path / "truth.nii.gz"), "--model", str(tmp_path / "model")]
    result = CliRunner().invoke(app, [*arguments, "--box", "16,16,16", "--quiet"])
    assert result.exit_code == 0, result.output
    assert "| fuse+features |" in result.output and "16 × 16 × 16" in result.output
