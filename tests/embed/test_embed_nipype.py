"""nipype: a real node on a tiny volume, its traits, and that it runs only when something has changed."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scorefusion.degradations import Inpaint
from scorefusion.models.config import DomainConfig, ResidualConfig
from scorefusion.pipeline import Pipeline
from tests.support.tiny import tiny_config, tiny_image, tiny_model, write_tiny

pytest.importorskip("nipype")
from nipype import Node
from nipype.interfaces.base import TraitError
from typer.main import get_command

from scorefusion.cli import app
from scorefusion.embed.nipype import Translate, TranslateInputs

ROOT = Path(__file__).parents[2]


def test_a_node_translates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, file = write_tiny(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    node = Node(
        Translate(model=str(model), device="cpu", dtype="float32", seed=3), "fine", base_dir=str(tmp_path)
    )
    node.inputs.in_files = [str(file)]
    node.inputs.samples, node.inputs.spread_file, node.inputs.disagreement = 2, "spread.nii.gz", True
    outputs = node.run().outputs
    assert Path(outputs.out_file) == tmp_path / "fine" / "in_translated.nii.gz"
    expected = Pipeline(model, device="cpu", dtype="float32")(file, seed=3, samples=2, disagreement=True)
    fields = (
        (outputs.out_file, expected.volume),
        (outputs.spread_file, expected.spread),
        (outputs.planes_file, expected.planes_apart),
    )
    for name, volume in fields:
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
    known = {flag for param in get_command(app).commands["translate"].params for flag in param.opts}
    flags = {trait.argstr.split()[0] for trait in TranslateInputs().traits().values() if trait.argstr}
    assert {flag for flag in flags if flag.startswith("--")} <= known
    assert "--steps" in flags and "--spread" in flags


HOSTILE = {
    "command": "a;touch X;b",
    "spaces": "two  spaces ",
    "quotes": 'it\'s a "name"',
    "substitution": "$(touch X)${HOME}",
    "backticks": "`touch X`",
    "newline": "a\ntouch X\nb",
    "dash": "-o",
    "two dashes": "--quiet",
    "unicode": "Kopf ü 脳",
    "glob": "*[a-z]?{1,2}",
    "redirection": "a > X & touch X | b",
    "backslash": "a\\ b\\",
    "tilde": "~",
    "history": "!!#x %s %d",
}
LISTS_ITS_ARGUMENTS = """
import json, sys
arguments = sys.argv[1:]
open("arguments.json", "w").write(json.dumps(arguments))
for option in ("--output", "--spread"):
    open(arguments[arguments.index(option) + 1], "w").close()
"""


@pytest.mark.parametrize("case", HOSTILE)
def test_no_string_reaches_a_shell(tmp_path: Path, case: str) -> None:
    """A process that writes its arguments down gets each value as it is."""
    text, run = HOSTILE[case], tmp_path / "run"
    run.mkdir()
    source, mask, model = (tmp_path / text / name for name in (f"{text}.nii.gz", "mask.nii", "model"))
    source.parent.mkdir()
    source.touch()
    mask.touch()
    command = shlex.join([sys.executable, "-c", LISTS_ITS_ARGUMENTS])
    node = Translate(
        command=command,
        in_files=[str(source)],
        mask=str(mask),
        model=str(model),
        spread_file=f"{text}.sd",
        strategy=text,
        planes=[text, "axial"],
        solver=text,
        device=text,
        max_memory=text,
        terminal_output="file_split",
    )
    outputs = node.run(cwd=str(run)).outputs
    arguments = json.loads((run / "arguments.json").read_text())
    assert arguments[-2:] == ["--", str(source)]
    given = dict(zip(arguments[:-2:2], arguments[1:-2:2], strict=True))
    options = ("strategy", "solver", "device", "max-memory")
    assert {option: given[f"--{option}"] for option in options} == dict.fromkeys(options, text)
    assert (given["--mask"], given["--model"], given["--spread"]) == (str(mask), str(model), f"{text}.sd")
    assert [arguments[n + 1] for n, each in enumerate(arguments) if each == "--plane"] == [text, "axial"]
    assert given["--output"] == f"{text}_translated.nii.gz"
    assert Path(outputs.out_file) == run / f"{text}_translated.nii.gz"
    assert Path(outputs.spread_file) == run / f"{text}.sd"
    assert not [path for path in tmp_path.rglob("X") if path.is_file()]


def test_a_given_output_and_further_arguments(tmp_path: Path) -> None:
    """`args` is split, not expanded; an output's name may hold anything."""
    (tmp_path / "in.nii").touch()
    name = "o;touch X;$(touch X) 'q'.nii.gz"
    node = Translate(
        command=shlex.join([sys.executable, "-c", LISTS_ITS_ARGUMENTS]),
        in_files=[str(tmp_path / "in.nii")],
        out_file=name,
        spread_file="sd.nii",
        args="--eta 0.5; touch X $(touch X) 'one argument'",
        terminal_output="none",
    )
    assert Path(node.run(cwd=str(tmp_path)).outputs.out_file) == tmp_path / name
    arguments = json.loads((tmp_path / "arguments.json").read_text())
    assert arguments[:7] == ["--eta", "0.5;", "touch", "X", "$(touch", "X)", "one argument"]
    assert arguments[arguments.index("--output") + 1] == name and not (tmp_path / "X").exists()


