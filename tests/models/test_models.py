"""The networks and how their scores are fused: exactness, shapes, slabs, gradients, folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scorefusion.diffusion.level import NoiseLevel, prediction_coefficients
from scorefusion.diffusion.schedule import paper_sampling
from scorefusion.errors import ScoreFusionError
from scorefusion.models.config import (
    PLANES,
    BranchConfig,
    ModelConfig,
    ResidualConfig,
    SamplingConfig,
    TimeConfig,
    UNetConfig,
    parse,
    read_config,
)
from scorefusion.models.features import FeatureLayer
from scorefusion.models.presets import PRESETS, preset
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.models.unet import UNet
from scorefusion.train.config import TrainConfig
from tests.support.tiny import same_grid_config, tiny_config, tiny_model

TIME = TimeConfig(channels=8, hidden=8)
DEEP = UNetConfig(widths=(4, 8), blocks=1, norm="channel", time=TIME)
ADM = UNetConfig(widths=(4, 8), blocks=1, groups=2, head_channels=4, attention=True, time=TIME)
ADDED = UNetConfig(
    widths=(4, 8),
    blocks=1,
    groups=2,
    conditioning="add",
    resample="conv",
    edges="replicate",
    time=TimeConfig(value="step", channels=8, hidden=8, max_period=1e3),
)


def deep(**changes: Any) -> ModelConfig:
    """Two levels in either network, features at both scales."""
    values = {"slice_networks": {"slice": DEEP}, "fusion": DEEP, "feature_scales": (2, 1), **changes}
    return tiny_config(**values)


def separate(**changes: Any) -> ModelConfig:
    """A network of its own for each plane, built as the authors build theirs."""
    return deep(
        branches=tuple(BranchConfig(plane=plane, network=plane) for plane in PLANES),
        slice_networks={plane: ADM for plane in PLANES},
        fusion=ADDED,
        **changes,
    )


def volumes(
    config: ModelConfig, size: tuple[int, int, int], batch: int = 1, dtype: torch.dtype = torch.float32
) -> Any:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 1, *size, generator=generator, dtype=dtype)
    condition = torch.rand(batch, len(config.conditions), *size, generator=generator, dtype=dtype) * 2 - 1
    return x, condition


def level(batch: int = 1, t: int = 400) -> NoiseLevel:
    return NoiseLevel.of(float(paper_sampling().abar[t]), t, batch, "cpu")


@pytest.mark.parametrize("strategy", ["fuse", "fuse+features"])
@pytest.mark.parametrize("make", [deep, separate, tiny_config], ids=["shared", "separate", "tiny"])
def test_fusion_starts_as_the_exact_mean(make, strategy):
    config = make()
    model = ScoreFusion(config).double().eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.slice_networks.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3
    x, condition = volumes(config, (4, 6, 4), batch=2, dtype=torch.float64)
    with torch.no_grad():
        mean = model(x, condition, level(2), strategy="average")
        single = [model(x, condition, level(2), strategy="single", planes=[plane]) for plane in PLANES]
        fused = model(x, condition, level(2), strategy=strategy)
    assert mean.std() > 1e-3
    assert (single[0] - single[1]).abs().max() > 1e-3
    torch.testing.assert_close(mean, sum(single) / 3, rtol=0, atol=1e-12)
    torch.testing.assert_close(fused, mean, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(1, 1, 1), (3, 5, 7), (2, 4, 5), (8, 3, 1)], ids=str)
@pytest.mark.parametrize("make", [deep, separate], ids=["shared", "separate"])
def test_any_spatial_size(make, size):
    config = make()
    model = tiny_model(config)
    x, condition = volumes(config, size)
    with torch.no_grad():
        for strategy in config.strategies:
            output = model(x, condition, level(), strategy=strategy)
            assert output.shape == x.shape and output.dtype == torch.float32
            assert torch.isfinite(output).all()


@pytest.mark.parametrize("make", [deep, separate], ids=["shared", "separate"])
def test_a_batch_equals_its_items(make):
    config = make()
    model = tiny_model(config)
    x, condition = volumes(config, (4, 5, 6), batch=3)
    levels = NoiseLevel(torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64), torch.tensor([50, 200, 400]))
    with torch.no_grad():
        together = model(x, condition, levels, strategy="fuse+features")
        for item in range(3):
            one = slice(item, item + 1)
            alone = model(
                x[one], condition[one], NoiseLevel(levels.abar[one], levels.t[one]), strategy="fuse+features"
            )
            torch.testing.assert_close(together[one], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("slab", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("kernel", [1, 3])
def test_slabs_of_any_size_give_the_same(kernel, slab):
    config = deep(feature_kernel=kernel)
    model = tiny_model(config)
    x, condition = volumes(config, (5, 6, 7), batch=2)
    with torch.no_grad():
        whole = model(x, condition, level(2), strategy="fuse+features")
        parts = model(x, condition, level(2), strategy="fuse+features", slab=slab)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)


def test_gradients_reach_every_part():
    config = deep()
    model = tiny_model(config)
    x, condition = volumes(config, (4, 4, 4))
    model(x, condition, level(), strategy="fuse+features").square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if not name.startswith("slice_networks.slice.label"):
            assert parameter.grad.abs().max() > 0, name


def test_frozen_branches_leave_gradients_to_fusion_and_features():
    config = deep()
    model = tiny_model(config)
    model.slice_networks.requires_grad_(False)
    x, condition = volumes(config, (4, 4, 4))
    in_place = model(x, condition, level(), strategy="fuse+features").square().mean()
    in_place.backward()
    assert all(parameter.grad is None for parameter in model.slice_networks.parameters())
    for part in (model.fusion, model.features):
        assert all(parameter.grad.abs().max() > 0 for parameter in part.parameters())
    with torch.no_grad():
        again = model(x, condition, level(), strategy="fuse+features").square().mean()
    torch.testing.assert_close(again, in_place.detach())


def test_single_and_alternate_choose_planes():
    config = deep(sampling=SamplingConfig(single_plane="coronal"))
    model = tiny_model(config)
    x, condition = volumes(config, (4, 4, 4))
    with torch.no_grad():
        planes = [model(x, condition, level(), strategy="single", planes=[plane]) for plane in PLANES]
        assert torch.equal(model(x, condition, level(), strategy="single"), planes[1])
        for step in range(5):
            taken = model(x, condition, level(), strategy="alternate", step=step)
            assert torch.equal(taken, planes[step % 3])
        two = model(x, condition, level(), strategy="alternate", planes=PLANES[1:], step=1)
        assert torch.equal(two, planes[2])


def test_volume_is_the_fusion_network_alone():
    config = deep(residual_gain=0.5)
    model = tiny_model(config)
    x, condition = volumes(config, (4, 4, 4))
    with torch.no_grad():
        before = model(x, condition, level(), strategy="volume")
        for parameter in model.slice_networks.parameters():
            parameter.zero_()
        after = model(x, condition, level(), strategy="volume")
    assert torch.equal(before, after) and before.std() > 0


def test_branches_see_the_conditions_they_name():
    pairs = [(plane, index) for index in (0, 1) for plane in PLANES]
    config = same_grid_config(branches=tuple(BranchConfig(plane=p, conditions=(i,)) for p, i in pairs))
    model = tiny_model(config)
    x, condition = volumes(config, (3, 4, 5))
    other = condition.clone()
    other[:, 1] *= -1
    with torch.no_grad():
        outputs = torch.cat(model.branch_outputs(x, model.prepare(condition), level())[0], dim=1)
        changed = torch.cat(model.branch_outputs(x, model.prepare(other), level())[0], dim=1)
        fused = model(x, condition, level(), strategy="fuse+features")
    assert outputs.shape == (1, 6, 3, 4, 5) and fused.shape == x.shape
    assert torch.equal(outputs[:, :3], changed[:, :3])
    assert all((outputs[:, k] - changed[:, k]).abs().max() > 1e-4 for k in range(3, 6))


def test_a_shared_network_is_told_its_plane():
    shared, own = tiny_model(deep()), tiny_model(separate())
    assert set(shared.slice_networks) == {"slice"}
    assert shared.slice_networks["slice"].label.weight.shape == (3, 8)
    assert all(network.label is None for network in own.slice_networks.values())
    x, condition = volumes(shared.config, (4, 4, 4))
    before = shared(x, condition, level(), strategy="single", planes=["axial"])
    with torch.no_grad():
        shared.slice_networks["slice"].label.weight[0] += 1
    after = shared(x, condition, level(), strategy="single", planes=["axial"])
    assert (before - after).abs().max() > 1e-4


def test_the_box_of_a_whole_keeps_its_positions():
    config = tiny_config()
    model = tiny_model(config)
    _, condition = volumes(config, (6, 8, 10))
    whole = model.prepare(condition)
    box = model.prepare(condition[..., 2:6, 4:, 3:], origin=(2, 4, 3), full=(6, 8, 10))
    assert torch.equal(box.common, whole.common[..., 2:6, 4:, 3:])
    assert whole.common[0, :3, 0, 0, 0].tolist() == [-1, -1, -1]
    assert set(whole.common[:, 3].unique().tolist()) <= {-1.0, 1.0}


@pytest.mark.parametrize("prediction", ["v", "x0", "edm"])
def test_eps_of_any_prediction_agrees_with_its_x0(prediction):
    config = deep(prediction=prediction, sigma_data=0.5)
    model = tiny_model(config).double()
    x, condition = volumes(config, (4, 4, 4), dtype=torch.float64)
    abar = float(paper_sampling().abar[100])
    with torch.no_grad():
        eps = model.eps(x, condition, 100, strategy="fuse")
        output = model(x, condition, level(t=100), strategy="fuse")
    p, q = prediction_coefficients(prediction, abar, 0.5)
    x0 = p * x + q * output
    torch.testing.assert_close(abar**0.5 * x0 + (1 - abar) ** 0.5 * eps, x, rtol=1e-10, atol=1e-10)


def test_eps_rejects_timesteps_outside_the_schedule():
    model = tiny_model()
    x, condition = volumes(model.config, (2, 2, 2))
    for t in (-1, 1000, 0.5):
        with pytest.raises(ScoreFusionError, match="0..999"):
            model.eps(x, condition, t)


def test_rejects_bad_input():
    model = tiny_model()
    x, condition = volumes(model.config, (2, 2, 2))
    with pytest.raises(ScoreFusionError, match=r"2 channels, the model expects 1 \(t1\)"):
        model.prepare(condition.repeat(1, 2, 1, 1, 1))
    with pytest.raises(ScoreFusionError, match=r"got shape \[2, 2, 2\]"):
        model.prepare(condition[0, 0])
    with pytest.raises(ScoreFusionError, match="did you mean 'fuse'"):
        model(x, condition, level(), strategy="fusee")
    with pytest.raises(ScoreFusionError, match="got planes oblique"):
        model(x, condition, level(), strategy="single", planes=["oblique"])
    limited = tiny_model(tiny_config(strategies=("single",)))
    with pytest.raises(ScoreFusionError, match="not trained for strategy 'fuse'"):
        limited(x, condition, level(), strategy="fuse")


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_survives_json(name):
    config = preset(name)
    assert config.name == name
    assert parse(ModelConfig, json.loads(config.model_dump_json()), "config") == config


def test_the_paper_preset_has_the_papers_size():
    with torch.device("meta"):
        model = ScoreFusion(preset("paper"))
    axial = sum(parameter.numel() for parameter in model.slice_networks["axial"].parameters())
    fusion = sum(parameter.numel() for parameter in model.fusion.parameters())
    assert (round(axial / 1e6, 2), round(fusion / 1e6, 2)) == (62.64, 55.53)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predicton": "eps"}, "did you mean 'prediction'"),
        ({"sampling": {"stepz": 4}}, "did you mean 'steps'"),
        ({"branches": [{"plane": "axial", "netwrk": "slice"}]}, "did you mean 'network'"),
        ({"slice_networks": {"slice": {"widths": [8], "block": 2}}}, "did you mean 'blocks'"),
        ({"branches": [{"plane": "axial", "conditions": [3]}]}, "do not index"),
        ({"branches": [{"plane": "axial"}]}, "at least 2 branches"),
        ({"feature_scales": [4]}, r"\[4\] are not scales"),
        ({"sampling": {"single_plane": "oblique"}}, "single_plane"),
    ],
)
def test_a_wrong_config_is_refused_by_name(change, message):
    values = json.loads(tiny_config().model_dump_json()) | change
    with pytest.raises(ScoreFusionError, match=message):
        parse(ModelConfig, values, "config.json")


def as_conv3d(layer: FeatureLayer, branch: int, plane: str) -> Tensor:
    """The branch's weight as that of a Conv3d ``[O, I, kz, ky, kx]``."""
    weight = layer.weights[branch]
    if layer.kernel == 3:
        return weight
    length = [1, 1, 1]
    length[PLANES.index(plane)] = layer.scale
    return weight.reshape(*weight.shape[:2], *length)


