"""Training on images of label maps, each example with a measurement of its own."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from scorefusion.degradations import SliceStack
from scorefusion.diffusion.level import input_scale, prediction_coefficients
from scorefusion.errors import BadInput, ScoreFusionError
from scorefusion.models.config import ModelConfig, parse
from scorefusion.models.presets import preset
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.train.config import AugmentConfig, LabelConfig, StageConfig, TrainConfig
from scorefusion.train.examples import CropSampler, Draws, draw_box, draw_levels, measured_anew
from scorefusion.train.loop import train
from scorefusion.train.report import training_card
from scorefusion.train.sources import domain_of, sampler_of, with_labels
from tests.data.test_labels import head
from tests.support.thick import tiny_iso

STILL = AugmentConfig(flip=False, gamma=0, remap=0, sharpen=0, bias=0, noise=0, noise_probability=0)


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    folder = tmp_path / "maps"
    folder.mkdir()
    for name in "abc":
        nib.save(nib.Nifti1Image(head(), np.eye(4)), folder / f"{name}.nii.gz")
    return folder


def stages(**changes: object) -> list[dict[str, object]]:
    each: dict[str, object] = {"steps": 3, "batch": 2, "crop": 16, "warmup": 1, **changes}
    return [{"kind": kind, **each} for kind in ("slices", "patches", "features")]


def config_of(**changes: object) -> TrainConfig:
    values = {
        "model": tiny_iso().model_dump(), "labels": {"hold_out": 1}, "stages": stages(at_start=0.5),
        "look_every": 0, "precision": "float32", "save_every": 0.0,
    }  # fmt: skip
    return parse(TrainConfig, values | changes, "test")


def test_a_run_on_label_maps_goes_on_to_the_same_bits(maps: Path, tmp_path: Path) -> None:
    config = with_labels(config_of(), maps)
    whole = train(config, tmp_path / "whole").state_dict()

    class Stop(Exception):
        pass

    def stop(stage: str, step: int, steps: int, loss: float) -> None:
        if (stage, step) == ("patches", 2):
            raise Stop

    with pytest.raises(Stop):
        train(config, tmp_path / "parts", progress=stop)
    parts = train(config, tmp_path / "parts").state_dict()
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())


def test_the_folder_of_label_maps_is_checked(maps: Path, tmp_path: Path) -> None:
    config, model = config_of(), tiny_iso()
    with pytest.raises(ScoreFusionError, match="--labels"):
        sampler_of(config, model, [])
    with pytest.raises(BadInput, match="no label maps"):
        sampler_of(with_labels(config, tmp_path), model, [])
    few = config.model_copy(update={"labels": LabelConfig(folder=str(maps), hold_out=3)})
    with pytest.raises(ScoreFusionError, match="3 label maps, of which 3 are held out"):
        sampler_of(few, model, [])
    with pytest.raises(ScoreFusionError, match="has no 'labels'"):
        with_labels(config.model_copy(update={"labels": None}), maps)
    sampler = sampler_of(with_labels(config, maps), model, [])
    assert sampler.labels is not None and [file.name for file in sampler.labels.files] == [
        "a.nii.gz", "b.nii.gz",
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(6))
def test_a_box_is_a_part_of_what_was_measured(seed: int) -> None:
    """The condition of a box measures as the volume around it, and its channels tell the place in a step."""
    model = ScoreFusion(tiny_iso())
    volume = np.random.default_rng(5).uniform(-1, 1, (1, 60, 60, 60)).astype(np.float32)
    stage = StageConfig(kind="patches", steps=1, crop=24)
    crops = CropSampler([(volume, 1.0)], STILL, (1, 1, 1), turned=True)
    batch = draw_box(model, crops, stage, np.random.default_rng(seed))
    measurement = measured_anew(model.config, np.random.default_rng(seed)).degradation
    assert isinstance(measurement, SliceStack)
    assert batch["condition"].shape == (1, 1, 24, 24, 24) and batch["common"].shape == (1, 3, 24, 24, 24)
    place = batch["common"][0, 0, :, 0, 0]
    first = int(torch.argmin((place + 1 - 1 / measurement.step).abs()))
    told = measurement.describe(24, -first, "cpu")
    torch.testing.assert_close(batch["common"][0, :, :, 3, 4], told)
    r = measurement.step
    count = (24 - first) // r
    truth = batch["condition"][0, 0] + model.config.residual.scale * _residual(model, batch)
    if measurement.width <= 1 and measurement.profile == "box" and not measurement.gain and count:
        operator = measurement.make_operator((count * r, 24, 24), None, "cpu")
        whole = slice(first, first + count * r)
        measured = [operator.A(each[None, None, whole]) for each in (truth, batch["condition"][0, 0])]
        torch.testing.assert_close(*measured, atol=1e-4, rtol=0)


def _residual(model: ScoreFusion, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The clean residual of a box, out of its noisy volume and its target: x0 = p x + q F."""
    config = model.config
    p, q = prediction_coefficients(config.prediction, batch["abar"], config.sigma_data)
    x = batch["x"] / input_scale(config.prediction, batch["abar"], config.sigma_data)
    return (p * x + q * batch["target"])[0, 0].float()


