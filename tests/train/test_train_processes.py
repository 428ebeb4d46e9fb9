"""Several processes that share a step give the gradient that one gives, and one of them writes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from scorefusion.errors import ScoreFusionError
from scorefusion.models.config import parse
from scorefusion.train.config import StageConfig
from scorefusion.train.step import my_share
from tests.support.shared_steps import gradients
from tests.support.tiny import tiny_model
from tests.support.waiting import PATIENCE
from tests.train.test_train_resume import rows, write_run

ROOT = Path(__file__).parents[2]


def test_two_processes_give_the_gradient_of_one(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "given", card="# given")
    stage = {"steps": 2, "batch": 2, "crop": 8, "learning_rate": 0.0, "clip": 1e9}
    kinds = [
        {"kind": "slices"},
        {"kind": "patches"},
        {"kind": "patches", "cached": 3},
        {"kind": "features", "checkpointing": True},
        {"kind": "volume"},
    ]
    parts = ("slice_networks.slice", "fusion", "features")
    wild = {"kind": "slices", "steps": 5, "batch": 2, "crop": 8, "learning_rate": 1e30, "warmup": 0}
    diverging = write_run(tmp_path, stages=[wild]).rename(tmp_path / "wild.json")
    config = write_run(
        tmp_path,
        stages=[stage | kind for kind in kinds],
        start_from={part: str(tmp_path / "given") for part in parts},
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += [
        "--master-addr",
        "127.0.0.1",
        "--master-port",
        str(port),
        str(ROOT / "tests/support/shared_steps.py"),
    ]
    done = subprocess.run(
        [*command, str(diverging), str(config), str(tmp_path / "two"), str(tmp_path / "gradients")],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    alone = gradients(config, tmp_path / "one")
    said, each = zip(
        *(torch.load(tmp_path / f"gradients.{rank}", weights_only=True) for rank in (0, 1)), strict=True
    )
    kept = load_file(tmp_path / "two-diverging/nan-1-000001.safetensors")
    assert kept["slice.slab"].shape[0] == 2 * 2 * 3, "the batch of both"
    assert "nan-1-000001" in said[0] and "nan-1-000001" not in said[1] and "at step 1" in said[1]
    assert len(alone) == len(each[0]) == len(kinds)
    for kind, one, first, second in zip(kinds, alone, *each, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)), "both have the same"
        apart = torch.stack([(a - b).double().norm() for a, b in zip(one, first, strict=True)]).norm()
        size = torch.stack([a.double().norm() for a in one]).norm()
        assert size > 1e-3 and apart < 1e-6 * size, (kind, float(apart / size))
        for a, b in zip(one, first, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-6 * float(size))
    assert len(rows(tmp_path / "two")) == len(rows(tmp_path / "one")) == len(kinds)
    for one, two in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert two.pop("loss") == pytest.approx(one.pop("loss"), rel=1e-5) and one == two
    files = [{path.name for path in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert files[0] == files[1]
    assert json.loads((tmp_path / "two/config.json").read_text())["seed"] == 0


def test_a_batch_is_shared_equally_or_not_at_all() -> None:
    class Processes:
        num_processes = 2
        process_index = 1

    stage = parse(StageConfig, {"kind": "slices", "steps": 1, "batch": 4}, "test")
    assert list(my_share(stage, Processes())) == [2, 3]
    odd = stage.model_copy(update={"batch": 3})
    with pytest.raises(ScoreFusionError, match="2 processes cannot share a batch of 3.*multiple of 2"):
        my_share(odd, Processes())
