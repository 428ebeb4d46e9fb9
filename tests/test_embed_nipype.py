"""nipype: a real node on a tiny volume, its traits, and that it runs only when something has changed."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from tiny import write_tiny

from scorefusion.pipeline import Pipeline

pytest.importorskip("nipype")
from nipype import Node
from nipype.interfaces.base import TraitError

from scorefusion.cli import translate as verb
from scorefusion.embed.nipype import Translate, TranslateInputs

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_a_node_translates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, file = write_tiny(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    node = Node(
        Translate(model=str(model), device="cpu", dtype="float32", seed=3), "fine", base_dir=str(tmp_path)
    )
    node.inputs.in_files = [str(file)]
    node.inputs.samples, node.inputs.spread_file = 2, "spread.nii.gz"
    outputs = node.run().outputs
    assert Path(outputs.out_file) == tmp_path / "fine" / "in_translated.nii.gz"
    expected = Pipeline(model, device="cpu", dtype="float32")(file, seed=3, samples=2)
    for name, volume in ((outputs.out_file, expected.volume), (outputs.spread_file, expected.spread)):
        found = nib.load(name)
        np.testing.assert_allclose(found.get_fdata(), volume, atol=1e-4 * np.ptp(expected.volume))
        np.testing.assert_allclose(found.affine, expected.affine, atol=1e-5)
    written = Path(outputs.out_file).stat().st_mtime_ns
    assert Path(node.run().outputs.out_file).stat().st_mtime_ns == written  # nothing has changed


def test_the_command_that_is_run(tmp_path: Path) -> None:
    _, file = write_tiny(tmp_path)
    node = Translate(in_files=[str(file)], planes=["axial", "coronal"], strategy="single", whole=True)
    command = node.cmdline
    assert "--plane axial --plane coronal" in command and "--whole" in command and "--steps" not in command
    assert command.endswith(str(file)) and "--output in_translated.nii.gz" in command


def test_relative_paths_hold_in_the_folder_of_a_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node runs in a folder of its own; a link keeps its name, which names the output."""
    _, file = write_tiny(tmp_path)
    (tmp_path / "t1.nii").symlink_to(file)
    monkeypatch.chdir(tmp_path)
    node = Translate(in_files=["t1.nii"], mask=file.name)
    monkeypatch.chdir("/")
    assert node.inputs.in_files == [str(tmp_path / "t1.nii")] and node.inputs.mask == str(file)
    assert "--output t1_translated.nii.gz" in node.cmdline and node.cmdline.endswith(str(tmp_path / "t1.nii"))


def test_traits_are_typed(tmp_path: Path) -> None:
    for wrong in ({"steps": 0}, {"nan": "keep"}, {"dtype": "int8"}, {"in_files": [str(tmp_path / "no.nii")]}):
        with pytest.raises(TraitError):
            Translate(**wrong)


def test_every_option_is_one_of_the_verb() -> None:
    import inspect

    known = {f"--{name.replace('_', '-')}" for name in inspect.signature(verb.translate).parameters}
    flags = {trait.argstr.split()[0] for trait in TranslateInputs().traits().values() if trait.argstr}
    assert flags - {"%s"} - {flag for flag in flags if not flag.startswith("--")} <= known | {
        "--plane",
        "--output",
    }
    assert "--steps" in flags and "--spread" in flags
