"""Solvers against hand-computed rows, diffusers' schedulers, EDM's algorithm and a closed-form Gaussian."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from scorefusion.diffusion import solvers
from scorefusion.diffusion.level import PREDICTIONS, NoiseLevel, prediction_coefficients
from scorefusion.diffusion.sample import sample
from scorefusion.diffusion.schedule import Karras, Levels, Schedule, paper_sampling
from scorefusion.errors import ScoreFusionError
from scorefusion.ops import normal

TWO = Levels(np.array([0.25, 0.64]), np.array([1, 0]))
SHAPE = (2, 1, 3, 4, 5)


def columns(table: solvers.Table) -> dict[str, np.ndarray]:
    return dict(zip(solvers.COLUMNS, table.rows.T, strict=True))


def test_ddpm_rows_by_hand() -> None:
    """alpha = 0.25/0.64 = 0.625^2; S^2 = (1 - alpha) 0.36/0.75."""
    table = solvers.ddpm(TWO)
    p, q = 2.0, -math.sqrt(0.75) / 0.5
    assert table.rows[0] == pytest.approx([0.25, 1, p, q, 0.3, 0.65, 0.0, math.sqrt(0.2925)])
    assert table.rows[1] == pytest.approx([0.64, 0, 1.25, -0.75, 0.0, 1.0, 0.0, 0.0])
    assert table.abar_start == 0.25 and len(table) == 2 and table.stochastic


def test_ddim_rows_by_hand() -> None:
    """A = 0.6/sqrt(0.75), B = 0.8 - A/2; with eta 0.5, S^2 = 0.25 * 0.2925 less under A's root."""
    a = 0.6 / math.sqrt(0.75)
    assert solvers.ddim(TWO).rows[0, 4:] == pytest.approx([a, 0.8 - 0.5 * a, 0.0, 0.0])
    variance = 0.25 * 0.2925
    a = math.sqrt((0.36 - variance) / 0.75)
    assert solvers.ddim(TWO, eta=0.5).rows[0, 4:] == pytest.approx(
        [a, 0.8 - 0.5 * a, 0.0, math.sqrt(variance)]
    )


def test_ddim_with_spread_by_hand() -> None:
    """From sigma² 3 to 0.5625: a = (sqrt((v + 0.5625)(v + 3)) - v)/3 and A = a sqrt(0.64/0.25)."""
    table = solvers.make_table("ddim", levels=TWO, spread=1.0)
    a = (math.sqrt(1.5625 * 4.0) - 1.0) / 3.0 * 1.6
    assert table.rows[0, 4:] == pytest.approx([a, 0.8 - 0.5 * a, 0.0, 0.0])
    assert table.rows[1, 4:] == pytest.approx([0.0, 1.0, 0.0, 0.0])
    np.testing.assert_array_equal(solvers.ddim(TWO, spread=0.0).rows, solvers.ddim(TWO).rows)
    with pytest.raises(ScoreFusionError, match="spread at least 0"):
        solvers.ddim(TWO, spread=-0.1)
    with pytest.raises(ScoreFusionError, match="'ddpm' takes no spread"):
        solvers.make_table("ddpm", levels=TWO, spread=0.1)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [2, 3, 12])
def test_spread_is_exact_for_gaussian_data(steps: int, eta: float) -> None:
    """Data N(0, v): at every level x_sigma has variance v + sigma², however few the steps."""
    v = 0.3
    levels = Karras(0.1, 20.0).respaced(steps)
    rows = solvers.ddim(levels, eta=eta, spread=v).rows
    variance = levels.abar[0] * v + 1 - levels.abar[0]
    for row, abar, after in zip(rows[:-1], levels.abar[:-1], levels.abar[1:], strict=True):
        mean = math.sqrt(abar) * v / (abar * v + 1 - abar)
        variance = (row[4] + row[5] * mean) ** 2 * variance + row[7] ** 2
        assert variance == pytest.approx(after * v + 1 - after)


def test_dpmpp_rows_by_hand() -> None:
    """Three levels of sigma 8, 2, 1: h = ln 4 then ln 2, so 1/(2r) = 1/4 in the second row."""
    levels = Levels(1.0 / (1.0 + np.array([8.0, 2.0, 1.0]) ** 2), np.array([-1, -1, -1]))
    signal = np.sqrt(levels.abar)
    noise = np.sqrt(1.0 - levels.abar)
    rows = solvers.dpmpp_2m(levels).rows
    assert rows[0, 4:] == pytest.approx([noise[1] / noise[0], signal[1] * 0.75, 0.0, 0.0])
    weight = signal[2] * 0.5
    assert rows[1, 4:] == pytest.approx([noise[2] / noise[1], weight * 1.25, -weight * 0.25, 0.0])
    rows = solvers.dpmpp_2m_sde(levels).rows
    weight = signal[2] * 0.75
    expected = [noise[2] / noise[1] / 2, weight * 1.25, -weight * 0.25, noise[2] * math.sqrt(0.75)]
    assert rows[1, 4:] == pytest.approx(expected)


