"""Intensities under outliers, padding and saturation; a known background; results within a range."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from scorefusion.data import (
    Box,
    Intensity,
    Outliers,
    Prepared,
    StoreSettings,
    prepare_conditions,
    sampling_box,
)
from scorefusion.data.store import _normalised
from scorefusion.degradations import Pooling
from scorefusion.errors import BadInput, ScoreFusionError
from scorefusion.models.config import DomainConfig, ModelConfig
from scorefusion.pipeline import Pipeline
from tests.models.test_domain import ct, head, image, z_scored
from tests.support.tiny import same_grid_config, tiny_config, tiny_model

MRI = DomainConfig(background="zero", intensity="non-negative")
HEAD = head()
CYLINDER = (
    np.hypot(*np.meshgrid(np.linspace(-1, 1, 40), np.linspace(-1, 1, 48), indexing="ij"))[..., None] > 1
)


def put(values: np.ndarray, *outliers: float) -> np.ndarray:
    """A copy in which some voxels of the object have other values."""
    changed = values.copy()
    inside = np.flatnonzero(changed.reshape(-1) > 300)
    changed.reshape(-1)[inside[np.linspace(0, len(inside) - 1, len(outliers)).astype(int)]] = outliers
    return changed


def noisy(values: np.ndarray) -> np.ndarray:
    return values + np.random.default_rng(7).normal(0, 5, values.shape)


def padded(values: np.ndarray, value: float) -> np.ndarray:
    return np.where(CYLINDER, value, values)


GROSS = {
    "four hot voxels of 1728": (head((12, 12, 12)), put(head((12, 12, 12)), 30000, 30000, 30000, 30000)),
    "four different ones": (head((12, 12, 12)), put(head((12, 12, 12)), 4000, 9000, 20000, 32767)),
    "one huge voxel": (HEAD, put(HEAD, 1e12)),
    "saturation at 65535": (HEAD, put(HEAD, *[65535] * 3000)),
    "saturation at 32767": (HEAD, put(HEAD, *[32767] * 3000)),
    "saturation at 4095": (HEAD, put(HEAD, *[4095] * 900)),
    "wrapped below zero": (HEAD, put(HEAD, *range(65500, 65536))),
    "a negative spike": (HEAD, put(HEAD, -30000)),
    "spikes below and above": (HEAD, put(HEAD, -30000, -9000, 25000)),
    "CT padded with -3024": (ct(HEAD), padded(ct(HEAD), -3024)),
    "CT padded with -2000": (ct(HEAD), padded(ct(HEAD), -2000)),
    "CT padded with -32768": (ct(HEAD), padded(ct(HEAD), -32768)),
    "saturation at 2047": (HEAD / 2, put(HEAD, *[4094] * 900) / 2),
    "saturation at 4095, scaled by 0.8": (HEAD, put(HEAD, *[3276.0] * 3000)),
    "padded with -1024": (HEAD, padded(HEAD, -1024)),
    "padded with -50": (HEAD, padded(HEAD, -50)),
    "noise, padded with -1024": (np.abs(noisy(HEAD)), padded(np.abs(noisy(HEAD)), -1024)),
    "a cold voxel": (HEAD, put(HEAD, -100)),
    "padded with 65535": (HEAD, padded(HEAD, 65535)),
    "z-scored, padded with -1000": (z_scored(HEAD), padded(z_scored(HEAD), -1000)),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["minmax", "robust"])
@pytest.mark.parametrize("name", GROSS)
def test_outliers_do_not_move_the_tissue(name: str, kind: str) -> None:
    clean, gross = GROSS[name]
    right, found = Intensity.of(clean, kind), Intensity.of(gross, kind)
    assert not Outliers.of(clean) and Outliers.of(gross) and Outliers.of(gross).texts
    assert found.lo == pytest.approx(right.lo, abs=0.03 * right.half_range)
    assert found.hi == pytest.approx(right.hi, abs=0.03 * right.half_range)


@pytest.mark.parametrize("name", GROSS)
def test_outliers_come_back_as_they_are(name: str) -> None:
    clean, gross = (values.astype(np.float32) for values in GROSS[name])
    config = tiny_config(intensity="robust", domain={"t1": MRI} if "CT" not in name else {})
    right, found = prepared_of(clean, config), prepared_of(gross, config)
    assert found.condition.abs().max() < 1.5 * right.condition.abs().max()
    held = found.held[0, 0].numpy().T if found.held is not None else np.zeros_like(gross, bool)
    away = (gross > Outliers.of(gross).hi) | (gross < Outliers.of(gross).lo)
    assert held[away].all() and ((gross != 0) & held).sum() == away.sum()
    assert sampling_box(found.condition, config, found.levels).size <= Box.whole(found.base.shape[2:]).size


ORDINARY = {
    "a head": HEAD,
    "a small head": head((12, 12, 12)),
    "integers": np.rint(HEAD),
    "with noise": np.abs(noisy(HEAD)),
    "with noise of both signs": noisy(HEAD),
    "a brain": np.where(HEAD > 550, HEAD, 0),
    "a brain, all z-scored": (np.where(HEAD > 550, HEAD, 0) - 200) / 300,
    "a CT": ct(HEAD),
    "a CT, -1024 outside": padded(ct(HEAD), -1024),
    "a mask": (HEAD > 0).astype(float),
    "exponential": np.random.default_rng(0).exponential(1, (20, 20, 20)),
    "normal": np.random.default_rng(0).normal(0, 1, (20, 20, 20)),
    "clipped at 4095": np.minimum(HEAD * 5, 4095),
    "a bright vessel": np.maximum(HEAD, 2000 * np.exp(-((np.indices(HEAD.shape) - 20) ** 2).sum(axis=0) / 8)),
    "nothing but a point": np.eye(9)[:, :, None] * np.eye(9)[4][None, None, :] * 5,
}  # fmt: skip


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_intensities_are_as_ever(name: str) -> None:
    """The least and the greatest value, or percentiles of what is above the least, to the bit."""
    values = ORDINARY[name].astype(np.float32)
    assert not Outliers.of(values) and not Outliers.of(values).texts
    assert Intensity.of(values, "minmax") == Intensity(float(values.min()), float(values.max()))
    lo, hi = np.percentile(values[values > values.min()].astype(np.float64), (0.1, 99.9))
    assert Intensity.of(values, "robust") == (
        Intensity(lo, hi) if hi > lo else Intensity.of(values, "minmax")
    )


def prepared_of(values: np.ndarray, config: ModelConfig) -> Prepared:
    volume = torch.from_numpy(np.ascontiguousarray(values.T.astype(np.float32)))[None, None]
    return prepare_conditions([volume], config)


def test_a_background_between_tissues_is_the_darkest_while_sampling() -> None:
    """A z-scored brain with zeros outside: its background was at -0.41, and the box was everything."""
    brain = np.zeros((48, 48, 48), np.float32)
    brain[14:34, 14:34, 14:34] = np.where(HEAD > 550, HEAD, 0)[10:30, 14:34, 12:32]
    config = tiny_config(intensity="robust", domain={"t1": MRI})
    plain, scored = prepared_of(brain, config), prepared_of(z_scored(brain), config)
    assert scored.condition[..., 0, 0, 0].item() == pytest.approx(-1, abs=0.1)
    inside = torch.from_numpy(brain.T > 0)[None, None]
    fine = inside.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
    assert (scored.condition[fine] - plain.condition[fine]).abs().median() < 0.1
    whole, right = Box.whole(scored.base.shape[2:]), sampling_box(plain.condition, config)

    def is_tight(box: Box) -> bool:
        ends = zip((*box.start, *box.stop), (*right.start, *right.stop), strict=True)
        return box != whole and max(abs(found - wanted) for found, wanted in ends) <= 2

    assert is_tight(sampling_box(scored.condition, config, scored.levels))
    assert scored.held is not None and torch.equal(scored.held, ~inside)
    ((text, fix),) = scored.found[0]
    assert "has a background of 0 (9" in text and "put back" in fix
    unknown = tiny_config(intensity="robust")
    old = prepared_of(z_scored(brain), unknown)
    assert old.held is None and old.levels[0] == pytest.approx(0, abs=0.5) and old.found == ((),)
    assert is_tight(sampling_box(old.condition, unknown, old.levels))
    assert sampling_box(old.condition, unknown) == whole


def test_nan_outside_a_ct_counted_as_zero() -> None:
    config = tiny_config(intensity="robust", conditions=("t1",))
    found = prepared_of(padded(ct(HEAD), 0), config)
    (level,) = found.levels
    assert level == pytest.approx(float(found.intensity.normalise(np.float64(0))))


@pytest.mark.parametrize("value", [-1e-6, -1, -5])
def test_a_voxel_just_below_zero_moves_nothing_and_is_no_finding(value: float) -> None:
    found = Outliers.of(put(HEAD, value, value / 2))
    right = Intensity.of(HEAD, "robust")
    assert Intensity.of(put(HEAD, value, value / 2), "robust").lo == pytest.approx(right.lo, abs=1)
    assert found.below == 2 and found.texts == ()
    assert Intensity.of(put(HEAD, value, value / 2), "minmax") == Intensity(
        float(put(HEAD, value).min()), float(HEAD.max())
    )
    assert not Outliers.of(put(HEAD, value, value / 2), "minmax")


@pytest.mark.parametrize("values", [(-1, 0), (-1, 1), (-1, 0, 1), (-7, 0, 7), (0, 1), (5, 1000)])
def test_images_of_few_values_have_a_range(values: tuple[float, ...]) -> None:
    image = np.resize(np.repeat(values, 7), (6, 7, 8)).astype(np.float32)
    for kind in ("minmax", "robust"):
        assert Intensity.of(image, kind).hi > Intensity.of(image, kind).lo


def run(values: np.ndarray, config: ModelConfig | None = None, **options: Any) -> Any:
    config = config or tiny_config(intensity="robust", domain={"t1": MRI})
    return Pipeline(tiny_model(config), device="cpu", dtype="float32")(image(values), **options)


def blocks(volume: np.ndarray, edge: int = 2) -> np.ndarray:
    i, j, k = (n // edge for n in volume.shape)
    return volume.astype(np.float64).reshape(i, edge, j, edge, k, edge).mean(axis=(1, 3, 5))


def fine(values: np.ndarray, edge: int = 2) -> np.ndarray:
    return np.kron(values, np.ones((edge, edge, edge)))


SMALL = head((12, 12, 12))


def test_outliers_in_a_result() -> None:
    gross = put(SMALL, 30000, 30000, 30000, 30000)
    result = run(gross)
    assert (result.volume[fine(gross > 20000) > 0] == 30000).all()
    assert result.volume[fine(gross < 20000) > 0].max() < 2000
    assert result.consistency_residual.max < 0.01 and "4 voxels far above the rest" in result.warnings[0]
    with pytest.raises(BadInput, match="4 voxels far above the rest .* Without --strict"):
        run(gross, strict=True)
    two = same_grid_config(intensity="robust", conditions=("t1", "t2"))
    pipeline = Pipeline(tiny_model(two), device="cpu", dtype="float32")
    (warning,) = pipeline([image(SMALL), image(put(SMALL, 1e9))]).warnings
    assert "1 voxel far above the rest" in warning


def test_a_measured_background_of_zero_stays_zero() -> None:
    zero = fine(SMALL == 0) > 0
    result = run(SMALL, samples=2, solver="ddpm")
    assert (result.volume[zero] == 0).all() and (result.spread[zero] == 0).all()
    assert (run(SMALL).volume[zero] == 0).all()
    unknown = run(SMALL, tiny_config(intensity="robust")).volume
    assert (unknown[zero] != 0).any()
    np.testing.assert_array_equal(run(SMALL).volume[~zero], unknown[~zero])
    scored = z_scored(SMALL)
    assert (run(scored).volume[zero] == 0).all()
    shifted = tiny_config(intensity="robust", domain={"t1": DomainConfig(background="zero")})
    assert (run(SMALL, shifted).volume[zero] != 0).any()


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e6])
def test_clip_keeps_range_and_block_means(scale: float) -> None:
    values = SMALL * scale
    plain, clipped = run(values).volume, run(values, clip="input")
    assert plain.min() < 0 and plain.max() > values.max()
    assert clipped.volume.min() >= 0 and clipped.volume.max() <= values.max()
    assert np.abs(blocks(clipped.volume) - values).max() < 1e-5 * values.max()
    assert clipped.consistency_residual.max < 1e-5 * values.max()
    within = (plain > 0) & (plain < values.max())
    assert np.abs(clipped.volume - plain)[within].mean() < 0.1 * plain.std()


def test_clip_on_one_grid_and_below_zero() -> None:
    config = same_grid_config(conditions=("t1",), branches=tiny_config().branches, intensity="robust")
    values = ct(SMALL)
    for made in (config, tiny_config(intensity="robust")):
        result = run(values, made, clip="input")
        low, high = values.astype(np.float32).min(), values.astype(np.float32).max()
        assert result.volume.min() >= low and result.volume.max() <= high
    with pytest.raises(ScoreFusionError, match="unknown clip 'inputs'; did you mean 'input'"):
        run(values, config, clip="inputs")


def test_bounded_blocks_reach_any_mean_between_the_bounds() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 1, 8, 8, 8, generator=generator) * 5
    y = torch.rand(1, 1, 2, 2, 2, generator=generator)
    y.view(-1)[:4] = torch.tensor([0.0, 1.0, 1e-4, 0.9999])
    found = Pooling(4).bounded(x, y, 0.0, 1.0)
    assert found.min() >= 0 and found.max() <= 1
    assert (Pooling(4).A(found) - y).abs().max() < 2e-6


def test_choices_that_decide_bits_are_in_the_identity() -> None:
    pipeline = Pipeline(tiny_model(), device="cpu")
    plain, clipped, strict = (
        pipeline.settings(**choice).identity for choice in ({}, {"clip": "input"}, {"strict": True})
    )
    assert plain == strict != clipped


def test_training_leaves_outliers_out_too() -> None:
    settings = StoreSettings(seed=0, intensity="robust", factors=((4, 4, 4),))
    clean, gross = (_normalised(values[None], settings) for values in (HEAD, put(HEAD, 1e6)))
    assert np.abs(clean - gross).mean() < 1e-3 and np.abs(gross).max() < 1.5 * np.abs(clean).max()