def test_slices_are_of_a_step_each_and_any_axis() -> None:
    model = ScoreFusion(tiny_iso())
    volume = np.random.default_rng(5).uniform(-1, 1, (1, 60, 50, 40)).astype(np.float32)
    crops = CropSampler([(volume, 1.0)], STILL, (1, 1, 1), turned=True)
    stage = StageConfig(kind="slices", steps=1, crop=16, slices=3, batch=2)
    batch = Draws(model, crops, stage).batch(0, range(2))
    channels = model.config.slice_channels(1)
    assert channels == 5 + 3 + 1
    assert batch["through.slab"].shape == (12, channels, 16, 16)
    same = batch["through.slab"][:, 6, 0, 0]
    assert len(same.unique()) >= 3, "every branch of every example has a measurement of its own"


def test_levels_at_the_start() -> None:
    stage = StageConfig(kind="patches", steps=1, at_start=0.5)
    level = draw_levels(4000, stage, np.random.default_rng(0), 20.0)
    share = ((level.sigma - 20.0).abs() < 1e-3).double().mean()
    assert 0.45 < share < 0.55


def translation(**changes: object) -> ModelConfig:
    """A tiny model from T1 to T2."""
    values = preset("small").model_dump() | {
        "name": "tiny-t1-t2", "conditions": ("t1",), "target": "t2", "degradation": {"kind": "none"},
        "residual": {"base": "identity", "scale": 0.7},
    }  # fmt: skip
    return parse(ModelConfig, values | changes, "test")


def test_label_maps_give_each_contrast_of_a_model(maps: Path, tmp_path: Path) -> None:
    model = translation()
    config = with_labels(config_of(model=model.model_dump(), stages=stages(crop=16)[:1]), maps)
    sampler = sampler_of(config, model, [])
    assert sampler.labels is not None and sampler.labels.contrasts == ("t2", "t1")
    crop = sampler.draw((16, 16, 16), np.random.default_rng(0))
    assert crop.volume.shape == (1, 2, 16, 16, 16)
    stage = StageConfig(kind="patches", steps=1, crop=16)
    batch = draw_box(ScoreFusion(model), sampler, stage, np.random.default_rng(0))
    assert batch["condition"].shape == batch["target"].shape == (1, 1, 16, 16, 16)
    assert domain_of(config, model)["t1"].spacing == ((0.8, 1.6),) * 3
    train(config, tmp_path / "run")
    strange = translation(conditions=("t1", "swi"))
    with pytest.raises(ScoreFusionError, match="unknown contrast of label maps 'swi'"):
        sampler_of(config, strange, [])


def test_a_card_names_the_label_maps_and_any_voxel_size_fits(maps: Path, tmp_path: Path) -> None:
    config = with_labels(config_of(domain={"mri": {"background": "zero"}}), maps)
    domain = domain_of(config, tiny_iso())
    assert domain["mri"].spacing is None and domain["mri"].background == "zero"
    card = training_card(config, tmp_path, tiny_iso())
    assert "| images painted of the label maps in `maps`, but for the last 1 | | 1 |" in card
