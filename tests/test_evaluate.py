"""Evaluation with tiny models: rows, figures, resuming, sets, report and command line."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from test_evaluate_case import head
from tiny import same_grid_config, tiny_config, tiny_model
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from scorefusion.cli import app
from scorefusion.demo import make_case, run_demo
from scorefusion.errors import ScoreFusionError
from scorefusion.evaluate.case import Where, find_cases
from scorefusion.evaluate.contenders import load_main, load_other, rows_of
from scorefusion.evaluate.features import feature_network
from scorefusion.evaluate.methods import Contender, Method, check_names, choose_baselines, model_methods
from scorefusion.evaluate.page import chosen_subjects
from scorefusion.evaluate.report import FILES
from scorefusion.evaluate.run import Results, Settings, evaluate, flop_of, model_digest
from scorefusion.evaluate.store import Store
from scorefusion.evaluate.summary import Summary, summarise
from scorefusion.feature_distance import Moments, frechet_distance
from scorefusion.io.nifti import read_scan
from scorefusion.metrics import psnr, ssim
from scorefusion.models.config import ModelConfig
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.shared_start import SharedStart
from scorefusion.spectrum import compare_spectra

STRATEGIES = ("single", "alternate", "average", "fuse", "fuse+features")
WHERE = Where((8, 10, 12))
ROWS = [
    "nearest", "trilinear", "trilinear+consistency", "b-spline", "single axial", "single coronal",
    "single sagittal", "alternate", "average", "fuse", "fuse+features",
    "fuse+features without consistency", "one-step average", "one-step fuse", "one-step fuse+features",
]  # fmt: skip


def contender(model: ScoreFusion, name: str = "") -> Contender:
    config = model.config
    return Contender(name, model, config.strategies, config.sampling, model_digest(model, config))


def rows(main: Contender) -> list[Method]:
    return choose_baselines(None, main.config) + model_methods(main, without_consistency=("fuse+features",))


@pytest.fixture(scope="module")
def main() -> Contender:
    return contender(tiny_model(tiny_config(strategies=STRATEGIES)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three subjects whose names need escaping in a page, a model, and another of one strategy."""
    path = tmp_path_factory.mktemp("evaluate")
    for number in range(3):
        place = path / "data" / f"sub-{number:03d}"
        place.mkdir(parents=True)
        t1 = head(number)
        for name, volume in (("t1", t1), ("t2", np.where(t1 > 0, 1200 - t1, 0)), ("labels", t1 > 600)):
            kind = np.uint8 if name == "labels" else np.float32
            nib.save(nib.Nifti1Image(volume.astype(kind), np.eye(4)), place / f"{place.name}_{name}.nii.gz")
    (path / "data/phantom.json").write_text('{"synthetic": true, "labels": {"bright": 1}}')
    tiny_model(tiny_config(strategies=STRATEGIES)).save_pretrained(path / "tiny", card="# tiny")
    tosm = tiny_config(context=0, strategies=("average",), name="tosm")
    tiny_model(tosm, seed=1).save_pretrained(path / "tosm", card="# tosm")
    return path


@pytest.fixture(scope="module")
def found(
    main: Contender, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Results, list[Method], Store]:
    store, methods, calls = Store(tmp_path_factory.mktemp("store")), rows(main), []
    subjects = find_cases(folder / "data", main.config)
    results = evaluate(
        main, [], methods, subjects, store, where=WHERE, settings=Settings(seed=3),
        callback=lambda done, total: calls.append((done, total)),
    )  # fmt: skip
    assert calls == sorted(calls) and calls[-1][0] == calls[-1][1]
    return results, methods, store


def test_rows_and_figures_are_those_of_the_demonstration(
    main: Contender, folder: Path, found: tuple[Results, list[Method], Store]
) -> None:
    results, methods, store = found
    assert [method.name for method in methods] == ROWS and list(results.records[0]) == ROWS
    scan = read_scan(folder / "data/sub-001/sub-001_t1.nii.gz")
    case = make_case(scan, main.config, size=WHERE.size or ())
    shown = run_demo(main.model, case, seed=3)
    span = case.data_range
    for row in shown.rows:
        if row.name in ROWS:
            record = results.records[1][row.name]
            assert record["psnr"] == pytest.approx(row.psnr, abs=1e-3), row.name
            assert record["ssim"] == pytest.approx(row.ssim, abs=1e-4)
            assert record["spectrum"] == pytest.approx(row.spectrum, abs=1e-4)
    volume, truth = shown.volumes["fuse"], shown.volumes["truth"]
    intensity = case.prepared.intensity
    inside = intensity.normalise(truth) > -0.95
    record = results.records[1]["fuse"]
    assert record["psnr_inside"] == pytest.approx(psnr(volume, truth, span, inside=inside), abs=1e-3)
    assert record["ssim_inside"] == pytest.approx(ssim(volume, truth, span, inside=inside), abs=1e-4)
    assert record["correlation"] == pytest.approx(compare_spectra(volume, truth).upper_correlation, abs=1e-4)
    assert record["consistency"] < 1e-5 and record["seconds"] > 0
    stored = store.volume(results.keys[1]["fuse"])
    np.testing.assert_allclose(stored, intensity.normalise(volume), atol=2e-3)


