"""Each kind of measurement against an independent implementation, or by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from scorefusion.degradations import (
    CompressedSensing,
    Inpaint,
    Inpainting,
    KSpace,
    LowFrequencies,
    SparseView,
)
from scorefusion.degradations.inpainting import known_outside_boxes
from scorefusion.degradations.kspace import central_box, random_lines
from scorefusion.errors import ScoreFusionError
from scorefusion.optional import need


def volume(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def phantom(n: int) -> Tensor:
    """Three smooth blobs about the middle voxel, float64 [n, n]."""
    y, x = torch.meshgrid(*[torch.arange(n, dtype=torch.float64) - n // 2] * 2, indexing="ij")
    blobs = ((0.05, -0.08, 0.1, 1.0), (-0.15, 0.12, 0.06, 0.7), (0.2, 0.2, 0.04, 0.5))
    return sum(
        (h * torch.exp(-((x / n - cx) ** 2 + (y / n - cy) ** 2) / (2 * w**2)) for cx, cy, w, h in blobs),
        torch.zeros(n, n, dtype=torch.float64),
    )


@pytest.mark.parametrize("size", [(5, 6, 4), (8, 3, 7)])
def test_k_space_is_numpys_centred_transform(size: tuple[int, int, int]) -> None:
    x = volume(1, 1, *size)
    full = np.fft.fftshift(np.fft.fftn(x[0, 0].numpy(), norm="ortho"))
    operator = LowFrequencies(fraction=(0.5, 0.7, 0.4)).operator(size)
    assert operator is not None
    kept = np.zeros(size, dtype=bool)
    middle, reach = (
        [n // 2 for n in size],
        [int(f * n / 2) for f, n in zip((0.5, 0.7, 0.4), size, strict=True)],
    )
    kept[tuple(slice(m - r, m + r + 1) for m, r in zip(middle, reach, strict=True))] = True
    np.testing.assert_allclose(operator.A(x)[0, 0].numpy(), np.where(kept, full, 0), atol=1e-12)
    zero_filled = np.fft.ifftn(np.fft.ifftshift(np.where(kept, full, 0)), norm="ortho")
    assert np.abs(zero_filled.imag).max() < 1e-12
    np.testing.assert_allclose(operator.A_dagger(operator.A(x))[0, 0].numpy(), zero_filled.real, atol=1e-12)


def test_half_of_k_space_gives_the_whole_of_a_real_volume() -> None:
    for n in (5, 6):
        x, frequencies = volume(1, 1, 3, 4, n), torch.arange(n) - n // 2
        upper = KSpace((frequencies.abs() * 2 == n) | (frequencies >= 0).expand(1, 1, n), (2,))
        torch.testing.assert_close(upper.A_dagger(upper.A(x)), x)


def test_central_box_by_hand() -> None:
    assert central_box((1, 1, 8), (1, 1, 0.5)).flatten().int().tolist() == [0, 0, 1, 1, 1, 1, 1, 0]
    assert central_box((1, 1, 5), (1, 1, 0.5)).flatten().int().tolist() == [0, 1, 1, 1, 0]
    assert central_box((4, 5, 6), (1, 1, 1)).all()


@pytest.mark.parametrize("size", [(64,), (63,), (24, 17)])
def test_random_lines(size: tuple[int, ...]) -> None:
    masks = torch.stack([random_lines(size, acceleration=4, centre=0.08, seed=n) for n in range(40)])
    count = masks[0].numel()
    for mask in masks:
        assert round(count / 4) - 1 <= int(mask.sum()) <= round(count / 4)
        mirror = mask
        for axis, n in enumerate(size):
            mirror = mirror.flip(axis).roll(1 - n % 2, axis)
        assert torch.equal(mask, mirror)
    middle = tuple(n // 2 for n in size)
    assert masks[(slice(None), *middle)].all()
    assert torch.equal(masks[3], random_lines(size, acceleration=4, centre=0.08, seed=3))
    assert not torch.equal(masks[3], masks[4])
    often = masks.double().mean(dim=0)
    row = often if often.ndim == 1 else often[:, middle[1]]
    near, far = middle[0] + middle[0] // 3, middle[0] + middle[0] * 5 // 6
    assert row[near - 1 : near + 2].mean() > 2 * row[far - 1 : far + 2].mean()


def test_every_slice_has_the_same_lines_along_the_axis_that_is_read_out() -> None:
    config = CompressedSensing(axis="y", acceleration=2, centre=0.2)
    operator = config.operator((24, 5, 7))
    assert isinstance(operator, KSpace) and operator.mask.shape == (24, 1, 1)
    y = operator.A(volume(1, 1, 24, 5, 7))
    expected = np.fft.fftshift(np.fft.fftn(volume(1, 1, 24, 5, 7).numpy(), axes=(2, 4), norm="ortho"), (2, 4))
    kept = operator.mask[:, 0, 0]
    np.testing.assert_allclose(y[:, :, kept].numpy(), expected[:, :, kept.numpy()], atol=1e-12)
    assert not y[:, :, ~kept].any()
    other = config.operator((24, 5, 7), seed=9)
    assert isinstance(other, KSpace) and not torch.equal(other.mask, operator.mask)


def test_projections_are_scikit_images() -> None:
    radon = need("skimage.transform", "a test").radon
    image, views = phantom(67), 12
    operator = SparseView(views, 67, 67)
    mine = operator.A(image[None, None, None])[0, 0, 0]
    # scikit-image turns the other way, and its middle is n // 2: the same where the counts are odd.
    theirs = radon(image.numpy(), theta=-np.arange(views) * 180 / views, circle=False).T
    assert mine.shape == theirs.shape
    np.testing.assert_allclose(mine.numpy(), theirs, atol=0.01 * theirs.max())


def test_projections_keep_the_mass_and_the_axes() -> None:
    x = volume(2, 1, 3, 6, 9)
    sinogram = SparseView(10, 6, 9).A(x)
    torch.testing.assert_close(sinogram.sum(-1), x.sum(dim=(3, 4))[..., None].expand(2, 1, 3, 10))
    straight = SparseView(2, 6, 8, detector=8).A(x[..., :8])
    torch.testing.assert_close(straight[..., 0, :], x[..., :8].sum(dim=3))
    torch.testing.assert_close(straight[..., 1, 1:7], x[..., :8].sum(dim=4))


def test_reconstructions_of_many_views() -> None:
    image = phantom(48)[None, None, None]
    operator = SparseView(90, 48, 48)
    sinogram = operator.A(image)
    assert float((operator.filtered_back_projection(sinogram) - image).abs().max()) < 0.05
    solved = operator.A_dagger(sinogram)
    assert float((solved - image).norm() / image.norm()) < 5e-3
    assert float((operator.A(solved) - sinogram).norm() / sinogram.norm()) < 1e-3


def test_boxes_that_are_missing() -> None:
    middle = known_outside_boxes((8, 4, 6), hole=0.5)
    expected = torch.ones(8, 4, 6, dtype=torch.bool)
    expected[2:6, 1:3, 2:5] = False
    assert torch.equal(middle, expected) or torch.equal(middle.flip(2), expected)
    many = known_outside_boxes((20, 20, 20), hole=0.2, holes=3, seed=4)
    assert 4**3 < int((~many).sum()) <= 3 * 4**3
    assert torch.equal(many, known_outside_boxes((20, 20, 20), hole=0.2, holes=3, seed=4))
    x = volume(1, 1, 8, 4, 6)
    measured, condition = Inpaint(hole=0.5).degrade(x)
    assert measured is not None and torch.equal(measured, x * middle) and torch.equal(condition, measured)


def test_noise_in_k_space_is_complex_and_masks_stay() -> None:
    x = volume(1, 1, 16, 16, 16)
    config = LowFrequencies(fraction=0.5, noise=0.3)
    clean = config.model_copy(update={"noise": 0.0}).degrade(x)
    noisy = config.degrade(x)
    assert clean.measured is not None and noisy.measured is not None
    apart = noisy.measured - clean.measured
    assert float(apart.real.std()) == pytest.approx(0.3, rel=0.05)
    assert float(apart.imag.std()) == pytest.approx(0.3, rel=0.05)
    assert float((noisy.condition - clean.condition).std()) < 0.3  # what is not measured adds none
    assert torch.equal(config.degrade(x, seed=5).condition, config.degrade(x, seed=5).condition)
    assert not torch.equal(config.degrade(x, seed=5).condition, noisy.condition)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: KSpace(torch.ones(3, 3, 3)), "bool mask"),
        (lambda: KSpace(torch.ones(3, 3, 3, dtype=torch.bool), ()), "axes"),
        (lambda: KSpace(torch.ones(3, 1, 1, dtype=torch.bool)).A(volume(1, 1, 4, 3, 3)), "got shape"),
        (lambda: random_lines((20,), acceleration=10, centre=0.5, seed=0), "leaves 2 of 20 lines"),
        (lambda: SparseView(0, 4, 4), "at least 1 view"),
        (lambda: SparseView(3, 4, 4).A(volume(1, 1, 2, 4, 5)), "slices of 4 x 4"),
        (lambda: Inpainting(torch.ones(3, 3, 3)), "bool mask"),
        (lambda: Inpainting(torch.ones(3, 3, 3, dtype=torch.bool)).A(volume(1, 1, 3, 3, 1)), "mask is for"),
    ],
)
def test_rejects_bad_input(call: Any, message: str) -> None:
    with pytest.raises(ScoreFusionError, match=message):
        call()
