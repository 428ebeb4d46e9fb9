"""The engine: it draws what the plain model draws, from buffers that it keeps."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scorefusion.degradations import Pooling, Projection
from scorefusion.diffusion.sample import sample
from scorefusion.engine.engine import Engine
from scorefusion.engine.planning.plan import ROWS, plan
from scorefusion.errors import ScoreFusionError, out_of_memory
from scorefusion.models import slabs as module
from scorefusion.models.config import ModelConfig
from scorefusion.models.presets import preset
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.models.strategies import BUILT_IN as STRATEGIES
from scorefusion.models.table import table_for


def model_of(config: ModelConfig, seed: int = 0) -> ScoreFusion:
    """A model in which nothing is zero."""
    torch.manual_seed(seed)
    model = ScoreFusion(config).eval()
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def condition_of(config: ModelConfig, size: tuple[int, int, int], batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, len(config.conditions), *size, generator=generator).clamp(-1, 1)


def plainly(model: ScoreFusion, condition: Tensor, seeds: list[int], steps: int, **choice: Any) -> Tensor:
    config, turn = model.config, iter(range(steps))
    inputs = model.prepare(condition, origin=(2, 4, 6), full=(64, 64, 64))
    pooled = config.degradation.kind == "block-mean"
    return sample(
        lambda x, level: model.unfused(x, inputs, level, step=next(turn), **choice),
        condition, table_for(config, steps=steps), seeds=seeds, origin=(2, 4, 6),
        clamp=config.sampling.clamp,
        project=Projection(Pooling(config.degradation.factors)) if pooled else None,
    )  # fmt: skip


def by_engine(model: ScoreFusion, condition: Tensor, seeds: list[int], steps: int, **choice: Any) -> Tensor:
    layout = plan(model.config, condition.shape[2:], batch=condition.shape[0], **choice)
    engine = Engine(model, layout)
    engine.load(condition, origin=(2, 4, 6), full=(64, 64, 64))
    return engine.run(table_for(model.config, steps=steps), seeds)


def tiny_paper() -> ModelConfig:
    """The paper's networks, of few channels: position, mask, attention, group norms, repeated edges."""
    config = preset("paper")
    changes = {"widths": (8, 16, 24, 32), "groups": 4, "head_channels": 8}
    networks = {k: v.model_copy(update=changes) for k, v in config.slice_networks.items()}
    assert config.fusion is not None
    return config.model_copy(
        update={"slice_networks": networks, "fusion": config.fusion.model_copy(update=changes)}
    )


def scaled() -> ModelConfig:
    """Data whose deviation is not 1, so that what the networks see is scaled."""
    return preset("small").model_copy(update={"sigma_data": 0.5})


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_draws_what_the_plain_model_draws(strategy: str) -> None:
    config = preset("small").model_copy(update={"strategies": STRATEGIES})
    model, condition = model_of(config), condition_of(config, (8, 12, 16))
    expected = plainly(model, condition, [7], 4, strategy=strategy)
    torch.testing.assert_close(
        by_engine(model, condition, [7], 4, strategy=strategy), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("config", "size", "batch", "choice"),
    [
        (preset("t1-sr4"), (12, 20, 28), 1, {}),
        (preset("small"), (8, 8, 8), 2, {}),
        (preset("small"), (8, 12, 16), 1, {"slab": 2}),
        (preset("small"), (8, 12, 16), 1, {"slab": 6}),
        (preset("small"), (8, 8, 8), 1, {"strategy": "single", "planes": ("coronal",)}),
        (preset("small"), (8, 8, 8), 1, {"strategy": "alternate", "planes": ("coronal", "sagittal")}),
        (scaled(), (4, 8, 12), 1, {}),
        (tiny_paper(), (16, 12, 20), 1, {}),
    ],
    ids=[
        "padded, patches of two", "a batch", "smallest slabs", "an uneven last slab", "one plane",
        "two planes in turn", "scaled", "paper: position, mask, attention, padded",
    ],
)  # fmt: skip
def test_every_shape(
    config: ModelConfig, size: tuple[int, int, int], batch: int, choice: dict[str, Any]
) -> None:
    model, condition = model_of(config), condition_of(config, size, batch)
    seeds, strategy = [3, 2**63 + 5][:batch], {"strategy": "fuse+features", **choice}
    expected = plainly(model, condition, seeds, 3, **strategy)
    torch.testing.assert_close(
        by_engine(model, condition, seeds, 3, **strategy), expected, rtol=1e-4, atol=1e-5
    )


def test_one_engine_draws_again_and_again() -> None:
    """Other seeds, samples, solvers and conditions, then weights changed in place, from the same buffers."""
    config = preset("small")
    model, condition = model_of(config), condition_of(config, (8, 8, 8))
    engine = Engine(model, plan(config, (8, 8, 8)))
    places = {name: buffer.data_ptr() for name, buffer in engine.buffers.items()}
    for seed, steps, scale in ((1, 3, 1.0), (2, 2, 0.5), (1, 3, 0.25)):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.0 + 0.1 * scale)
        engine.load(scale * condition, origin=(2, 4, 6), full=(64, 64, 64))
        drawn = engine.run(table_for(config, steps=steps), [seed])
        expected = plainly(model, scale * condition, [seed], steps, strategy=config.sampling.strategy)
        torch.testing.assert_close(drawn, expected, rtol=1e-4, atol=1e-5)
    assert places == {name: buffer.data_ptr() for name, buffer in engine.buffers.items()}


