"""The sampling loop: what it draws, calls and returns, whatever the solver."""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from scorefusion.degradations import Pooling, Projection, block_mean
from scorefusion.diffusion.level import NoiseLevel
from scorefusion.diffusion.sample import sample
from scorefusion.diffusion.schedule import Karras, paper_sampling
from scorefusion.diffusion.solvers import SOLVERS, make_table
from scorefusion.errors import ScoreFusionError
from scorefusion.ops import normal
from scorefusion.ops.backends import use_backend
from scorefusion.ops.fuse_scores import Fusion
from tests.support.fused_loop import fused_sample


def toy(x: Tensor, level: NoiseLevel) -> Tensor:
    """A nonlinear stand-in for a network, different at every level."""
    scale = level.abar.to(x.dtype).reshape(-1, 1, 1, 1, 1).sqrt()
    return torch.tanh(x * (0.5 + scale)) - 0.1 * torch.sin(3.0 * x)


TABLES = {
    name: make_table(name, 5, prediction="v", schedule=None if name == "official" else Karras(0.05, 20.0))
    for name in SOLVERS
}


def test_the_loop_fits_on_a_screen() -> None:
    source = inspect.getsource(sample)
    body = source[source.rindex('"""') + 3 :]
    assert len([line for line in body.splitlines() if line.strip()]) < 40
    assert not any(name in body for name in SOLVERS)


