"""``scorefusion import-official``, and the imported folder at work in the pipeline."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from scorefusion.cli import app
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.pipeline import Pipeline
from tests.support.official_states import keys, slice_keys, state_of
from tests.support.tiny import tiny_image


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("official") / "model-3.pt"
    state = state_of(keys("small"))
    torch.save({"step": 7, "model": state, "ema": state}, file)
    return file


def run(*words: object):
    return CliRunner().invoke(app, ["import-official", *map(str, words)])


def test_an_imported_folder_translates(ensemble, tmp_path):
    result = run(ensemble, "-o", tmp_path / "mine", "--condition", "t1", "--target", "t1")
    assert result.exit_code == 0, result.output
    assert "3 2D networks, one 3D network" in result.output and "fuse+features" in result.output
    card = (tmp_path / "mine" / "README.md").read_text()
    assert card.startswith("# mine") and "`model-3.pt`" in card
    assert ScoreFusion.from_pretrained(tmp_path / "mine").config.conditions == ("t1",)
    nib.save(tiny_image((5, 4, 3)), tmp_path / "in.nii.gz")
    pipeline = Pipeline(tmp_path / "mine", device="cpu", dtype="float32")
    translation = pipeline(tmp_path / "in.nii.gz", steps=2, crop=False)
    assert translation.volume.shape == (20, 16, 12) and np.isfinite(translation.volume).all()
    assert translation.solver == "official"


def test_slice_files_of_two_planes(tmp_path):
    for name in ("a.pth", "c.pth"):
        torch.save(state_of(slice_keys()), tmp_path / name)
    files = (tmp_path / "a.pth", tmp_path / "c.pth")
    result = run(*files, "--plane", "axial", "--plane", "coronal", "-o", tmp_path / "two")
    assert result.exit_code == 0 and "2 2D networks, no 3D network" in result.output, result.output
    assert [b.plane for b in ScoreFusion.from_pretrained(tmp_path / "two").config.branches] == [
        "axial",
        "coronal",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--strategy", "fusion"], "did you mean 'fuse'"),
        (["--plane", "axail"], "did you mean 'axial'"),
        (["--plane", "axial", "--plane", "coronal"], "1 files, planes axial, coronal"),
        (["--timesteps", "500"], "1000 or 2000"),
        (["--condition", "t1", "--condition", "t2"], "has 1 conditions, 2 are named"),
        (["--condition-order", "slices"], "did you mean 'slice'"),
    ],
)
def test_wrong_options_write_nothing(ensemble, tmp_path, options, message):
    result = run(ensemble, "-o", tmp_path / "out", *options)
    assert result.exit_code == 2 and message in result.output, result.output
    assert result.output.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_output_that_cannot_be_written_is_found_first(tmp_path):
    (tmp_path / "file").write_text("")
    result = run(tmp_path / "missing.pt", "-o", tmp_path / "file" / "out")
    assert result.exit_code == 2 and "cannot be written" in result.output


def test_a_file_that_is_no_checkpoint(tmp_path):
    (tmp_path / "model-1.pt").write_bytes(b"not a checkpoint")
    result = run(tmp_path / "model-1.pt", "-o", tmp_path / "out")
    assert result.exit_code == 2 and "cannot be read as a checkpoint" in result.output
    assert not (tmp_path / "out").exists()
