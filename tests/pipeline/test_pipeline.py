"""The pipeline around a tiny random model: geometry, noise, consistency, units, saving."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

import scorefusion
from scorefusion.diffusion.solvers import SOLVERS
from scorefusion.engine import step as step_module
from scorefusion.errors import BadInput, ScoreFusionError
from scorefusion.models.config import ResidualConfig
from scorefusion.models.strategies import BUILT_IN as STRATEGIES
from scorefusion.ops.fuse_step import fuse_step
from scorefusion.pipeline import Pipeline, Translation, translation
from tests.support.tiny import AFFINE, same_grid_config, tiny_config, tiny_image, tiny_model, write_tiny


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(tiny_model(), device="cpu", dtype="float32")


def block_means(array: np.ndarray, r: int) -> np.ndarray:
    i, j, k = (n // r for n in array.shape)
    return array.astype(np.float64).reshape(i, r, j, r, k, r).mean(axis=(1, 3, 5))


def test_super_resolution(pipeline: Pipeline) -> None:
    image = tiny_image()
    result = pipeline(image)
    assert isinstance(result, Translation) and result.volume.shape == (14, 12, 10)
    assert result.volume.dtype == np.float32
    measured = np.asarray(image.dataobj)
    apart = np.abs(block_means(result.volume, 2) - measured)
    assert result.consistency_residual is not None and apart.max() < 1e-5 * measured.max()
    assert result.consistency_residual.max == pytest.approx(apart.max(), abs=1e-3)
    np.testing.assert_allclose(result.affine @ [0.5, 0.5, 0.5, 1], AFFINE @ [0, 0, 0, 1])
    assert set(result.timings) == {"read", "prepare", "sample", "finish", "total"}
    assert (result.strategy, result.solver, result.evaluations) == ("fuse+features", "ddim", 2)
    assert result.spread is None and result.dtype == "float32" and result.seed == 0


@pytest.mark.parametrize("codes", ["LPS", "SAR", "AIL", "PIR"])
def test_the_result_does_not_depend_on_the_orientation(pipeline: Pipeline, codes: str) -> None:
    image = tiny_image(affine=np.diag([1.0, 1.5, 2.0, 1.0]))
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes)
    )
    turned = pipeline(image.as_reoriented(turn))
    assert "".join(nib.aff2axcodes(turned.affine)) == codes
    back = nib.as_closest_canonical(turned.image())
    plain = pipeline(image)
    np.testing.assert_array_equal(np.asarray(back.dataobj), plain.volume)
    np.testing.assert_allclose(back.affine, plain.affine, atol=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy(pipeline: Pipeline, strategy: str) -> None:
    result = pipeline(tiny_image(), strategy=strategy, steps=3)
    assert result.strategy == strategy and np.isfinite(result.volume).all()
    others = [pipeline(tiny_image(), strategy=other, steps=3).volume for other in STRATEGIES]
    assert sum(np.array_equal(result.volume, other) for other in others) == 1


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name != "official"])
def test_every_solver(pipeline: Pipeline, solver: str) -> None:
    result = pipeline(tiny_image(), solver=solver, steps=3, strategy="average")
    assert result.solver == solver and result.evaluations == (5 if solver == "heun" else 3)
    assert np.isfinite(result.volume).all()


def test_the_authors_sampler_and_schedule() -> None:
    model = tiny_model(tiny_config(prediction="eps", sampling={"schedule": "paper", "clamp": 1.0}))
    assert Pipeline(model, device="cpu")(tiny_image(), solver="official", steps=4).evaluations == 4


def test_seeds_and_planes(pipeline: Pipeline) -> None:
    first, again, other = (pipeline(tiny_image(), seed=seed).volume for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    axial, coronal = (
        pipeline(tiny_image(), strategy="single", planes=[plane]).volume for plane in ("axial", "coronal")
    )
    assert not np.array_equal(axial, coronal)


def test_samples_are_averaged_whatever_the_batch(pipeline: Pipeline) -> None:
    one = pipeline(tiny_image(), solver="ddpm")
    alone = pipeline(tiny_image(), samples=3, solver="ddpm")
    together = pipeline(tiny_image(), samples=3, batch=2, solver="ddpm")
    span = np.ptp(one.volume)
    np.testing.assert_allclose(together.volume, alone.volume, atol=1e-5 * span)
    assert alone.spread is not None and together.spread is not None and alone.spread.max() > 0.001 * span
    np.testing.assert_allclose(together.spread, alone.spread, atol=1e-4 * span)
    assert not np.array_equal(one.volume, alone.volume)
    two = pipeline(tiny_image(), samples=2, solver="ddpm")
    np.testing.assert_allclose(two.spread, np.abs(two.volume - one.volume) * np.sqrt(2), atol=1e-4 * span)
    assert two.consistency_residual is not None and two.consistency_residual.max < 1e-5 * span


def test_several_samples_take_one_pass_a_step(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []

    def counted(*arguments: Any, **options: Any) -> Any:
        batches.append(len(arguments[4]))
        return fuse_step(*arguments, **options)

    monkeypatch.setattr(step_module, "fuse_step", counted)
    pipeline(tiny_image(), samples=3, batch=2, solver="ddpm", steps=4)
    assert batches == [2] * 4 + [1] * 4


def test_the_box_changes_no_noise() -> None:
    """A v network that outputs zero leaves half the noise and the base: equal in the box and without it."""
    model = tiny_model(tiny_config(prediction="v", residual=ResidualConfig(scale=0.1)))
    for parameter in model.parameters():
        parameter.data.zero_()
    pipeline = Pipeline(model, device="cpu", dtype="float32")
    array = np.zeros((24, 20, 22), np.float32)
    array[9:13, 8:12, 11:13] = np.random.default_rng(0).uniform(1, 2, (4, 4, 2))
    image = nib.Nifti1Image(array, np.eye(4))
    cropped, whole = (pipeline(image, crop=crop, steps=1, start_abar=0.5) for crop in (True, False))
    box = (slice(8, 36), slice(6, 34), slice(12, 36))
    np.testing.assert_array_equal(cropped.volume[box], whole.volume[box])
    outside = np.ones(whole.volume.shape, bool)
    outside[box] = False
    assert (cropped.volume[outside] == 0).all() and (whole.volume[outside] != 0).all()
    assert (cropped.volume[box] != 0).all()


@pytest.mark.parametrize("base", ["nearest", "trilinear", "trilinear+consistency"])
@pytest.mark.parametrize("crop", [True, False])
def test_every_base_is_made_consistent(base: str, crop: bool) -> None:
    config = tiny_config(residual=ResidualConfig(base=base, scale=0.3))  # type: ignore[arg-type]
    image = tiny_image((16, 17, 18))
    result = Pipeline(tiny_model(config), device="cpu", dtype="float32")(image, crop=crop)
    np.testing.assert_allclose(block_means(result.volume, 2), np.asarray(image.dataobj), atol=0.01)


@pytest.mark.parametrize("intensity", ["minmax", "robust"])
def test_results_are_in_the_units_of_the_input(intensity: str) -> None:
    pipeline = Pipeline(tiny_model(tiny_config(intensity=intensity)), device="cpu", dtype="float32")
    image = tiny_image()
    data = np.asarray(image.dataobj, np.float64)
    scaled = nib.Nifti1Image((3 * data + 500).astype(np.float32), AFFINE)
    plain, other = pipeline(nib.Nifti1Image(data.astype(np.float32), AFFINE)).volume, pipeline(scaled).volume
    np.testing.assert_allclose(other, 3 * plain + 500, atol=1e-4 * np.ptp(other))


def test_several_conditions_on_one_grid() -> None:
    pipeline = Pipeline(tiny_model(same_grid_config()), device="cpu", dtype="float32")
    first, second = tiny_image(), nib.Nifti1Image(np.asarray(tiny_image().dataobj)[::-1].copy(), AFFINE)
    result = pipeline([first, second])
    assert result.volume.shape == first.shape and result.consistency_residual is None
    np.testing.assert_allclose(result.affine, AFFINE, atol=1e-6)
    assert not np.array_equal(result.volume, pipeline([second, first]).volume)
    with pytest.raises(ScoreFusionError, match=r"takes 2 images \(t1, t2\), got 1"):
        pipeline(first)
    with pytest.raises(BadInput, match="has 7 × 6 × 4 voxels"):
        pipeline([first, tiny_image((7, 6, 4))])


def test_a_second_condition_may_be_on_the_output_grid() -> None:
    config = same_grid_config(
        residual=ResidualConfig(), degradation=tiny_config().degradation, sampling={"steps": 2}
    )
    pipeline = Pipeline(tiny_model(config), device="cpu", dtype="float32")
    coarse = tiny_image()
    fine = nib.Nifti1Image(
        np.kron(np.asarray(coarse.dataobj), np.ones((2, 2, 2))), pipeline([coarse] * 2).affine
    )
    assert pipeline([coarse, fine]).volume.shape == (14, 12, 10)
    with pytest.raises(BadInput, match="lies elsewhere"):
        pipeline([coarse, nib.Nifti1Image(np.asarray(fine.dataobj), AFFINE)])


def test_progress_and_cancelling(pipeline: Pipeline) -> None:
    seen: list[tuple[int, int]] = []
    pipeline(tiny_image(), steps=3, samples=2, callback=lambda done, total: seen.append((done, total)))
    assert seen == [(n, 6) for n in range(1, 7)]

    def cancel(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline(tiny_image(), callback=cancel)


def test_prints_nothing_and_changes_no_global_state(capfd: pytest.CaptureFixture[str]) -> None:
    model = tiny_model().train()
    np.random.seed(0)
    before = (
        torch.get_rng_state(),
        np.random.get_state()[1].copy(),  # type: ignore[index, union-attr]
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
    )
    Pipeline(model, device="cpu", dtype="bfloat16")(tiny_image())
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # type: ignore[index]
    assert before[2:] == (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads())
    assert model.training and all(p.dtype == torch.float32 for p in model.parameters())
    assert capfd.readouterr() == ("", "")


def test_bfloat16_is_close_and_float32_uses_the_model_itself() -> None:
    model = tiny_model()
    plain, short = (Pipeline(model, device="cpu", dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert plain.model is model and short.model is not model
    assert {p.dtype for p in short.model.fusion.parameters()} == {torch.bfloat16}  # type: ignore[union-attr]
    one, other = plain(tiny_image()), short(tiny_image())
    assert other.dtype == "bfloat16" and other.volume.dtype == np.float32
    assert not np.array_equal(one.volume, other.volume)
    np.testing.assert_allclose(other.volume, one.volume, atol=0.02 * np.ptp(one.volume))
    assert other.consistency_residual is not None
    assert other.consistency_residual.max < 1e-5 * np.ptp(one.volume)


@pytest.mark.parametrize("resample", ["res", "conv"])
@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_networks_of_several_levels_run_in_every_dtype(resample: str, patch: int, dtype: str) -> None:
    network = (
        tiny_config()
        .slice_networks["slice"]
        .model_copy(update={"widths": (8, 16), "resample": resample, "patch": patch, "edges": "replicate"})
    )
    attentive = network.model_copy(update={"attention": True, "head_channels": 8})
    model = tiny_model(
        tiny_config(slice_networks={"slice": attentive}, fusion=network, feature_scales=network.scales)
    )
    one, other = (Pipeline(model, device="cpu", dtype=name)(tiny_image()) for name in ("float32", dtype))
    np.testing.assert_allclose(other.volume, one.volume, atol=0.002 * np.ptp(one.volume))


def test_names_and_numbers_are_checked_before_reading(pipeline: Pipeline) -> None:
    wrong = {
        "unknown strategy 'fused'; did you mean 'fuse'": {"strategy": "fused"},
        "unknown solver 'ddmi'; did you mean 'ddim'": {"solver": "ddmi"},
        "at least 1 step, got 0": {"steps": 0},
        "samples and batch must be at least 1": {"samples": 0},
        "seed must be within": {"seed": 2**64},
        "unknown plane 'axal'; did you mean 'axial'": {"strategy": "single", "planes": ["axal"]},
        "planes are for strategies single and alternate": {"planes": ["axial"]},
        "unknown output dtype": {"output_dtype": "int16"},
        "unknown treatment of NaN": {"nan": "keep"},
        "takes no eta": {"solver": "ddpm", "eta": 0.5},
    }
    for message, options in wrong.items():
        with pytest.raises(ScoreFusionError, match=message):
            pipeline("there is no such file.nii", **options)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="does not exist"):
        pipeline("there is no such file.nii")
    with pytest.raises(BadInput, match="would become 1,680 voxels"):
        pipeline(tiny_image(), max_voxels=1000)


def test_overflow_is_reported(pipeline: Pipeline) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.fusion.output.weight.fill_(torch.inf)  # type: ignore[union-attr]
    with pytest.raises(ScoreFusionError, match="not finite"):
        Pipeline(model, device="cpu", dtype="float32")(tiny_image())


def test_save_spread_and_figure(pipeline: Pipeline, tmp_path: Path) -> None:
    result = pipeline(tiny_image(), samples=2)
    assert result.save(tmp_path / "out.nii.gz") == tmp_path / "out.nii.gz"
    back = nib.load(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(np.asarray(back.dataobj), result.volume)
    np.testing.assert_allclose(back.affine, result.affine)
    result.save_spread(tmp_path / "spread.nii")
    np.testing.assert_array_equal(nib.load(tmp_path / "spread.nii").get_fdata(), result.spread)
    with pytest.raises(BadInput, match="wrong ending"):
        result.save(tmp_path / "out.png")
    with pytest.raises(ScoreFusionError, match="no spread"):
        pipeline(tiny_image()).save_spread(tmp_path / "none.nii")
    typed = pipeline(tiny_image(), output_dtype="input")
    typed.save(tmp_path / "typed.nii")
    assert nib.load(tmp_path / "typed.nii").get_data_dtype() == np.int16


def test_figure(pipeline: Pipeline, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figure = pipeline(tiny_image()).figure(tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG") and len(figure.axes) == 6


def test_interrupted_save_leaves_nothing(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = pipeline(tiny_image())
    write = nib.Nifti1Image.to_file_map

    def interrupted(self, file_map=None, dtype=None):  # type: ignore[no-untyped-def]
        write(self, file_map, dtype)
        raise KeyboardInterrupt

    monkeypatch.setattr(nib.Nifti1Image, "to_file_map", interrupted)
    with pytest.raises(KeyboardInterrupt):
        result.save(tmp_path / "out.nii.gz")
    assert list(tmp_path.iterdir()) == []


def test_public_names(tmp_path: Path) -> None:
    folder, image = write_tiny(tmp_path)
    result = scorefusion.Pipeline(folder, device="cpu")(image)
    assert dataclasses.is_dataclass(scorefusion.Translation) and isinstance(result, scorefusion.Translation)
    assert result.source.file == image
    for name in scorefusion.__all__:
        assert getattr(scorefusion, name) is not None and name in dir(scorefusion)
    with pytest.raises(AttributeError, match="no attribute 'pipelin'"):
        scorefusion.pipelin  # noqa: B018


def test_an_assumed_orientation_is_a_warning(pipeline: Pipeline) -> None:
    image = tiny_image()
    image.header["sform_code"] = image.header["qform_code"] = 0
    result = pipeline(nib.Nifti1Image(image.dataobj, None, image.header), assume_affine=True)
    assert result.warnings == ("its header has no orientation: pixdim and RAS axes are assumed",)
    assert pipeline(tiny_image()).warnings == ()


def test_the_image_of_a_result_is_made_once(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it is saved; where the result lies is known without it."""
    made: list[Any] = []
    original = translation.make_image

    def counted(*arguments: Any, **options: Any) -> Any:
        made.append(original(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(translation, "make_image", counted)
    result = pipeline(tiny_image())
    assert not made
    result.save(tmp_path / "out.nii.gz")
    assert len(made) == 1
    np.testing.assert_array_equal(made[0].affine, result.affine)
    assert result.affine.dtype == np.float64 and result.header["sform_code"] == made[0].header["sform_code"]