def test_relations_between_solvers() -> None:
    levels = paper_sampling().respaced(20)
    ddpm = solvers.ddpm(levels).rows
    assert solvers.ddim(levels, eta=1.0).rows == pytest.approx(ddpm, abs=1e-12)
    assert solvers.dpmpp_2m_sde(levels, eta=0.0).rows == pytest.approx(
        solvers.dpmpp_2m(levels).rows, abs=1e-12
    )
    assert np.array_equal(solvers.euler(levels, "eps").rows, solvers.ddim(levels).rows)
    first_order = columns(solvers.dpmpp_2m_sde(levels))
    assert first_order["A"] == pytest.approx(ddpm[:, 4], abs=1e-12)
    assert first_order["B"] + first_order["C"] == pytest.approx(ddpm[:, 5], abs=1e-12)
    assert first_order["S"] == pytest.approx(ddpm[:, 7], abs=1e-12)
    official = solvers.make_table("official")
    assert np.array_equal(official.rows, solvers.ddpm(paper_sampling().respaced(50)).rows)


@pytest.mark.parametrize("name", solvers.SOLVERS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("steps", [1, 2, 3, 50])
def test_every_table_ends_exactly_on_x0(name: str, prediction: str, steps: int) -> None:
    table = solvers.make_table(name, steps, prediction=prediction, sigma_data=0.5)
    assert table.rows[-1, 4:].tolist() == [0.0, 1.0, 0.0, 0.0]
    assert len(table) == (2 * steps - 1 if name == "heun" else steps)
    assert table.name == name and table.prediction == prediction
    p, q = prediction_coefficients(prediction, table.rows[:, 0], 0.5)
    assert np.array_equal(table.rows[:, 2], p) and np.array_equal(table.rows[:, 3], q)


def toy(x: Tensor, abar: float) -> Tensor:
    """A nonlinear stand-in for a denoiser, different at every level."""
    return 1.2 * torch.tanh(x * (0.5 + abar**0.5)) - 0.2 * torch.sin(3.0 * x)


def toy_network(x: Tensor, abar: float, prediction: str) -> Tensor:
    """What a network of that prediction would output for the toy denoiser; the conversion is in float64."""
    p, q = prediction_coefficients(prediction, abar)
    return ((toy(x.double(), abar) - p * x.double()) / q).to(x.dtype)


def trajectory(table: solvers.Table, draws: list[Tensor], **options: Any) -> list[Tensor]:
    """Return the states our loop gave the model, and the result."""
    states: list[Tensor] = []

    def model(x: Tensor, level: NoiseLevel) -> Tensor:
        states.append(x)
        return toy_network(x, float(level.abar[0]), table.prediction)

    states.append(
        sample(model, draws[0], table, seeds=[0] * SHAPE[0], noise=lambda number: draws[number], **options)
    )
    return states


def draws_for(table: solvers.Table) -> list[Tensor]:
    return [normal(SHAPE, [1, 2], number) for number in range(len(table) + 1)]


def follow(
    scheduler: Any, table: solvers.Table, draws: list[Tensor], step: Callable[..., Any]
) -> list[Tensor]:
    """Return the states a diffusers scheduler gives the model, and the result, from the same noise."""
    x = math.sqrt(1.0 - table.abar_start) * draws[0]
    states = [x]
    for number, t in enumerate(scheduler.timesteps, start=1):
        m = toy_network(x, float(scheduler.alphas_cumprod[int(t)]), table.prediction)
        x = step(m, t, x, draws[number]).prev_sample
        states.append(x)
    return states


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs)
    for left, right in zip(ours, theirs, strict=True):
        assert torch.allclose(left, right, rtol=0.0, atol=1e-5)


KINDS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}


@pytest.mark.parametrize("prediction", KINDS)
@pytest.mark.parametrize("clip", [False, True], ids=["free", "clamped"])
@pytest.mark.parametrize("timesteps", [None, [999, 799, 599, 400, 200, 0]], ids=["full", "respaced"])
def test_ddpm_is_diffusers(
    prediction: str, clip: bool, timesteps: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = pytest.importorskip("diffusers.schedulers.scheduling_ddpm")
    steps = 60 if timesteps is None else 1000
    scheduler = module.DDPMScheduler(steps, clip_sample=clip, prediction_type=KINDS[prediction])
    # In float32 its 1 - abar/abar' is off by up to 4e-5 of itself, which adds up over a full trajectory.
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    if timesteps is None:
        scheduler.set_timesteps(steps)
    else:
        scheduler.set_timesteps(timesteps=timesteps)
    table = solvers.ddpm(
        Schedule(scheduler.alphas_cumprod.double().numpy()).at(scheduler.timesteps), prediction
    )
    draws = draws_for(table)

    def step(m: Tensor, t: Tensor, x: Tensor, z: Tensor) -> Any:
        monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: z)
        return scheduler.step(m, t, x)

    assert_same(trajectory(table, draws, clamp=1.0 if clip else None), follow(scheduler, table, draws, step))


