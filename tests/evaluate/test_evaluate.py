"""Evaluation with tiny models: rows, figures, resuming, sets, report and command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from scorefusion.evaluate.cases import Where, find_cases
from scorefusion.evaluate.demo import pooled_case, run_demo
from scorefusion.evaluate.methods import Contender, Method, choose_baselines, model_methods
from scorefusion.evaluate.output import Store
from scorefusion.evaluate.report import chosen_subjects
from scorefusion.evaluate.run import Results, Settings, evaluate, flop_of
from scorefusion.evaluate.sets import feature_network
from scorefusion.evaluate.shared_start import SharedStart
from scorefusion.evaluate.summary import Summary, summarise
from scorefusion.io.nifti import read_scan
from scorefusion.metrics import Moments, compare_spectra, frechet_distance, psnr, ssim
from scorefusion.models.score_fusion import ScoreFusion
from tests.evaluate.test_evaluate_case import write_subjects
from tests.evaluate.test_evaluate_sets import paired_loop, width_of
from tests.support.tiny import tiny_config, tiny_model

STRATEGIES = ("single", "alternate", "average", "fuse", "fuse+features")
WHERE = Where((8, 10, 12))
ROWS = [
    "nearest", "trilinear", "trilinear+consistency", "b-spline", "single axial", "single coronal",
    "single sagittal", "alternate", "average", "fuse", "fuse+features",
    "fuse+features without consistency", "one-step average", "one-step fuse", "one-step fuse+features",
]  # fmt: skip


def contender(model: ScoreFusion, name: str = "") -> Contender:
    config = model.config
    return Contender(name, model, config.strategies, config.sampling)


def rows(main: Contender) -> list[Method]:
    return choose_baselines(None, main.config) + model_methods(main, without_consistency=("fuse+features",))


@pytest.fixture(scope="module")
def main() -> Contender:
    return contender(tiny_model(tiny_config(strategies=STRATEGIES)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three subjects."""
    path = tmp_path_factory.mktemp("evaluate")
    write_subjects(path / "data")
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
    case = pooled_case(scan, main.config, size=WHERE.size or ())
    shown = run_demo(main.model, case, seed=3)
    span = shown.data_range
    for name, figures in shown.rows.items():
        if name in ROWS:
            record = results.records[1][name]
            assert record["psnr"] == pytest.approx(figures["psnr"], abs=1e-3), name
            assert record["ssim"] == pytest.approx(figures["ssim"], abs=1e-4)
            assert record["spectrum"] == pytest.approx(figures["spectrum"], abs=1e-4)
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


def test_keys_of_stored_results_are_those_of_earlier_versions(main: Contender, folder: Path) -> None:
    from scorefusion.evaluate.run import _Turn
    from tests.evaluate.test_evaluate_case import case_of

    turn = _Turn(case_of(folder / "data", main.config, WHERE), Store(folder / "none"), Settings(), None)
    assert turn.parts["main"] == (
        "(('t1',), 't1', DegradationConfig(kind='block-mean', factor=2, edges=None, axis=None, "
        "thickness=None, gap=0, profile='box', fraction=0.5, acceleration=None, centre=0.08, seed=None, "
        "views=None, detector=None, hole=0.25, holes=1, noise=0.0), 'minmax', 1)"
    )
    assert Store(folder).key("sub-000 truth", case="x", main="y") == "sub-000-truth-927b7a573253ba1c"


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
    drawn, truths = (
        np.array([store.volume(keys[row]) for keys in results.keys]) for row in ("average", "truth")
    )
    expected = paired_loop(drawn, truths, width_of(truths))
    assert line.sets["mmd voxels"].mean == pytest.approx(expected, rel=1e-6)


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
    from tests.evaluate.test_evaluate_case import case_of

    case = case_of(folder / "data", main.config, WHERE)
    drawn = []
    for number in range(2):
        start = SharedStart(main.model, case.prepared, case.box, 3, number)
        assert methods[0].run is not None
        drawn.append(case.volume(start.draw(methods[0].run, methods[0].table)))
    assert np.abs(drawn[0] - drawn[1]).max() > 1e-3
    found = store.volume(results.keys[0]["average"])
    np.testing.assert_allclose(found, np.mean(drawn, axis=0), atol=2e-3)


def test_best_median_and_worst(summary: Summary, found: tuple[Results, list[Method], Store]) -> None:
    results = found[0]
    chosen = chosen_subjects(summary, results)
    scores = [results.records[number]["fuse+features"]["psnr"] for _, number in chosen]
    assert [label.split()[0] for label, _ in chosen] == ["Best", "Median", "Worst"]
    assert scores == sorted(scores, reverse=True)
