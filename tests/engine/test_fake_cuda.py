"""A whole denoising step walked on fake CUDA tensors: one device, sizes known beforehand, nothing waits.

A `FakeTensor` says that it is on CUDA and holds nothing, so this needs no GPU. It raises where tensors of two
devices meet, and where a value would have to be read on the host. `OnDevice` is stricter: within a step no
operation may take or make a tensor on the host, since capturing a CUDA graph allows none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from benchmarks.fake_cuda import CUDA, FakeEngine, Indexing, OnDevice, taken
from scorefusion.degradations import Pooling, Projection
from scorefusion.diffusion.level import NoiseLevel
from scorefusion.models.presets import preset
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.models.table import table_for
from scorefusion.ops.noise import noise_keys
from tests.support.fused_loop import fused_update


class Step(nn.Module):
    """What is repeated for each row of the solver's table: the networks, then the tail."""

    def __init__(self, model: ScoreFusion, strategy: str, plant: Callable[[Tensor], object] | None):
        super().__init__()
        self.model, self.strategy, self.plant = model, strategy, plant

    def forward(self, x: Tensor, x0: Tensor, inputs: Any, level: NoiseLevel, update: Any) -> Any:
        fusion = self.model.unfused(x, inputs, level, strategy=self.strategy)
        if self.plant is not None:
            self.plant(fusion.scores[0])
        return update(1, fusion, x, x0)


def walk(
    name: str,
    size: tuple[int, int, int],
    *,
    strategy: str = "fuse+features",
    dtype: torch.dtype = torch.bfloat16,
    batch: int = 1,
    plant: Callable[[Tensor], object] | None = None,
    on_host: str = "",
) -> tuple[Tensor, Tensor, list[str]]:
    """Walk one step of a preset's model; return x', x0 and the operations that ran.

    `plant` is called with a branch's scores within the step; the parameter named `on_host` stays there.
    """
    config = preset(name)
    with torch.device("meta"):
        model = ScoreFusion(config).eval()
    model.slice_networks.to(dtype)
    assert model.fusion is not None
    model.fusion.to(dtype)
    mode = FakeTensorMode(allow_non_fake_inputs=False)
    step = Step(model, strategy, plant)
    placed = {
        key: FakeTensor(mode, value.detach(), torch.device("cpu") if key == on_host else CUDA)
        for key, value in [*step.named_parameters(), *step.named_buffers()]
    }
    factor = config.degradation.factors
    with mode, torch.no_grad(), Indexing():
        condition = torch.empty(batch, len(config.conditions), *size, device="cuda")
        x, x0 = (torch.empty(batch, 1, *size, device="cuda") for _ in range(2))
        table = table_for(config)
        inputs = model.prepare(condition)
        abar, t = table.rows[0, :2].tolist()
        level = NoiseLevel.of(abar, int(t), batch, x.device)
        project = Projection(Pooling(factor))
        update = fused_update(table, x, noise_keys(list(range(batch)), device="cuda"), 1.0, project)
        with OnDevice() as watched:
            x_next, x0_next = torch.func.functional_call(step, placed, (x, x0, inputs, level, update))
    return x_next, x0_next, watched.operations


@pytest.mark.parametrize(
    ("name", "size", "batch"),
    [("small", (8, 12, 16), 2), ("t1-sr4", (16, 24, 24), 1), ("paper", (16, 24, 32), 1)],
    ids=["small, a batch of two", "bundled model", "paper: position, mask, attention, four scales"],
)
def test_a_whole_step(name: str, size: tuple[int, int, int], batch: int) -> None:
    x_next, x0, operations = walk(name, size, batch=batch)
    for result in (x_next, x0):
        assert result.device == CUDA and result.shape == (batch, 1, *size) and result.dtype == torch.float32
    counts = {kind: sum(kind in each for each in operations) for kind in ("convolution", "fuse_step")}
    assert counts["convolution"] > 30 and counts["fuse_step"] == 1


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("small", (8, 12, 16), {"batch": 2, "slab": 4}),
        ("small", (8, 8, 8), {"strategy": "average"}),
        ("t1-sr4", (12, 20, 28), {}),
        ("paper", (16, 24, 32), {"slab": 8}),
    ],
    ids=["small, a batch of two in slabs", "average", "bundled model, padded", "paper"],
)
def test_an_engines_step(name: str, size: tuple[int, int, int], options: dict[str, Any]) -> None:
    fake = FakeEngine(preset(name), size, **options)
    engine, watched = fake.engine, OnDevice()
    fake.run(watched)
    assert engine.buffers["x"].device == CUDA
    counts = {
        kind: sum(kind in each for each in watched.operations) for kind in ("gather_slices", "fuse_step")
    }
    slabs = (-(-engine.plan.slice_count(p) // engine.plan.rows[p]) for p in engine.plan.planes)
    assert counts == {"gather_slices": sum(slabs), "fuse_step": 1}


@pytest.mark.parametrize("strategy", ["single", "alternate", "average", "fuse"])
def test_every_strategy(strategy: str) -> None:
    x_next, _, _ = walk("small", (8, 8, 8), strategy=strategy)
    assert x_next.device == CUDA


def test_a_volume_that_is_padded() -> None:
    x_next, _, _ = walk("t1-sr4", (12, 20, 28))
    assert x_next.shape == (1, 1, 12, 20, 28)


@pytest.mark.parametrize(
    "plant",
    [
        lambda scores: scores.sum().item(),
        lambda scores: bool(scores.mean() > 0),
        lambda scores: scores.masked_select(scores > 0),
    ],
    ids=["item", "a tensor in an if", "a size that depends on values"],
)
def test_a_planted_wait_is_found(plant: Callable[[Tensor], object]) -> None:
    with pytest.raises(Exception) as raised:
        walk("small", (8, 8, 8), plant=plant)
    assert type(raised.value).__name__ in ("DataDependentOutputException", "DynamicOutputShapeException")


@pytest.mark.parametrize(
    "plant",
    [
        lambda scores: scores + torch.ones(scores.shape),
        lambda scores: scores * torch.tensor(2.0),
        lambda scores: scores.cpu(),
        lambda scores: scores[[0]],
    ],
    ids=["two devices", "a number made on the host", "a copy to the host", "an index from a list"],
)
def test_a_planted_tensor_on_the_host_is_found(plant: Callable[[Tensor], object]) -> None:
    with pytest.raises((AssertionError, RuntimeError), match="cpu"):
        walk("small", (8, 8, 8), plant=plant)


def test_a_parameter_left_on_the_host_is_found() -> None:
    with pytest.raises((AssertionError, RuntimeError), match="cpu"):
        walk("small", (8, 8, 8), on_host="model.fusion.encoder.0.weight")


@pytest.mark.parametrize(
    "index",
    [
        (slice(1, None), None, 2),
        (..., slice(None, None, 2)),
        (0, ..., None, slice(-2, None)),
        (slice(None), torch.tensor([2, 0, 1]), slice(1, 3)),
        (torch.tensor([[0, 1], [1, 0]]), [0, 2]),
        torch.arange(24).reshape(2, 3, 4) % 5 == 0,
    ],
    ids=["none and integer", "step", "ellipsis", "tensor", "two tensors", "mask"],
)
def test_indexing_is_pytorchs(index: object) -> None:
    """What stands in for PyTorch's indexing gives the same, taking and setting."""
    x = torch.arange(24.0).reshape(2, 3, 4)
    assert torch.equal(taken(x, index), x[index])
    changed, expected = x.clone(), x.clone()
    expected[index] = -1.0
    with Indexing():
        changed[index] = -1.0
    assert torch.equal(changed, expected)
