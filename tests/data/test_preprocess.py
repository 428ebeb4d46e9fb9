import numpy as np
import pytest
import torch

from scorefusion.data import Box, Intensity, foreground_box
from scorefusion.degradations import base_volume, block_mean
from scorefusion.errors import ScoreFusionError


def test_minmax_maps_extremes_to_one() -> None:
    values = np.array([[3.0, 7.0], [5.0, 4.0]])
    intensity = Intensity.of(values, "minmax")
    assert (intensity.lo, intensity.hi) == (3.0, 7.0)
    assert intensity.normalise(values).tolist() == [[-1.0, 1.0], [0.0, -0.5]]


@pytest.mark.parametrize("kind", ["minmax", "robust"])
def test_intensity_inverts_without_clipping(kind: str) -> None:
    values = torch.randn(20, 20, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 50 + 7
    intensity = Intensity.of(values, kind)
    torch.testing.assert_close(intensity.denormalise(intensity.normalise(values)), values)
    wild = torch.tensor([-1e4, 1e4], dtype=torch.float64)
    torch.testing.assert_close(intensity.denormalise(intensity.normalise(wild)), wild)


def test_robust_ignores_background_and_spikes() -> None:
    values = np.zeros(30_000)
    values[:10_000] = np.linspace(100, 200, 10_000)
    values[0] = 1e6
    intensity = Intensity.of(values, "robust")
    assert intensity.lo == pytest.approx(100, abs=1)
    assert intensity.hi == pytest.approx(200, abs=1)


def test_robust_of_a_binary_volume_is_minmax() -> None:
    assert Intensity.of(np.array([0.0, 0.0, 1.0, 1.0]), "robust") == Intensity(0.0, 1.0)


def test_intensity_rejects_bad_input() -> None:
    with pytest.raises(ScoreFusionError, match="every voxel is 4"):
        Intensity.of(np.full(5, 4.0), "minmax")
    with pytest.raises(ScoreFusionError, match="did you mean 'robust'"):
        Intensity.of(np.arange(5.0), "robst")
    with pytest.raises(ScoreFusionError, match="lo < hi"):
        Intensity(1.0, 1.0)


def test_base_volumes_by_hand() -> None:
    row = torch.tensor([0.0, 4.0]).reshape(1, 1, 1, 1, 2)
    assert base_volume(row, "nearest", 2)[0, 0, 0, 0].tolist() == [0, 0, 4, 4]
    assert base_volume(row, "trilinear", 2)[0, 0, 0, 0].tolist() == [0, 1, 3, 4]
    assert base_volume(row, "trilinear+consistency", 2)[0, 0, 0, 0].tolist() == [-0.5, 0.5, 3.5, 4.5]
    assert base_volume(row, "identity", 1) is row


def test_consistent_base_reproduces_the_input() -> None:
    lr = torch.randn(2, 1, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for kind in ("nearest", "trilinear+consistency"):
        torch.testing.assert_close(block_mean(base_volume(lr, kind, 4), 4), lr)


def test_base_rejects_bad_input() -> None:
    with pytest.raises(ScoreFusionError, match="did you mean 'trilinear'"):
        base_volume(torch.zeros(1, 1, 2, 2, 2), "trilinar", 2)
    with pytest.raises(ScoreFusionError, match="factor is 1"):
        base_volume(torch.zeros(1, 1, 2, 2, 2), "identity", 2)


def test_foreground_box_is_aligned_and_holds_the_margin() -> None:
    volume = torch.full((1, 1, 40, 40, 42), -1.0)
    volume[..., 17:20, 2:9, 30:41] = 0.5
    box = foreground_box(volume, margin=2, multiple=4)
    assert box == Box((12, 0, 28), (24, 12, 42))
    assert volume[box.index].shape[2:] == box.size


def test_foreground_box_of_nothing_is_everything() -> None:
    assert foreground_box(torch.full((1, 1, 4, 5, 6), -1.0)) == Box.whole((4, 5, 6))