@pytest.mark.parametrize("name", SOLVERS)
def test_same_seed_same_volume_whatever_the_batch(name: str) -> None:
    condition = torch.zeros(3, 2, 4, 6, 7)
    together = sample(toy, condition, TABLES[name], seeds=[5, -6, 2**40])
    assert together.shape == (3, 1, 4, 6, 7) and together.dtype == torch.float32
    for item, seed in enumerate((5, -6, 2**40)):
        alone = sample(toy, condition[:1], TABLES[name], seeds=[seed])
        assert torch.allclose(alone, together[item : item + 1], rtol=0.0, atol=1e-5)
    assert torch.equal(sample(toy, condition, TABLES[name], seeds=[5, -6, 2**40]), together)
    assert not torch.allclose(together[0], together[1], atol=0.1)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_crop_is_a_crop(name: str) -> None:
    """With a model that looks at single voxels, sampling a crop is cropping the sample."""
    whole = sample(toy, torch.zeros(1, 1, 6, 7, 9), TABLES[name], seeds=[1])
    crop = sample(toy, torch.zeros(1, 1, 3, 4, 5), TABLES[name], seeds=[1], origin=(2, 1, 3))
    assert torch.allclose(crop, whole[:, :, 2:5, 1:5, 3:8], rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("backend", [None, "torch"], ids=["this machine's", "torch"])
@pytest.mark.parametrize("name", SOLVERS)
def test_one_pass_a_step_is_separate_operations(name: str, backend: str | None) -> None:
    """The end of a step as the engine computes it, and the same from separate operations."""
    measured = torch.full((1, 1, 2, 3, 2), 0.1)
    scores = [0.3, 0.5, 0.2]

    def model(x: Tensor, level: NoiseLevel) -> Fusion:
        views = tuple((weight + toy(x, level)).movedim(2, 4).contiguous().movedim(4, 2) for weight in scores)
        return Fusion(views, torch.cat([0.1 * x, 0.2 * x, 0.3 * x], dim=1), (0.2, 0.3, 0.5), 0.7)

    condition, options = torch.zeros(2, 1, 4, 6, 8), {"seeds": [3, -4], "clamp": 0.9, "origin": (1, 2, 4)}
    for project in (None, Projection(Pooling((2, 2, 4)), measured)):
        with use_backend(backend) if backend else contextlib.nullcontext():
            fused = fused_sample(model, condition.shape, TABLES[name], project=project, **options)
        separate = sample(model, condition, TABLES[name], project=project, **options)
        assert torch.allclose(fused, separate, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("name", SOLVERS)
def test_samples_at_once_are_samples_one_by_one(name: str) -> None:
    condition, options = torch.zeros(3, 1, 4, 6, 7), {"clamp": 0.9, "origin": (1, 2, 4), "seeds": [3, -4, 3]}
    together = sample(toy, condition, TABLES[name], sample=[2, 0, 5], **options)
    for item, (seed, index) in enumerate(((3, 2), (-4, 0), (3, 5))):
        alone = sample(toy, condition[:1], TABLES[name], sample=index, **{**options, "seeds": [seed]})
        assert torch.allclose(alone, together[item : item + 1], rtol=0.0, atol=1e-5)
    assert not torch.allclose(together[0], together[2], atol=0.1)


def test_samples_and_channels_differ() -> None:
    condition = torch.zeros(1, 1, 4, 4, 4)
    first, second = (
        sample(toy, condition, TABLES["ddpm"], seeds=[1], sample=index, channels=2) for index in (0, 1)
    )
    assert first.shape == (1, 2, 4, 4, 4)
    assert not torch.allclose(first, second, atol=0.1)
    assert not torch.allclose(first[:, 0], first[:, 1], atol=0.1)


@pytest.mark.parametrize("name", SOLVERS)
def test_noise_is_drawn_only_where_a_row_uses_it(name: str) -> None:
    drawn: list[int] = []

    def noise(number: int) -> Tensor:
        drawn.append(number)
        return normal((1, 1, 2, 2, 2), [0], number)

    table = TABLES[name]
    sample(toy, torch.zeros(1, 1, 2, 2, 2), table, seeds=[0], noise=noise)
    assert drawn == [0] + [row + 1 for row in range(len(table)) if table.rows[row, 7] != 0.0]
    assert (len(drawn) > 1) == table.stochastic == (name in ("ddpm", "dpmpp_2m_sde", "official"))


@pytest.mark.parametrize("name", SOLVERS)
def test_ends_on_the_clamped_and_projected_x0(name: str) -> None:
    seen: list[tuple[int, int, Tensor]] = []
    project = Projection(Pooling(2))
    limits: list[float] = []

    def watch(x0: Tensor) -> Tensor:
        limits.append(float(x0.abs().max()))
        return project(x0)

    result = sample(
        toy,
        torch.zeros(1, 1, 4, 4, 4),
        TABLES[name],
        seeds=[3],
        clamp=0.5,
        project=watch,
        callback=lambda step, total, x0: seen.append((step, total, x0.clone())),
    )
    total = len(TABLES[name])
    assert [(step, of) for step, of, _ in seen] == [(step, total) for step in range(1, total + 1)]
    assert torch.equal(result, seen[-1][2])
    assert max(limits) <= 0.5
    assert float(block_mean(result, 2).abs().max()) < 1e-6


def test_one_evaluation_is_x0_itself() -> None:
    table = make_table("ddim", 1, schedule=Karras(0.05, 20.0), prediction="x0")
    result = sample(toy, torch.zeros(1, 1, 3, 3, 3), table, seeds=[0])
    abar = table.abar_start
    start = (1.0 - abar) ** 0.5 * normal((1, 1, 3, 3, 3), [0], 0)
    assert torch.allclose(result, toy(start, NoiseLevel.of(abar, -1, 1, "cpu")))


def test_late_start_begins_at_the_prior_mean() -> None:
    table = make_table("ddim", 3, schedule=paper_sampling(), start_abar=0.5)
    prior = torch.full((1, 1, 2, 3, 4), 0.3)
    inputs: list[Tensor] = []

    def model(x: Tensor, level: NoiseLevel) -> Tensor:
        inputs.append(x)
        return toy(x, level)

    sample(model, torch.zeros(1, 1, 2, 3, 4), table, seeds=[9], prior_mean=prior)
    abar = table.abar_start
    assert 0.5 <= abar < 0.51
    expected = abar**0.5 * prior + (1.0 - abar) ** 0.5 * normal((1, 1, 2, 3, 4), [9], 0)
    assert torch.allclose(inputs[0], expected)


def test_model_sees_the_tables_levels() -> None:
    table = make_table("official", 4)
    levels: list[NoiseLevel] = []

    def model(x: Tensor, level: NoiseLevel) -> Tensor:
        levels.append(level)
        return toy(x, level)

    sample(model, torch.zeros(2, 1, 2, 2, 2), table, seeds=[1, 2], clamp=1.0)
    assert [level.t.tolist() for level in levels] == [[t, t] for t in (999, 666, 333, 0)]
    assert [float(level.abar[0]) for level in levels] == table.rows[:, 0].tolist()


def test_callback_cancels() -> None:
    class Cancelled(Exception):
        pass

    calls: list[int] = []

    def callback(step: int, total: int, x0: Tensor) -> None:
        calls.append(step)
        if step == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        sample(toy, torch.zeros(1, 1, 2, 2, 2), TABLES["ddim"], seeds=[0], callback=callback)
    assert calls == [1, 2]


def test_half_precision_models_and_no_gradients() -> None:
    weight = torch.ones((), requires_grad=True)
    result = sample(
        lambda x, level: (weight * toy(x, level)).to(torch.bfloat16),
        torch.zeros(1, 1, 2, 2, 2),
        TABLES["ddim"],
        seeds=[0],
    )
    assert result.dtype == torch.float32 and not result.requires_grad


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [1, 2]}, r"got \[1, 1, 2, 2, 2\] and 2 seeds"),
        ({"condition": torch.zeros(1, 2, 2, 2)}, r"needs a condition \[B, C, D, H, W\]"),
        (
            {"model": lambda x, level: x[..., :1]},
            r"the model returned \[1, 1, 2, 2, 1\], expected \[1, 1, 2, 2, 2\]",
        ),
        ({"origin": (-1, 0, 0)}, "none negative"),
        ({"sample": [0, 1]}, "a sample for each of 1 items, or one; got 2"),
        ({"sample": [2**32]}, r"sample must be within \[0, 2\^32\), got 4294967296"),
    ],
)
def test_rejects_bad_input(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "model": toy,
        "condition": torch.zeros(1, 1, 2, 2, 2),
        "seeds": [0],
        **changes,
    }
    with pytest.raises(ScoreFusionError, match=message):
        sample(arguments.pop("model"), arguments.pop("condition"), TABLES["ddim"], **arguments)
