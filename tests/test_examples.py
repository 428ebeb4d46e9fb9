"""Every example runs, with the bundled model on a few voxels, and says what it should."""

from __future__ import annotations

import os
import runpy
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.support.tiny import tiny_image

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
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
    assert all(len(path.read_text().splitlines()) <= 60 for path in EXAMPLES)
