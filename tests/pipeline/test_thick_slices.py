"""Thick slices through the pipeline: any axis and orientation, exact consistency, geometry, files beside."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.affines import apply_affine
from pydicom.dataset import Dataset

from scorefusion import Pipeline, read_dicom_series, save_dicom_series
from scorefusion.cli import app
from scorefusion.degradations import SliceStack
from scorefusion.errors import BadInput, OutOfMemory, ScoreFusionError
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.pipeline import Translation
from scorefusion.pipeline.footprint import Room
from tests.support.dicom_series import CT, MR, ORIENTATIONS, texture, write_series
from tests.support.thick import thick_scan, tiny_iso
from tests.support.tiny import tiny_model


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(tiny_model(tiny_iso()), dtype="float32")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model(tiny_iso()).save_pretrained(tmp_path / "iso", card="# iso\n\n> **For** tests.")
    return tmp_path / "iso"


def again(result: Translation, thick: int) -> np.ndarray:
    """What the result measures, in the scan's own order; ``thick`` is the slices' own axis."""
    assert result.slices is not None
    volume = np.moveaxis(result.volume, thick, 0)[None, None]
    operator = result.slices.measurement.operator(volume.shape[2:])
    assert operator is not None
    measured = operator.A(torch.from_numpy(np.ascontiguousarray(volume)))[0, 0].numpy()
    return np.moveaxis(measured, 0, thick)


@pytest.mark.parametrize("options", [{}, {"thickness": 3.6}, {"profile": "gaussian"}, {"spacing": 1.5}])
@pytest.mark.parametrize("thick", [0, 1, 2])
def test_the_result_measures_as_the_scan(pipeline: Pipeline, thick: int, options: dict[str, Any]) -> None:
    shape, edges = [14, 16, 18], [0.9, 0.9, 0.9]
    shape[thick], edges[thick] = 5, 4.5
    scan = thick_scan(tuple(shape), tuple(edges), turn=25.0)  # type: ignore[arg-type]
    result = pipeline(scan, **options)
    step = 3 if options.get("spacing") else 5
    assert [n // m for n, m in zip(result.volume.shape, shape, strict=True)] == [
        step if axis == thick else 1 for axis in range(3)
    ]
    values = scan.get_fdata()
    assert np.abs(again(result, thick) - values).max() <= 1e-5 * np.ptp(values)
    assert result.consistency_residual is not None
    assert result.consistency_residual.max <= 1e-5 * np.ptp(values)
    # the middle of a slice stays where it was
    place = np.array([3.0, 4.0, 2.0])
    fine = place.copy()
    fine[thick] = step * (place[thick] + 0.5) - 0.5
    np.testing.assert_allclose(apply_affine(result.affine, fine), apply_affine(scan.affine, place), atol=1e-5)
    np.testing.assert_allclose(result.image().affine, result.affine, atol=1e-5)
    assert np.isfinite(result.volume).all() and not np.allclose(np.diff(result.volume, axis=thick), 0)


@pytest.mark.parametrize("options", [{"thickness": 3.1}, {"profile": "gaussian", "thickness": 4.1}])
def test_memory_is_forecast_of_slices_that_overlap(
    pipeline: Pipeline, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where memory may be short, the preparation is traced with the scan's own measurement."""
    monkeypatch.setattr(Room, "roomy", lambda *_: False)
    scan = thick_scan()
    assert np.abs(again(pipeline(scan, **options), 2) - scan.get_fdata()).max() < 1e-2


def test_no_size_is_named_before_the_header_says_it(pipeline: Pipeline) -> None:
    short = Pipeline(pipeline.model, dtype="float32", max_memory="500MB")
    short._engines.max_memory = 10**6
    with pytest.raises(OutOfMemory, match=r"needs at least .*Crop it, or allow more\.$"):
        short(thick_scan())