def test_without_consistency_the_measurement_is_missed(found: tuple[Results, list[Method], Store]) -> None:
    record = found[0].records[0]
    assert record["fuse+features without consistency"]["consistency"] > 1e-3
    assert record["trilinear"]["consistency"] > 1e-3 > record["fuse+features"]["consistency"]


def test_denoising_errors_by_strategy(found: tuple[Results, list[Method], Store]) -> None:
    errors = found[0].denoising[2][""]
    assert list(errors)[0] == "single" and {"average", "fuse", "fuse+features"} <= set(errors)
    planes = [errors[f"single {plane}"] for plane in ("axial", "coronal", "sagittal")]
    np.testing.assert_allclose(errors["single"], np.mean(planes, axis=0))


def test_what_is_done_is_not_done_again(
    main: Contender,
    folder: Path,
    found: tuple[Results, list[Method], Store],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results, methods, store = found

    def refuse(*_: object) -> None:
        raise AssertionError("sampled again")

    monkeypatch.setattr(SharedStart, "draw", refuse)
    subjects = find_cases(folder / "data", main.config)
    again = evaluate(main, [], methods, subjects, store, where=WHERE, settings=Settings(seed=3))
    assert again.records == results.records and again.keys == results.keys
    with pytest.raises(AssertionError, match="sampled again"):
        evaluate(main, [], methods, subjects, store, where=WHERE, settings=Settings(seed=4))
    other = contender(tiny_model(main.config, seed=5))
    with pytest.raises(AssertionError, match="sampled again"):
        evaluate(other, [], rows(other), subjects, store, where=WHERE, settings=Settings(seed=3))


def test_stored_volumes_are_measured_again_when_a_definition_changed(
    main: Contender, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subjects, store = find_cases(folder / "data", main.config, count=1), Store(tmp_path)
    methods = [method for method in model_methods(main) if method.name == "average"]
    settings = Settings(denoise=False)
    first = evaluate(main, [], methods, subjects, store, where=WHERE, settings=settings)
    key, record = first.keys[0]["average"], first.records[0]["average"]
    store.put(key, {**record, "psnr": 0.0, "version": 0})
    monkeypatch.setattr(SharedStart, "draw", None)
    again = evaluate(main, [], methods, subjects, store, where=WHERE, settings=settings).records[0]["average"]
    for figure in ("psnr", "ssim", "spectrum", "patches"):
        assert again[figure] == pytest.approx(record[figure], rel=1e-2, abs=1e-3), figure
    for figure in ("consistency", "seconds", "version"):
        assert again[figure] == record[figure]
    assert store.record(key) == again


def test_a_stopped_evaluation_goes_on(
    main: Contender, folder: Path, found: tuple[Results, list[Method], Store], tmp_path: Path
) -> None:
    subjects, store = find_cases(folder / "data", main.config), Store(tmp_path / "cache")
    settings = Settings(seed=3, denoise=False)

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(main, [], rows(main), subjects, store, where=WHERE, settings=settings, callback=stop)
    kept = {path.name: path.stat().st_mtime_ns for path in store.folder.iterdir()}
    assert len(kept) > 20
    (store.folder / sorted(kept)[0].replace(".npy", ".json")).write_text("torn")
    results = evaluate(main, [], rows(main), subjects, store, where=WHERE, settings=settings)
    unchanged = [name for name, time in kept.items() if (store.folder / name).stat().st_mtime_ns == time]
    assert len(unchanged) >= len(kept) - 2
    for mine, whole in zip(results.records, found[0].records, strict=True):
        for name in ROWS:
            assert mine[name]["psnr"] == pytest.approx(whole[name]["psnr"], abs=1e-4)


@pytest.fixture(scope="module")
def summary(found: tuple[Results, list[Method], Store]) -> Summary:
    results, methods, store = found
    return summarise(results, methods, store, [feature_network("random")], main="fuse+features")


def test_summary(found: tuple[Results, list[Method], Store], summary: Summary) -> None:
    results, _, store = found
    lines = {line.name: line for line in summary.lines}
    assert list(lines) == [*ROWS[:7], "single", *ROWS[7:]] and summary.main == "fuse+features"
    planes = [f"single {plane}" for plane in ("axial", "coronal", "sagittal")]
    by_hand = [np.mean([record[name]["psnr"] for name in planes]) for record in results.records]
    assert summary.values["single"]["psnr"] == pytest.approx(by_hand)
    assert lines["single"].figures["psnr"].mean == pytest.approx(np.mean(by_hand))
    estimate = lines["fuse"].figures["psnr"]
    assert estimate.low < estimate.mean < estimate.high and estimate.count == 3
    assert [(c.name, c.other) for c in summary.order["psnr"]] == [
        ("average", "single"), ("fuse", "average"), ("fuse+features", "fuse"),
    ]  # fmt: skip
    assert len(summary.against["ssim"]) == len(ROWS)
    change = next(c for c in summary.against["psnr"] if c.name == "fuse")
    expected = np.mean([r["fuse"]["psnr"] - r["fuse+features"]["psnr"] for r in results.records])
    assert change.difference.mean == pytest.approx(expected) and change.adjusted >= change.p


def test_sets(found: tuple[Results, list[Method], Store], summary: Summary) -> None:
    results, _, store = found
    network = feature_network("random")
    crowds = []
    for row in ("average", "truth"):
        vectors = [
            network.vectors(store.volume(keys[row]), store.volume(keys["truth"]) > -0.95)
            for keys in results.keys
        ]
        crowds.append(Moments.of(np.concatenate(vectors)))
    line = next(line for line in summary.lines if line.name == "average")
    assert line.sets["fid random"].mean == pytest.approx(frechet_distance(*crowds), rel=1e-6, abs=1e-9)
    assert line.sets["fid random"].low <= line.sets["fid random"].mean <= line.sets["fid random"].high
    # The authors' own formula: the squared distance of the mean volumes, each from 0 to 1.
    spans = [case["data_range"] for case in results.cases]
    means = []
    for row in ("average", "truth"):
        volumes = [store.volume(keys[row]).astype(np.float64) for keys in results.keys]
        means.append(np.mean([v / span for v, span in zip(volumes, spans, strict=True)], axis=0))
    assert line.sets["mmd voxels"].mean == pytest.approx(((means[0] - means[1]) ** 2).sum(), rel=1e-3)


def test_flop_is_what_pytorch_counts(main: Contender) -> None:
    methods = {method.name: method for method in rows(main)}
    size = (8, 8, 8)
    one, condition = torch.zeros(1, 1, *size), torch.zeros(1, 1, *size)
    from scorefusion.diffusion.level import NoiseLevel

    level = NoiseLevel.of(0.5, 0, 1, one.device)
    for name, strategy in (("single axial", "single"), ("one-step fuse+features", "fuse+features")):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            main.model(one, condition, level, strategy=strategy)
        steps = len(methods[name].table)
        counted = counter.get_total_flops() * steps * 2
        assert flop_of(methods[name], size, Settings(samples=2)) == pytest.approx(counted, rel=0.1)


def test_samples_are_averaged(main: Contender, folder: Path, tmp_path: Path) -> None:
    methods = [method for method in model_methods(main) if method.name == "average"]
    subjects = find_cases(folder / "data", main.config, count=1)
    store, settings = Store(tmp_path), Settings(seed=3, samples=2, denoise=False)
    results = evaluate(main, [], methods, subjects, store, where=WHERE, settings=settings)
    from test_evaluate_case import case_of

    case = case_of(folder / "data", main.config, WHERE)
    drawn = []
    for number in range(2):
        start = SharedStart(main.model, case.known.prepared, case.known.box, 3, number)
        assert methods[0].run is not None
        drawn.append(case.known.volume(start.draw(methods[0].run, methods[0].table), main.config))
    assert np.abs(drawn[0] - drawn[1]).max() > 1e-3
    found = store.volume(results.keys[0]["average"])
    np.testing.assert_allclose(found, np.mean(drawn, axis=0), atol=2e-3)


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
    again = CliRunner().invoke(app, command(folder, *options, "--real", "--quiet"))
    assert again.exit_code == 0 and "real, 2 subjects" in again.stdout and again.stderr == ""
    assert (out / "subjects.csv").read_text().splitlines()[1:] != []


def test_one_subject_has_no_intervals(folder: Path) -> None:
    file = folder / "data/sub-000/sub-000_t1.nii.gz"
    given = ["evaluate", str(folder / "tiny"), str(file), "--box", "8,8,8", "--strategies", "average"]
    given += ["--without-consistency", "none", "--no-denoise", "-o", str(folder / "one"), "--device", "cpu"]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, (done.output, done.exception)
    text = (folder / "one/summary.json").read_text()
    row = json.loads(text)["rows"][0]
    assert row["figures"]["psnr"]["low"] is None and "NaN" not in text and "fid random" not in row["sets"]
    assert "real, 1 subject " in done.stdout, "a file whose own folder holds no phantom.json"


def test_best_median_and_worst(summary: Summary, found: tuple[Results, list[Method], Store]) -> None:
    results = found[0]
    chosen = chosen_subjects(summary, results)
    scores = [results.records[number]["fuse+features"]["psnr"] for _, number in chosen]
    assert [label.split()[0] for label, _ in chosen] == ["Best", "Median", "Worst"]
    assert scores == sorted(scores, reverse=True)


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