@pytest.mark.parametrize("where", ["stream", "allatonce", "file", "file_split", "file_stdout", "none"])
def test_what_a_command_prints(tmp_path: Path, where: str) -> None:
    (tmp_path / "in.nii").touch()
    code = "import sys; print('out é'); print('wrong', file=sys.stderr); sys.exit(2)"
    command = shlex.join([sys.executable, "-X", "utf8", "-c", code])
    node = Translate(command=command, in_files=[str(tmp_path / "in.nii")], terminal_output=where)
    with pytest.raises(RuntimeError, match=r"(?s)out é.*wrong.*Return code: 2"):
        node.run(cwd=str(tmp_path))
    written = {path.name: path.read_text("utf-8") for path in tmp_path.glob("*.nipype")}
    assert written == {
        "file": {"output.nipype": "out é\nwrong\n"},
        "file_split": {"stdout.nipype": "out é\n", "stderr.nipype": "wrong\n"},
        "file_stdout": {"stdout.nipype": "out é\n"},
    }.get(where, {})


def test_an_interpreter_in_an_odd_folder(tmp_path: Path) -> None:
    """The path of the Python that runs the workflow is quoted as well."""
    folder = tmp_path / "a b;touch X;$(touch X)"
    folder.mkdir()
    (folder / "python").symlink_to(sys.executable)
    code = "from scorefusion.embed.nipype import Translate; print(Translate._cmd)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    run = subprocess.run(
        [folder / "python", "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    command = shlex.split(run.stdout.splitlines()[-1])
    assert command[:4] == [str(folder / "python"), "-m", "scorefusion", "translate"], run.stderr
    assert not (tmp_path / "X").exists()


def test_a_whole_translation_with_odd_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Model, input, mask, output and the node's own folder, all in folders with names for a shell."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    folder = tmp_path / "a;touch X;b $(touch X) `touch X` 'q' \"q\" *\n-ü"
    folder.mkdir()
    hole, base = Inpaint(hole=0.3), ResidualConfig(base="identity", scale=0.1)
    tiny_model(tiny_config(degradation=hole, residual=base)).save_pretrained(folder / "tiny", card="# tiny\n")
    source, mask, output = folder / "-in 1.nii.gz", folder / "-mask;.nii.gz", "-out;touch X.nii.gz"
    image = tiny_image()
    nib.save(image, source)
    missing = np.zeros(image.shape, np.uint8)
    missing[2:4, 2:4, 2:4] = 1
    nib.save(nib.Nifti1Image(missing, image.affine), mask)
    translate = Translate(
        in_files=[str(source)],
        mask=str(mask),
        model=str(folder / "tiny"),
        out_file=output,
        spread_file="-sd $(touch X).nii.gz",
        samples=2,
        steps=1,
        device="cpu",
        dtype="float32",
    )
    outputs = translate.run(cwd=str(folder)).outputs
    assert Path(outputs.out_file) == folder / output
    assert nib.load(outputs.out_file).shape == nib.load(outputs.spread_file).shape == image.shape
    assert not [*tmp_path.rglob("X")]


def test_warnings_reach_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the input is and the model was not made for: in the runtime and in the node's files."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    config = tiny_config(domain={"t1": DomainConfig(contrasts=("t1",))})
    tiny_model(config).save_pretrained(tmp_path / "model", card="# tiny\n")
    nib.save(tiny_image(), tmp_path / "sub-1_T2w.nii.gz")
    node = Translate(
        in_files=[str(tmp_path / "sub-1_T2w.nii.gz")],
        model=str(tmp_path / "model"),
        steps=1,
        device="cpu",
        terminal_output="file_split",
    )
    runtime = node.run(cwd=str(tmp_path)).runtime
    for text in (runtime.stderr, (tmp_path / "stderr.nipype").read_text("utf-8")):
        assert "warning: sub-1_T2w.nii.gz is T2 by its name" in text
