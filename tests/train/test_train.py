"""Training: reproducible crops, each stage's loss, and a run that resumes to the same bits."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from scorefusion.errors import BadInput, ScoreFusionError
from scorefusion.models.config import ModelConfig, parse
from scorefusion.models.presets import preset
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.train.config import AugmentConfig, StageConfig, TrainConfig, ValidationConfig, VariantConfig
from scorefusion.train.examples import CropSampler, Draws, draw_levels, make_example, stream, together, vary
from scorefusion.train.loop import train
from scorefusion.train.report import boxes_of, read_rows, restore
from scorefusion.train.sources import domain_of, take_weights, warp
from scorefusion.train.step import StageLoss, learning_rate, trained_parameters
from tests.support.tiny import tiny_config

BLOCK = (4, 4, 4)


def tiny_model() -> ModelConfig:
    """The bundled model's structure at toy widths."""
    values = preset("t1-sr4").model_dump()
    for network in (values["slice_networks"]["slice"], values["fusion"]):
        network["widths"] = [8] * len(network["widths"])
        network["time"] |= {"channels": 8, "hidden": 16}
    return ModelConfig.model_validate(values)


def random_of(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, 0]))


@pytest.fixture
def head(tmp_path: Path) -> Path:
    """A small smooth 'head' with a dark background."""
    z, y, x = np.mgrid[-1:1:40j, -1:1:48j, -1:1:44j]
    volume = np.clip(1.2 - z**2 - y**2 - x**2, 0, None) * (
        1 + 0.3 * np.sin(9 * x) * np.sin(8 * y) * np.cos(7 * z)
    )
    file = tmp_path / "head.nii.gz"
    nibabel.save(nibabel.Nifti1Image((1000 * volume.transpose(2, 1, 0)).astype(np.int16), np.eye(4)), file)
    return file


def run_config(head: Path, **changes: object) -> TrainConfig:
    stages = [
        {"kind": "slices", "steps": 3, "crop": 16, "warmup": 2},
        {"kind": "patches", "steps": 2, "batch": 2, "crop": 16, "margin": 2, "warmup": 1},
        {
            "kind": "features",
            "steps": 2,
            "batch": 1,
            "crop": 16,
            "margin": 2,
            "warmup": 1,
            "checkpointing": True,
        },
    ]
    values = {
        "model": tiny_model().model_dump(),
        "volumes": [{"file": str(head), "variants": 1}],
        "stages": stages,
        "save_every": 0.0,
        "log_every": 1,
        "look_every": 0,
        "precision": "float32",
    }
    return parse(TrainConfig, values | changes, "test")


def some_crops(edge: int = 40, channels: int = 1) -> CropSampler:
    volume = np.random.default_rng(0).uniform(-1, 1, (channels, edge, edge, edge))
    return CropSampler([(volume, 1.0)], AugmentConfig(), BLOCK)


def test_a_look_is_drawn_and_measured_and_changes_nothing(
    head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(head, model=tiny_config().model_dump())
    config = config.model_copy(update={"stages": config.stages[:1]})
    blind = train(config, tmp_path / "blind").state_dict()
    given = {"volumes": [{"file": str(head)}], "boxes": 2, "size": 16}
    seen = config.model_copy(
        update={"look_every": 2, "validation": parse(ValidationConfig, given, "test"), "log_every": 100}
    )
    model = train(seen, tmp_path / "seen")
    assert sorted(file.name for file in (tmp_path / "seen").glob("look-*.png")) == [
        "look-1-000002.png",
        "look-1-000003.png",
    ]
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in blind.items())
    rows = read_rows(tmp_path / "seen")
    assert [row["step"] for row in rows] == [2, 3]

    crops = some_crops()
    boxes = boxes_of(seen, model.config, tmp_path / "seen/volumes", crops)
    assert [box.volume.shape for box in boxes] == [(1, 1, 16, 16, 16)] * 2
    scores = []
    for seed, box in enumerate(boxes):
        restored = restore(model, box, seen.stages[0], seed)
        errors = [(volume - box.volume).double().square().mean() for volume in restored.values()]
        assert errors[0] == 0
        scores.append([10 * np.log10(4 / float(error)) for error in errors[1:]])
    told = [rows[-1][name] for name in ("psnr_base", "psnr_one_step", "psnr")]
    np.testing.assert_allclose(np.mean(scores, axis=0), told, atol=1e-3)
    base = make_example(boxes[0].volume, model.config).condition
    torch.testing.assert_close(restore(model, boxes[0], seen.stages[0], 0)["base"], base)
    monkeypatch.setattr("scorefusion.train.report.CROP", 16)
    varied = boxes_of(config, model.config, tmp_path / "seen/volumes", crops)
    assert len(varied) == 3 and varied[0].volume.shape == (1, 1, 16, 16, 16)


