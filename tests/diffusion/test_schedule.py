"""Schedules and levels against numbers computed by hand (40-digit decimals) and the authors' timesteps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from scorefusion.diffusion import level, schedule
from scorefusion.errors import ScoreFusionError


def test_authors_sampling_schedule() -> None:
    abar = schedule.paper_sampling().abar
    assert abar.dtype == np.float64 and abar.shape == (1000,)
    # abar[1] = 0.9999 * (1 - 1e-4 - 0.0899/999)
    expected = [0.9999, 0.999710029009009, 1.017428654627525e-05, 6.604377303535873e-21]
    assert abar[[0, 1, 500, 999]] == pytest.approx(expected, rel=1e-12)


def test_authors_training_schedule() -> None:
    abar = schedule.paper_training().abar
    assert abar.shape == (2000,)
    expected = [0.999999, 0.9999929980050015, 0.08137462765823202, 4.385978236133209e-05]
    assert abar[[0, 1, 1000, 1999]] == pytest.approx(expected, rel=1e-12)


def test_authors_timesteps() -> None:
    paper = schedule.paper_sampling()
    assert paper.respaced(6).t.tolist() == [999, 799, 599, 400, 200, 0]
    fifty = paper.respaced(50).t.tolist()
    assert fifty[-5:] == [82, 61, 41, 20, 0] and fifty[0] == 999 and len(fifty) == 50
    assert paper.respaced(1000).t.tolist() == paper.all().t.tolist() == list(range(999, -1, -1))


def test_one_level_is_the_noisiest() -> None:
    assert schedule.paper_sampling().respaced(1).t.tolist() == [999]
    assert schedule.Karras(0.1, 20.0).respaced(1).sigma == pytest.approx([20.0])


def test_late_start() -> None:
    paper = schedule.paper_sampling()
    late = paper.respaced(8, start_abar=0.5)
    assert len(late) == 8 and late.t[-1] == 0
    assert late.abar[0] >= 0.5 > paper.abar[late.t[0] + 1]
    assert paper.all(start_abar=0.5).t[0] == late.t[0]
    assert schedule.Karras(0.01, 80.0).respaced(5, start_abar=0.5).sigma[0] == pytest.approx(1.0)


def test_cosine() -> None:
    abar = schedule.cosine(1000).abar
    # Nichol and Dhariwal's f(t)/f(0) at the middle: cos(0.508/1.008 pi/2)^2 / cos(0.008/1.008 pi/2)^2
    assert abar[499] == pytest.approx(0.4938435904, rel=1e-9)
    assert abar[999] / abar[998] == pytest.approx(0.001)


def test_linear_is_by_product_of_alphas() -> None:
    assert schedule.linear(0.1, 0.3, 3).abar == pytest.approx([0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7])


def test_karras_sigmas() -> None:
    sigmas = schedule.karras_sigmas(3, 1.0, 128.0, rho=7.0)
    # The seventh roots are 2 and 1; midway is 1.5 ** 7.
    assert sigmas == pytest.approx([128.0, 1.5**7, 1.0])
    levels = schedule.Karras(0.02, 20.0).respaced(12)
    assert levels.sigma[[0, -1]] == pytest.approx([20.0, 0.02])
    assert levels.t.tolist() == [-1] * 12
    harmonic = schedule.karras_sigmas(3, 1.0, 3.0, rho=-1.0)
    np.testing.assert_allclose(1.0 / harmonic, [1 / 3, 2 / 3, 1.0])


def test_sigma_and_abar_are_inverse() -> None:
    sigma = np.geomspace(1e-3, 1e5, 50)
    assert schedule.abar_to_sigma(schedule.sigma_to_abar(sigma)) == pytest.approx(sigma, rel=1e-9)
    assert float(schedule.sigma_to_abar(2.0)) == pytest.approx(0.2)


def test_by_name() -> None:
    assert schedule.make_schedule("cosine", steps=10).respaced(10).t[0] == 9
    assert schedule.make_schedule("karras", sigma_max=5.0).respaced(1).sigma[0] == pytest.approx(5.0)
    with pytest.raises(ScoreFusionError, match="unknown schedule 'cosin'; did you mean 'cosine'"):
        schedule.make_schedule("cosin")
    with pytest.raises(ScoreFusionError, match="schedule 'cosine'.*sigma_max"):
        schedule.make_schedule("cosine", sigma_max=5.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedule.Schedule(np.array([0.5, 0.6])), "strictly decreasing"),
        (lambda: schedule.Schedule(np.ones((2, 2))), r"one-dimensional abar, got shape \(2, 2\)"),
        (lambda: schedule.Levels(np.array([0.6, 0.5]), np.array([1, 0])), "strictly increasing"),
        (lambda: schedule.Levels(np.array([0.5]), np.array([1, 0])), "equal one-dimensional"),
        (lambda: schedule.paper_sampling().at([1000]), r"distinct and within 0..999, got \[1000\]"),
        (lambda: schedule.paper_sampling().at([3, 3]), "distinct"),
        (lambda: schedule.paper_sampling().respaced(0), "cannot place 0 steps"),
        (lambda: schedule.paper_sampling().respaced(1001), "cannot place 1001 steps: .* has 1000 steps"),
        (lambda: schedule.paper_sampling().respaced(2, start_abar=0.99999), "has 0 steps with abar at least"),
        (lambda: schedule.karras_sigmas(0, 0.1, 1.0), "got n=0"),
        (lambda: schedule.karras_sigmas(4, 1.0, 0.1), "sigma_max=0.1"),
        (lambda: schedule.karras_sigmas(4, 0.1, 1.0, rho=0.0), "rho other than 0"),
    ],
)
def test_rejects_bad_input(make: Any, message: str) -> None:
    with pytest.raises(ScoreFusionError, match=message):
        make()


@pytest.mark.parametrize("prediction", level.PREDICTIONS)
@pytest.mark.parametrize("abar", [1e-12, 0.05, 0.5, 0.999])
def test_target_and_coefficients_agree(prediction: str, abar: float) -> None:
    """P x_t + Q m gives x0 back when m is the training target."""
    x0, z = torch.randn(2, 3, 1, 4, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    levels = torch.full((3,), abar, dtype=torch.float64)
    x_t = level.add_noise(x0, z, levels)
    m = level.training_target(prediction, x0, z, levels, sigma_data=0.7)
    p, q = level.prediction_coefficients(prediction, abar, sigma_data=0.7)
    # An eps network at abar near 0 divides rounding errors by sqrt(abar).
    tolerance = 1e-12 / abar**0.5 if prediction == "eps" else 1e-12
    assert torch.allclose(p * x_t + q * m, x0, rtol=0.0, atol=tolerance)


def test_edm_coefficients_are_karras_table_1() -> None:
    sigma, data = 1.7, 0.6
    abar = float(schedule.sigma_to_abar(sigma))
    p, q = level.prediction_coefficients("edm", abar, data)
    scale = (1 + sigma**2) ** 0.5
    assert p == pytest.approx(data**2 / (sigma**2 + data**2) * scale)
    assert q == pytest.approx(sigma * data / (sigma**2 + data**2) ** 0.5)
    assert level.input_scale("edm", abar, data) == pytest.approx(scale / (sigma**2 + data**2) ** 0.5)
    assert level.input_scale("v", abar) == 1.0


def test_edm_target_has_unit_variance() -> None:
    generator = torch.Generator().manual_seed(1)
    x0, z = torch.randn(2, 4, 20_000, generator=generator)
    abar = torch.tensor([0.01, 0.3, 0.7, 0.99])
    target = level.training_target("edm", x0 * 0.4, z, abar, sigma_data=0.4)
    assert target.var(dim=1).tolist() == pytest.approx([1.0] * 4, abs=0.05)


def test_unknown_prediction() -> None:
    for call in (
        lambda: level.prediction_coefficients("epsilon", 0.5),
        lambda: level.input_scale("epsilon", 0.5),
        lambda: level.training_target("epsilon", torch.ones(1), torch.ones(1), torch.ones(1)),
    ):
        with pytest.raises(ScoreFusionError, match="unknown prediction 'epsilon'; did you mean 'eps'"):
            call()


def test_noise_level() -> None:
    one = level.NoiseLevel.of(0.2, 7, 3, "cpu")
    assert one.abar.dtype == torch.float64 and one.abar.tolist() == [0.2] * 3 and one.t.tolist() == [7] * 3
    assert one.sigma.tolist() == pytest.approx([2.0] * 3)
    assert level.NoiseLevel.continuous(torch.tensor([0.1, 0.9])).t.tolist() == [-1, -1]