def test_turned_scans_give_the_same_volume(pipeline: Pipeline) -> None:
    """Networks see the slices' axis first, so a scan and its turned copy differ by the turn alone."""
    scan = thick_scan()
    values = np.asarray(scan.dataobj)
    affine = scan.affine[:, [2, 0, 1, 3]]  # axes (k, i, j): i, j, k in RAS stay what they are
    turned = nib.Nifti1Image(values.transpose(2, 0, 1), affine)
    first, second = pipeline(scan), pipeline(turned)
    np.testing.assert_array_equal(first.volume.transpose(2, 0, 1), second.volume)


@pytest.mark.parametrize("options", [{}, {"thickness": 3.1}])
def test_a_result_within_the_range_of_the_input(pipeline: Pipeline, options: dict[str, Any]) -> None:
    scan = thick_scan()
    values = scan.get_fdata()
    result = pipeline(scan, clip="input", **options)
    assert result.volume.min() >= values.min() and result.volume.max() <= values.max()
    assert np.abs(again(result, 2) - values).max() <= 1e-5 * np.ptp(values)


@pytest.mark.parametrize("count", [2, 3])
def test_few_slices_are_enough(pipeline: Pipeline, count: int) -> None:
    result = pipeline(thick_scan((12, 12, count)))
    assert result.volume.shape == (12, 12, 5 * count)
    assert np.abs(again(result, 2) - thick_scan((12, 12, count)).get_fdata()).max() < 1e-2


def test_scans_of_different_slices_share_a_pipeline(pipeline: Pipeline) -> None:
    steps = {}
    for edge in (2.0, 4.5, 1.8, 4.5):
        result = pipeline(thick_scan(edges=(0.9, 0.9, edge)))
        assert result.slices is not None
        steps.setdefault(edge, []).append((result.slices.measurement.step, result.volume))
    assert [each[0][0] for each in steps.values()] == [2, 5, 2]
    np.testing.assert_array_equal(steps[4.5][0][1], steps[4.5][1][1])
    assert isinstance(pipeline.config.degradation, SliceStack) and pipeline.config.degradation.step == 5


@pytest.mark.parametrize("strategy", ["single", "average", "fuse", "fuse+features"])
def test_every_strategy_and_a_solver_of_steps(pipeline: Pipeline, strategy: str) -> None:
    scan = thick_scan()
    result = pipeline(scan, strategy=strategy, solver="ddpm", steps=3, samples=2)
    assert result.spread is not None and result.spread.max() > 0
    assert np.abs(again(result, 2) - scan.get_fdata()).max() <= 1e-5 * np.ptp(scan.get_fdata())


def test_a_crop_is_all_of_the_slices_axis(pipeline: Pipeline) -> None:
    values = np.zeros((40, 40, 6), np.float32)
    values[14:22, 15:24, 2:4] = np.random.default_rng(0).uniform(300, 900, (8, 9, 2))
    scan = nib.Nifti1Image(values, np.diag([1.0, 1.0, 4.0, 1.0]))
    job = pipeline.read(scan, pipeline.settings(profile="gaussian"))
    pipeline.prepare(job)
    assert job.box.size[0] == 24 and max(job.box.size[1:]) < 40
    pipeline.sample(job)
    result = pipeline.finish(job)
    assert np.abs(again(result, 2) - values).max() <= 1e-5 * np.ptp(values)


