"""FID and MMD of feature vectors against scipy, MONAI, double loops and closed forms; feature networks."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from scorefusion.errors import ScoreFusionError
from scorefusion.evaluate.sets import NAMES, feature_network
from scorefusion.metrics import Moments, discrepancy, frechet_distance

RNG = np.random.default_rng(0)
ONE = RNG.normal(size=(60, 7)) @ RNG.normal(size=(7, 7))
OTHER = RNG.normal(size=(50, 7)) @ RNG.normal(size=(7, 7)) + 0.3
installed = pytest.mark.skipif(importlib.util.find_spec("deepbet") is None, reason="deepbet is not installed")


def test_frechet_distance_matches_scipys_root_and_monai() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    found = frechet_distance(Moments.of(ONE), Moments.of(OTHER))
    s1, s2 = (np.cov(array, rowvar=False) for array in (ONE, OTHER))
    apart = ONE.mean(0) - OTHER.mean(0)
    root = linalg.sqrtm(s1 @ s2)
    assert found == pytest.approx(float(apart @ apart + np.trace(s1 + s2 - 2 * root.real)), rel=1e-9)
    monai = pytest.importorskip("monai.metrics")
    tensors = [torch.from_numpy(array) for array in (ONE, OTHER)]
    try:
        theirs = monai.FIDMetric()(*tensors).item()
    except TypeError:
        pytest.skip("this MONAI passes an argument that this scipy's sqrtm no longer takes")
    assert found == pytest.approx(theirs, rel=1e-6)


def test_frechet_distance_of_normals_along_the_axes_has_a_closed_form() -> None:
    """For covariances that commute it is |m1 - m2|² + sum (s1 - s2)²."""
    count = 4
    signs = np.array(np.meshgrid(*[[-1.0, 1.0]] * count)).reshape(count, -1).T
    scale, other, shift = np.array([1.0, 2, 3, 4]), np.array([2.0, 2, 1, 0]), np.array([0.0, 1, 0, 2])
    unbiased = math.sqrt((len(signs) - 1) / len(signs))
    found = frechet_distance(
        Moments.of(signs * scale * unbiased), Moments.of(signs * other * unbiased + shift)
    )
    # The root of a variance that is 0 but for rounding, 1e-16, is 1e-8.
    assert found == pytest.approx(5.0 + 1 + 4 + 16, rel=1e-7)


def test_few_vectors_of_many_numbers() -> None:
    """Singular covariances: a crowd is at no distance from itself, and the distance is symmetric."""
    few, others = (Moments.of(RNG.normal(size=(4, 20))) for _ in range(2))
    assert frechet_distance(few, few) == pytest.approx(0.0, abs=1e-6)
    assert frechet_distance(few, others) == pytest.approx(frechet_distance(others, few), rel=1e-6)


def test_moments_of_parts_add_up() -> None:
    whole, parts = Moments.of(ONE), Moments.of(ONE[:20]) + Moments.of(ONE[20:])
    np.testing.assert_allclose(parts.covariance, whole.covariance, rtol=1e-9)
    np.testing.assert_allclose((whole - Moments.of(ONE[:20])).mean, ONE[20:].mean(0))


def test_discrepancy_matches_a_double_loop() -> None:
    width = 5.0

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return math.exp(-float(((a - b) ** 2).sum()) / width)

    within = [
        sum(kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j)
        / (len(x) * (len(x) - 1))
        for x in (ONE, OTHER)
    ]
    between = sum(kernel(a, b) for a in ONE for b in OTHER) / (len(ONE) * len(OTHER))
    assert discrepancy(ONE, OTHER, width) == pytest.approx(sum(within) - 2 * between, rel=1e-9)


def test_rejects_bad_crowds() -> None:
    with pytest.raises(ScoreFusionError, match="at least 2 vectors"):
        frechet_distance(Moments.of(ONE[:1]), Moments.of(OTHER))
    with pytest.raises(ScoreFusionError, match="50 of 6 numbers"):
        frechet_distance(Moments.of(ONE), Moments.of(OTHER[:, :6]))
    with pytest.raises(ScoreFusionError, match="positive kernel width"):
        discrepancy(ONE, OTHER, 0.0)
    with pytest.raises(ScoreFusionError, match=r"must be \[N, F\]"):
        Moments.of(ONE[0])


def smooth(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    """Texture of about three voxels, standard deviation 1."""
    ndimage = pytest.importorskip("scipy.ndimage")
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.0)
    return np.asarray(field / field.std(), np.float32)


def crowd(name: str, change: Callable[[np.ndarray], np.ndarray], seeds: range = range(2)) -> Moments:
    network, shape = feature_network(name), (48, 48, 64)
    volumes = [np.asarray(change(smooth(shape, seed)), np.float32) for seed in seeds]
    inside = np.ones(shape, bool)
    return Moments.of(np.concatenate([network.vectors(volume, inside) for volume in volumes]))


@pytest.mark.parametrize("name", ["random", pytest.param("deepbet", marks=installed)])
def test_more_blur_and_more_grain_are_farther(name: str) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    truth = crowd(name, lambda volume: volume)
    noise = np.random.default_rng(9).normal(size=(48, 48, 64))
    for change in (
        lambda amount: lambda volume: ndimage.gaussian_filter(volume, amount),
        lambda amount: lambda volume: volume + 0.4 * amount * noise,
    ):
        found = [frechet_distance(truth, crowd(name, change(amount))) for amount in (0.0, 0.4, 0.8)]
        assert found[0] == pytest.approx(0.0, abs=1e-3) and found[0] < found[1] < found[2]


def test_blur_and_grain_are_farther_than_another_draw() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    truth = crowd("random", lambda volume: volume, range(4))
    near = frechet_distance(truth, crowd("random", lambda volume: volume, range(4, 8)))
    blurred = crowd("random", lambda volume: ndimage.gaussian_filter(volume, 0.7), range(4))
    grainy = crowd("random", lambda volume: volume + RNG.normal(0, 0.3, volume.shape), range(4))
    assert frechet_distance(truth, blurred) > 2 * near and frechet_distance(truth, grainy) > 2 * near


def test_cubes_are_those_inside_and_vectors_are_means_of_maps() -> None:
    network = feature_network("random")
    volume = smooth((48, 32, 40), 1)
    inside = np.zeros(volume.shape, bool)
    inside[16:] = True
    vectors = network.vectors(volume, inside)
    assert vectors.shape == (2, 16 + 32 + 64)
    first = network.maps(torch.from_numpy(volume)[None, None])[0][0, :, 16:48, :, :32].mean(dim=(1, 2, 3))
    np.testing.assert_allclose(vectors[1, :16], first.numpy(), rtol=1e-4, atol=1e-6)
    assert network.vectors(volume, np.zeros_like(inside)).shape[0] == 2, "the fullest, when none is inside"
    np.testing.assert_array_equal(vectors, feature_network("random").vectors(volume, inside))
    flat = network.vectors(volume + 5.0, inside)
    np.testing.assert_allclose(flat, vectors, atol=1e-5)


def test_a_network_of_the_users(tmp_path: Path) -> None:
    convolution = torch.nn.Conv3d(1, 5, 4, stride=4)
    volume = smooth((32, 32, 48), 2)
    torch.jit.trace(convolution, torch.zeros(1, 1, 32, 32, 48)).save(str(tmp_path / "mine.pt"))
    network = feature_network(str(tmp_path / "mine.pt"))
    vectors = network.vectors(volume, np.ones(volume.shape, bool))
    assert network.name == "mine" and vectors.shape == (2, 5)
    expected = convolution(torch.from_numpy(volume)[None, None])[0, :, :, :, 4:].mean(dim=(1, 2, 3))
    np.testing.assert_allclose(vectors[1], expected.detach().numpy(), atol=1e-6)
    whole = torch.nn.Sequential(convolution, torch.nn.AdaptiveAvgPool3d(1), torch.nn.Flatten())
    torch.jit.trace(whole, torch.zeros(1, 1, 32, 32, 48)).save(str(tmp_path / "whole.pt"))
    assert feature_network(str(tmp_path / "whole.pt")).vectors(volume, volume > 0).shape == (1, 5)


def test_rejects_bad_networks(tmp_path: Path) -> None:
    with pytest.raises(ScoreFusionError, match="unknown feature network 'randm'; did you mean 'random'"):
        feature_network("randm")
    with pytest.raises(ScoreFusionError, match="no.pt: does not exist"):
        feature_network(str(tmp_path / "no.pt"))
    (tmp_path / "bad.pt").write_bytes(b"nothing")
    with pytest.raises(ScoreFusionError, match="bad.pt: is not a TorchScript network"):
        feature_network(str(tmp_path / "bad.pt"))
    if importlib.util.find_spec("deepbet") is None:
        with pytest.raises(ScoreFusionError, match="pip install --no-deps deepbet"):
            feature_network("deepbet")
    assert NAMES == ("random", "deepbet")