def test_a_stage_trains_only_its_networks() -> None:
    model = ScoreFusion(tiny_model())
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    for kind in ("slices", "patches", "features", "volume"):
        stage = StageConfig(kind=kind, steps=1, crop=16, batch=1)  # type: ignore[arg-type]
        model.zero_grad()
        model.requires_grad_(False)
        mine = {id(p.requires_grad_()) for p in trained_parameters(model, stage)}
        torch.nn.init.normal_(model.fusion.output.weight, std=0.1)  # type: ignore[union-attr]
        StageLoss(model, stage)(Draws(model, some_crops(), stage).batch(0, range(1))).backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) <= (id(parameter) in mine), name
        reached = sum(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())
        assert reached > 0.9 * len(mine)


@pytest.mark.parametrize("kind", ["patches", "features", "volume"])
def test_checkpointing_gives_the_same_gradients(kind: str) -> None:
    model = ScoreFusion(tiny_model())
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    found = []
    for checkpointing in (False, True):
        stage = StageConfig(kind=kind, steps=1, crop=16, checkpointing=checkpointing)  # type: ignore[arg-type]
        model.requires_grad_(False)
        mine = [parameter.requires_grad_() for parameter in trained_parameters(model, stage)]
        loss = StageLoss(model, stage)(Draws(model, some_crops(), stage).batch(0, range(1)))
        found.append([loss, *torch.autograd.grad(loss, mine)])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-5, atol=1e-6)


def test_slices_note_plane_and_noise_each() -> None:
    model = ScoreFusion(tiny_model())
    stage = StageConfig(kind="slices", steps=1, crop=16, slices=2)
    batch = Draws(model, some_crops(64), stage).batch(0, range(1))
    x, label = batch["slice.slab"], batch["slice.label"]
    assert x.shape == (6, 6, 16, 16) and label.tolist() == [0, 0, 1, 1, 2, 2]
    assert batch["slice.abar"].unique().shape == (6,)
    assert bool((x[:, -1].std(dim=(1, 2)) > 0).all()), "every slice that counts is noised"


@pytest.mark.parametrize("kind", ["slices", "patches"])
def test_an_example_depends_on_its_number_alone(kind: str) -> None:
    model = ScoreFusion(tiny_model())
    stage = StageConfig(kind=kind, steps=1, crop=16, batch=4)  # type: ignore[arg-type]
    draws = Draws(model, some_crops(), stage, seed=3, number=1)
    whole = draws.batch(7, range(4))
    halves = [draws.batch(7, part) for part in ((0, 1), (2, 3))]
    for name, tensor in together(halves).items():
        assert torch.equal(tensor, whole[name]), name
    others = [draws.batch(8, range(4)), Draws(model, some_crops(), stage, seed=3).batch(7, range(4))]
    name = "slice.abar" if kind == "slices" else "abar"
    seen = torch.cat([whole[name], *(other[name] for other in others)])
    assert len(seen.unique()) == len(seen)


def test_streams_do_not_meet() -> None:
    places = [(0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 1, 0), (0, 1, 0, 0), (1, 0, 0, 0)]
    drawn = np.stack([stream(*place).integers(2**63, size=100) for place in places])
    assert len(np.unique(drawn)) == drawn.size
    assert np.array_equal(drawn[1], stream(*places[1]).integers(2**63, size=100))


