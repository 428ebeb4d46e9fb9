"""Training of every kind of task: translation, both conditions, one network alone, stored conditions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from scorefusion.errors import BadInput, ScoreFusionError
from scorefusion.models.config import ModelConfig, parse
from scorefusion.models.presets import preset
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.train.config import AugmentConfig, StageConfig, TrainConfig
from scorefusion.train.examples import (
    Crop,
    CropSampler,
    Draws,
    contrasts_of,
    factors_of,
    make_example,
    needs_whole,
    whole_condition,
)
from scorefusion.train.loop import train
from scorefusion.train.report import restore
from scorefusion.train.sources import sources_of, take_weights, volumes_of
from tests.support.tiny import tiny_model

STILL = {"flip": False, "gamma": 0, "remap": 0, "sharpen": 0, "bias": 0, "noise": 0}


def tiny(name: str, **changes: Any) -> ModelConfig:
    """A bundled model's structure at toy widths."""
    values = preset(name).model_dump()
    for network in (*values["slice_networks"].values(), values["fusion"]):
        network["widths"] = [8] * len(network["widths"])
        network["time"] |= {"channels": 8, "hidden": 16}
    return ModelConfig.model_validate(values | changes)


def alone() -> ModelConfig:
    sampling = preset("t1-sr4").sampling.model_dump() | {"strategy": "volume"}
    return tiny(
        "t1-sr4", branches=(), slice_networks={}, feature_scales=(), strategies=("volume",), sampling=sampling
    )


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """Two subjects with T1 and T2 of one grid; T2 is a function of T1."""
    z, y, x = np.mgrid[-1:1:32j, -1:1:36j, -1:1:40j]
    for number in range(2):
        t1 = np.clip(1.2 - z**2 - y**2 - x**2, 0, None) * (1 + 0.3 * np.sin((8 + number) * x) * np.cos(7 * z))
        folder = tmp_path / "people" / f"sub-{number}"
        folder.mkdir(parents=True)
        for name, volume in (("t1", t1), ("t2", np.sqrt(t1))):
            image = nibabel.Nifti1Image((1000 * volume.transpose(2, 1, 0)).astype(np.int16), np.eye(4))
            nibabel.save(image, folder / f"sub-{number}_{name}.nii.gz")
    return tmp_path / "people"


def run_of(model: ModelConfig, people: Path, kinds: tuple[str, ...], **changes: Any) -> TrainConfig:
    stages = [{"kind": kind, "steps": 1, "crop": 16, "warmup": 1} for kind in kinds]
    values = {
        "model": model.model_dump(),
        "datasets": [{"data": {"root": str(people), "layout": "folder"}}],
        "stages": stages,
        "look_every": 0,
        "precision": "float32",
    }
    return parse(TrainConfig, values | changes, "test")


