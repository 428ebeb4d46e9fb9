"""A metric registered in this file alone is measured by evaluate, tune and demo, and in their tables."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scorefusion.cli import app
from scorefusion.evaluate.tune import Point
from scorefusion.metrics import METRICS, PLACES, Metric, Pair, measure, register
from scorefusion.train.report import judge
from tests.evaluate.test_evaluate_case import head, write_subjects
from tests.support.tiny import tiny_config, tiny_model

pytest.importorskip("skimage")
CONTRAST = Metric(
    "contrast",
    "contrast kept",
    lambda pair: float(pair.volume.std() / pair.truth.std()),
    short="contrast",
    unit="%",
    better="higher",
    narrow=1,
    slack=0.5,
    places=PLACES | {"look"},
)


@pytest.fixture
def registered() -> Iterator[Metric]:
    yield register(CONTRAST)
    del METRICS[CONTRAST.name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("metric")
    write_subjects(path / "data")
    model = tiny_model(tiny_config(strategies=("single", "average", "fuse+features")))
    model.save_pretrained(path / "tiny", card="# tiny")
    return path


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, [*map(str, arguments), "--device", "cpu", "--dtype", "float32"])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def evaluated(folder: Path) -> str:
    given = ["evaluate", folder / "tiny", folder / "data", "--box", "8,10,12", "--steps", 2, "--no-denoise"]
    return run(*given, "--baselines", "nearest", "-o", folder / "out", "--quiet")


def test_evaluate_and_what_it_measured_before(folder: Path, registered: Metric) -> None:
    del METRICS[registered.name]
    assert "contrast" not in evaluated(folder)
    before = json.loads((folder / "out/summary.json").read_text())["rows"]
    drawn = {path: path.stat().st_mtime_ns for path in (folder / "out/cache").glob("*.npy")}
    register(registered)
    assert "contrast kept, %" in evaluated(folder)
    assert drawn == {path: path.stat().st_mtime_ns for path in (folder / "out/cache").glob("*.npy")}
    record = json.loads((folder / "out/summary.json").read_text())
    for old, row in zip(before, record["rows"], strict=True):
        assert row["figures"]["psnr"] == old["figures"]["psnr"], "not measured again"
        assert 0.1 < row["figures"]["contrast"]["mean"] < 10 and len(row["by_person"]["contrast"]) == 3
    assert record["against_main"]["contrast"] and record["order"]["contrast"]
    with (folder / "out/subjects.csv").open() as file:
        assert all(float(line["contrast"]) > 0 for line in csv.DictReader(file))
    text = (folder / "out/table.md").read_text()
    heads = [line for line in text.splitlines() if line.startswith("| real, 3 subjects")]
    assert ["contrast kept, %" in line for line in heads] == [True, False, True, True], (
        "a column of closeness"
    )
    assert "contrast kept, %" in (folder / "out/report.html").read_text()


def test_tune(folder: Path, registered: Metric) -> None:
    given = ["tune", folder / "tiny", folder / "data/sub-000/sub-000_t1.nii.gz", "--box", "8,10,12"]
    few = ["--reference", 2, "--solvers", "ddim", "--evaluations", "1,2", "--strategy", "average"]
    text = run(*given, *few, "-o", folder / "tuned")
    assert text.splitlines()[0].endswith("contrast %")
    if "no setting tried" not in text:
        assert "contrast" in text.split("chosen: ")[1]
    record = json.loads((folder / "tuned/tune.json").read_text())
    assert all(point["contrast"] > 0 for point in record["points"])
    with (folder / "tuned/tune.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert float(lines[-1]["contrast"]) == pytest.approx(record["reference"]["contrast"], abs=1e-4)
    assert (folder / "tuned/tune.png").is_file()


def test_tune_decides_by_it(registered: Metric) -> None:
    figures = {name: 1.0 for name in METRICS}
    reference, worse = (
        Point(tiny_config().sampling, 1, 1.0, each, *[head(0)] * 3)
        for each in (figures, {**figures, "contrast": 0.4})
    )
    assert reference.no_worse(reference) and not worse.no_worse(reference)
    assert worse.no_worse(reference, {"contrast": 0.7})


def test_demo(folder: Path, registered: Metric) -> None:
    given = ["demo", "--data", folder / "data/sub-000/sub-000_t1.nii.gz", "--model", folder / "tiny"]
    text = run(*given, "--box", "8,10,12", "--steps", 2, "-o", folder / "demo")
    assert text.splitlines()[0].endswith("contrast %")
    rows = json.loads((folder / "demo/table.json").read_text())["rows"]
    assert rows[-1]["name"] == "one-step fuse+features" and all(row["contrast"] > 0 for row in rows)
    line = next(line for line in text.splitlines() if line.startswith("average"))
    assert line.split()[-1] == f"{next(row['contrast'] for row in rows if row['name'] == 'average'):.1f}"


def test_training_looks(registered: Metric) -> None:
    import torch

    volume = torch.rand(1, 1, 8, 9, 10, generator=torch.Generator().manual_seed(0))
    names = ("truth", "base", "one step", "a sample, 2 steps")
    looked = judge([dict(zip(names, (volume, 0.5 * volume, volume + 0.1, volume), strict=True))])
    assert looked["contrast_base"] == 0.5 and looked["contrast"] == 1.0
    assert looked["psnr_one_step"] == pytest.approx(26.0206, abs=1e-3)


def test_where_there_is_nothing_to_measure() -> None:
    volume = head(0)
    figures = measure(Pair(volume, volume, 1000.0))
    assert list(figures) == list(METRICS) and figures["psnr"] == 200.0
    missing = {name for name, value in figures.items() if value is None}
    assert missing == {"psnr_inside", "ssim_inside", "psnr_outside", "psnr_fitted", "consistency"}
    dark = measure(Pair(volume, volume, 1000.0, inside=volume > 1e9))
    assert dark["psnr_inside"] is None and dark["ssim_inside"] is None and dark["psnr_outside"] == 200.0
