"""One step of sampling: noise, the model, the solver's row and the projection, strategy by strategy.

The reference is the same model with its weights as PyTorch makes them and the reference noise, in float32.
Beside it: channels-last weights and this machine's kernels, as `from_pretrained` and the pipeline have them;
the same under `torch.compile`; and the same in the dtype that `--dtype auto` chooses here.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.ceilings import CONVOLUTION
from benchmarks.conftest import needs_cuda
from scorefusion.degradations import Pooling, Projection
from scorefusion.diffusion.sample import sample
from scorefusion.models.folder import channels_last
from scorefusion.models.presets import preset
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.models.table import table_for
from scorefusion.ops.backends import use_backend
from scorefusion.ops.device import choose_dtype
from scorefusion.ops.fuse_scores import Fusion

CASES = [
    pytest.param("reference", "cpu", id="torch reference"),
    pytest.param("channels last", "cpu", id="channels last"),
    pytest.param(
        "compiled",
        "cpu",
        id="channels last, torch.compile",
        marks=[pytest.mark.compiled(seconds=60), pytest.mark.slow],
    ),
    pytest.param("auto", "cpu", id="channels last, dtype auto"),
    pytest.param("auto", "cuda", id="cuda, dtype auto", marks=[needs_cuda, pytest.mark.gpu]),
]


Networks = Callable[..., Fusion]


@functools.cache
def random_model(name: str) -> ScoreFusion:
    torch.manual_seed(0)
    model = ScoreFusion(preset(name)).eval()
    assert model.fusion is not None
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def prepared(model: ScoreFusion, kind: str, device: str) -> ScoreFusion:
    if kind == "reference":
        return model
    model = channels_last(copy.deepcopy(model)).to(device)
    if kind == "auto":
        dtype = choose_dtype("auto", device)
        model.slice_networks.to(dtype)
        if model.fusion is not None:
            model.fusion.to(dtype)
    return model


def one_step(
    model: ScoreFusion, condition: Tensor, strategy: str, networks: Networks | None = None
) -> Tensor:
    networks = networks or model.unfused
    return sample(
        lambda x_t, level: networks(x_t, condition, level, strategy=strategy),
        condition,
        table_for(model.config, steps=1),
        seeds=[0],
        project=Projection(Pooling(4)),
    )


@pytest.mark.main_case(strategy="fuse+features")
@pytest.mark.parametrize("strategy", ["single", "average", "fuse", "fuse+features"])
@pytest.mark.parametrize(("kind", "device"), CASES)
def test_sample_step(
    measure: Callable[..., Any],
    compiled: Callable[[Networks], Networks],
    timed: bool,
    strategy: str,
    kind: str,
    device: str,
) -> None:
    reference = random_model("t1-sr4" if timed else "small")
    size = (32, 48, 48) if timed else (8, 8, 8)
    condition = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
    with use_backend("torch"), FlopCounterMode(display=False) as counter:
        expected = one_step(reference, condition, strategy)
    model, given = prepared(reference, kind, device), condition.to(device)
    networks = compiled(model.unfused) if kind == "compiled" else None
    short = next(model.slice_networks.parameters()).dtype != torch.float32
    # Layouts change the order of sums, bfloat16 keeps 8 bits of each.
    tolerance = 0.1 if short else 1e-3
    apart = (one_step(model, given, strategy, networks).cpu() - expected).abs().max()
    assert apart < tolerance * expected.abs().max()

    def body() -> None:
        if kind == "reference":
            with use_backend("torch"):
                one_step(model, given, strategy)
        else:
            one_step(model, given, strategy, networks)

    measure(
        body,
        group=f"one step of {strategy}, {size[0]}x{size[1]}x{size[2]} voxels",
        device=device,
        reference=kind == "reference",
        FLOP=counter.get_total_flops(),
        dtype=next(model.slice_networks.parameters()).dtype,
        like=CONVOLUTION,
    )
