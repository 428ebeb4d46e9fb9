"""A measurement registered here alone is translated, planned, evaluated, tuned, shown and trained on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import nibabel as nib
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from typer.testing import CliRunner

from scorefusion.cli import app
from scorefusion.degradations import MEASUREMENTS, LinearOperator, Measurement, register
from scorefusion.models.config import ModelConfig
from scorefusion.pipeline import Pipeline
from scorefusion.train.examples import make_example
from tests.evaluate.test_evaluate_case import write_subjects
from tests.support.tiny import AFFINE, tiny_config, tiny_image, tiny_model


class Strides(LinearOperator):
    """Every step-th slice along y, and nothing of the others."""

    local = True

    def __init__(self, step: int) -> None:
        self.step = step

    def A(self, x: Tensor) -> Tensor:
        return x[:, :, :, :: self.step]

    def A_adjoint(self, y: Tensor) -> Tensor:
        return torch.nn.functional.pad(y[..., None, :], (0, 0, 0, self.step - 1)).flatten(3, 4)

    def A_dagger(self, y: Tensor) -> Tensor:
        return self.A_adjoint(y)


class EveryOther(Measurement):
    coarse: ClassVar[bool] = True
    kind: Literal["every-other"] = "every-other"
    step: int = 2

    @property
    def factors(self) -> tuple[int, int, int]:
        return 1, self.step, 1

    def make_operator(self, size: Sequence[int], seed: int | None, device: torch.device | str) -> Strides:
        return Strides(self.step)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    register(EveryOther)
    yield
    del MEASUREMENTS["every-other"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder, an image of the known truth, and what is measured of it."""
    sampling = {"strategy": "fuse", "steps": 2}
    config = tiny_config(
        degradation={"kind": "every-other"}, strategies=("average", "fuse"), sampling=sampling
    )
    tiny_model(config).save_pretrained(tmp_path / "tiny", card="# tiny")
    truth = tiny_image((16, 16, 16))
    nib.save(truth, tmp_path / "truth.nii.gz")
    measured = np.ascontiguousarray(np.asarray(truth.dataobj)[:, ::2])
    step = np.diag([1.0, 2.0, 1.0, 1.0])
    nib.save(nib.Nifti1Image(measured, AFFINE @ step), tmp_path / "measured.nii.gz")
    return tmp_path


def run(*command: str) -> str:
    done = CliRunner().invoke(app, [*command, "--device", "cpu", "--dtype", "float32"])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def test_it_is_read_saved_and_checked(folder: Path) -> None:
    saved = json.loads((folder / "tiny/config.json").read_text())["degradation"]
    assert saved == {"kind": "every-other", "factor": 1, "step": 2}
    assert Measurement.model_validate(saved) == EveryOther()
    with pytest.raises(ValidationError, match="'step' is for degradation .*every-other, not block-mean"):
        Measurement.model_validate({"kind": "block-mean", "step": 3})
    with pytest.raises(ValidationError, match="did you mean 'every-other'"):
        Measurement.model_validate({"kind": "everyother"})


def test_it_translates(folder: Path) -> None:
    """By `Pipeline` and by the command; the slices that were measured come out as they were."""
    given = np.asarray(nib.load(folder / "measured.nii.gz").dataobj)
    result = Pipeline(folder / "tiny", device="cpu", dtype="float32")(folder / "measured.nii.gz")
    assert result.volume.shape == (16, 16, 16) and result.factor == (1, 2, 1)
    np.testing.assert_allclose(result.volume[:, ::2], given, atol=0.05)
    assert np.abs(result.volume[:, 1::2] - np.asarray(tiny_image((16, 16, 16)).dataobj)[:, 1::2]).max() > 5
    said = run("translate", str(folder / "measured.nii.gz"), "-o", str(folder / "out.nii.gz"), "--model",
               str(folder / "tiny"))  # fmt: skip
    assert "what is measured differs" in said
    np.testing.assert_array_equal(np.asarray(nib.load(folder / "out.nii.gz").dataobj), result.volume)


def test_it_may_be_another_value_for_each_scan(folder: Path) -> None:
    """A measurement is a value: one that a scan or a random draw decides is put into the configuration."""
    config = ModelConfig.model_validate_json((folder / "tiny/config.json").read_text())
    model = tiny_model(config)
    given = np.asarray(nib.load(folder / "measured.nii.gz").dataobj)
    for step in (2, 4):
        own = config.model_copy(update={"degradation": EveryOther(step=step)})
        model.config = own
        result = Pipeline(model, device="cpu")(folder / "measured.nii.gz")
        assert result.volume.shape == (16, 8 * step, 16)
        np.testing.assert_allclose(result.volume[:, ::step], given, atol=0.1)
        residual, condition = vars(make_example(torch.rand(1, 1, 8, 8, 8), own)).values()
        assert residual.shape == condition.shape == (1, 1, 8, 8, 8)


def test_it_is_planned(folder: Path) -> None:
    said = run("plan", "--model", str(folder / "tiny"), "--shape", "16", "16", "16")
    assert "tiny: 16 x 16 x 16 voxels" in said and "fits" in said


def test_it_is_evaluated(folder: Path) -> None:
    write_subjects(folder / "data")
    run("evaluate", str(folder / "tiny"), str(folder / "data"), "-o", str(folder / "out"), "--subjects", "2",
        "--box", "8,10,12")  # fmt: skip
    rows = {row["name"] for row in json.loads((folder / "out/summary.json").read_text())["rows"]}
    assert {"average", "fuse", "pseudo-inverse", "b-spline", "trilinear+consistency"} <= rows
    assert "every-other" in (folder / "out/report.html").read_text()


def test_it_is_tuned_and_demonstrated(folder: Path) -> None:
    truth, common = str(folder / "truth.nii.gz"), ("--box", "8,8,8")
    run("tune", str(folder / "tiny"), truth, "-o", str(folder / "tuned"), "--strategy", "average",
        "--solvers", "ddim", "--evaluations", "1,2", "--reference", "3", *common)  # fmt: skip
    assert (folder / "tuned/tune.json").is_file()
    said = run("demo", "--model", str(folder / "tiny"), "--data", truth, "-o", str(folder / "demo"), *common)
    assert "pooled 1×2×1" in said or "1×2×1" in (folder / "demo/table.txt").read_text()
    assert nib.load(folder / "demo/input.nii.gz").shape == (8, 4, 8)
