"""``import scorefusion`` brings little, nothing that was not asked for, and touches no machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"nibabel", "pydantic", "matplotlib", "triton", "scipy", "skimage", "rich", "typer", "safetensors"}
CODE = """
import json, socket, subprocess, sys
import torch

def never(*args, **kwargs):
    raise AssertionError("called")

torch.cuda.is_available = torch.cuda.device_count = torch.cuda.init = never
socket.socket.connect = subprocess.Popen.__init__ = never
before = set(sys.modules)
import scorefusion
brought = sorted(set(sys.modules) - before)
import scorefusion.pipeline.pipeline, scorefusion.cli
print(json.dumps({"brought": brought, "extension": "scorefusion._C" in sys.modules}))
"""


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    run = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_brings_little_and_nothing_heavy(report: dict[str, Any]) -> None:
    """Beyond what PyTorch brings."""
    assert "scorefusion" in report["brought"] and len(report["brought"]) <= 20
    assert not {name.split(".")[0] for name in report["brought"]} & HEAVY


def test_no_extension_device_process_or_network_on_import(report: dict[str, Any]) -> None:
    """The script itself forbids CUDA, processes and connections, the pipeline and the verbs included."""
    assert report["extension"] is False
