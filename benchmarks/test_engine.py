"""The engine's script on a small model: it runs, and the plain implementation computes what the model does.

Real sizes take minutes: `python -m benchmarks.engine step`, `volume`, `memory` and `growth`.
"""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from benchmarks import engine
from benchmarks.plain import Plain
from scorefusion.diffusion.level import NoiseLevel


@pytest.mark.slow
def test_plain_is_the_model() -> None:
    for name in ("small", "paper"):
        size = (8, 16, 24)
        model = engine.seeded(name)
        x = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(2))
        inputs, level = model.prepare(engine.condition_of(model, size)), NoiseLevel.of(0.5, 300, 1, "cpu")
        with torch.no_grad():
            expected = model(x, inputs, level, strategy="fuse+features")
            torch.testing.assert_close(Plain(model)(x, inputs, level), expected, rtol=1e-3, atol=1e-4)


def test_step() -> None:
    rows = engine.step([(8, 8, 16)], turns=1, compiled=False, name="small")
    errors = {row["what"]: row["relative error"] for row in rows}
    assert errors["engine float32"] < 1e-4 and all(error < 0.1 for error in errors.values())
    assert all(row["seconds"] > 0 for row in rows)


def test_memory() -> None:
    row = engine.memory((8, 16, 16), "2GiB", "small")
    assert row["finite"] and 0 < row["before, GiB"] <= row["peak, GiB"]


def test_volume(tmp_path: Path) -> None:
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, 32),) * 3, indexing="ij")
    ball = 100.0 * (x**2 + y**2 + z**2 < 0.7) + 20 * np.sin(9 * x * y)
    file = tmp_path / "ball.nii.gz"
    nibabel.save(nibabel.Nifti1Image(ball.astype(np.float32), np.eye(4)), file)
    rows = engine.volume(file, (16, 16, 16), steps=2, turns=1)
    assert [row["evaluations"] for row in rows] == [6, 6, 5, 2]
    assert rows[0]["PSNR"] == rows[1]["PSNR"] and abs(rows[0]["PSNR"] - rows[-1]["PSNR"]) < 10
