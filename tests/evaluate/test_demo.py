"""The demonstration with a tiny random model: the right rows, honest geometry, files, and bad input."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from scorefusion.cli import app
from scorefusion.data import Box
from scorefusion.degradations import block_mean
from scorefusion.errors import ScoreFusionError
from scorefusion.evaluate.cases import Case
from scorefusion.evaluate.demo import FILES, Result, pooled_case, run_demo, table_text
from scorefusion.evaluate.shared_start import SharedStart, strategy_runs
from scorefusion.io.nifti import read_scan
from scorefusion.metrics import psnr
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.models.table import table_for
from scorefusion.pipeline import Pipeline
from tests.support.drawing import drawn
from tests.support.thick import tiny_iso
from tests.support.tiny import AFFINE, same_grid_config, tiny_config, tiny_model

NAMES = [
    "nearest",
    "trilinear",
    "trilinear+consistency",
    "b-spline",
    "single axial",
    "single coronal",
    "single sagittal",
    "single",
    "alternate",
    "average",
    "fuse",
    "fuse+features",
    "one-step average",
    "one-step fuse",
    "one-step fuse+features",
]
SAMPLED = [name for name in NAMES[4:] if name != "single"]
STRATEGIES = ("single", "alternate", "average", "fuse", "fuse+features")


def head(shape: tuple[int, int, int] = (22, 25, 19), affine: np.ndarray = AFFINE) -> nib.Nifti1Image:
    """An off-centre ball with a smooth pattern in it, on black."""
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"))
    centre = np.array([n / 2 + 1 for n in shape]).reshape(3, 1, 1, 1)
    inside = ((grid - centre) ** 2).sum(axis=0) < 81
    pattern = 500 + 200 * np.sin(grid[0]) * np.cos(0.8 * grid[1]) + 100 * np.sin(1.3 * grid[2])
    return nib.Nifti1Image((inside * pattern).astype(np.float32), affine)


@pytest.fixture(scope="module")
def model() -> ScoreFusion:
    return tiny_model(tiny_config(strategies=STRATEGIES))


@pytest.fixture(scope="module")
def case(model: ScoreFusion) -> Case:
    return pooled_case(read_scan(head()), model.config, size=(10, 12, 14), start=(2, 4, 6))


@pytest.fixture(scope="module")
def result(model: ScoreFusion, case: Case) -> Result:
    calls: list[tuple[int, int]] = []
    result = run_demo(model, case, steps=2, seed=3, callback=lambda done, total: calls.append((done, total)))
    assert calls == sorted(set(calls)) and calls[-1][0] == calls[-1][1]
    return result


def test_rows(result: Result, case: Case) -> None:
    assert list(result.rows) == NAMES
    rows = result.rows
    planes = [rows[f"single {plane}"] for plane in ("axial", "coronal", "sagittal")]
    for name in ("psnr", "ssim"):
        mean = np.mean([figures[name] for figures in planes])
        assert rows["single"][name] == pytest.approx(mean)
    truth = result.volumes["truth"]
    np.testing.assert_array_equal(truth, case.target[case.box.index][0, 0])
    # The range is the whole volume's: the pattern on black, not just what the box has of it.
    assert result.data_range == pytest.approx(float(np.ptp(head().get_fdata()[:22, :24, :18])), rel=1e-3)
    assert rows["fuse"]["psnr"] == pytest.approx(psnr(result.volumes["fuse"], truth, result.data_range))
    assert len({figures["psnr"] for figures in rows.values()}) == len(NAMES)


@pytest.mark.parametrize("name", [*SAMPLED, "trilinear+consistency", "nearest"])
def test_block_means_are_the_input(result: Result, case: Case, name: str) -> None:
    means = block_mean(torch.from_numpy(result.volumes[name])[None, None], 2)
    measured = case.measured[case.box.coarser(2).index]
    assert (means - measured).abs().max() < 1e-4 * measured.max()


def test_it_is_what_the_pipeline_gives(model: ScoreFusion) -> None:
    case = pooled_case(read_scan(head((16, 14, 18), np.eye(4))), model.config, size=(99, 99, 99))
    assert case.box == Box.whole((18, 14, 16))
    result = run_demo(model, case, steps=3, seed=5)
    pooled = nib.Nifti1Image(case.measured[0, 0].numpy().transpose(2, 1, 0), np.diag([2.0, 2, 2, 1]))
    pipeline = Pipeline(model, device="cpu", dtype="float32")
    for strategy in ("alternate", "average", "fuse", "fuse+features"):
        volume = pipeline(pooled, strategy=strategy, steps=3, seed=5, crop=False).volume
        np.testing.assert_allclose(
            result.volumes[strategy], volume.transpose(2, 1, 0), atol=1e-5 * result.data_range
        )


def test_another_sampler_than_the_models(model: ScoreFusion, case: Case, result: Result) -> None:
    sampling = model.config.sampling.model_copy(update={"solver": "ddpm", "sigma_min": 0.5})
    other = run_demo(model, case, sampling=sampling, steps=2, seed=3)
    assert other.solver == "ddpm" and other.steps == 2
    assert np.abs(other.volumes["fuse"] - result.volumes["fuse"]).max() > 1.0
    np.testing.assert_array_equal(other.volumes["one-step fuse"], result.volumes["one-step fuse"])


def test_sharing_the_start_changes_nothing(model: ScoreFusion, case: Case) -> None:
    shared, table = SharedStart(model, case.prepared, case.box, seed=1), table_for(model.config, steps=2)
    for run in strategy_runs(model.config):
        plain = drawn(model, case.prepared, case.box, table, strategy=run.strategy, planes=run.planes, seed=1)
        torch.testing.assert_close(shared.draw(run, table), plain, rtol=1e-5, atol=1e-5)


def test_before_training_fusing_is_averaging(case: Case) -> None:
    torch.manual_seed(0)
    fresh = ScoreFusion(tiny_config(strategies=("average", "fuse", "fuse+features"))).eval()
    volumes = run_demo(fresh, case, steps=2).volumes
    for name in ("fuse", "fuse+features"):
        np.testing.assert_allclose(volumes[name], volumes["average"], rtol=1e-5)


def test_the_default_box_is_in_the_middle_of_the_head(model: ScoreFusion) -> None:
    image = np.zeros((40, 30, 30), np.float32)
    image[20:36, 4:20, 10:26] = np.arange(16)[:, None, None] + 1
    case = pooled_case(read_scan(nib.Nifti1Image(image, np.eye(4))), model.config, size=(8, 8, 8))
    assert case.box == Box((14, 8, 24), (22, 16, 32))


def test_coarsening_averages_the_truth_and_its_affine(model: ScoreFusion) -> None:
    image = head((40, 33, 37), np.eye(4))
    case = pooled_case(read_scan(image), model.config, coarsen=2, size=(8, 8, 8))
    assert case.target.shape[2:] == (18, 16, 20) and "averaged over 2×2×2" in case.file
    first = image.get_fdata()[20:22, 16:18, 18:20].mean()
    assert float(case.target[0, 0, 9, 8, 10]) == pytest.approx(first, rel=1e-5)
    np.testing.assert_allclose(case.affine @ [10, 8, 9, 1], [20.5, 16.5, 18.5, 1])


def test_the_table_begins_with_psnr(result: Result) -> None:
    lines = table_text(result.rows).splitlines()
    assert not re.search(r"\d", lines[0]) and len(lines) == len(NAMES) + 1
    for line, (name, figures) in zip(lines[1:], result.rows.items(), strict=True):
        assert line.startswith(name)
        numbers = re.findall(r"-?\d+\.\d+", line)
        assert numbers[:2] == [f"{figures['psnr']:.2f}", f"{figures['ssim']:.3f}"] and len(numbers) == 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: ScoreFusion) -> Path:
    path = tmp_path_factory.mktemp("demo")
    model.save_pretrained(path / "tiny", card="# tiny")
    tiny_model(same_grid_config()).save_pretrained(path / "other", card="# other")
    nib.save(head(), path / "head.nii.gz")
    nib.save(head((7, 25, 25)), path / "thin.nii.gz")
    return path


def command(folder: Path, *options: str) -> list[str]:
    given = ["--data", str(folder / "head.nii.gz"), "--model", str(folder / "tiny"), "--device", "cpu"]
    return ["demo", *given, "-o", str(folder / "out"), "--box", "8,10,12@2,4,6", "--steps", "2", *options]


def test_files(folder: Path) -> None:
    done = CliRunner().invoke(app, command(folder))
    assert done.exit_code == 0, (done.output, done.exception)
    out = folder / "out"
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    truth, measured, output = (nib.load(out / f"{name}.nii.gz") for name in ("truth", "input", "output"))
    assert truth.shape == output.shape == (12, 10, 8) and measured.shape == (6, 5, 4)
    np.testing.assert_allclose(truth.affine, output.affine)
    np.testing.assert_allclose(truth.affine @ [0.5, 0.5, 0.5, 1], measured.affine @ [0, 0, 0, 1], atol=1e-4)
    np.testing.assert_allclose(truth.affine @ [0, 0, 0, 1], AFFINE @ [6, 4, 2, 1], atol=1e-4)
    original = head().get_fdata()
    np.testing.assert_allclose(truth.get_fdata(), original[6:18, 4:14, 2:10], rtol=1e-6)
    pooled = output.get_fdata().reshape(6, 2, 5, 2, 4, 2).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(pooled, measured.get_fdata(), atol=0.1)
    found = json.loads((out / "table.json").read_text())
    assert [row["name"] for row in found["rows"]] == NAMES and found["steps"] == 2
    assert found["box"] == {"start": [2, 4, 6], "stop": [10, 14, 18], "whole": [18, 24, 22]}
    text = (out / "table.txt").read_text()
    assert text.splitlines()[:16] == done.stdout.splitlines()[:16]
    assert "box of 8×10×12 voxels" in text and " s in all" in done.stdout
    assert (out / "report.png").read_bytes().startswith(b"\x89PNG")


def test_slices_of_some_millimetres(folder: Path, tmp_path: Path) -> None:
    tiny_model(tiny_iso()).save_pretrained(tmp_path / "iso", card="# iso")
    values = np.random.default_rng(0).uniform(100, 900, (24, 24, 41)).astype(np.float32)
    nib.save(nib.Nifti1Image(values, np.diag([1.0, 1.0, 0.8, 1.0])), tmp_path / "head.nii.gz")
    given = ["demo", "--data", str(tmp_path / "head.nii.gz"), "--model", str(tmp_path / "iso")]
    given += ["--box", "20,16,16"]
    done = CliRunner().invoke(app, [*given, "-o", str(tmp_path / "out"), "--device", "cpu"])
    assert done.exit_code == 0, (done.output, done.exception)
    assert "in slices of 4 mm, 5 voxels" in done.stdout and "one step, the posterior mean" in done.stdout
    names = [row["name"] for row in json.loads((tmp_path / "out" / "table.json").read_text())["rows"]]
    assert names[-3:] == ["average", "fuse", "fuse+features"] and "single axial" not in names
    measured = nib.load(tmp_path / "out" / "input.nii.gz")
    np.testing.assert_allclose(nib.affines.voxel_sizes(measured.affine), (1, 1, 4), rtol=1e-6)
    output = nib.load(tmp_path / "out" / "output.nii.gz").get_fdata()
    means = output.reshape(*output.shape[:2], -1, 5).mean(axis=3)
    np.testing.assert_allclose(means, measured.get_fdata(), atol=0.01)
    done = CliRunner().invoke(app, [*given, "-o", str(tmp_path / "out"), "--slices", "9"])
    assert done.exit_code and "give --slices 1.6 to 6.4" in done.stderr


def test_a_picture_that_cannot_be_drawn_costs_no_table(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no font")

    monkeypatch.setattr("scorefusion.evaluate.demo.report_figure", broken)
    done = CliRunner().invoke(app, command(folder, "-o", str(tmp_path / "out"), "--quiet"))
    assert done.exit_code == 0 and "PSNR dB" in done.stdout, (done.output, done.exception)
    picture = tmp_path / "out" / "report.png"
    assert done.stderr == f"scorefusion: {picture}: could not be written (no font)\n"
    assert {path.name for path in picture.parent.iterdir()} == set(FILES) - {"report.png"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--data", "nowhere.nii.gz"], "nowhere.nii.gz: does not exist. For the default data run"),
        (["--model", "t1-sr5"], "unknown model 't1-sr5'"),
        (["--model", "OTHER"], "model 'tiny' has degradation 'none' and 2 conditions"),
        (["--data", "THIN"], "has 25 × 25 × 7 voxels, too few"),
        (["--box", "8,8"], "--box needs Z,Y,X or Z,Y,X@Z,Y,X"),
        (["--box", "2,8,8"], "a box needs at least 8 voxels along each axis"),
        (["--box", "8,8,8@-1,0,0"], "a number is out of range"),
        (["--coarsen", "0"], "a number is out of range"),
        (["--output", "THIN"], "cannot be made (File exists)"),
        (["--steps", "0"], "at least 1"),
        (["--solver", "ddmp"], "unknown solver 'ddmp'; did you mean 'ddpm'"),
        (["--sigma-min", "30"], "0 < sigma_min < sigma_max"),
        (["--nan", "maybe"], "unknown treatment of NaN 'maybe'"),
    ],
)
def test_bad_input(folder: Path, tmp_path: Path, options: list[str], says: str) -> None:
    places = {"OTHER": str(folder / "other"), "THIN": str(folder / "thin.nii.gz")}
    options = [places.get(option, option) for option in options]
    done = CliRunner().invoke(app, command(folder, "-o", str(tmp_path / "new"), *options))
    assert done.exit_code == 2 and says in done.stderr, (done.output, done.exception)
    assert not (tmp_path / "new").exists()


def test_a_result_that_is_not_finite_is_an_error(case: Case) -> None:
    broken = tiny_model(tiny_config(strategies=("average",)))
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    with pytest.raises(ScoreFusionError, match="'average' is not finite"):
        run_demo(broken, case, steps=1)
