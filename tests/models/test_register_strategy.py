"""A strategy registered here alone samples, is planned, evaluated, tuned and shown, with no other change."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from torch import Tensor
from typer.testing import CliRunner

from scorefusion.cli import app
from scorefusion.errors import ScoreFusionError
from scorefusion.models.config import ModelConfig, SamplingConfig
from scorefusion.models.strategies import (
    AVERAGE,
    BUILT_IN,
    STRATEGIES,
    Strategy,
    register,
    require_strategy,
    strategies_of,
    strategy_named,
    unregister,
)
from scorefusion.ops.fuse_scores import Fusion
from scorefusion.pipeline import Pipeline
from tests.evaluate.test_evaluate_case import write_subjects
from tests.support.tiny import tiny_config, tiny_image, tiny_model, write_tiny

NAME = "axial-heavy"


def weighted(config: ModelConfig, scores: Sequence[Tensor], maps: Tensor | None) -> Fusion:
    return Fusion(tuple(scores), None, (0.5, 0.25, 0.25))


@pytest.fixture(autouse=True)
def registered() -> Iterator[Strategy]:
    yield register(Strategy(NAME, "an average in which axial counts double", fuse=weighted))
    unregister(NAME)


def test_it_translates(tmp_path: Path) -> None:
    """By name through `Pipeline` and the command: no other strategy's result, and the same each time."""
    folder, image = write_tiny(tmp_path)
    pipeline = Pipeline(folder, device="cpu")
    volume = pipeline(tiny_image(), strategy=NAME).volume
    assert not np.array_equal(volume, pipeline(tiny_image(), strategy="average").volume)
    assert np.array_equal(volume, pipeline(tiny_image(), strategy=NAME, disagreement=True).volume)
    with pytest.raises(ScoreFusionError, match="planes are for strategies single and alternate"):
        pipeline(tiny_image(), strategy=NAME, planes=["axial"])
    output = tmp_path / "out.nii.gz"
    command = ["translate", str(image), "-o", str(output), "--model", str(folder), "--strategy", NAME]
    done = CliRunner().invoke(app, [*command, "--device", "cpu"])
    assert done.exit_code == 0 and NAME in done.stdout, (done.output, done.exception)


def test_it_is_planned(tmp_path: Path) -> None:
    """The forecast names it, with the buffers of an average."""
    folder, _ = write_tiny(tmp_path)
    command = ["plan", "--model", str(folder), "--shape", "8", "8", "8", "--device", "cpu"]
    reports = [
        CliRunner().invoke(app, [*command, "--dtype", "float32", "--strategy", name]).stdout
        for name in (NAME, "average")
    ]
    assert NAME in reports[0] and "scores.2" in reports[0] and "3D network" not in reports[0]
    assert reports[0].splitlines()[1:-1] == reports[1].splitlines()[1:-1]


def test_it_is_evaluated(tmp_path: Path) -> None:
    """Rows of its own: a sample, one evaluation, and its denoising error."""
    folder, _ = write_tiny(tmp_path)
    write_subjects(tmp_path / "data")
    out = tmp_path / "out"
    command = ["evaluate", str(folder), str(tmp_path / "data"), "-o", str(out), "--subjects", "2"]
    command += ["--strategies", f"average,{NAME}", "--baselines", "trilinear", "--box", "8,10,12"]
    done = CliRunner().invoke(app, [*command, "--device", "cpu", "--dtype", "float32"])
    assert done.exit_code == 0, (done.output, done.exception)
    record = json.loads((out / "summary.json").read_text())
    names = [row["name"] for row in record["rows"]]
    assert {NAME, f"one-step {NAME}"} <= set(names)
    assert len(record["denoising"][NAME]) == len(record["denoising"]["average"])
    assert record["denoising"][NAME] != record["denoising"]["average"]
    assert NAME in (out / "table.md").read_text() and NAME in (out / "report.html").read_text()


def test_it_is_tuned_and_demonstrated(tmp_path: Path) -> None:
    own = SamplingConfig(strategy="average", steps=2)
    model = tiny_model(tiny_config(strategies=("single", "average"), sampling=own))
    model.save_pretrained(tmp_path / "tiny", card="# tiny")
    nib.save(tiny_image((16, 16, 16)), tmp_path / "truth.nii.gz")
    common = ["--box", "8,8,8", "--device", "cpu", "--dtype", "float32"]
    tune = ["tune", str(tmp_path / "tiny"), str(tmp_path / "truth.nii.gz"), "-o", str(tmp_path / "tuned")]
    tune += ["--strategy", NAME, "--solvers", "ddim", "--evaluations", "1,2", "--reference", "3"]
    done = CliRunner().invoke(app, [*tune, *common])
    assert done.exit_code == 0, (done.output, done.exception)
    assert json.loads((tmp_path / "tuned/tune.json").read_text())["strategy"] == NAME
    demo = ["demo", "--model", str(tmp_path / "tiny"), "--data", str(tmp_path / "truth.nii.gz")]
    done = CliRunner().invoke(app, [*demo, "-o", str(tmp_path / "demo"), *common])
    assert done.exit_code == 0, (done.output, done.exception)
    rows = [row["name"] for row in json.loads((tmp_path / "demo/table.json").read_text())["rows"]]
    assert NAME in rows and f"one-step {NAME}" in rows and f"\n{NAME} " in done.stdout


def test_names(registered: Strategy) -> None:
    """What is taken, unknown, or more than the model can do is refused by name."""
    config = tiny_config()
    assert strategies_of(config) == (*BUILT_IN, NAME) and require_strategy(NAME, config) is registered
    assert strategy_named(registered) is registered and str(registered) == NAME
    for name in (NAME, "", "two words", "a:b", "a,b"):
        with pytest.raises(ValueError, match="cannot be called"):
            register(Strategy(name, ""))
    with pytest.raises(ScoreFusionError, match="strategy 'axial-heavi'.*did you mean 'axial-heavy'"):
        strategy_named("axial-heavi")
    alone = tiny_config(branches=(), slice_networks={}, feature_scales=(), strategies=("volume",))
    with pytest.raises(ScoreFusionError, match="lacks the networks for strategy 'axial-heavy'.*volume"):
        require_strategy(NAME, alone)
    assert AVERAGE.every_plane and not STRATEGIES["single"].every_plane
