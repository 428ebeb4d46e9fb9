"""``import scorefusion`` is quick, brings nothing that was not asked for, and touches no machine."""

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
import json, socket, subprocess, sys, time
import torch

def never(*args, **kwargs):
    raise AssertionError("called")

torch.cuda.is_available = torch.cuda.device_count = torch.cuda.init = never
socket.socket.connect = subprocess.Popen.__init__ = never
before = set(sys.modules)
seconds = []
for _ in range(3):
    for name in [name for name in sys.modules if name.split(".")[0] == "scorefusion"]:
        del sys.modules[name]
    start = time.perf_counter()
    import scorefusion
    seconds.append(time.perf_counter() - start)
brought = sorted({name.split(".")[0] for name in set(sys.modules) - before})
import scorefusion.pipeline, scorefusion.cli
print(json.dumps({"seconds": min(seconds), "brought": brought, "extension": "scorefusion._C" in sys.modules}))
"""


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    run = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_takes_less_than_a_fifth_of_a_second_more_than_torch(report: dict[str, Any]) -> None:
    assert report["seconds"] < 0.2


def test_brings_nothing_heavy(report: dict[str, Any]) -> None:
    assert not set(report["brought"]) & HEAVY


def test_no_extension_device_process_or_network_on_import(report: dict[str, Any]) -> None:
    """The script itself forbids CUDA, processes and connections, the pipeline and the verbs included."""
    assert report["extension"] is False
