"""Thumbnails: where the planes lie, their shape and grey scale, their size and what they cost."""

from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from scorefusion.batch import thumbnails
from tests.support.batch_rows import phantom, phantom_thumbnails, pooled


def opened(picture: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture)).convert("L"), dtype=np.float32)


def alike(one: bytes, other: bytes) -> float:
    """Correlation of two pictures."""
    return float(np.corrcoef(opened(one).ravel(), opened(other).ravel())[0, 1])


def test_three_planes_with_anterior_and_superior_up_and_right_on_the_right() -> None:
    volume = np.full((30, 30, 30), 100.0, np.float32)
    volume[20:, 20:, 20:] = 1000  # superior, anterior, right
    picture = opened(thumbnails.strip(volume, (1, 1, 1), thumbnails.View((0, 1000), (0.9, 0.9, 0.9)), 90))
    assert picture.shape == (90, 270)
    for left in (0, 90, 180):
        square = picture[:, left : left + 90]
        assert square[5:25, 65:85].min() > 240
        assert 15 < square[40:85, 5:85].mean() < 36 and square[5:25, 5:50].max() < 60


@pytest.mark.parametrize(("shape", "spacing"), [((20, 80, 40), (4, 1, 1)), ((80, 40, 20), (1, 1, 4.0))])
def test_planes_keep_their_proportions_and_fit_their_square(
    shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> None:
    d, h, w = (n * s for n, s in zip(shape, spacing, strict=True))
    view = thumbnails.View((0, 1), (0.5, 0.5, 0.5))
    picture = opened(thumbnails.strip(np.ones(shape, np.float32), spacing, view, 96)) > 128
    for left, (rows, columns) in zip((0, 96, 192), ((h, w), (d, w), (d, h)), strict=True):
        square = picture[:, left : left + 96]
        height, width = square.any(axis=1).sum(), square.any(axis=0).sum()
        # Compression blurs an edge by a pixel or two.
        assert max(height, width) >= 94 and abs(width / height - columns / rows) < 0.06 * columns / rows


def test_the_middle_of_what_is_bright_not_of_the_box() -> None:
    volume = np.zeros((60, 60, 60), np.float32)
    volume[40:50, 5:15, 30:40] = 7
    limits, where = thumbnails.view_of(volume)
    assert limits == (0, 7)
    assert np.allclose(where, (0.75, 1 / 6, 35 / 60), atol=0.02)


def test_before_and_after_share_planes_and_grey_scale() -> None:
    fine = phantom(1)
    before, after = thumbnails.pair(pooled(fine), (2, 2, 2), 1.5 * fine, (1, 1, 1))
    again, plain = thumbnails.pair(pooled(fine), (2, 2, 2), fine, (1, 1, 1))
    assert before == again
    grey = (opened(plain) > 60) & (opened(plain) < 160)
    assert 1.4 < opened(after)[grey].mean() / opened(plain)[grey].mean() < 1.6
    assert alike(before, plain) > 0.93


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float64])
def test_any_type_and_what_is_not_finite(kind: type) -> None:
    volume = np.arange(4 * 5 * 6).reshape(4, 5, 6).astype(kind)
    assert opened(thumbnails.strip(volume, (1, 1, 1))).std() > 20
    if kind is np.float64:
        volume[::2] = np.nan
        volume[1] = np.inf
        assert np.isfinite(opened(thumbnails.strip(volume, (1, 1, 1)))).all()
        assert opened(thumbnails.strip(np.full((4, 4, 4), np.nan), (1, 1, 1))).max() == 0
    assert opened(thumbnails.strip(np.zeros((1, 1, 1), kind), (1, 1, 1))).max() == 0


def test_jpeg_where_pillow_has_no_webp(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import features

    webp = thumbnails.strip(phantom(0), (1, 1, 1))
    monkeypatch.setattr(features, "check", lambda name: False)
    jpeg = thumbnails.strip(phantom(0), (1, 1, 1))
    assert Image.open(io.BytesIO(jpeg)).format == "JPEG"
    assert alike(jpeg, webp) > 0.98


def test_a_few_kilobytes_without_a_copy_of_the_volume() -> None:
    assert all(1000 < len(picture) < 8000 for seed in range(3) for picture in phantom_thumbnails(seed))
    volume = np.random.default_rng(0).random((256, 256, 256), dtype=np.float32)
    tracemalloc.start()
    try:
        assert len(thumbnails.strip(volume, (1, 1, 1))) < 20_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < volume.nbytes / 4
