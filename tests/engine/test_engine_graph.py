"""An engine's step as a graph: the stand-in's replays are the eager engine's steps, bit for bit."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from scorefusion.engine.engine import Engine
from scorefusion.engine.graph import CudaGraphs
from scorefusion.engine.planning.plan import plan
from scorefusion.engine.runners import EagerRunner, Outputs
from scorefusion.models import slabs as module
from scorefusion.models.presets import preset
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.models.table import table_for
from scorefusion.models.unet import UNet
from tests.support.tape_graphs import Still, TapeGraphs
from tests.support.toy_step import CPU, CUDA, needs_cuda

TABLE = table_for(preset("small"), solver="ddpm", steps=3)


def engine_of(
    graphs: CudaGraphs | None, size: tuple[int, int, int], *, device: torch.device = CPU, **options: Any
) -> Engine:
    """An engine of a model in which nothing is zero, its conditions loaded."""
    config = preset("small")
    torch.manual_seed(0)
    model = ScoreFusion(config).eval()
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    engine = Engine(model.to(device), plan(config, size, **options), graphs=graphs)
    condition = torch.rand(engine.plan.batch, len(config.conditions), *size) - 0.5
    engine.load(condition.to(device), origin=(2, 4, 6), full=(32, 32, 32))
    return engine


@pytest.mark.parametrize(
    ("strategy", "size", "batch", "slab"),
    [
        ("fuse+features", (8, 12, 8), 1, 8),
        ("fuse", (4, 8, 8), 2, None),
        ("average", (8, 4, 12), 1, 4),
        ("alternate", (4, 8, 8), 1, None),
    ],
    ids=["features in slabs", "two volumes", "average", "a plane a step"],
)
def test_replays_are_the_eager_engines_steps(
    strategy: str, size: tuple[int, int, int], batch: int, slab: int | None
) -> None:
    """One capture (of each plane, where they alternate) serves every step, seed, sample, box and weight."""
    graphs, options = TapeGraphs(), {"strategy": strategy, "batch": batch, "slab": slab}
    eager, replayed = engine_of(None, size, **options), engine_of(graphs, size, **options)
    results = []
    for seed, sample, origin, scale in ((3, 0, (2, 4, 6), 1.0), (2**40, 7, (0, 1, 2), 0.9)):
        for engine in (eager, replayed):
            condition = torch.linspace(-1, 1, batch * math.prod(size)).reshape(batch, 1, *size)
            engine.load(condition * scale, origin=origin, full=(32, 32, 32))
            with torch.no_grad():
                for parameter in engine.model.parameters():
                    parameter.mul_(scale)
        seeds = [seed - item for item in range(batch)]
        expected, found = (engine.run(TABLE, seeds, sample=sample) for engine in (eager, replayed))
        assert torch.equal(found, expected)
        results.append(expected)
    assert not torch.equal(*results)
    steps = replayed.captured
    assert len(graphs.attempts) == len(steps) == (3 if strategy == "alternate" else 1)
    assert all(step.captured == 1 for step in steps.values()) and graphs.replayed == 6


def test_nothing_is_run_beside_the_replay() -> None:
    engine, again = engine_of(TapeGraphs(), (4, 8, 8)), engine_of(None, (4, 8, 8))
    engine.run(TABLE, [1])
    engine.start(TABLE, [2])
    with Still():
        for _ in range(3):
            engine.step()
    assert torch.equal(engine.buffers["x"], again.run(TABLE, [2]))


def test_replaced_weights_are_found_at_the_next_run() -> None:
    graphs = TapeGraphs()
    engine = engine_of(graphs, (4, 8, 8))
    first = engine.run(TABLE, [1])
    changed = {name: 0.9 * value for name, value in engine.model.state_dict().items()}
    engine.model.load_state_dict(changed, assign=True)
    second = engine.run(TABLE, [1])
    assert len(graphs.attempts) == 2 and not torch.equal(first, second)
    expected = engine_of(None, (4, 8, 8))
    expected.model.load_state_dict(changed)
    assert torch.equal(second, expected.run(TABLE, [1]))


class Refusing(EagerRunner):
    """A runner as TensorRT's: outputs are the same tensors at every step, and capture is refused."""

    name = "tensorrt"
    calls = 0

    def __init__(self, network: UNet, scales: Sequence[int]):
        super().__init__(network, scales)
        self.kept: dict[torch.Size, list[Tensor]] = {}

    def __call__(self, cut: Tensor, time: Tensor, label: Tensor) -> Outputs:
        self.calls += 1
        time.sum().item()
        output, found = super().__call__(cut, time, label)
        made = [output, *found.values()]
        kept = self.kept.setdefault(cut.shape, [tensor.clone() for tensor in made])
        for place, value in zip(kept, made, strict=True):
            place.copy_(value)
        return kept[0], dict(zip(found, kept[1:], strict=True))


def test_graphs_around_an_engine_that_refuses() -> None:
    graphs = TapeGraphs()
    engine, eager = (engine_of(each, (8, 12, 8), slab=8) for each in (graphs, None))
    (name, runner), *_ = engine.runners.items()
    refusing = Refusing(runner.network, runner.scales)  # type: ignore[attr-defined]
    engine.runners = {name: refusing}
    with pytest.warns(RuntimeWarning, match=f"network {name}: Refused: .* reads a tensor's number") as said:
        found = engine.run(TABLE, [5])
    assert torch.equal(found, eager.run(TABLE, [5]))
    (step,) = engine.captured.values()
    slabs = refusing.calls
    assert torch.equal(engine.run(TABLE, [6]), eager.run(TABLE, [6])) and len(said) == 1
    # Slabs of a step: 1 axial, 2 coronal, 1 sagittal; a graph before each, and one after the last.
    assert step.captured == 5 and refusing.calls - slabs == 3 * 4


def test_out_of_memory_captures_smaller_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs, real = TapeGraphs(), module.gather_slices
    engine, eager = (engine_of(each, (8, 12, 8), slab=8) for each in (graphs, None))
    expected = eager.run(TABLE, [5])

    def gather_slices(*args: Any, **kwargs: Any) -> Tensor:
        if args[5] - args[4] > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*args, **kwargs)

    monkeypatch.setattr(module, "gather_slices", gather_slices)
    with pytest.warns(RuntimeWarning, match="smaller slabs") as said:
        found = engine.run(TABLE, [5])
    assert len(said) == 1 and len(graphs.tapes) == 1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@needs_cuda
@pytest.mark.gpu
def test_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    engine, eager = engine_of(None, (8, 12, 8), device=CUDA), engine_of(None, (8, 12, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in (3, 2**40):
            found = engine.run(TABLE, [seed]).cpu()
            torch.testing.assert_close(found, eager.run(TABLE, [seed]), rtol=1e-3, atol=1e-3)
    (step,) = engine.captured.values()
    assert step.captured == 1 and step.reason is None
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    engine.start(TABLE, [4])
    started = torch.cuda.memory_stats()["allocation.all.allocated"]
    for _ in range(3):
        engine.step()
    assert before <= started == torch.cuda.memory_stats()["allocation.all.allocated"]