def test_whole_volumes_of_other_sizes_are_no_batch() -> None:
    model = ScoreFusion(tiny_model())
    volumes = [(np.random.default_rng(0).uniform(-1, 1, (1, n, 16, 16)), 1.0) for n in (16, 24)]
    stage = StageConfig(kind="patches", steps=1, crop=None, batch=8)
    draws = Draws(model, CropSampler(volumes, AugmentConfig(), BLOCK), stage)
    with pytest.raises(ScoreFusionError, match=r"\[16, 16, 16\], \[24, 16, 16\] cannot be one batch"):
        draws.batch(0, range(8))


def test_levels_follow_their_distribution() -> None:
    stage = StageConfig(kind="patches", steps=1, ln_sigma_mean=0.3, ln_sigma_std=1.4)
    level = draw_levels(20000, stage, random_of(0))
    ln_sigma = level.sigma.log()
    assert abs(ln_sigma.mean().item() - 0.3) < 0.04 and abs(ln_sigma.std().item() - 1.4) < 0.03
    for kind, length in (("paper-training", 2000), ("paper-sampling", 1000)):
        drawn = draw_levels(500, stage.model_copy(update={"noise_levels": kind}), random_of(0))
        assert 0 < drawn.abar.min() and drawn.abar.max() < 1 and drawn.t.max() < length


def test_example_is_undone_by_the_base() -> None:
    config = tiny_model()
    volume = torch.rand(2, 1, 8, 12, 16) * 2 - 1
    example = make_example(volume, config)
    torch.testing.assert_close(example.condition + config.residual.scale * example.residual, volume)
    blocks = example.residual.unfold(2, 4, 4).unfold(3, 4, 4).unfold(4, 4, 4).mean((-1, -2, -3))
    assert blocks.abs().max() < 1e-5, "the residual of a consistent base has no block means"


def test_crops_are_reproducible_and_inside() -> None:
    array = np.random.default_rng(0).uniform(-1, 1, (24, 28, 20)).astype(np.float16)
    crops = CropSampler(
        [(array[None], 1.0)],
        AugmentConfig(flip=False, gamma=0, remap=0, sharpen=0, bias=0, noise=0),
        BLOCK,
    )
    first, second = (crops.draw([8, 12, 8], random_of(5)) for _ in range(2))
    assert torch.equal(first.volume, second.volume) and all(start % 4 == 0 for start in first.origin)
    z, y, x = first.origin
    cut = torch.from_numpy(array[z : z + 8, y : y + 12, x : x + 8].astype(np.float32))
    torch.testing.assert_close(first.volume[0, 0], cut)
    larger = crops.draw([32, 12, 8], random_of(5))
    assert larger.volume.shape == (1, 1, 32, 12, 8), "a volume smaller than the crop is padded by its edge"


def test_every_variation_changes_the_crop() -> None:
    volume = torch.rand(1, 1, 8, 8, 8) * 2 - 1
    none = dict(flip=False, gamma=0.0, remap=0.0, sharpen=0.0, bias=0.0, noise=0.0, noise_probability=0.0)
    torch.testing.assert_close(vary(volume, AugmentConfig(**none), random_of(0)), volume)  # type: ignore[arg-type]
    for change in ({"flip": True}, {"gamma": 0.5}, {"remap": 1.0}, {"bias": 0.3}):
        varied = vary(volume, AugmentConfig(**(none | change)), random_of(2))  # type: ignore[arg-type]
        assert varied.shape == volume.shape and not torch.allclose(varied, volume), change
    noisy = vary(volume, AugmentConfig(**(none | {"noise": 0.1, "noise_probability": 1.0})), random_of(0))  # type: ignore[arg-type]
    assert 0.001 < (noisy - volume).std() < 0.3


