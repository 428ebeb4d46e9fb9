"""A run that is killed again and again ends with the same bits as one that never was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from tests.support.tiny import tiny_config
from tests.support.waiting import PATIENCE

ROOT = Path(__file__).parents[2]
KILLS = 10


def write_run(folder: Path, **changes: Any) -> Path:
    """A run of every kind of stage on one small subject: its configuration's file."""
    z, y, x = np.mgrid[-1:1:16j, -1:1:24j, -1:1:24j]
    volume = np.clip(1.2 - z**2 - y**2 - x**2, 0, None) * (1 + 0.3 * np.sin(9 * x) * np.cos(8 * y))
    image = nibabel.Nifti1Image((1000 * volume.transpose(2, 1, 0)).astype(np.int16), np.eye(4))
    nibabel.save(image, folder / "head.nii")
    crop = {"crop": 8, "batch": 2, "warmup": 2}
    values = {
        "model": tiny_config().model_dump(mode="json"),
        "volumes": [{"file": str(folder / "head.nii"), "variants": 2}],
        "stages": [
            {"kind": "slices", "steps": 10, **crop},
            {"kind": "patches", "steps": 8, **crop},
            {"kind": "patches", "steps": 6, "cached": 3, **crop},
            {"kind": "features", "steps": 8, "checkpointing": True, **crop},
        ],
        "save_every": 0.0,
        "log_every": 3,
        "look_every": 0,
        "precision": "float32",
    }
    (folder / "run.json").write_text(json.dumps(values | changes))
    return folder / "run.json"


def rows(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "seconds"} for line in lines]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="not run: this system cannot fork")
def test_killed_ten_times_at_random_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    folders = [str(tmp_path / name) for name in ("whole", "killed")]
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/support/killed_runs.py"), str(KILLS), "5", str(config), *folders],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert len(seen) == KILLS and sum("being written" in moment for moment in seen) >= 2, seen
    whole, killed = (
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "killed")
    )
    for part in ("model", "average"):
        assert all(torch.equal(whole[part][name], killed[part][name]) for name in whole[part])
    assert rows(tmp_path / "whole") == rows(tmp_path / "killed") and len(rows(tmp_path / "whole")) == 12
    assert not list((tmp_path / "killed").glob("*.tmp"))
