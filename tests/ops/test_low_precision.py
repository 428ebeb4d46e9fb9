"""Networks in bfloat16 on the CPU, as `--dtype auto` runs them where the processor is fast at it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scorefusion.diffusion.level import NoiseLevel
from scorefusion.models.config import ModelConfig, TimeConfig, UNetConfig
from tests.support.tiny import tiny_config, tiny_model

TIME = TimeConfig(channels=8, hidden=16)
KINDS: dict[str, dict[str, Any]] = {
    "the bundled model's": {"norm": "channel", "blocks": 1, "patch": 2},
    "the paper's": {"groups": 4, "resample": "conv", "conditioning": "add", "edges": "replicate"},
    "attention": {"groups": 4, "attention": True, "head_channels": 8},
}


def config(kind: str) -> ModelConfig:
    network = UNetConfig(widths=(8, 16), time=TIME, **KINDS[kind])
    fusion = network.model_copy(update={"attention": False})
    scales = network.scales[:1]
    return tiny_config(slice_networks={"slice": network}, fusion=fusion, feature_scales=scales)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_close_to_float32(kind: str) -> None:
    model = tiny_model(config(kind))
    generator = torch.Generator().manual_seed(1)
    x, condition = (torch.randn(1, 1, 8, 8, 8, generator=generator) for _ in range(2))
    level = NoiseLevel.of(0.5, -1, 1, x.device)
    with torch.no_grad():
        exact = model(x, condition, level, strategy="fuse+features")
        model.slice_networks.to(torch.bfloat16)
        assert model.fusion is not None
        model.fusion.to(torch.bfloat16)
        short = model(x, condition, level, strategy="fuse+features")
    assert short.dtype == torch.float32
    # bfloat16 keeps 8 bits: a few per cent of the largest value after a dozen layers.
    assert (short - exact).abs().max() < 0.06 * exact.abs().max()
