"""``scorefusion evaluate`` as a program: models beside one another, files left behind, bad input."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scorefusion.cli import app
from scorefusion.errors import ScoreFusionError
from scorefusion.evaluate.methods import check_names, load_main, load_other, rows_of
from scorefusion.evaluate.report import FILES
from scorefusion.models.config import ModelConfig
from tests.evaluate.test_evaluate_case import write_subjects
from tests.support.tiny import same_grid_config, tiny_config, tiny_model

STRATEGIES = ("single", "alternate", "average", "fuse", "fuse+features")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three synthetic subjects, a model, and another of one strategy."""
    path = tmp_path_factory.mktemp("evaluate")
    write_subjects(path / "data")
    (path / "data/phantom.json").write_text('{"synthetic": true, "labels": {"bright": 1}}')
    tiny_model(tiny_config(strategies=STRATEGIES)).save_pretrained(path / "tiny", card="# tiny")
    tosm = tiny_config(context=0, strategies=("average",), name="tosm")
    tiny_model(tosm, seed=1).save_pretrained(path / "tosm", card="# tosm")
    return path


def test_other_models_are_checked_and_put_on_equal_terms(folder: Path) -> None:
    main = load_main(str(folder / "tiny"), "average,fuse", steps=3, levels={"sigma_min": 0.1}, device="cpu")
    assert main.strategies == ("average", "fuse") and main.sampling.steps == 3
    other = load_other(f"tosm={folder / 'tosm'}", main, device="cpu")
    assert other.strategies == ("average",) and other.sampling.steps == 3 and other.sampling.sigma_min == 0.1
    same = load_other(f"again={folder / 'tiny'}:fuse", main, device="cpu")
    names = [method.name for method in rows_of(main, [other, same], "none")]
    assert names == ["average", "fuse", "one-step average", "one-step fuse", "tosm", "one-step tosm", "again",
                     "one-step again"]  # fmt: skip
    alone = load_main(str(folder / "tiny"), "average", steps=1, device="cpu")
    assert [method.name for method in rows_of(alone, [], "none")] == ["average"], "it is one step already"
    with pytest.raises(ScoreFusionError, match="two rows are called 'tosm'"):
        check_names(rows_of(main, [other, other], "none"))
    translation = tiny_model(same_grid_config())
    translation.save_pretrained(folder / "flair", card="# flair")
    with pytest.raises(ScoreFusionError, match="--against x: makes flair of t1, t2; 'tiny' makes t1 of t1"):
        load_other(f"x={folder / 'flair'}", main, device="cpu")
    plain = ModelConfig.model_validate(
        {**tiny_config().model_dump(), "degradation": {"kind": "block-mean", "factor": 4}}
    )
    tiny_model(plain).save_pretrained(folder / "four", card="# four")
    with pytest.raises(ScoreFusionError, match="its t1 is degraded by"):
        load_other(f"x={folder / 'four'}", main, device="cpu")
    with pytest.raises(ScoreFusionError, match="needs NAME=MODEL"):
        load_other("tosm", main, device="cpu")


def command(folder: Path, *options: str) -> list[str]:
    given = ["evaluate", str(folder / "tiny"), str(folder / "data"), "--box", "8,10,12", "--device", "cpu"]
    return [*given, "--dtype", "float32", "-o", str(folder / "out"), *options]


def test_command_line(folder: Path) -> None:
    options = ["--against", f"<b>tosm</b>={folder / 'tosm'}:average", "--strategies", "single,average,fuse"]
    options += ["--baselines", "trilinear,b-spline", "--subjects", "2", "--steps", "2"]
    done = CliRunner().invoke(app, command(folder, *options))
    assert done.exit_code == 0, (done.output, done.exception)
    assert "synthetic, 2 subjects" in done.stdout and "evaluating: " in done.stderr
    out = folder / "out"
    assert {path.name for path in out.iterdir()} == {*FILES, "cache"}
    with (out / "subjects.csv").open() as file:
        lines = list(csv.DictReader(file))
    record = json.loads((out / "summary.json").read_text())
    names = [row["name"] for row in record["rows"]]
    assert "single" in names and "<b>tosm</b>" in names and "one-step fuse" in names
    assert len(lines) == 2 * (len(names) - 1) and {line["subject"] for line in lines} == {
        "sub-000",
        "sub-001",
    }
    line = next(line for line in lines if line["row"] == "average" and line["subject"] == "sub-001")
    row = next(row for row in record["rows"] if row["name"] == "average")
    assert float(line["psnr"]) == pytest.approx(row["by_person"]["psnr"][1])
    assert record["synthetic"] is True and record["denoising"]["average"] and len(record["denoising"]) > 5
    table = (out / "table.md").read_text()
    heads = re.findall(r"^\| ([^|]*) \|.*\n\| ---", table, re.M)
    assert len(heads) == 5 and all(head.startswith("synthetic, 2 subjects") for head in heads)
    page = (out / "report.html").read_text()
    assert "&lt;b&gt;tosm&lt;/b&gt;" in page and "<b>tosm" not in page
    assert not re.search(r"(?:src|href)=\"(?!data:image/png;base64,)", page) and "<script" not in page
    assert "url(" not in page and page.count("data:image/png;base64,") >= 5


