"""What a run will take: arithmetic counted as PyTorch counts it, hours from timed steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from scorefusion.cli import app
from scorefusion.models.config import read_config
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.train.config import TrainConfig
from scorefusion.train.estimate import Convolution, Recorder, dry_run, measure
from tests.train.test_train_resume import write_run

CPU = torch.device("cpu")


def test_convolutions_are_counted_as_pytorch_does() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, stride=2, padding=1, bias=False), nn.Conv2d(8, 5, 1)
    )
    volumes = nn.Conv3d(2, 4, (3, 1, 3), padding=(1, 0, 1))
    with Recorder() as recorder, FlopCounterMode(display=False) as counter:
        network(torch.rand(2, 3, 9, 12)).sum().backward()
        volumes(torch.rand(1, 2, 5, 6, 7)).sum().backward()
    found = recorder.found
    assert sum(count * each.flop for each, count in found.items()) == counter.get_total_flops()
    assert len(found) == 8 and sum(bool(each.wanted) for each in found) == 4
    rate = measure(found, CPU)
    assert rate.flop == counter.get_total_flops() and 0 < rate.each_second <= rate.best


def test_what_is_timed_is_the_convolution_that_ran() -> None:
    forward = Convolution((2, 3, 8, 9), (4, 3, 3, 3), (2, 1), (1, 0), torch.float32, True)
    result = forward.runner(CPU)()
    assert tuple(result.shape) == forward.output == (2, 4, 4, 7)  # type: ignore[attr-defined]
    back = forward._replace(wanted=(True, True, True))
    shapes = [tuple(each.shape) for each in back.runner(CPU)()]  # type: ignore[attr-defined]
    assert shapes == [forward.input, forward.weight, (4,)] and back.flop == 2 * forward.flop


def test_a_dry_run_foresees_a_run(tmp_path: Path) -> None:
    file = write_run(tmp_path)
    config = read_config(TrainConfig, file)
    cost = dry_run(config, seconds=0.0)
    model = ScoreFusion(config.description)
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    assert [each.parameters for each in cost.stages] == [
        sum(p.numel() for p in model.slice_networks.parameters()),
        *[sum(p.numel() for p in model.fusion.parameters())] * 2,  # type: ignore[union-attr]
        sum(p.numel() for part in (model.fusion, model.features) for p in part.parameters()),  # type: ignore[union-attr]
    ]
    assert [each.examples for each in cost.stages] == [2 * 2 * 3, 2, 2, 2]
    slices, patches, cached, features = cost.stages
    assert cached.flop < patches.flop < features.flop, "what is kept is not computed again"
    assert cached.first > 0 == patches.first
    for each in cost.stages:
        assert 0 < each.drawing < each.seconds and each.convolutions.flop <= each.flop
        assert each.hours == pytest.approx((each.first + each.seconds * each.stage.steps) / 3600)
        assert 50e6 < each.peak_bytes < 20e9
    assert cost.arrays == 3 and cost.store_bytes == 16 * 24 * 24 * 2
    assert not (tmp_path / "volumes").exists()


def test_the_command_prints_a_table(tmp_path: Path) -> None:
    stages = [{"kind": "slices", "steps": 10, "crop": 8}, {"kind": "volume", "steps": 5, "crop": None}]
    command = ["train", str(write_run(tmp_path, stages=stages)), "--dry-run", "--dry-run-seconds", "0"]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output
    assert "M parameters; cpu, float32" in shown.output and "in all 0.0 h" in shown.output
    assert " slices " in shown.output and " volumes " in shown.output
    refused = CliRunner().invoke(app, command[:2])
    assert refused.exit_code == 2 and "-o FOLDER" in refused.output