def test_the_engine_gives_what_the_model_gives() -> None:
    model = tiny_model(tiny_iso())
    scan = thick_scan((16, 16, 4), (0.9, 0.9, 3.6))
    pipeline = Pipeline(model, dtype="float32")
    result = pipeline(scan, strategy="average", crop=False)
    assert result.slices is not None and result.slices.measurement.step == 4
    from scorefusion.data import prepare_conditions
    from scorefusion.diffusion.level import NoiseLevel
    from scorefusion.ops.noise import normal

    settings = pipeline.settings(strategy="average")
    config = model.config.model_copy(update={"degradation": result.slices.measurement})
    values = np.ascontiguousarray(scan.get_fdata(dtype=np.float32).transpose(2, 1, 0))
    prepared = prepare_conditions([torch.from_numpy(values)[None, None]], config)
    row = torch.tensor(settings.table.rows[0])
    x = normal((1, 1, *prepared.base.shape[2:]), [0], 0) * (1 - settings.table.abar_start) ** 0.5
    inputs = model.prepare(prepared.condition, measurement=result.slices.measurement)
    level = NoiseLevel(row[:1], row[1:2].long())
    with torch.no_grad():
        x0 = row[2] * x + row[3] * model(x.float(), inputs, level, strategy="average")
    x0 = x0 - prepared.operator.A_dagger(prepared.operator.A(x0))  # type: ignore[union-attr]
    volume = prepared.intensity.denormalise(prepared.base + config.residual.scale * x0)
    np.testing.assert_allclose(volume[0, 0].numpy().transpose(2, 1, 0), result.volume, atol=0.5)


def test_a_sidecar_says_what_was_assumed(pipeline: Pipeline, tmp_path: Path) -> None:
    nib.save(thick_scan(), tmp_path / "a.nii.gz")
    said = {"SliceThickness": 4.0, "SliceTiming": [0, 1], "RepetitionTime": 9.0}
    (tmp_path / "a.json").write_text(json.dumps(said))
    result = pipeline(tmp_path / "a.nii.gz")
    assert result.slices is not None and result.slices.thickness == 4.0
    assert result.slices.measurement.width == pytest.approx(4.0 / 4.5)
    result.save(tmp_path / "b.nii.gz")
    written = json.loads((tmp_path / "b.json").read_text())
    assert written["RepetitionTime"] == 9.0 and "SliceTiming" not in written
    assert written["SliceThickness"] == pytest.approx(0.9) and written["Sources"] == ["a.nii.gz"]
    (made,) = written["GeneratedBy"]
    assert made["InputSliceThicknessFrom"] == "SliceThickness" and "box" in made["Assumed"][0]
    assert json.loads((tmp_path / "a.json").read_text()) == said


