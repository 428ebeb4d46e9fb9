"""What docs/embed.md promises: its snippets run, its lists are the code's, the installed package is typed."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import scorefusion

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/embed.md").read_text(encoding="utf-8")
USER = """
import numpy as np
import torch
from scorefusion import Cancelled, Pipeline, ScoreFusionError, Translation

def translate(array: np.ndarray, steps: int) -> Translation:
    pipeline = Pipeline("t1-sr4", device="cpu")
    def callback(done: int, total: int) -> None:
        if done > total // 2:
            raise Cancelled
    result = pipeline([array], affine=np.eye(4), steps=steps, callback=callback)
    pipeline(torch.from_numpy(array), affine=torch.eye(4))
    pipeline("t1.nii.gz")
    volume: np.ndarray = result.volume
    reveal_type(result.seed)
    return result

pipeline = Pipeline(steps=3)
translate("t1.nii.gz", 3)
"""


@pytest.mark.filterwarnings("ignore:NvImgCodec")
def test_every_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, in one namespace, as a reader would."""
    pytest.importorskip("monai")
    pytest.importorskip("nipype")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    assert len(blocks) == 7
    names: dict[str, object] = {"__name__": "snippets"}
    for number, block in enumerate(blocks):
        exec(compile(block, f"docs/embed.md, block {number + 1}", "exec"), names)


def listed(start: str) -> list[str]:
    """The names in backquotes of the item of the page's list that starts so."""
    item = re.search(rf"^\* {re.escape(start)}(.*?);$", PAGE, re.M | re.S)
    assert item is not None
    return re.findall(r"`(\w+)`", item[1])


def test_public_names_are_those_listed() -> None:
    assert listed("the names in `scorefusion.__all__`:") == scorefusion.__all__ == sorted(scorefusion.__all__)


def test_the_call_is_as_listed() -> None:
    call = inspect.signature(scorefusion.Pipeline.__call__).parameters
    assert listed("the call of a pipeline:") == [name for name in call if name != "self"]
    assert all(it.kind is it.KEYWORD_ONLY for name, it in call.items() if name not in ("self", "images"))


def test_a_users_script_is_checked_against_the_installed_package(tmp_path: Path) -> None:
    """mypy sees an installed package's types only where it has py.typed."""
    pytest.importorskip("mypy")
    venv.create(tmp_path / "venv", with_pip=False)
    site = next((tmp_path / "venv").rglob("site-packages"))
    (site / "others.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    build = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(site)]
    environment = {**os.environ, "SCOREFUSION_NO_EXTENSION": "1"}
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, env=environment)
    for name in ("py.typed", "embed/monai.py", "assets/t1-sr4/model.safetensors"):
        assert (site / "scorefusion" / name).is_file(), name
    (tmp_path / "user.py").write_text(USER)
    python = tmp_path / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    # PyTorch itself is left out: mypy takes half a minute for it, and a caller's line is about this package.
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\ndisallow_untyped_defs = true\n[mypy-torch.*,pydantic.*]\nfollow_imports = skip\n"
    )
    check = [sys.executable, "-m", "mypy", "--python-executable", str(python), "user.py"]
    run = subprocess.run(check, cwd=tmp_path, capture_output=True, text=True)
    last = len(USER.splitlines())
    errors = re.findall(r"user.py:(\d+): error", run.stdout)
    assert errors == [f"{last - 1}", f"{last}"], run.stdout + run.stderr
    assert 'Revealed type is "int"' in run.stdout and 'keyword argument "steps"' in run.stdout