def test_a_page_that_cannot_be_made_costs_no_table(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a title that rich would take for markup."""

    def broken(*_: object) -> str:
        raise RuntimeError("no font")

    monkeypatch.setattr("scorefusion.evaluate.report.report_page", broken)
    file = tmp_path / "[" / "t1].nii.gz"
    file.parent.mkdir()
    shutil.copy(folder / "data/sub-000/sub-000_t1.nii.gz", file)
    given = ["evaluate", str(folder / "tiny"), str(file), "--box", "8,8,8", "--strategies", "average"]
    given += ["--baselines", "trilinear", "--without-consistency", "none", "--no-denoise", "--quiet"]
    done = CliRunner().invoke(app, [*given, "-o", str(tmp_path / "out"), "--device", "cpu"])
    assert done.exit_code == 0 and "trilinear" in done.stdout, (done.output, done.exception)
    page = tmp_path / "out" / "report.html"
    assert done.stderr == f"scorefusion: {page}: could not be written (no font)\n"
    assert {path.name for path in page.parent.iterdir()} == {*FILES, "cache"} - {"report.html"}


def test_one_subject_has_no_intervals(folder: Path) -> None:
    file = folder / "data/sub-000/sub-000_t1.nii.gz"
    given = ["evaluate", str(folder / "tiny"), str(file), "--box", "8,8,8", "--strategies", "average"]
    given += [
        "--without-consistency",
        "none",
        "--no-denoise",
        "--quiet",
        "-o",
        str(folder / "one"),
        "--device",
        "cpu",
    ]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, (done.output, done.exception)
    text = (folder / "one/summary.json").read_text()
    row = json.loads(text)["rows"][0]
    assert row["figures"]["psnr"]["low"] is None and "NaN" not in text and "fid random" not in row["sets"]
    assert done.stderr == ""
    assert "real, 1 subject " in done.stdout, "a file whose own folder holds no phantom.json"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--strategies", "averag"], "unknown strategy 'averag'; did you mean 'average'"),
        (["--strategies", "volume"], "was not trained for strategy 'volume'"),
        (["--baselines", "pseudo-inverse"], "unknown baseline 'pseudo-inverse'"),
        (["--box", "8,8"], "--box needs Z,Y,X"),
        (["--box", "8,8,8@1,1,1"], "--box is a size here"),
        (["--region", "3"], "--region needs FIRST:END slices, such as 64:128; got '3'"),
        (["--region", "20:30"], "slices 20:30 are not inside the volume, which has 24"),
        (["--subjects", "0"], "at least 1 subject"),
        (["--samples", "0"], "samples must be at least 1"),
        (["--features", "rndom"], "unknown feature network 'rndom'"),
        (["--steps", "0"], "at least 1 step"),
        (["--segmenter"], "--segmenter needs --segment-train"),
        (["--against", "tosm=nowhere"], "unknown model 'nowhere'"),
        (["--without-consistency", "fuze"], "unknown strategy 'fuze'"),
    ],
)
def test_bad_input(folder: Path, tmp_path: Path, options: list[str], says: str) -> None:
    done = CliRunner().invoke(app, command(folder, "-o", str(tmp_path / "new"), *options))
    assert done.exit_code == 2 and says in done.stderr, (done.output, done.exception)
    assert not (tmp_path / "new/report.html").exists()
