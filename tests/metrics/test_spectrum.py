"""Spectra against closed forms: white noise, scaled and shifted copies, a sinusoid, noise on the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from scorefusion.errors import ScoreFusionError
from scorefusion.metrics import compare_spectra

RNG = np.random.default_rng(0)
SHAPE = (32, 36, 40)
TRUTH = RNG.normal(size=SHAPE)


def test_a_volume_is_like_itself() -> None:
    same = compare_spectra(TRUTH, TRUTH)
    assert same.error == 0.0 and same.bias == 0.0
    np.testing.assert_allclose(same.correlation, 1.0)
    np.testing.assert_allclose(same.frequency, (np.arange(16) + 0.5) / 32)


@pytest.mark.parametrize("scale", [0.1, -0.1, 10.0])
def test_a_scaled_copy_has_another_power_and_the_same_phases(scale: float) -> None:
    found = compare_spectra(scale * TRUTH, TRUTH)
    assert found.bias == pytest.approx(2.0 * math.log10(abs(scale)))
    assert found.error == pytest.approx(2.0)
    np.testing.assert_allclose(found.correlation, np.sign(scale))


def test_white_noise_has_flat_power_and_no_correlation_with_other_noise() -> None:
    """E|DFT|² of unit noise is the number of voxels; the correlation of n modes is 0 ± 1/sqrt(n)."""
    other = RNG.normal(size=SHAPE)
    found = compare_spectra(other, TRUTH)
    np.testing.assert_allclose(found.power[8:], TRUTH.size, rtol=0.1)
    np.testing.assert_allclose(found.log_ratio[8:], 0.0, atol=0.06)
    assert np.abs(found.correlation[8:]).max() < 0.1


def test_noise_on_the_truth_has_the_correlation_of_its_share() -> None:
    """T + noise of power r times T's: ratio 1 + r, correlation 1/sqrt(1 + r)."""
    found = compare_spectra(TRUTH + 2.0 * RNG.normal(size=SHAPE), TRUTH)
    assert found.bias == pytest.approx(math.log10(5.0), abs=0.02)
    assert found.upper_correlation == pytest.approx(1.0 / math.sqrt(5.0), abs=0.02)


def test_a_copy_shifted_by_a_voxel_keeps_its_power_and_turns_its_phases() -> None:
    """A shift turns the phase of (fz, fy, fx) by 2 pi fx: a band's correlation is the mean cosine."""
    found = compare_spectra(np.roll(TRUTH, 1, axis=2), TRUTH)
    np.testing.assert_allclose(found.log_ratio, 0.0, atol=1e-12)
    z, y, x = np.meshgrid(*(np.fft.fftfreq(n) for n in SHAPE), indexing="ij")
    band = np.floor(np.sqrt(z**2 + y**2 + x**2) * 32).astype(int)
    power = np.abs(np.fft.fftn(TRUTH)) ** 2
    cosine = [np.average(np.cos(2 * np.pi * x[band == b]), weights=power[band == b]) for b in range(16)]
    np.testing.assert_allclose(found.correlation, cosine, atol=1e-12)


def test_a_sinusoid_is_in_one_band() -> None:
    """Ten cycles in 40 voxels are 0.25 cycles a voxel: the first band of the upper half, alone."""
    wave = np.broadcast_to(np.cos(2 * np.pi * 10 * np.arange(40) / 40), SHAPE)
    found = compare_spectra(TRUTH + wave, TRUTH)
    changed = np.abs(found.log_ratio) > 1e-9
    assert np.flatnonzero(changed).tolist() == [8]
    members = np.abs(np.fft.fftn(wave)) ** 2 > 1.0
    assert members.sum() == 2
    own = compare_spectra(wave, wave).power[8]
    assert own == pytest.approx(2 * (wave.size / 2) ** 2 / _modes(8))


def _modes(band: int) -> int:
    radius = np.sqrt(sum(f**2 for f in np.meshgrid(*(np.fft.fftfreq(n) for n in SHAPE), indexing="ij")))
    return int((np.floor(radius * 32) == band).sum())


def test_grain_and_detail_have_the_same_power_and_another_correlation() -> None:
    """What the power spectrum alone credits: a blurred volume with noise of the missing power."""
    low = np.fft.fftfreq(40)[None, None] ** 2 + np.fft.fftfreq(36)[None, :, None] ** 2
    kept = low + np.fft.fftfreq(32)[:, None, None] ** 2 < 0.25**2
    smooth = np.fft.ifftn(np.fft.fftn(TRUTH) * kept).real
    grain = np.fft.ifftn(np.fft.fftn(RNG.normal(size=SHAPE)) * ~kept).real
    found = compare_spectra(smooth + grain, TRUTH)
    assert found.error < 0.05 and found.upper_correlation < 0.05
    assert found.correlation[:7].min() > 0.999


def test_nothing_has_no_correlation() -> None:
    found = compare_spectra(np.zeros(SHAPE), TRUTH)
    assert found.bias < -100.0 and found.upper_correlation == 0.0


def test_rejects_bad_input() -> None:
    with pytest.raises(ScoreFusionError, match="volume has shape"):
        compare_spectra(TRUTH[1:], TRUTH)
    with pytest.raises(ScoreFusionError, match="at least 8 voxels"):
        compare_spectra(TRUTH[:6], TRUTH[:6])