@pytest.mark.parametrize(
    ("model", "kinds"),
    [
        (tiny("t1-t2"), ("slices", "patches", "features")),
        (tiny("t1sr4-t2"), ("slices", "features")),
        (alone(), ("volume",)),
        (tiny("t1-sr4", degradation={"kind": "k-space", "fraction": 0.5}), ("slices", "patches")),
        (tiny("t1-sr4", degradation={"kind": "thick-slices", "axis": "z", "thickness": 4}), ("slices",)),
    ],
    ids=["translate", "both", "volume", "whole", "thick"],
)
def test_every_task_trains(model: ModelConfig, kinds: tuple[str, ...], people: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    before = ScoreFusion(model).state_dict()
    trained = train(run_of(model, people, kinds), tmp_path / "run").state_dict()
    moved = [name for name in before if not torch.equal(before[name], trained[name])]
    assert moved and all(torch.isfinite(tensor).all() for tensor in trained.values())


def test_bfloat16_trains_the_features_too(people: Path, tmp_path: Path) -> None:
    config = run_of(tiny("t1-t2"), people, ("patches", "features"), precision="bfloat16")
    model = train(config, tmp_path / "run")
    assert any(bool(parameter.any()) for parameter in model.features.parameters())


def test_a_translation_is_the_difference_of_two_contrasts(people: Path, tmp_path: Path) -> None:
    config = tiny("t1-t2")
    assert contrasts_of(config) == ("t2", "t1") and factors_of(config) == ((1, 1, 1), (1, 1, 1))
    volume = torch.rand(1, 2, 8, 8, 8)
    example = make_example(volume, config)
    assert torch.equal(example.condition, volume[:, 1:])
    torch.testing.assert_close(example.condition + config.residual.scale * example.residual, volume[:, :1])


def test_both_conditions_are_the_pooled_target_and_the_other_contrast() -> None:
    config = tiny("t1sr4-t2")
    assert contrasts_of(config) == ("t1", "t2") and factors_of(config) == ((4, 4, 4), (1, 1, 1))
    volume = torch.rand(2, 2, 8, 8, 8)
    example = make_example(volume, config)
    assert torch.equal(example.condition[:, 1:], volume[:, 1:])
    expected = config.degradation.degrade(volume[:, :1], base=config.residual.base).condition
    torch.testing.assert_close(example.condition[:, :1], expected)


def test_what_a_crop_cannot_give_is_stored_beside_it(people: Path, tmp_path: Path) -> None:
    config = tiny("t1-sr4", degradation={"kind": "k-space", "fraction": 0.5})
    run = run_of(config, people, ("slices",), variants={"bend": 0.0}, augment=STILL)
    (array, _), _ = volumes_of(run, config, tmp_path / "store")
    assert array.shape[0] == 2
    whole = np.asarray(array, dtype=np.float32)
    np.testing.assert_allclose(whole[1], whole_condition(whole[:1], config), atol=2e-3)
    example = make_example(torch.from_numpy(whole[None, :, 4:20, :16, :16]), config)
    assert torch.equal(example.condition[0, 0], torch.from_numpy(whole[1, 4:20, :16, :16]))


@pytest.mark.parametrize(
    "degradation",
    [
        {"kind": "block-mean", "edges": (4, 2, 2)},
        {"kind": "thick-slices", "axis": "z", "thickness": 3, "gap": 1, "profile": "gaussian"},
        {"kind": "inpaint", "holes": 2, "seed": 3},
        {"kind": "k-space", "fraction": 0.5},
    ],
    ids=lambda degradation: degradation["kind"],
)
def test_a_look_agrees_with_what_was_measured(degradation: dict[str, Any]) -> None:
    config = tiny("t1-sr4", degradation=degradation, residual={"base": "pseudo-inverse", "scale": 0.2})
    model = tiny_model(config)
    voxels = np.random.default_rng(0).uniform(-1, 1, (1, 24, 24, 24)).astype(np.float32)
    if needs_whole(config):
        voxels = np.concatenate([voxels, whole_condition(voxels, config)[None]])
    volume = torch.from_numpy(voxels[None, :, :16, :16, :16])
    stage = StageConfig(kind="patches", steps=1)
    truth, base, *results = restore(model, Crop(volume, (0, 0, 0), (24, 24, 24)), stage, 0).values()
    assert torch.equal(truth, volume[:, :1]) and not torch.allclose(base, truth, atol=0.1)
    operator = config.degradation.operator((16, 16, 16))
    assert operator is not None
    for result in results:
        assert (result - base).std() > 1e-3
        if not needs_whole(config):
            torch.testing.assert_close(operator.A(result), operator.A(truth), atol=2e-3, rtol=0)


def test_holes_and_noise_are_others_every_time() -> None:
    config = tiny("t1-sr4", degradation={"kind": "inpaint", "noise": 0.1})
    crops = CropSampler([(np.zeros((1, 32, 32, 32), np.float32), 1.0)], AugmentConfig(**STILL), (1, 1, 1))
    stage = StageConfig(kind="patches", steps=1, crop=16)
    draws = Draws(ScoreFusion(config), crops, stage)
    first, second = (draws.batch(step, range(1))["condition"] for step in range(2))
    assert not torch.equal(first == 0, second == 0)
    assert torch.equal(first, draws.batch(0, range(1))["condition"])


def test_a_region_is_all_that_is_seen(people: Path, tmp_path: Path) -> None:
    files = {name: str(people / f"sub-0/sub-0_{name}.nii.gz") for name in ("t1", "t2")}
    volume = {"files": files, "region": [[0, 16], None, None]}
    config = tiny("t1-t2")
    run = run_of(config, people, ("slices",), volumes=[volume], datasets=[])
    ((array, share),) = volumes_of(run, config, tmp_path / "store")
    assert array.shape == (2, 16, 32, 40) and share == 1.0
    assert [*sources_of(run, config)][0].region == ((0, 16), None, None)


def test_a_damaged_store_is_refused(people: Path, tmp_path: Path) -> None:
    config = tiny("t1-t2")
    run = run_of(config, people, ("slices",))
    volumes_of(run, config, tmp_path / "store")
    first = sorted((tmp_path / "store").glob("*.npy"))[0]
    content = bytearray(first.read_bytes())
    content[-1] ^= 1
    first.write_bytes(content)
    with pytest.raises(BadInput, match=f"{first.name}.*checksum"):
        volumes_of(run, config, tmp_path / "store")


def test_a_missing_contrast_is_named(people: Path, tmp_path: Path) -> None:
    volume = {"files": {"t1": str(people / "sub-0/sub-0_t1.nii.gz")}}
    run = run_of(tiny("t1-t2"), people, ("slices",), volumes=[volume])
    with pytest.raises(ScoreFusionError, match="lacks t2"):
        train(run, tmp_path / "run")


def test_weights_are_taken_from_trained_models(tmp_path: Path) -> None:
    given = ScoreFusion(tiny("t1-sr4"))
    for parameter in given.parameters():
        torch.nn.init.normal_(parameter)
    given.save_pretrained(tmp_path / "given", card="# given")
    mine = ScoreFusion(tiny("t1sr4-t2"))
    take_weights(mine, {"slice_networks.t2": f"{tmp_path / 'given'}:slice_networks.slice"})
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            mine.slice_networks["t2"].parameters(), given.slice_networks["slice"].parameters(), strict=True
        )
    )
    with pytest.raises(ScoreFusionError, match=r"has no 'slice_networks\.slices'"):
        take_weights(mine, {"slice_networks.t1": f"{tmp_path / 'given'}:slice_networks.slices"})
    with pytest.raises(ScoreFusionError, match="cannot take the weights"):
        take_weights(mine, {"fusion": str(tmp_path / "given")})


