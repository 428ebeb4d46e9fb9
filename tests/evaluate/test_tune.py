"""Tuning with a tiny random model: the settings, the measuring, the choice, the files and the verb."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from scorefusion.cli import app
from scorefusion.errors import ScoreFusionError
from scorefusion.evaluate.cases import Case, make_cases
from scorefusion.evaluate.tune import (
    Curve,
    Point,
    candidates,
    choose,
    noise_range,
    parse_solver,
    reference_sampling,
    solver_name,
    table_of,
    tune,
)
from scorefusion.metrics import compare_spectra, psnr, ssim
from scorefusion.models.config import SamplingConfig
from scorefusion.models.presets import preset
from scorefusion.models.score_fusion import ScoreFusion
from tests.support.drawing import drawn
from tests.support.tiny import AFFINE, same_grid_config, tiny_config, tiny_model

SAMPLING = SamplingConfig(solver="ddpm", steps=2, sigma_max=5.0, sigma_min=0.2, strategy="fuse")


def image(shape: tuple[int, int, int] = (18, 20, 22), seed: int = 0) -> nib.Nifti1Image:
    """An off-centre ball of random texture on black."""
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"))
    ball = ((grid - 9) ** 2).sum(axis=0) < 64
    values = 300 + 200 * np.random.default_rng(seed).random(shape)
    return nib.Nifti1Image((ball * values).astype(np.float32), AFFINE)


@pytest.fixture(scope="module")
def model() -> ScoreFusion:
    return tiny_model(tiny_config(sampling=SAMPLING))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: ScoreFusion) -> Path:
    path = tmp_path_factory.mktemp("tune")
    model.save_pretrained(path / "tiny", card="# tiny")
    tiny_model(same_grid_config()).save_pretrained(path / "pairs", card="# pairs")
    for number in range(3):
        nib.save(image(seed=number), path / f"{number}.nii.gz")
    return path


@pytest.fixture(scope="module")
def subjects(folder: Path, model: ScoreFusion) -> list[Case]:
    files = [folder / "0.nii.gz", folder / "1.nii.gz"]
    return make_cases(files, model.config, size=(10, 12, 14))


@pytest.fixture(scope="module")
def curve(model: ScoreFusion, subjects: list[Case]) -> Curve:
    calls: list[tuple[int, int]] = []
    tried = candidates(model.config, solvers=("ddpm", "ddim"), evaluations=(1, 3), sigma_min=(0.2, 1.0))
    reference = reference_sampling(model.config, 5)
    curve = tune(
        model, subjects, tried, reference=reference, callback=lambda done, total: calls.append((done, total))
    )
    # For each subject one shared evaluation, 4 of the reference, 1 of the two own steps, and 2 more of
    # either solver over either range.
    assert calls == [(done, 28) for done in range(1, 29)]
    return curve


def test_candidates_are_every_combination_once(model: ScoreFusion) -> None:
    tried = candidates(model.config, solvers=("ddpm", "ddim:0.5"), evaluations=(1, 3), sigma_min=(0.2, 1.0))
    names = [(solver_name(way), way.steps, way.sigma_min) for way in tried]
    # One evaluation is the posterior mean, whatever the solver and wherever the noise ends.
    assert names == [
        ("ddpm", 1, 0.2),
        ("ddpm", 3, 0.2),
        ("ddpm", 3, 1.0),
        ("ddim:0.5", 3, 0.2),
        ("ddim:0.5", 3, 1.0),
    ]
    ends = {way.sigma_min for way in candidates(model.config)}
    assert ends == {0.2, 0.4, 0.8}
    crowded = candidates(
        model.config, solvers=("ddim",), evaluations=(1, 3), rho=(7.0, -2.0), sigma_min=(1.0,)
    )
    assert [noise_range(way) for way in crowded] == ["5 to 1", "5 to 1", "5 to 1, rho -2"]
    heun = candidates(model.config, solvers=("heun",), evaluations=(2, 3, 5), sigma_min=(0.2,))
    assert [len(table_of(model.config, way)) for way in heun] == [3, 5]


def test_an_imported_model_keeps_its_schedule() -> None:
    config = preset("paper")
    assert reference_sampling(config) == config.sampling
    tried = candidates(config, solvers=("ddim",), evaluations=(1, 4))
    assert [len(table_of(config, way)) for way in tried] == [1, 4]
    with pytest.raises(ScoreFusionError, match="rho are for the karras schedule; model 'paper' has 'paper'"):
        candidates(config, sigma_min=(0.1,))


def test_the_reference_is_ancestral_over_the_models_own_range(model: ScoreFusion) -> None:
    table = table_of(model.config, reference_sampling(model.config))
    sigma = np.sqrt((1 - table.rows[:, 0]) / table.rows[:, 0])
    assert len(table) == 50 and table.name == "ddpm"
    assert sigma[0] == pytest.approx(5.0) and sigma[-1] == pytest.approx(0.2)


def test_figures_are_those_of_plain_sampling(curve: Curve, model: ScoreFusion, subjects: list[Case]) -> None:
    point = curve.points[-1]
    assert point.sampling.solver == "ddim" and point.evaluations == 3
    found = []
    for subject in subjects:
        table = table_of(model.config, point.sampling)
        residual = drawn(model, subject.prepared, subject.box, table, strategy="fuse")
        found.append(subject.volume(residual))
    pairs = [(volume, subject.truth) for volume, subject in zip(found, subjects, strict=True)]
    spans = [subject.data_range for subject in subjects]
    close = [psnr(*pair, span) for pair, span in zip(pairs, spans, strict=True)]
    alike = [ssim(*pair, span) for pair, span in zip(pairs, spans, strict=True)]
    figures, errors = point.figures, [compare_spectra(*pair).error for pair in pairs]
    assert figures["psnr"] == pytest.approx(np.mean(close), abs=1e-4)
    assert figures["ssim"] == pytest.approx(np.mean(alike), abs=1e-5)
    assert figures["spectrum"] == pytest.approx(np.mean(errors), abs=1e-5)
    assert figures["spectrum"] >= abs(figures["spectrum_signed"]) and -1.0 <= figures["correlation"] <= 1.0
    assert point.seconds == pytest.approx(3 / 5 * curve.reference.seconds)


def test_pooling_measures_in_the_images_own_range(subjects: list[Case], folder: Path) -> None:
    whole = nib.load(folder / "0.nii.gz").get_fdata()
    half_range = subjects[0].prepared.intensity.half_range
    assert subjects[0].data_range * half_range == pytest.approx(np.ptp(whole), rel=1e-5)
    assert subjects[0].truth.shape == (10, 12, 14)


def test_conditions_and_their_target(folder: Path) -> None:
    config = same_grid_config()
    files = [folder / f"{number}.nii.gz" for number in range(3)]
    subject = make_cases(files, config, size=(8, 10, 12))[0]
    assert subject.prepared.condition.shape == (1, 2, 22, 20, 18) and subject.truth.shape == (8, 10, 12)
    assert subject.data_range == pytest.approx(2.0)
    nothing = subject.volume(torch.zeros(1, 1, 8, 10, 12))
    np.testing.assert_array_equal(nothing, subject.prepared.condition[:, :1][subject.box.index][0, 0])
    with pytest.raises(ScoreFusionError, match=r"3 files each \(t1, t2, flair\); got 2 files"):
        make_cases(files[:2], config, size=(8, 8, 8))


def point(evaluations: int, psnr: float, spectrum: float, patches: float, correlation: float = 0.5) -> Point:
    none = np.zeros(1)
    figures = {"psnr": psnr, "spectrum": spectrum, "patches": patches, "correlation": correlation}
    return Point(SAMPLING, evaluations, 1.0, figures, none, none, none)


def test_the_cheapest_that_is_no_worse_is_chosen() -> None:
    reference = point(50, 30.0, 0.2, 2e-3)
    blurred, grainy = point(1, 31.0, 0.5, 4e-3, 0.6), point(2, 30.5, 0.1, 1e-3, 0.4)
    good, better, dear = point(4, 30.0, 0.2, 2e-3), point(4, 30.0, 0.15, 2e-3), point(6, 31.0, 0.0, 0.0)
    assert choose([dear, blurred, good, better, grainy], reference) is better
    assert choose([blurred, grainy], reference) is None
    nearly = point(50, 29.99, 0.209, 2.1e-3, 0.48)
    exact = dict.fromkeys(reference.figures, 0.0)
    assert nearly.no_worse(reference) and reference.no_worse(reference, exact)
    assert not nearly.no_worse(reference, exact)
    for worse in ({"psnr": 29.0}, {"spectrum": 0.3}, {"patches": 3e-3}, {"correlation": 0.4}):
        assert not replace(reference, figures={**reference.figures, **worse}).no_worse(reference)


def test_parse_solver() -> None:
    assert parse_solver("ddpm") == {"solver": "ddpm", "eta": None, "spread": None}
    assert parse_solver("ddim:0.5") == {"solver": "ddim", "eta": 0.5, "spread": None}
    given = SamplingConfig(**parse_solver("ddim:0:0.2"))
    assert (given.eta, given.spread) == (0.0, 0.2) and solver_name(given) == "ddim:0:0.2"
    assert solver_name(SamplingConfig(spread=0.2)) == "ddim:0:0.2"
    with pytest.raises(ScoreFusionError, match="unknown solver 'ddmi'; did you mean 'ddim'"):
        parse_solver("ddmi")
    for wrong in ("ddim:much", "ddim:0:0:0"):
        with pytest.raises(ScoreFusionError, match=f"NAME:ETA:SPREAD.*'{wrong}'"):
            parse_solver(wrong)


def command(folder: Path, *options: str) -> list[str]:
    given = [str(folder / "tiny"), str(folder / "0.nii.gz"), "-o", str(folder / "out"), "--device", "cpu"]
    few = ["--box", "8,10,12", "--reference", "4", "--solvers", "ddim:0.5,dpmpp_2m", "--evaluations", "1,3"]
    return ["tune", *given, *few, "--dtype", "float32", *options]


def test_files_and_config(folder: Path) -> None:
    done = CliRunner().invoke(
        app, command(folder, "--sigma-min", "0.2,1", "--strategy", "average", "--write")
    )
    assert done.exit_code == 0, (done.output, done.exception)
    out = folder / "out"
    assert sorted(path.name for path in out.iterdir()) == ["tune.csv", "tune.json", "tune.png"]
    found = json.loads((out / "tune.json").read_text())
    assert found["reference"]["evaluations"] == 4 and len(found["points"]) == 5
    assert found["strategy"] == "average" and found["subjects"][0]["name"].endswith("0.nii.gz")
    assert len(found["points"][0]["frequency"]) == len(found["points"][0]["log10_power_ratio"]) == 4
    with (out / "tune.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 7 and float(rows[-1]["psnr"]) == pytest.approx(found["reference"]["psnr"], abs=1e-4)
    assert (out / "tune.png").read_bytes().startswith(b"\x89PNG")
    after = ScoreFusion.from_pretrained(folder / "tiny").config.sampling
    if found["chosen"] is None:
        assert "config.json is unchanged" in done.stdout and after == SAMPLING
    else:
        assert after == SamplingConfig(**found["chosen"]["sampling"] | {"strategy": "average"})


def test_the_choice_is_written_and_used(folder: Path, tmp_path: Path) -> None:
    """A slack reference of two steps is always matched: by two ancestral steps."""
    tiny_model(tiny_config(sampling=SAMPLING)).save_pretrained(tmp_path / "mine", card="# mine")
    options = ["--reference", "2", "--solvers", "ddpm", "--evaluations", "2", "--sigma-min", "0.2", "--write"]
    given = command(folder, *options)
    given[1] = str(tmp_path / "mine")
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0 and "written to" in done.stdout, done.output
    assert "*" in done.stdout.splitlines()[1]
    assert ScoreFusion.from_pretrained(tmp_path / "mine").config.sampling == SAMPLING


def test_a_picture_that_cannot_be_drawn_costs_no_table(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("scorefusion.evaluate.tune.curve_figure", broken)
    out = tmp_path / "out"
    done = CliRunner().invoke(app, command(folder, "--sigma-min", "0.2", "--quiet", "-o", str(out)))
    assert done.exit_code == 0 and "PSNR dB" in done.stdout, (done.output, done.exception)
    assert done.stderr == f"scorefusion: {out / 'tune.png'}: could not be written (MemoryError)\n"
    assert sorted(path.name for path in out.iterdir()) == ["tune.csv", "tune.json"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--solvers", "ddmi"], "unknown solver 'ddmi'"),
        (["--evaluations", "0"], "--evaluations needs positive numbers"),
        (["--sigma-min", "a"], "--sigma-min needs positive numbers"),
        (["--sigma-min", "9"], "sigma_min < sigma_max"),
        (["--seeds", "0"], "seeds must be at least 1"),
        (["--strategy", "volum"], "unknown strategy 'volum'"),
        (["--box", "2,2,2"], "a box needs at least 8"),
    ],
)
def test_bad_input(folder: Path, tmp_path: Path, options: list[str], says: str) -> None:
    done = CliRunner().invoke(app, command(folder, *options, "-o", str(tmp_path / "new")))
    assert done.exit_code == 2 and says in done.stderr, (done.output, done.exception)
    assert not (tmp_path / "new").exists()
