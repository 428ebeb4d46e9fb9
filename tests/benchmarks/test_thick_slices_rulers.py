"""The rulers of thick slices against closed forms, and their commands on a small head."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.thick_slices.__main__ import program
from benchmarks.thick_slices.heads import Case, interpolations, read_head, sliced
from benchmarks.thick_slices.rulers import (
    Lesion,
    calibration,
    cone_correlation,
    contrast_and_volume,
    dots,
    figures,
    paint,
    unmatched,
)
from scorefusion.errors import BadInput
from tests.support.thick import tiny_iso
from tests.support.tiny import tiny_model


@pytest.fixture
def head(tmp_path: Path) -> Path:
    """A bright ball with structure, 48 voxels of 1 mm along each edge."""
    z, y, x = np.indices((48,) * 3) - 23.5
    ball = np.sqrt(z**2 + y**2 + x**2) < 20
    waves = 600 + 150 * np.sin(z / 2) * np.cos(y / 3) + 100 * np.sin(x / 2.5)
    nib.save(nib.Nifti1Image((ball * waves).astype(np.float32), np.eye(4)), tmp_path / "head.nii.gz")
    return tmp_path / "head.nii.gz"


def test_slices_and_interpolations_of_a_known_head(head: Path, tmp_path: Path) -> None:
    known = read_head(head)
    assert known.voxel == 1 and 0.2 < known.inside.mean() < 0.45
    for axis in range(3):
        given = sliced(known, Case(4, 1.0, axis))
        assert given.slices.shape == (12, 48, 48) and given.truth.shape == (48, 48, 48)
        means = given.truth.reshape(12, 4, 48, 48).mean(axis=1)
        np.testing.assert_allclose(given.slices, means, atol=1e-3)
        np.testing.assert_array_equal(given.turned(np.asarray(given.image.dataobj)), given.slices)
        found = {k: figures(v, given, known.peak) for k, v in interpolations(given).items()}
        assert found["linear+consistency"]["inconsistency"] < 1e-5 < found["linear"]["inconsistency"]
        assert found["linear"]["psnr"] < found["linear+consistency"]["psnr"]
    perfect = figures(given.truth, given, known.peak)
    assert perfect["psnr"] == np.inf and perfect["ssim"] == pytest.approx(1) and perfect["cone"] > 0.999
    nib.save(nib.Nifti1Image(np.ones((8, 8, 8), np.float32), np.diag([1, 1, 2, 1])), tmp_path / "thick.nii")
    with pytest.raises(BadInput, match="isotropic|all equal|contrast"):
        read_head(tmp_path / "thick.nii")


def test_the_cone_is_about_the_slices_axis() -> None:
    z, y, _ = np.indices((32, 32, 32))
    along, across = np.cos(2 * np.pi * 10 * z / 32), np.cos(2 * np.pi * 10 * y / 32)
    noise = np.random.default_rng(0).normal(0, 0.01, (32, 32, 32))
    truth = along + across + noise
    assert cone_correlation(along + noise, truth, 4) > 0.9, "what is across does not count"
    assert cone_correlation(across + np.roll(noise, 5), truth, 4) < 0.5


def test_lesions_are_measured_as_they_are_painted() -> None:
    flat = np.full((40, 40, 40), 100.0, np.float32)
    lesion = Lesion((20.0, 18.0, 21.0), 6.0, 50.0)
    change = paint(flat, [lesion]) - flat
    contrast, volume = contrast_and_volume(change, lesion)
    assert contrast == pytest.approx(1) and volume == pytest.approx(np.pi / 6 * 6**3, rel=0.2)
    assert contrast_and_volume(0.4 * change, lesion)[0] == pytest.approx(0.4)
    inside = np.ones(flat.shape, bool)
    found = dots(paint(flat, [lesion, Lesion((8.0, 30.0, 9.0), 4.0, 50.0)]), inside, 5.0)
    assert len(found) == 2 and unmatched(found, found[:1], 3.0) == 1 and unmatched(found[:0], found, 3.0) == 0


def test_calibration_of_errors_that_the_deviation_foretells() -> None:
    random = np.random.default_rng(0)
    deviation = random.uniform(0.5, 3.0, 200_000)
    error = 2 * deviation * random.standard_normal(len(deviation))
    found = calibration(error, deviation)
    assert found["factor"] == pytest.approx(2 * 1.2816, rel=0.01)  # twice the normal quantile of 90%
    assert found["coverage"] == pytest.approx(0.4783, abs=0.005)  # within 0.6408 deviations
    assert 0.3 < found["rank"] < 0.6 and 0.3 < found["sparsification"] < 0.7
    told = calibration(np.abs(error), np.abs(error))
    assert told["rank"] == pytest.approx(1) and told["sparsification"] == pytest.approx(1)
    blind = calibration(random.standard_normal(len(deviation)), deviation)
    assert abs(blind["rank"]) < 0.02 and abs(blind["sparsification"]) < 0.02


def test_the_commands_go_on_where_they_were(head: Path, tmp_path: Path) -> None:
    tiny_model(tiny_iso()).save_pretrained(tmp_path / "iso", card="# iso")
    out, run = tmp_path / "rows.jsonl", CliRunner().invoke
    options = ["-o", str(out), "--model", str(tmp_path / "iso")]
    few = ["cases", str(head), *options, "--steps", "4", "--widths", "0.8", "--axes", "zx", "--strategy"]
    assert run(program, [*few, "average"]).exit_code == 0
    assert run(program, [*few, "average,fuse"]).exit_code == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 2 * 5 and {row["case"] for row in rows} == {
        "z, step 4, thickness 0.8", "x, step 4, thickness 0.8",
    }  # fmt: skip
    average = [row["figures"] for row in rows if row["method"] == "average"]
    assert all(each["inconsistency"] < 1e-5 and np.isfinite(each["psnr"]) for each in average)
    assert run(program, ["lesions", str(head), *options, "--count", "1", "--thickness", "4"]).exit_code == 0
    drawn = ["spread", str(head), *options, "--samples", "3", "--axes", "z"]
    assert run(program, drawn).exit_code == 0
    assert json.loads(out.read_text().splitlines()[-1])["figures"]["evaluations"] == 4
    printed = run(program, ["table", str(out)]).output
    assert "| z, step 4, thickness 0.8 |" in printed and "dots invented" in printed
    assert "3 samples: factor" in printed
    picture = tmp_path / "a.png"
    assert run(program, ["figure", str(head), "-o", str(picture), *options[2:]]).exit_code == 0
    assert picture.stat().st_size > 5000
