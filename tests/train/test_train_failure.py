"""A loss that is not finite stops the run, keeps the batch, and says what to do."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from scorefusion.cli import app
from scorefusion.errors import BadInput
from scorefusion.models.config import read_config
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.train.config import TrainConfig
from scorefusion.train.examples import CropSampler, Draws
from scorefusion.train.failure import Replay, replay
from scorefusion.train.loop import train
from scorefusion.train.sources import volumes_of
from tests.train.test_train_resume import write_run

STAGE = {"kind": "slices", "steps": 5, "crop": 8, "batch": 2, "warmup": 0}


def test_the_batch_of_a_step_that_diverged_is_kept(tmp_path: Path) -> None:
    file = write_run(tmp_path, stages=[STAGE | {"learning_rate": 1e30}])
    config, folder = read_config(TrainConfig, file), tmp_path / "run"
    kept = folder / "nan-1-000001.safetensors"
    with pytest.raises(BadInput, match="at step 1; .*float32 either") as caught:
        train(config, folder)
    assert caught.value.file == str(kept) and "learning_rate" in caught.value.fix

    model = ScoreFusion(config.description)
    store = volumes_of(config, model.config, folder / "volumes")
    crops = CropSampler(store, config.augment, (2, 2, 2))
    batch = Draws(model, crops, config.stages[0]).batch(1, range(2))
    tensors = load_file(kept)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in batch.items())
    weights = {name for name in tensors if name.startswith("weights.")}
    assert len(weights) == len(model.state_dict()) and len(tensors) == len(weights) + len(batch)
    told = json.loads(kept.with_suffix(".json").read_text())
    assert (told["seed"], told["stage"], told["step"]) == (0, 0, 1)

    found = replay(kept)
    assert found.layer and not found.batch and not found.weights
    shown = CliRunner().invoke(app, ["train", str(file), "--replay", str(kept)])
    assert shown.exit_code == 0 and found.layer in shown.output
    assert kept.with_suffix("").name in told["replay"]

    save_file({name: tensor for name, tensor in tensors.items() if name != "slice.slab"}, kept)
    with pytest.raises(BadInput, match="cannot be computed again"):
        replay(kept)


def test_a_batch_that_is_not_finite_is_told_from_a_run_that_diverged(tmp_path: Path) -> None:
    file = write_run(tmp_path, stages=[STAGE | {"kind": "patches"}], augment={"gamma": 200.0})
    with pytest.raises(BadInput, match=r"nan-1-00000\d\.safetensors: .*the batch itself") as caught:
        train(read_config(TrainConfig, file), tmp_path / "run")
    assert re.search(r"volumes|augment", caught.value.fix)


def test_what_float32_bears_is_a_matter_of_precision() -> None:
    found = Replay(loss=0.3, norm=1.0, batch=(), weights=(), layer=None, gradients=())
    assert "0.3" in found.reason and "precision" in found.fix