@pytest.mark.parametrize("prediction", KINDS)
@pytest.mark.parametrize("clip", [False, True], ids=["free", "clamped"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_is_diffusers(prediction: str, clip: bool, eta: float) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(clip_sample=clip, prediction_type=KINDS[prediction])
    scheduler.set_timesteps(20)
    levels = Schedule(scheduler.alphas_cumprod.double().numpy()).at(scheduler.timesteps)
    table = solvers.ddim(levels, prediction, eta=eta)
    draws = draws_for(table)

    def step(m: Tensor, t: Tensor, x: Tensor, z: Tensor) -> Any:
        noise = z if eta else None
        return scheduler.step(m, t, x, eta=eta, use_clipped_model_output=True, variance_noise=noise)

    assert_same(trajectory(table, draws, clamp=1.0 if clip else None), follow(scheduler, table, draws, step))


@pytest.mark.parametrize("prediction", KINDS)
@pytest.mark.parametrize("steps", [3, 20])
@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_2m_sde"])
def test_dpmpp_is_diffusers(name: str, steps: int, prediction: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    kind = {"dpmpp_2m": "dpmsolver++", "dpmpp_2m_sde": "sde-dpmsolver++"}[name]
    scheduler = diffusers.DPMSolverMultistepScheduler(algorithm_type=kind, prediction_type=KINDS[prediction])
    scheduler.set_timesteps(steps)
    levels = Schedule(scheduler.alphas_cumprod.double().numpy()).at(scheduler.timesteps)
    table = solvers.make_table(name, levels=levels, prediction=prediction)
    draws = draws_for(table)

    def step(m: Tensor, t: Tensor, x: Tensor, z: Tensor) -> Any:
        return scheduler.step(m, t, x, variance_noise=z)

    assert_same(trajectory(table, draws), follow(scheduler, table, draws, step))


@pytest.mark.parametrize("name", ["euler", "heun"])
def test_edm_solvers_in_sigma(name: str) -> None:
    """Karras et al. 2022, algorithm 1, written in sigma-space as the paper has it."""
    table = solvers.make_table(name, 8, schedule=Karras(0.02, 20.0), prediction="x0")
    draws = [z.double() for z in draws_for(table)]

    def denoise(x: Tensor, sigma: float) -> Tensor:
        return toy(x / math.sqrt(1.0 + sigma**2), 1.0 / (1.0 + sigma**2))

    sigmas = [*Karras(0.02, 20.0).respaced(8).sigma, 0.0]
    x = sigmas[0] * draws[0]
    for sigma, after in zip(sigmas[:-1], sigmas[1:], strict=True):
        slope = (x - denoise(x, sigma)) / sigma
        trial = x + (after - sigma) * slope
        if after > 0.0 and name == "heun":
            slope = (slope + (trial - denoise(trial, after)) / after) / 2.0
        x = x + (after - sigma) * slope
    assert torch.allclose(trajectory(table, draws)[-1], x, rtol=0.0, atol=1e-12)


MEAN = np.array([0.5, -0.3, 0.1])
SPREAD = np.array([1.0, 0.5, 0.25])
AXES = np.linalg.qr(np.array([[1.0, 2.0, 0.5], [0.0, 1.0, -1.0], [1.0, 0.0, 1.0]]))[0]
KARRAS = Karras(0.002, 80.0)
GAUSSIAN = {
    "ddpm": ("eps", 400, KARRAS),
    "official": ("eps", 1000, None),
    "ddim": ("v", 200, KARRAS),
    "dpmpp_2m": ("eps", 30, KARRAS),
    "dpmpp_2m_sde": ("x0", 100, KARRAS),
    "euler": ("edm", 200, KARRAS),
    "heun": ("edm", 30, KARRAS),
}


def gain(abar: float) -> np.ndarray:
    """How much of x_t - sqrt(abar) mean each axis passes on to the ideal x0."""
    return abar**0.5 * SPREAD**2 / (abar * SPREAD**2 + 1.0 - abar)


def spread_of(table: solvers.Table) -> np.ndarray:
    """Return the standard deviations along the axes of what the table samples, in the limit of many samples.

    The ideal denoiser of a Gaussian is linear, so (x_t, x0_prev) stays Gaussian and its covariance can be
    carried along. What differs from SPREAD is the solver's own discretisation error.
    """
    abar, *_ = table.rows[0]
    covariance = np.zeros((3, 2, 2))
    covariance[:, 0, 0] = 1.0 - abar
    for abar, _, _, _, a, b, c, s in table.rows:
        k = gain(abar)
        move = np.stack([np.stack([a + b * k, np.full(3, c)], 1), np.stack([k, np.zeros(3)], 1)], 1)
        covariance = move @ covariance @ move.transpose(0, 2, 1)
        covariance[:, 0, 0] += s**2
    return np.sqrt(covariance[:, 0, 0])


def ideal(table: solvers.Table) -> Callable[[Tensor, NoiseLevel], Tensor]:
    """The Gaussian's posterior mean E[x0 | x_t], turned into what the table asks a network to predict."""
    axes, mean = torch.from_numpy(AXES), torch.from_numpy(MEAN)

    def model(x: Tensor, level: NoiseLevel) -> Tensor:
        abar = float(level.abar[0])
        flat = x.double().movedim(1, -1)
        x0 = mean + (flat - abar**0.5 * mean) @ axes * torch.from_numpy(gain(abar)) @ axes.T
        p, q = prediction_coefficients(table.prediction, abar, table.sigma_data)
        return ((x0 - p * flat) / q).movedim(-1, 1)

    return model


def test_gaussian_covers_every_solver() -> None:
    assert set(GAUSSIAN) == set(solvers.SOLVERS)


@pytest.mark.parametrize("name", GAUSSIAN)
def test_gaussian_is_sampled_with_its_mean_and_covariance(name: str) -> None:
    """An anisotropic Gaussian in three channels, 13,824 voxels of it.

    The mean and covariance must be within five standard errors of the mean and of the table's own covariance,
    and the latter within 3% of the target's standard deviation along every axis.
    """
    prediction, steps, schedule = GAUSSIAN[name]
    table = solvers.make_table(name, steps, schedule=schedule, prediction=prediction, sigma_data=0.5)
    exact = spread_of(table)
    assert np.abs(exact / SPREAD - 1.0).max() < 0.03
    prior = torch.from_numpy(MEAN).float().reshape(1, 3, 1, 1, 1)
    box = torch.zeros(1, 1, 24, 24, 24)
    x = sample(ideal(table), box, table, seeds=[11], channels=3, prior_mean=prior)
    points = x[0].reshape(3, -1).double().numpy()
    count = points.shape[1]
    covariance = AXES * exact**2 @ AXES.T
    variance = np.diag(covariance)
    assert (np.abs(points.mean(axis=1) - MEAN) < 5.0 * np.sqrt(variance / count)).all()
    error = np.sqrt((np.outer(variance, variance) + covariance**2) / count)
    assert (np.abs(np.cov(points) - covariance) < 5.0 * error).all()


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("euler", 1), ("dpmpp_2m", 2), ("heun", 2)])
def test_order_of_convergence(name: str, order: int) -> None:
    """Twice the levels divide the error of the deterministic solvers by 2 or 4, about."""
    errors = [
        np.abs(spread_of(solvers.make_table(name, n, schedule=KARRAS)) / SPREAD - 1.0).max() for n in (32, 64)
    ]
    assert errors[0] / errors[1] > 0.9 * 2**order


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"solver": "ddmi"}, "unknown solver 'ddmi'; did you mean 'ddim'\\? valid: ddim, ddpm, dpmpp_2m,"),
        ({"solver": "ddim", "prediction": "epsilon"}, "unknown prediction 'epsilon'"),
        ({"solver": "ddim", "eta": 1.5}, "eta within 0..1, got 1.5"),
        ({"solver": "dpmpp_2m_sde", "eta": -1.0}, "eta >= 0, got -1.0"),
        ({"solver": "ddpm", "eta": 0.5}, "'ddpm' takes no eta"),
        ({"solver": "ddpm", "steps": 0}, "cannot place 0 steps"),
        ({"solver": "ddpm", "levels": TWO, "steps": 3}, r"levels are given \(2\)"),
        ({"solver": "official", "schedule": Karras()}, "'official' fixes its schedule"),
        ({"solver": "official", "levels": TWO}, "'official' fixes its schedule"),
    ],
)
def test_rejects_bad_input(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ScoreFusionError, match=message):
        solvers.make_table(**arguments)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((3, 7)), r"needs shape \[n, 8\], got \[3, 7\]"),
        (np.zeros((0, 8)), r"got \[0, 8\]"),
        (np.full((1, 8), np.nan), "not finite"),
        (np.ones((1, 8)), "must be A, B, C, S = 0, 1, 0, 0"),
    ],
)
def test_rejects_bad_tables(rows: np.ndarray, message: str) -> None:
    with pytest.raises(ScoreFusionError, match=message):
        solvers.Table(rows, "mine")
