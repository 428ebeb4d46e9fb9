"""Maximum mean discrepancy against MONAI, scipy and a double loop; that of voxels, person by person."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from scorefusion.evaluate.output import Store
from scorefusion.evaluate.sets import set_distances
from scorefusion.metrics import discrepancy, paired_terms

distance = pytest.importorskip("scipy.spatial.distance")
RNG = np.random.default_rng(0)
ONE = RNG.normal(size=(20, 7)) @ RNG.normal(size=(7, 7))
OTHER = 0.8 * ONE + 0.5 * RNG.normal(size=ONE.shape) + 0.3
WIDTH = 9.0


def kernel(one: np.ndarray, other: np.ndarray, width: float = WIDTH) -> np.ndarray:
    """exp(-|a - b|²/width) of flattened rows, by scipy."""
    flat = (array.reshape(len(array), -1).astype(np.float64) for array in (one, other))
    return np.asarray(np.exp(-distance.cdist(*flat, "sqeuclidean") / width))


def paired_loop(one: np.ndarray, other: np.ndarray, width: float = WIDTH) -> float:
    """Gretton et al. 2012, equation 4, as it is printed."""
    x, y, xy, m = kernel(one, one, width), kernel(other, other, width), kernel(one, other, width), len(one)
    terms = [
        x[i, j] + y[i, j] - xy[i, j] - xy[j, i] for i in range(m) for j in range(m) if i != j
    ]  # fmt: skip
    return float(sum(terms) / (m * (m - 1)))


def terms_of(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    pairs = ((one, one), (other, other), (one, other))
    return paired_terms(*(distance.cdist(*pair, "sqeuclidean") for pair in pairs), WIDTH)


def monais(one: np.ndarray, other: np.ndarray) -> float:
    """Equation 3 by MONAI, whose kernel is linear: of vectors whose products are the Gaussian kernel."""
    metrics = pytest.importorskip("monai.metrics")
    both = np.concatenate([one, other])
    vectors = torch.from_numpy(np.linalg.cholesky(kernel(both, both)))[:, :, None, None]
    return float(metrics.MMDMetric()(vectors[: len(one)], vectors[len(one) :]))


def test_independent_crowds_match_monai() -> None:
    assert discrepancy(ONE, OTHER, WIDTH) == pytest.approx(monais(ONE, OTHER), rel=1e-9)


def test_pairs_match_a_loop_and_monai() -> None:
    terms, crossed = terms_of(ONE, OTHER), kernel(ONE, OTHER)
    apart = ~np.eye(len(ONE), dtype=bool)
    assert terms[apart].mean() == pytest.approx(paired_loop(ONE, OTHER), rel=1e-9)
    without_pairs = monais(ONE, OTHER) + 2 * crossed.mean() - 2 * crossed[apart].mean()
    assert terms[apart].mean() == pytest.approx(without_pairs, rel=1e-9)


def test_a_perfect_result_is_at_no_distance() -> None:
    """Only of pairs: taken for independent, equal crowds are nearer than two draws of one distribution."""
    np.testing.assert_allclose(terms_of(ONE, ONE), 0.0, atol=1e-12)
    assert discrepancy(ONE, ONE, WIDTH) < -0.01


@pytest.fixture
def volumes() -> dict[str, np.ndarray]:
    """Of five subjects, float32 [5, 6, 7, 8]: truths, results near them, and others that are too dark."""
    rng = np.random.default_rng(1)
    truth = rng.normal(size=(5, 6, 7, 8)).astype(np.float32)
    near = truth + 0.2 * rng.normal(size=truth.shape).astype(np.float32)
    return {"truth": truth, "near": near, "dark": truth - 0.5, "same": truth}


def sets(folder: Path, volumes: dict[str, np.ndarray], persons: list[str]) -> dict[str, dict[str, float]]:
    store = Store(folder)
    for name, several in volumes.items():
        for number, volume in enumerate(several):
            store.put_array(f"{name}-{number}", volume)
    keys = [{name: f"{name}-{number}" for name in volumes} for number in range(len(persons))]
    found = set_distances(keys, [name for name in volumes if name != "truth"], store, [], persons=persons)
    return {name: {key: each.mean for key, each in of.items()} for name, of in found.items()}


def width_of(truth: np.ndarray) -> float:
    return float(np.median(distance.pdist(truth.reshape(len(truth), -1).astype(np.float64), "sqeuclidean")))


def test_voxels(tmp_path: Path, volumes: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scorefusion.evaluate.sets._VOXELS", 50)
    found = sets(tmp_path, volumes, list("abcde"))
    width = width_of(volumes["truth"])
    for name in ("near", "dark", "same"):
        expected = paired_loop(volumes[name], volumes["truth"], width)
        assert found[name]["mmd voxels"] == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert found["same"]["mmd voxels"] < 1e-12 < 0.01 < found["dark"]["mmd voxels"]


def test_voxels_of_several_sessions(tmp_path: Path, volumes: dict[str, np.ndarray]) -> None:
    """A session more, equal to the person's last, changes nothing; one person alone gives nothing."""
    twice = {name: np.concatenate([several, several[-1:]]) for name, several in volumes.items()}
    found = sets(tmp_path / "twice", twice, list("abcdee"))
    width = width_of(twice["truth"])
    expected = paired_loop(volumes["dark"], volumes["truth"], width)
    assert found["dark"]["mmd voxels"] == pytest.approx(expected, rel=1e-6)
    assert sets(tmp_path / "alone", volumes, ["a"] * 5)["dark"] == {}


def test_voxels_of_other_sizes_are_not_compared(tmp_path: Path, volumes: dict[str, np.ndarray]) -> None:
    store = Store(tmp_path)
    for number, volume in enumerate(volumes["truth"]):
        store.put_array(f"truth-{number}", volume[number:])
    keys = [{"truth": f"truth-{number}", "near": f"truth-{number}"} for number in range(5)]
    assert set_distances(keys, ["near"], store, [], persons=list("abcde")) == {"near": {}}
