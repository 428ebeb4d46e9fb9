"""A causal fusion network: what comes later does not change what was fused before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from scorefusion.diffusion.level import NoiseLevel
from scorefusion.models.config import ModelConfig
from scorefusion.models.presets import preset
from scorefusion.models.score_fusion import ScoreFusion

LATER = 5


def tiny(**fusion: Any) -> ModelConfig:
    values = preset("video-sr-causal").model_dump()
    for network in (*values["slice_networks"].values(), values["fusion"]):
        network["widths"] = [8] * len(network["widths"])
        network["time"] |= {"channels": 8, "hidden": 16}
    values["fusion"] |= fusion
    return ModelConfig.model_validate(values)


def trained(config: ModelConfig, steps: int = 4) -> ScoreFusion:
    """A few steps, so that no weight is zero that need not be."""
    torch.manual_seed(0)
    model = ScoreFusion(config)
    assert model.fusion is not None
    optimiser = torch.optim.Adam(model.fusion.parameters(), lr=0.02)
    for _ in range(steps):
        loss = (fused(model, *some_scores()) - torch.randn(1, 1, 8, 16, 16)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def some_scores() -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
    x, condition, *scores = torch.randn(5, 1, 1, 8, 16, 16).unbind(0)
    return x, condition, tuple(scores)


def fused(
    model: ScoreFusion, x: torch.Tensor, condition: torch.Tensor, scores: tuple[torch.Tensor, ...]
) -> torch.Tensor:
    level = NoiseLevel.continuous(torch.tensor([0.5], dtype=torch.float64))
    return model.fuse(x, model.prepare(condition), level, scores, {})


@torch.no_grad()
def test_a_later_frame_changes_no_earlier_one() -> None:
    torch.manual_seed(1)
    x, condition, scores = some_scores()
    other_x, other_condition, other_scores = some_scores()
    for given, other in zip((x, condition, *scores), (other_x, other_condition, *other_scores), strict=True):
        other[:, :, :LATER] = given[:, :, :LATER]
    with torch.enable_grad():
        causal, both_ways = trained(tiny()), trained(tiny(causal=False))
    for model, sees in ((causal, False), (both_ways, True)):
        before, after = (
            fused(model, x, condition, scores),
            fused(model, other_x, other_condition, other_scores),
        )
        change = (before - after).abs().amax(dim=(0, 1, 3, 4))
        assert (change[LATER:] > 1e-3).all()
        assert bool((change[:LATER] > 1e-5).any()) == sees, change


def test_weights_ahead_stay_zero_and_those_behind_do_not() -> None:
    model = trained(tiny())
    assert model.fusion is not None
    layers = [layer for layer in model.fusion.modules() if isinstance(layer, nn.Conv3d)]
    layers = [layer for layer in layers if layer.kernel_size == (3, 3, 3)]
    assert layers
    for layer in layers:
        assert not layer.weight[:, :, 2].any() and layer.weight[:, :, :2].any()


@pytest.mark.parametrize(
    ("fusion", "changes", "problem"),
    [
        ({"norm": "group", "groups": 8}, {}, "norm 'channel'"),
        ({"resample": "conv"}, {}, "resample 'res'"),
        ({"attention": True}, {}, "no attention"),
        ({}, {"feature_scales": (2, 4)}, "feature_scales"),
    ],
)
def test_what_would_look_ahead_is_refused(
    fusion: dict[str, Any], changes: dict[str, Any], problem: str
) -> None:
    values = tiny().model_dump() | changes
    values["fusion"] |= fusion
    with pytest.raises(ValueError, match=problem):
        ModelConfig.model_validate(values)


def test_a_causal_slice_network_is_refused() -> None:
    values = tiny().model_dump()
    values["slice_networks"]["slice"]["causal"] = True
    with pytest.raises(ValueError, match="for the fusion network"):
        ModelConfig.model_validate(values)
