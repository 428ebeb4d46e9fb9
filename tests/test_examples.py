"""Every example runs, with the bundled model on a few voxels, and says what it should."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scorefusion import Pipeline
from tests.support.tiny import tiny_image, write_tiny
from tests.support.waiting import PATIENCE

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py") if path.stem != "serve")
NEEDS = {"simpleitk_image": "SimpleITK", "monai_transform": "monai", "nipype_node": "nipype"}
ARGUMENTS = {
    "translate_file": ["in.nii.gz", "out.nii.gz", "1"],
    "monai_transform": ["in.nii.gz", "."],
    "nipype_node": ["in.nii.gz", "."],
}
SAYS = {
    "translate_file": "(24, 20, 16) voxels in",
    "numpy_array": "ndarray (32, 32, 32) voxels of 1.0 mm\nTensor with the same bits: True",
    "simpleitk_image": "Image (32, 32, 24) spacing (0.75, 0.75, 1.0)",
    "monai_transform": "MetaTensor (1, 24, 20, 16)",
    "nipype_node": "in_translated.nii.gz",
    "threads": "1 of 3\ncancelled: no longer wanted\nthe same bits as before: True",
}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore:NvImgCodec")
def test_example_runs(
    example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, as `python EXAMPLE` would, which starts PyTorch once for all."""
    pytest.importorskip(NEEDS.get(example.stem, "numpy"))
    source = tmp_path / "in.nii.gz"
    nib.save(tiny_image((6, 5, 4)), source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    arguments = [str(source) if name == source.name else name for name in ARGUMENTS.get(example.stem, [])]
    monkeypatch.setattr("sys.argv", [str(example), *arguments])
    runpy.run_path(str(example), run_name="__main__")
    said = capsys.readouterr().out
    assert SAYS[example.stem] in said
    if example.stem == "simpleitk_image":
        assert said.splitlines()[-1] == "True"
    if example.stem in ARGUMENTS:
        written = next(path for path in tmp_path.rglob("*.nii.gz") if path != source)
        assert np.isfinite(nib.load(written).get_fdata()).all() and nib.load(written).shape == (24, 20, 16)


def test_every_example_is_short_and_expected() -> None:
    assert {path.stem for path in EXAMPLES} == set(SAYS)
    assert all(len(path.read_text().splitlines()) <= 60 for path in [*EXAMPLES, ROOT / "examples/serve.py"])


def test_the_server_translates_on_the_loopback_interface(tmp_path: Path) -> None:
    model, scan = write_tiny(tmp_path)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(ROOT / "examples/serve.py"), "0", str(model)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[-1]
            assert address.startswith("http://127.0.0.1:")

            def post(data: bytes, path: str = "/scan.nii.gz", **headers: str) -> tuple[int, bytes]:
                request = urllib.request.Request(address + path, data, headers)
                try:
                    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                        return answer.status, answer.read()
                except urllib.error.HTTPError as error:
                    return error.code, error.read()

            status, content = post(scan.read_bytes())
            (tmp_path / "answer.nii.gz").write_bytes(content)
            ours = Pipeline(model)(scan).save(tmp_path / "ours.nii.gz")
            volumes = [nib.load(path).get_fdata() for path in (tmp_path / "answer.nii.gz", ours)]
            assert status == 200 and np.array_equal(*volumes)
            status, content = post(b"no image")
            assert (
                status == 400 and content.count(b"\n") == 1 and str(tmp_path.parent).encode() not in content
            )
            assert post(scan.read_bytes(), Host="example.org:80")[0] == 403
            assert post(scan.read_bytes(), Origin="http://127.0.0.1:1")[0] == 403
            assert post(b"", **{"Content-Length": str(2**40)})[0] == 413
        finally:
            server.terminate()