def test_a_result_outlives_the_next() -> None:
    config = preset("small")
    engine = Engine(model_of(config), plan(config, (4, 4, 8)))
    engine.load(condition_of(config, (4, 4, 8)))
    first = engine.run(table_for(config, steps=2), [1])
    kept = first.clone()
    second = engine.run(table_for(config, steps=2), [1], sample=1)
    assert torch.equal(first, kept) and not torch.equal(first, second)


class Allocations(TorchDispatchMode):
    """Lists operations that make new memory, except inside the networks."""

    def __init__(self, engine: Engine):
        super().__init__()
        self.inside, self.found = 0, list[str]()
        engine.runners = {name: self._watched(runner) for name, runner in engine.runners.items()}
        engine._forget_steps()
        assert engine.model.fusion is not None
        engine.model.fusion.forward = self._watched(engine.model.fusion.forward)  # type: ignore[method-assign]

    def _watched(self, network: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            self.inside += 1
            result = network(*args, **kwargs)
            self.inside -= 1
            return result

        run.name = "watched"  # type: ignore[attr-defined]
        return run

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        made = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        if not self.inside and any(
            t.untyped_storage().data_ptr() not in given for t in made if t.numel() > 64
        ):
            self.found.append(str(func))
        return result


def test_a_step_allocates_nothing_of_its_own() -> None:
    """Outside the networks, whose activations PyTorch's allocator hands out again and again."""
    config = preset("small")
    engine = Engine(model_of(config), plan(config, (8, 12, 16)))
    engine.load(condition_of(config, (8, 12, 16)))
    engine.start(table_for(config, steps=3), [0])
    engine.step()
    with Allocations(engine) as allocations:
        engine.step()
        assert allocations.found == []
        engine.buffers["x"] + 1.0
    assert allocations.found == ["aten.add.Tensor"]


def test_out_of_memory_halves_the_slab_once(monkeypatch: pytest.MonkeyPatch) -> None:
    config = preset("small")
    model, condition = model_of(config), condition_of(config, (8, 12, 16))
    engine = Engine(model, plan(config, (8, 12, 16), slab=8))
    engine.load(condition, origin=(2, 4, 6), full=(64, 64, 64))
    expected = plainly(model, condition, [7], 3, strategy=config.sampling.strategy)
    real, most = module.gather_slices, 4

    def gather_slices(*args: Any, **kwargs: Any) -> Tensor:
        if args[5] - args[4] > most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return real(*args, **kwargs)

    monkeypatch.setattr(module, "gather_slices", gather_slices)
    with pytest.warns(RuntimeWarning, match="out of memory") as said:
        drawn = engine.run(table_for(config, steps=3), [7])
    assert len(said) == 1 and max(engine.plan.rows.values()) <= 4
    torch.testing.assert_close(drawn, expected, rtol=1e-4, atol=1e-5)
    most = 0
    with pytest.raises(RuntimeError, match="can't allocate"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine.run(table_for(config, steps=3), [7])


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: not enough memory"), True),
        (RuntimeError("Given groups=1, weight of size [8]"), False),
    ],
)
def test_out_of_memory(error: BaseException, expected: bool) -> None:
    assert out_of_memory(error) is expected


@pytest.mark.parametrize("name", ["small", "t1-sr4", "paper"])
def test_a_plan_knows_where_features_go(name: str) -> None:
    config = preset(name)
    with torch.device("meta"):
        model = ScoreFusion(config)
    assert model.fusion is not None
    for scale in config.feature_scales:
        block = model.fusion.encoder[model.fusion.inject_at[scale]]
        assert model.fusion.config.injected_channels(scale) == block.conv1.in_channels  # type: ignore[union-attr]


def test_a_plan_counts_its_bytes() -> None:
    config = preset("small")
    layout = plan(config, (8, 12, 16), dtype=torch.bfloat16, slab=4)
    voxels = 8 * 12 * 16
    expected = {
        "x": 4 * voxels, "x0": 4 * voxels, "x.next": 4 * voxels, "x0.next": 4 * voxels,
        "condition": 4 * voxels, "measured": 4 * voxels // 64,
        "cut": 2 * 4 * 6 * 12 * 16, "scores.0": 2 * voxels, "scores.1": 2 * voxels, "scores.2": 2 * voxels,
        "stacked": 2 * 5 * voxels, "total.1": 2 * 32 * voxels, "total.2": 2 * 32 * voxels // 8,
    }  # fmt: skip
    assert {buffer.name: buffer.bytes for buffer in layout.buffers} == expected
    engine = Engine(model_of(config).bfloat16(), layout)
    held = {name: buffer.numel() * buffer.element_size() for name, buffer in engine.buffers.items()}
    assert held == expected and layout.bytes == sum(expected.values())


def test_rejects_bad_input() -> None:
    config = preset("small")
    engine = Engine(model_of(config), plan(config, (8, 8, 8)))
    with pytest.raises(ScoreFusionError, match=r"made for \[1, 1, 8, 8, 8\], got \[1, 1, 8, 8, 12\]"):
        engine.load(condition_of(config, (8, 8, 12)))
    with pytest.raises(ScoreFusionError, match="2 seeds"):
        engine.start(table_for(config, steps=2), [0, 1])
    with pytest.raises(ScoreFusionError, match=f"up to {ROWS} steps"):
        engine.start(table_for(config, steps=ROWS + 1), [0])
    with pytest.raises(ScoreFusionError, match="all are done"):
        engine.step()
    with pytest.raises(ScoreFusionError, match="at least 1"):
        plan(config, (8, 0, 8))
    with pytest.raises(ScoreFusionError, match="not trained for strategy 'volume'"):
        plan(config, (8, 8, 8), strategy="volume")
