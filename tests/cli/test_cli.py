"""The command line: verbs, help, progress, what is printed, doctor."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

import scorefusion
from scorefusion.cli import app, console
from scorefusion.doctor import examine
from tests.support.tiny import write_tiny

ROOT = Path(__file__).parents[2]


def test_every_verb_has_help_with_an_example() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0 and "translate" in result.output and "doctor" in result.output
    verbs = [line.split()[0] for line in result.output.split("Commands:")[1].splitlines() if line.strip()]
    for verb in verbs:
        result = CliRunner().invoke(app, [verb, "--help"])
        assert result.exit_code == 0 and f"scorefusion {verb}" in result.output, verb


def test_version() -> None:
    assert CliRunner().invoke(app, ["--version"]).output == f"scorefusion {scorefusion.__version__}\n"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from scorefusion.cli import app\n"
        "assert CliRunner().invoke(app, ['translate', '--help']).exit_code == 0\n"
        "print([name for name in ('torch', 'nibabel', 'scipy', 'matplotlib') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout.strip() == "[]"


def test_translate_as_a_program(tmp_path: Path) -> None:
    """Plain progress lines on standard error, a summary on standard output, the file there, in order."""
    write_tiny(tmp_path)
    arguments = ["in.nii.gz", "-o", "out.nii.gz", "--model", "tiny", "--device", "cpu", "--seed", "7"]
    arguments += ["--dtype", "float32"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, "-m", "scorefusion", "translate", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr.splitlines()[-1].startswith("translating: 2 of 2, ")
    assert run.stdout.splitlines()[0] == (
        "out.nii.gz: 14 × 12 × 10 voxels, fuse+features, ddim, 1 × 2 evaluations, seed 7"
    )
    assert "block means differ from the input by" in run.stdout
    expected = scorefusion.Pipeline(tmp_path / "tiny", device="cpu", dtype="float32")(
        tmp_path / "in.nii.gz", seed=7
    )
    np.testing.assert_allclose(
        nib.load(tmp_path / "out.nii.gz").get_fdata(), expected.volume, atol=1e-5 * expected.volume.max()
    )


def test_every_option_reaches_the_pipeline(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    model, image = write_tiny(tmp_path)
    options = (
        "--strategy single --plane coronal --solver ddim --steps 3 --eta 0.5 --start-abar 0.2 --samples 3 "
        "--seed 5 --batch 2 --device cpu --dtype float32 --whole --nan zero --assume-affine "
        "--output-dtype input --max-voxels 5000 --quiet"
    ).split()
    outputs = [tmp_path / name for name in ("out.nii", "sd.nii.gz", "out.png")]
    files = ["-o", outputs[0], "--spread", outputs[1], "--figure", outputs[2], "--model", model]
    result = CliRunner().invoke(app, ["translate", str(image), *map(str, files), *options])
    assert result.exit_code == 0 and result.output == "", result.output
    expected = scorefusion.Pipeline(model, device="cpu", dtype="float32")(
        image,
        strategy="single",
        planes=["coronal"],
        solver="ddim",
        steps=3,
        eta=0.5,
        start_abar=0.2,
        samples=3,
        seed=5,
        batch=2,
        crop=False,
        output_dtype="input",
    )
    written = nib.load(outputs[0])
    assert written.get_data_dtype() == np.int16
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.rint(expected.volume))
    np.testing.assert_allclose(nib.load(outputs[1]).get_fdata(), expected.spread, rtol=1e-5)
    assert outputs[2].stat().st_size > 10_000


def test_unknown_verb_and_missing_output() -> None:
    assert CliRunner().invoke(app, ["translat"]).exit_code == 2
    assert CliRunner().invoke(app, ["translate", "in.nii.gz"]).exit_code == 2


def test_progress_lines_are_few(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console.progress("working") as report:
        for done in range(1, 11):
            report(done, 10)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "working: 1 of 10, about 36 s left"
    assert lines[1] == "working: 4 of 10, about 24 s left" and lines[-1] == "working: 10 of 10, 40 s"
    assert len(lines) == 4


def test_progress_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(
        "rich.console.Console", lambda stderr: Console(file=screen, force_terminal=True, width=80)
    )
    with console.progress("working") as report:
        report(1, 2)
        report(2, 2)
    assert "working" in screen.getvalue() and "2/2" in screen.getvalue()


def test_doctor_names_what_matters() -> None:
    findings = {finding.subject: finding for finding in examine()}
    for subject in (
        "scorefusion",
        "python",
        "torch",
        "instructions",
        "dtype on CPU",
        "C++ extension",
        "triton",
    ):
        assert findings[subject].detail, subject
    assert all(finding.remedy for finding in findings.values() if finding.state != "present")
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0 and "dtype on CPU" in result.output and "float" in result.output
