"""What a run writes of itself: rows, TensorBoard's events, curves, a card."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from scorefusion.cli import app
from scorefusion.models.config import read_config
from scorefusion.train.checkpoint import State
from scorefusion.train.config import TrainConfig
from scorefusion.train.loop import train
from scorefusion.train.report import Journal, draw_curves, read_rows, training_card
from tests.train.test_train_resume import write_run


def config_of(folder: Path, **changes: object) -> TrainConfig:
    return read_config(TrainConfig, write_run(folder, **changes))


def row(step: int, **figures: float) -> dict[str, object]:
    return {"number": 1, "stage": "patches", "step": step, "loss": 0.5, **figures}


def test_a_stopped_run_goes_on_after_its_checkpoints_row(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    journal = Journal(tmp_path, State(), config)
    journal.write(row(1))
    logged = journal.settled()
    journal.write(row(2))
    (tmp_path / "log.jsonl").write_text((tmp_path / "log.jsonl").read_text() + '{"number": 1, "st')
    assert [each["step"] for each in read_rows(tmp_path)] == [1, 2]
    journal = Journal(tmp_path, State(logged=logged), config)
    journal.write(row(2, psnr=20.0))
    assert [each.get("psnr") for each in read_rows(tmp_path)] == [None, 20.0]
    (tmp_path / "log.jsonl").unlink()
    Journal(tmp_path, State(logged=logged), config).write(row(3))
    assert [each["step"] for each in read_rows(tmp_path)] == [3]


def test_tensorboard_has_the_rows_of_the_log(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    stages = [{"kind": kind, "steps": 2, "crop": 8} for kind in ("slices", "patches")]
    given = {"volumes": [{"file": str(tmp_path / "head.nii")}], "boxes": 1, "size": 8}
    config = config_of(tmp_path, stages=stages, log_every=1, look_every=2, validation=given)
    train(config, tmp_path / "run")
    events = accumulator.EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    rows = read_rows(tmp_path / "run")
    told = [(e.step, e.value) for tag in ("1 slices/loss", "2 patches/loss") for e in events.Scalars(tag)]
    assert [step for step, _ in told] == [1, 2, 3, 4]
    assert [value for _, value in told] == pytest.approx([each["loss"] for each in rows])
    (look,) = events.Scalars("2 patches/psnr_one_step")
    assert look.step == 4 and look.value == pytest.approx(rows[-1]["psnr_one_step"])
    assert (tmp_path / "run/curves.png").stat().st_size > 5000


def test_training_needs_no_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.delattr("torch.utils.tensorboard", raising=False)
    config = config_of(tmp_path, stages=[{"kind": "slices", "steps": 1, "crop": 8}])
    train(config, tmp_path / "run")
    assert len(read_rows(tmp_path / "run")) == 1 and not (tmp_path / "run/tensorboard").exists()
    plain = config.model_copy(update={"tensorboard": False})
    assert Journal(tmp_path, State(), plain).writer is None


def test_what_cannot_be_written_does_not_end_a_training(tmp_path: Path) -> None:
    """Log, TensorBoard, curves, a look and refused.txt: each is warned of once, the bits are the same."""
    given = {"volumes": [{"file": str(tmp_path / "head.nii")}], "boxes": 1, "size": 8}
    stages = [{"kind": "slices", "steps": 4, "crop": 8}]
    config = config_of(tmp_path, stages=stages, log_every=1, look_every=2, validation=given)
    expected = train(config, tmp_path / "whole").state_dict()
    blocked = ("log.jsonl", "curves.png", "look-1-000002.png", "refused.txt")
    for name in blocked:
        (tmp_path / "run" / name).mkdir(parents=True)
    (tmp_path / "run/tensorboard").write_text("a file")
    warned: list[str] = []
    model = train(config, tmp_path / "run", warn=warned.append)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    parts = sorted(text.split(" could not be written (")[0] for text in warned)
    assert parts == ["TensorBoard's file", "log.jsonl", "loss curves", "refused.txt", "the look's picture"]
    assert (tmp_path / "run/look-1-000004.png").exists() and (tmp_path / "run/checkpoint.pt").exists()


@pytest.mark.parametrize("call", ["add_scalar", "flush", "close"])
def test_a_training_goes_on_when_tensorboard_fails_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    writer = pytest.importorskip("torch.utils.tensorboard").SummaryWriter
    pytest.importorskip("tensorboard")
    calls: list[Any] = []

    def full(*given: Any, **_: Any) -> None:
        calls.append(given)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writer, call, full)
    warned: list[str] = []
    config = config_of(tmp_path, stages=[{"kind": "slices", "steps": 3, "crop": 8}], log_every=1)
    train(config, tmp_path / "run", warn=warned.append)
    assert [each["step"] for each in read_rows(tmp_path / "run")] == [1, 2, 3] and len(calls) == 1
    reason = os.strerror(errno.ENOSPC)
    assert warned == [f"TensorBoard's file could not be written ({reason}); the training goes on"]


def test_a_look_that_fails_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError("no memory for a look")

    monkeypatch.setattr("scorefusion.train.report.restore", exhausted)
    warned: list[str] = []
    config = config_of(
        tmp_path, stages=[{"kind": "slices", "steps": 3, "crop": 8}], log_every=1, look_every=1
    )
    train(config, tmp_path / "run", warn=warned.append)
    assert [each["step"] for each in read_rows(tmp_path / "run")] == [1, 2, 3]
    assert warned == ["the look could not be written (no memory for a look); the training goes on"]


def test_rows_wait_until_the_log_can_be_written(tmp_path: Path) -> None:
    """A row that the disk took in part is cut off, and written whole with the next."""
    resource = pytest.importorskip("resource")
    warned: list[str] = []
    journal = Journal(tmp_path, State(), config_of(tmp_path, tensorboard=False), warned.append)
    journal.write(row(1))
    size = journal.settled()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, before[1]))
        journal.write(row(2))
        journal.write(row(3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "log.jsonl").stat().st_size == size + 10 and journal.settled() == size
    assert [each["step"] for each in read_rows(tmp_path)] == [1]
    journal.write(row(4))
    assert [each["step"] for each in read_rows(tmp_path)] == [1, 2, 3, 4]
    assert journal.settled() == (tmp_path / "log.jsonl").stat().st_size
    assert warned == ["log.jsonl could not be written (File too large); the training goes on"]


def test_folders_that_rich_takes_for_markup(tmp_path: Path) -> None:
    folder = tmp_path / "["
    folder.mkdir()
    config = write_run(folder, stages=[{"kind": "slices", "steps": 1, "crop": 8}])
    given = ["train", str(config), "-o", str(folder / "run]"), "--export", str(folder / "model]")]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, (done.output, done.exception)
    assert f"model written to {folder / 'model]'}" in done.stderr and (folder / "model]").is_dir()


def test_the_card_names_what_was_seen(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    rows = [
        {"number": 0, "stage": "slices", "step": step, "loss": 1.0 / step, "seconds": 60.0} for step in (1, 2)
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    card = training_card(config, tmp_path, config.description)
    assert "head.nii" in card and "in 1 minutes" in card and "| slices | 10 | 2 | 8 | 0.5000 |" in card
    draw_curves(tmp_path)
    assert (tmp_path / "curves.png").exists()
