"""Metrics against values known by hand, and against scikit-image."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from scorefusion import optional
from scorefusion.errors import ScoreFusionError
from scorefusion.metrics import compare_spectra, psnr, ssim

RNG = np.random.default_rng(0)
TRUTH = RNG.random((16, 18, 20))


def power_spectrum_error(volume: np.ndarray, truth: np.ndarray) -> float:
    return compare_spectra(volume, truth).error


def test_psnr_by_hand() -> None:
    truth = np.array([0.0, 10.0])
    assert psnr(truth + 1, truth) == pytest.approx(20.0)
    assert psnr(truth + 1, truth, data_range=100) == pytest.approx(40.0)
    assert psnr(truth, truth) == math.inf


def test_psnr_matches_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    noisy = TRUTH + RNG.normal(0, 0.1, TRUTH.shape)
    expected = metrics.peak_signal_noise_ratio(TRUTH, noisy, data_range=np.ptp(TRUTH))
    assert psnr(noisy, TRUTH) == pytest.approx(expected)


def test_ssim() -> None:
    pytest.importorskip("skimage")
    assert ssim(TRUTH, TRUTH) == pytest.approx(1.0)
    near, far = (TRUTH + s * RNG.normal(0, 1, TRUTH.shape) for s in (0.05, 0.5))
    assert ssim(far, TRUTH) < ssim(near, TRUTH) < 1.0


def test_inside_a_mask() -> None:
    inside = np.zeros(TRUTH.shape, bool)
    inside[4:12, 5:13, 6:15] = True
    noisy = TRUTH.copy()
    noisy[~inside] += 3.0
    noisy[inside] += 0.1
    assert psnr(noisy, TRUTH, 1.0, inside=inside) == pytest.approx(20.0)
    assert psnr(noisy, TRUTH, 1.0, inside=np.ones_like(inside)) == psnr(noisy, TRUTH, 1.0)
    pytest.importorskip("skimage")
    assert ssim(noisy, TRUTH, 1.0, inside=np.ones_like(inside)) == pytest.approx(ssim(noisy, TRUTH, 1.0))
    deep = np.zeros_like(inside)
    deep[7:9, 8:10, 9:12] = True
    assert ssim(noisy, TRUTH, 1.0, inside=deep) > 0.98 > ssim(noisy, TRUTH, 1.0)
    for wrong in (np.zeros_like(inside), inside[1:]):
        with pytest.raises(ScoreFusionError, match="voxels that count"):
            psnr(noisy, TRUTH, 1.0, inside=wrong)


def test_psnr_is_of_the_volume_not_a_mean_of_slices() -> None:
    noisy = TRUTH.copy()
    noisy[0] += 0.4
    assert psnr(noisy, TRUTH, 1.0) == pytest.approx(10 * math.log10(len(TRUTH) / 0.4**2))


@pytest.mark.parametrize("part", [np.s_[:], np.s_[0]], ids=["volume", "slice"])
def test_ssim_is_equation_13_of_wang(part: slice | int) -> None:
    pytest.importorskip("skimage")
    truth = 3 * TRUTH[part]
    noisy = truth + np.random.default_rng(6).normal(0, 0.3, truth.shape)
    axes = tuple(range(-truth.ndim, 0))
    x, y = (np.lib.stride_tricks.sliding_window_view(a, (7,) * a.ndim) for a in (noisy, truth))
    m, n = x.mean(axes), y.mean(axes)
    v, w = x.var(axes, ddof=1), y.var(axes, ddof=1)
    c = ((x - m[(..., *[None] * truth.ndim)]) * y).sum(axes) / (7**truth.ndim - 1)
    c1, c2 = (0.01 * 3) ** 2, (0.03 * 3) ** 2
    alike = (2 * m * n + c1) * (2 * c + c2) / ((m**2 + n**2 + c1) * (v + w + c2))
    assert ssim(noisy, truth, 3.0) == pytest.approx(alike.mean(), rel=1e-9)


def test_ssim_matches_monai() -> None:
    """The same uniform 7-voxel windows; MONAI divides by n where scikit-image divides by n - 1."""
    pytest.importorskip("skimage")
    monai = pytest.importorskip("monai.metrics")
    noisy = TRUTH + np.random.default_rng(5).normal(0, 0.1, TRUTH.shape)
    volumes = [torch.from_numpy(array)[None, None] for array in (noisy, TRUTH)]
    metric = monai.SSIMMetric(3, data_range=1.0, kernel_type="uniform", win_size=7)
    assert ssim(noisy, TRUTH, 1.0) == pytest.approx(metric(*volumes).item(), abs=2e-4)
    span = monai.PSNRMetric(max_val=1.0)
    assert psnr(noisy, TRUTH, 1.0) == pytest.approx(span(*volumes).item(), rel=1e-6)


def test_power_spectrum_error_of_a_scaled_volume() -> None:
    assert power_spectrum_error(TRUTH, TRUTH) == 0.0
    assert power_spectrum_error(10 * TRUTH, TRUTH) == pytest.approx(2.0)
    assert power_spectrum_error(TRUTH / 10, TRUTH) == pytest.approx(2.0)


def test_power_spectrum_error_counts_only_the_upper_half() -> None:
    z, y, x = np.meshgrid(*(np.arange(n) for n in (32, 32, 32)), indexing="ij")
    low = np.cos(2 * np.pi * (2 * z + 3 * y) / 32)
    high = np.cos(2 * np.pi * 10 * x / 32)
    truth = RNG.random((32, 32, 32))
    assert power_spectrum_error(truth + 5 * low, truth) == pytest.approx(0.0, abs=1e-9)
    assert power_spectrum_error(truth + 5 * high, truth) > 0.05


def test_power_is_the_mean_over_the_whole_spectrum() -> None:
    """The half spectrum, counted twice where it must be, gives the means of the whole."""
    other = RNG.random(TRUTH.shape)
    count = 8
    radius = np.sqrt(sum(f**2 for f in np.meshgrid(*(np.fft.fftfreq(n) for n in TRUTH.shape), indexing="ij")))
    band = np.floor(radius * 2 * count).astype(int)
    logs = [
        [np.log10((np.abs(np.fft.fftn(a)) ** 2)[band == b].mean()) for b in range(4, 8)]
        for a in (other, TRUTH)
    ]
    expected = np.abs(np.subtract(*logs)).mean()
    assert power_spectrum_error(other, TRUTH) == pytest.approx(expected, rel=1e-9)


def test_rejects_bad_input() -> None:
    for metric in (psnr, ssim, power_spectrum_error):
        with pytest.raises(ScoreFusionError, match="volume has shape"):
            metric(TRUTH[1:], TRUTH)
    with pytest.raises(ScoreFusionError, match="at least 7"):
        ssim(TRUTH[:6], TRUTH[:6])
    with pytest.raises(ScoreFusionError, match="at least 8"):
        power_spectrum_error(TRUTH[:6], TRUTH[:6])
    with pytest.raises(ScoreFusionError, match="range must be positive"):
        psnr(TRUTH, np.ones_like(TRUTH))


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(optional.EXTRA, "surely_not_installed", "train")
    with pytest.raises(ScoreFusionError, match=r"SSIM needs surely_not_installed.*'scorefusion\[train\]'"):
        optional.need("surely_not_installed.metrics", "SSIM")


DISTRIBUTIONS = {
    "imageio_ffmpeg": "imageio-ffmpeg",
    "python_multipart": "python-multipart",
    "skimage": "scikit-image",
}


def test_extras_are_those_of_the_package() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    for module, extra in optional.EXTRA.items():
        listed = text.split(f"\n{extra} = [", 1)[1].split("]", 1)[0]
        assert DISTRIBUTIONS.get(module, module) in listed