def test_warp_without_change_is_the_source() -> None:
    z, y, x = np.mgrid[0:3:24j, 0:3:32j, 0:3:24j]
    source = (np.sin(z) * np.cos(y) + np.sin(x)).astype(np.float32)
    still = VariantConfig(spacing=(1.0, 1.0), zoom=0.0, rotation=0.0, bend=0.0)
    both = warp(np.stack([source, -source]), still, random_of(0))
    np.testing.assert_allclose(both, [source, -source], atol=1e-4)
    halved = VariantConfig(spacing=(2.0, 2.0), zoom=0.0, rotation=0.0, bend=0.0)
    assert warp(source[None], halved, random_of(0)).shape == (1, 8, 16, 8)
    bent = warp(np.stack([source, 3 * source]), VariantConfig(spacing=(1.0, 1.0)), random_of(1))
    np.testing.assert_allclose(bent[1], 3 * bent[0], atol=1e-4)


def test_learning_rate_warms_up_and_falls() -> None:
    stage = StageConfig(kind="patches", steps=100, warmup=10, learning_rate=1.0)
    rates = [learning_rate(stage, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0 and 0.01 <= rates[-1] < 0.02
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))


def test_examples_drawn_ahead_are_the_same(head: Path, tmp_path: Path) -> None:
    config = run_config(head)
    config = config.model_copy(update={"stages": config.stages[:1]})
    here = train(config, tmp_path / "here").state_dict()
    ahead = train(config.model_copy(update={"workers": 2}), tmp_path / "ahead").state_dict()
    assert all(torch.equal(here[name], ahead[name]) for name in here)


def test_a_run_goes_on_elsewhere_and_gives_its_weights_to_others(head: Path, tmp_path: Path) -> None:
    config = run_config(head)
    config = config.model_copy(update={"stages": config.stages[:1]})
    trained = train(config, tmp_path / "run")
    moved = config.model_copy(update={"save_every": 7.0, "export": "elsewhere"})
    again = train(moved, tmp_path / "run")
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), again.parameters(), strict=True))
    assert json.loads((tmp_path / "run/config.json").read_text())["export"] == "elsewhere"
    other = ScoreFusion(config.description)
    take_weights(other, {"slice_networks.slice": str(tmp_path / "run")})
    pairs = zip(trained.slice_networks.parameters(), other.slice_networks.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_rejects_bad_runs(head: Path, tmp_path: Path) -> None:
    config = run_config(head)
    train(config.model_copy(update={"stages": config.stages[:1]}), tmp_path / "run")
    with pytest.raises(BadInput, match=r"another run \(stages differ\)"):
        train(config, tmp_path / "run")
    with pytest.raises(BadInput, match="did you mean 'steps'"):
        run_config(head, stages=[{"kind": "slices", "step": 3}])
    with pytest.raises(ScoreFusionError, match="nothing to learn"):
        values = tiny_model().model_dump() | {"degradation": {"kind": "none", "factor": 1}}
        train(run_config(head, model=values), tmp_path / "other")
    with pytest.raises(BadInput, match=r"missing\.nii"):
        train(run_config(head, volumes=[{"file": str(tmp_path / "missing.nii")}]), tmp_path / "third")
    (tmp_path / "run/checkpoint.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(BadInput, match="cannot be resumed"):
        train(config.model_copy(update={"stages": config.stages[:1]}), tmp_path / "run")


def test_what_a_model_was_made_for_is_read_off_its_data(head: Path, tmp_path: Path) -> None:
    thin = tmp_path / "thin.nii.gz"
    image = nibabel.load(head)
    nibabel.save(nibabel.Nifti1Image(image.dataobj, np.diag([0.8, 1.0, 1.2, 1])), thin)
    volumes = [{"file": str(head), "variants": 1}, {"file": str(thin)}]
    config = run_config(head, volumes=volumes, domain={"t1": {"intensity": "non-negative"}})
    domain = domain_of(config, config.description)["t1"]
    assert domain.contrasts == ("t1",) and domain.intensity == "non-negative" and domain.background is None
    assert domain.spacing == ((4.0, 8.4), (4.0, 8.4), (3.2, 8.4)) and domain.anisotropy == 1.5
    given = run_config(head, domain={"t1": {"spacing": None, "contrasts": ["t1", "t2"]}})
    assert domain_of(given, given.description)["t1"].spacing is None
    with pytest.raises(BadInput, match="not conditions"):
        parse(TrainConfig, {**config.model_dump(), "domain": {"t3": {}}}, "run.json")
