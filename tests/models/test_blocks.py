"""The layers both U-Nets are made of."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scorefusion.models.blocks import Normalisation, fold, unfold
from scorefusion.models.config import UNetConfig


@pytest.mark.parametrize("shape", [(2, 6, 5, 7), (1, 6, 3, 4, 5)], ids=["2D", "3D"])
def test_channel_norm_does_not_depend_on_the_crop(shape):
    norm = Normalisation(6, UNetConfig(widths=(6,), norm="channel"))
    nn.init.normal_(norm.weight)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    crop = (..., slice(1, 3), slice(2, 4))
    whole = norm(x, act="none")
    torch.testing.assert_close(whole[crop], norm(x[crop], act="none"), rtol=1e-6, atol=1e-6)
    centred = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    weight = norm.weight.reshape(1, -1, *[1] * (x.dim() - 2))
    torch.testing.assert_close(whole, centred * weight, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norm(x), nn.functional.silu(whole), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 3, 4, 8), (2, 3, 4, 6, 8)], ids=["2D", "3D"])
def test_unfold_inverts_fold(shape):
    x = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    folded = fold(x, 2)
    dims = len(shape) - 2
    assert folded.shape == (2, 3 * 2**dims, *(n // 2 for n in shape[2:]))
    assert torch.equal(unfold(folded, 2), x)
    assert folded[0, :2, 0, 0].flatten()[0] == x[0, 0].flatten()[0]