def test_an_input_keeps_its_own_sidecar(
    pipeline: Pipeline, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A result of the input's name but another ending would have the input's sidecar."""
    scan = tmp_path / "a.nii"
    nib.save(thick_scan(), scan)
    said = json.dumps({"SliceThickness": 4.0})
    (tmp_path / "a.json").write_text(said)
    with pytest.raises(BadInput, match=r"sidecar of the input .*a\.nii, a\.json.*another name"):
        pipeline(scan).save(tmp_path / "a.nii.gz")
    with pytest.raises(SystemExit):
        app(["translate", str(scan), "-o", str(tmp_path / "a.nii.gz"), "--model", str(folder)])
    assert "translating" not in capsys.readouterr().err
    with pytest.raises(SystemExit):
        app(["translate", str(scan), "-o", f"{tmp_path}/", "--model", str(folder)])
    assert "its output" in capsys.readouterr().err
    (tmp_path / "b.json").mkdir()
    with pytest.raises(SystemExit):
        app(["translate", str(scan), "-o", str(tmp_path / "b.nii.gz"), "--model", str(folder)])
    assert "is a folder" in capsys.readouterr().err
    assert not [*tmp_path.glob("*.nii.gz")] and (tmp_path / "a.json").read_text() == said


def test_a_batch_follows_the_sidecars(folder: Path, tmp_path: Path) -> None:
    """What an input's sidecar says decides the result; an output's sidecar is part of it."""
    (tmp_path / "in").mkdir()
    nib.save(thick_scan((12, 12, 3)), tmp_path / "in/a.nii.gz")
    arguments = ["translate", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--model", str(folder)]

    def thickness() -> float:
        app([*arguments, "--quiet"], standalone_mode=False)
        (made,) = json.loads((tmp_path / "out/a.json").read_text())["GeneratedBy"]
        return float(made["InputSliceThickness"])

    assert thickness() == pytest.approx(4.5)
    (tmp_path / "in/a.json").write_text(json.dumps({"SliceThickness": 4.0}))
    assert thickness() == 4.0
    written = (tmp_path / "out/a.nii.gz").stat().st_mtime_ns
    assert thickness() == 4.0 and (tmp_path / "out/a.nii.gz").stat().st_mtime_ns == written
    (tmp_path / "out/a.json").unlink()
    assert thickness() == 4.0


def test_a_series_in_the_working_folder(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(tmp_path / "study", texture((4, 14, 16)), spacing=(5.0, 0.9, 0.9))
    (tmp_path / "study.json").write_text(json.dumps({"RepetitionTime": 9.0}))
    monkeypatch.chdir(tmp_path / "study")
    pipeline(".").save("../study.nii.gz")
    written = json.loads((tmp_path / "study.json").read_text())
    assert written["Sources"] == ["study"] and "RepetitionTime" not in written, "a folder has no sidecar"


def test_the_command_says_how_it_was_sliced(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nib.save(thick_scan(), tmp_path / "a.nii.gz")
    out = tmp_path / "iso.nii.gz"
    arguments = ["translate", str(tmp_path / "a.nii.gz"), "-o", str(out), "--model", str(folder)]
    app([*arguments, "--gap", "0.5", "--dtype", "float32"], standalone_mode=False)
    text = capsys.readouterr().out
    assert "slices of 4 mm (step less gap), 4.5 mm apart, 0.9 × 0.9 mm in plane: 5 of 0.9 mm each" in text
    assert "assumed: the slice profile is taken for a box" in text
    assert nib.load(out).shape == (14, 16, 25) and (tmp_path / "iso.json").is_file()


def test_a_folder_of_different_slices(folder: Path, tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    for name, edge in (("a", 2.7), ("b", 4.5)):
        nib.save(thick_scan((12, 12, 4), (0.9, 0.9, edge)), scans / f"{name}.nii.gz")
    nib.save(thick_scan((12, 12, 12), (0.9, 0.9, 0.9)), scans / "c.nii.gz")
    with pytest.raises(SystemExit) as end:
        app(["translate", str(scans), "-o", str(tmp_path / "out"), "--model", str(folder), "--quiet"])
    assert end.value.code == 1, "c is not thick-sliced"
    assert [nib.load(tmp_path / "out" / f"{name}.nii.gz").shape for name in "ab"] == [
        (12, 12, 12), (12, 12, 20),
    ]  # fmt: skip
    assert json.loads((tmp_path / "out/b.json").read_text())["SliceThickness"] == pytest.approx(0.9)


def test_options_of_slices_are_for_models_of_slices(pipeline: Pipeline) -> None:
    other = Pipeline(tiny_model())
    with pytest.raises(ScoreFusionError, match="--thickness, --spacing: of thick slices"):
        other.settings(thickness=4.0, spacing=1.0)
    with pytest.raises(ScoreFusionError, match="box"):
        pipeline.settings(profile="bax")
    for values in ({"thickness": -1.0}, {"thickness": np.nan}, {"gap": np.inf}, {"spacing": 0.0}):
        (name,) = values
        with pytest.raises(ScoreFusionError, match=f"--{name} must be a number"):
            pipeline("no such file.nii.gz", **values)  # type: ignore[arg-type]
    assert "thickness" not in pipeline.settings().identity
    assert pipeline.settings(thickness=4.0).identity["thickness"] == 4.0
    with pytest.raises(BadInput, match="not thick-sliced"):
        pipeline(thick_scan(edges=(1.0, 1.0, 1.2)))


def test_loading_gives_the_measurement_back(folder: Path) -> None:
    model = ScoreFusion.from_pretrained(folder)
    assert model.config.degradation == tiny_iso().degradation


@pytest.mark.parametrize("orientation", ["axial", "sagittal", "oblique"])
def test_a_series_of_thick_slices_becomes_a_derived_series(
    pipeline: Pipeline, tmp_path: Path, orientation: str
) -> None:
    def thinner(image: Dataset, k: int) -> None:
        image.SliceThickness = 4.0

    given = {"orientation": ORIENTATIONS[orientation], "spacing": (5.0, 0.9, 0.95), "change": thinner}
    write_series(tmp_path / "thick", texture((4, 14, 16)), **given)  # type: ignore[arg-type]
    result = pipeline(tmp_path / "thick", output_dtype="input")
    assert result.slices is not None and result.slices.thickness_from == "SliceThickness"
    assert result.slices.measurement.width == pytest.approx(0.8) and result.slices.measurement.step == 5
    save_dicom_series(result, tmp_path / "iso")
    files = sorted((tmp_path / "iso").iterdir())
    again = read_dicom_series(tmp_path / "iso")
    assert len(files) == 20 and again.shape == result.volume.shape
    np.testing.assert_allclose(again.affine, result.affine, atol=1e-4)
    if shutil.which("dciodvfy"):
        for file in files:
            run = subprocess.run(["dciodvfy", str(file)], capture_output=True, check=False)
            said = (run.stdout + run.stderr).decode(errors="replace").splitlines()
            assert not [line for line in said if line.startswith("Error")], file


def test_a_series_of_different_thicknesses_is_named(pipeline: Pipeline, tmp_path: Path) -> None:
    def change(image: Dataset, k: int) -> None:
        image.SliceThickness = 4.0 if k % 2 else 2.0

    write_series(tmp_path / "mixed", texture((4, 14, 16)), spacing=(5.0, 0.9, 0.9), change=change)
    with pytest.raises(BadInput, match=r"different thickness \(2, 4 mm\)"):
        pipeline(tmp_path / "mixed")
    result = pipeline(tmp_path / "mixed", thickness=4.0)
    assert result.slices is not None and result.slices.measurement.width == pytest.approx(0.8)


def test_a_ct_is_told_by_its_modality(tmp_path: Path) -> None:
    """Also where it holds no air, so that its intensities could be those of an MR."""
    pipeline = Pipeline(tiny_model(tiny_iso(domain={"mri": {}})), dtype="float32")
    for kind, name in ((CT, "one"), (MR, "two")):
        write_series(tmp_path / name, texture((4, 14, 16)), spacing=(5.0, 0.9, 0.9), kind=kind)
    warnings = pipeline(tmp_path / "one").warnings
    assert any("is CT by its Modality, CT, and" in text and "made for MR" in text for text in warnings)
    assert not any("made for MR" in text for text in pipeline(tmp_path / "two").warnings)
    with pytest.raises(BadInput, match="made for MR"):
        pipeline(tmp_path / "one", strict=True)
    for suffix, wrong in (("FLAIR", False), ("T2starw", False), ("T1map", False), ("ct", True)):
        nib.save(thick_scan(), tmp_path / f"sub-1_{suffix}.nii.gz")
        warnings = pipeline(tmp_path / f"sub-1_{suffix}.nii.gz").warnings
        assert any("made for MR" in text for text in warnings) == wrong, suffix


def test_auto_is_the_bundled_model_of_thick_slices(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nib.save(thick_scan((24, 20, 4)), tmp_path / "flair.nii.gz")
    out = tmp_path / "iso.nii.gz"
    app(["translate", str(tmp_path / "flair.nii.gz"), "-o", str(out), "--quiet"], standalone_mode=False)
    result = Pipeline(dtype="float32")(tmp_path / "flair.nii.gz")
    assert result.model == "brain-iso" and nib.load(out).shape == result.volume.shape == (24, 20, 20)
    app(["translate", str(tmp_path / "flair.nii.gz"), "-o", str(out)], standalone_mode=False)
    assert "model brain-iso, chosen because the scan is thick-sliced: slices of" in capsys.readouterr().out
    nib.save(thick_scan((12, 12, 12), (1.0, 1.0, 1.0)), tmp_path / "iso_t1.nii.gz")
    with pytest.raises(SystemExit) as end:
        app(["translate", str(tmp_path / "iso_t1.nii.gz"), "-o", str(tmp_path / "no.nii.gz")])
    assert end.value.code == 2 and not (tmp_path / "no.nii.gz").exists()
    said = capsys.readouterr().err
    assert "is not thick-sliced" in said and "`scorefusion models`" in said


def test_every_contrast_of_a_bids_folder(folder: Path, tmp_path: Path) -> None:
    anat = tmp_path / "bids/sub-1/anat"
    anat.mkdir(parents=True)
    for suffix in ("T1w", "T2w", "FLAIR"):
        nib.save(thick_scan((12, 12, 3)), anat / f"sub-1_{suffix}.nii.gz")
    (anat / "sub-1_FLAIR.json").write_text(json.dumps({"SliceThickness": 4.0}))
    arguments = ["translate", str(tmp_path / "bids"), "-o", str(tmp_path / "out"), "--model", str(folder)]
    app([*arguments, "--quiet"], standalone_mode=False)
    made = tmp_path / "out/sub-1/anat"
    for suffix in ("T1w", "T2w", "FLAIR"):
        assert nib.load(made / f"sub-1_desc-scorefusion_{suffix}.nii.gz").shape == (12, 12, 15)
    (said,) = json.loads((made / "sub-1_desc-scorefusion_FLAIR.json").read_text())["GeneratedBy"]
    assert said["InputSliceThickness"] == 4.0


def calibrated(**error_bar: float) -> ScoreFusion:
    bar = {"factor": 2.5, "samples": 3, "steps": 2} | error_bar
    sampling = tiny_iso().model_dump()["sampling"] | {"draw_steps": 2, "error_bar": bar}
    return tiny_model(tiny_iso(sampling=sampling))


def test_several_samples_are_drawn_in_more_steps() -> None:
    pipeline = Pipeline(calibrated(), dtype="float32")
    single, several = pipeline(thick_scan()), pipeline(thick_scan(), samples=3)
    assert (single.evaluations, several.evaluations) == (1, 2)
    assert pipeline(thick_scan(), samples=2, steps=3).evaluations == 3


def test_an_error_bar_is_the_spread_times_what_was_measured(pipeline: Pipeline) -> None:
    result = Pipeline(calibrated(), dtype="float32")(thick_scan(), samples=3)
    assert result.spread is not None and result.spread.max() > 0
    np.testing.assert_allclose(result.error_bar, 2.5 * result.spread, rtol=1e-6)
    with pytest.raises(ScoreFusionError, match="no spread of a single sample"):
        Pipeline(calibrated(), dtype="float32")(thick_scan()).error_bar  # noqa: B018
    with pytest.raises(ScoreFusionError, match="'brain-iso' has no error bar"):
        pipeline(thick_scan(), samples=2).error_bar  # noqa: B018


def test_the_command_writes_an_error_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nib.save(thick_scan(), tmp_path / "in.nii.gz")
    calibrated().save_pretrained(tmp_path / "iso", card="# iso\n\n> **For** tests.")
    tiny_model(tiny_iso()).save_pretrained(tmp_path / "plain", card="# plain\n\n> **For** tests.")
    out, sd, bar = (tmp_path / f"{name}.nii.gz" for name in ("out", "sd", "bar"))
    command = ["translate", str(tmp_path / "in.nii.gz"), "-o", str(out), "--error-bar", str(bar)]
    several = [*command, "--samples", "3"]
    for arguments, problem in (
        ([*several, "--model", str(tmp_path / "plain")], "was not measured"),
        ([*command, "--model", str(tmp_path / "iso")], "--error-bar needs --samples 2 or more"),
    ):
        app(arguments, standalone_mode=False)
        assert problem in capsys.readouterr().err
    assert not out.exists() and not bar.exists()
    app([*several, "--spread", str(sd), "--model", str(tmp_path / "iso")], standalone_mode=False)
    assert "held 80% of the voxels" in capsys.readouterr().out
    spread, far = (np.asarray(nib.load(path).dataobj) for path in (sd, bar))
    np.testing.assert_allclose(far, 2.5 * spread, rtol=1e-6)