def test_random_starts_are_random_and_others_average() -> None:
    base = tiny("t1-sr4")
    assert not ScoreFusion(base).fusion.output.weight.any()  # type: ignore[union-attr]
    other = ScoreFusion(base.model_copy(update={"fusion_start": "random", "feature_start": "random"}))
    assert other.fusion.output.weight.std() > 0.01  # type: ignore[union-attr]
    assert all(layer.weights[0].std() > 0.01 for layer in other.features.values())  # type: ignore[index, union-attr]


def test_cached_branch_outputs_give_the_loss_of_the_networks(people: Path, tmp_path: Path) -> None:
    config = run_of(tiny("t1-t2"), people, ("patches",))
    stage = config.stages[0].model_copy(update={"steps": 3, "cached": 2})
    once = train(config.model_copy(update={"stages": (stage,), "look_every": 0}), tmp_path / "a").state_dict()
    again = config.model_copy(update={"stages": (stage,), "look_every": 0, "save_every": 0.0})
    cut = train(again, tmp_path / "b").state_dict()
    assert all(torch.equal(once[name], cut[name]) for name in once)
    with pytest.raises(BadInput, match="cached"):
        run_of(tiny("t1-t2"), people, ("slices",), stages=[{"kind": "slices", "steps": 1, "cached": 2}])


def test_one_slice_takes_the_weights_of_five(tmp_path: Path) -> None:
    wide = ScoreFusion(tiny("t1-sr4"))
    for parameter in wide.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    wide.save_pretrained(tmp_path / "wide", card="# wide")
    narrow = ScoreFusion(tiny("t1-sr4", context=0))
    take_weights(narrow, {"slice_networks.slice": str(tmp_path / "wide")})
    x, time = torch.randn(2, 2, 16, 16), torch.zeros(2)
    same = torch.cat([x[:, :1]] * 5 + [x[:, 1:]], dim=1)
    label = torch.zeros(2, dtype=torch.long)
    torch.testing.assert_close(
        narrow.slice_networks["slice"](x, time, label=label),
        wide.slice_networks["slice"](same, time, label=label),
        rtol=1e-4,
        atol=1e-4,
    )
    with pytest.raises(ScoreFusionError, match="context 0 only"):
        take_weights(ScoreFusion(tiny("t1-sr4", context=1)), {"slice_networks.slice": str(tmp_path / "wide")})