@pytest.mark.parametrize(("scale", "kernel"), [(1, 1), (2, 1), (4, 1), (1, 3)])
def test_feature_layer_is_a_strided_conv3d_along_each_axis(scale, kernel):
    generator = torch.Generator().manual_seed(3)
    layer = FeatureLayer(scale, [3, 2, 3], 5, kernel=kernel).double()
    for parameter in layer.parameters():
        assert not parameter.any()
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    size = (4, 8, 12)
    total = layer.start(size, 2)
    reference = layer.bias[None, :, None, None, None].expand(2, 5, *(n // scale for n in size))
    inputs = []
    for branch, plane in enumerate(PLANES):
        axis = 2 + PLANES.index(plane)
        grid = [n if place + 2 == axis else n // scale for place, n in enumerate(size)]
        channels = layer.weights[branch].shape[1]
        shape = (2, channels, *grid)
        features = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        stack = features.movedim(axis, 1)
        for start in range(0, size[axis - 2], 4):
            slab = stack[:, start : start + 4].flatten(0, 1)
            total = layer.add(total, slab, branch, plane, start)
        weight = as_conv3d(layer, branch, plane)
        stride = [scale if place + 2 == axis else 1 for place in range(3)]
        padding = 1 if kernel == 3 else 0
        reference = reference + F.conv3d(features, weight, stride=stride, padding=padding)
        inputs += [features, layer.weights[branch]]
    torch.testing.assert_close(total, reference, rtol=1e-12, atol=1e-12)
    cotangent = torch.randn(total.shape, generator=generator, dtype=torch.float64)
    inputs.append(layer.bias)
    got = torch.autograd.grad(total, inputs, cotangent)
    for one, other in zip(got, torch.autograd.grad(reference, inputs, cotangent), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("config", [DEEP, ADM, ADDED, DEEP.model_copy(update={"patch": 2})])
def test_unet_features_have_the_width_and_grid_of_their_scale(dims, config):
    network = UNet(dims, 3, 2, config)
    x = torch.randn(2, 3, *[8] * dims)
    output, features = network.forward_with_features(x, torch.tensor([0.1, 0.9]), config.scales)
    assert output.shape == (2, 2, *[8] * dims)
    for width, scale in zip(config.widths, config.scales, strict=True):
        assert features[scale].shape == (2, width, *[8 // scale] * dims)


@pytest.mark.parametrize("name", sorted(name for name in PRESETS if name.startswith("paper")))
def test_every_task_of_the_paper_has_a_run_and_networks(name):
    config = preset(name)
    with torch.device("meta"):
        model = ScoreFusion(config)
    assert {branch.plane for branch in config.branches} == set(PLANES)
    assert len(config.branches) == 3 * len(config.conditions) and model.fusion is not None
    runs = {
        read_config(TrainConfig, file).model
        for file in (Path(__file__).parents[2] / "configs/tasks").iterdir()
    }
    assert name in runs


def test_a_curve_of_intensities_shapes_the_base() -> None:
    residual = ResidualConfig(base="identity", scale=0.5, curve=((-1, -1), (0, 0.5), (1, 0)))
    base = torch.tensor([-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0])
    curved = torch.tensor([-1.0, -1.0, -0.25, 0.5, 0.25, 0.0, 0.0])
    torch.testing.assert_close(residual.added_to(base, torch.zeros(7)), curved)
    torch.testing.assert_close(residual.of(curved + 1, base), torch.full((7,), 2.0))
    torch.testing.assert_close(residual.added_to(base, residual.of(base, base)), base)
    for curve, problem in (((((0, 0),)), "two or more"), (((0, 0), (0, 1)), "ascending")):
        with pytest.raises(ValueError, match=problem):
            ResidualConfig(base="identity", curve=curve)
    with pytest.raises(ValueError, match="would not be consistent"):
        ResidualConfig(base="nearest", curve=((0, 0), (1, 1)))
