"""Random crops, each a pure function of (seed, stage, step, index): the same after a resume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .config import AugmentConfig

FOREGROUND = -0.85


class Crop(NamedTuple):
    """A box ``volume [1, C, D, H, W]`` of a training subject, its (z, y, x) origin, the whole's size."""

    volume: Tensor
    origin: tuple[int, ...]
    full: tuple[int, ...]


class CropSampler:
    """Draw boxes of the training volumes, mostly where there is something, and vary their contrast.

    Args:
        store: arrays ``[C, D, H, W]`` with intensities near [-1, 1], each with the share of draws it gets.
        augment: how crops are varied.
        align: crop origins are multiples of this, (z, y, x) (the block edges of the degradation).
    """

    def __init__(
        self, store: Sequence[tuple[np.ndarray, float]], augment: AugmentConfig, align: Sequence[int]
    ):
        self.arrays = [array for array, _ in store]
        shares = np.array([share for _, share in store], dtype=np.float64)
        self.shares = shares / shares.sum()
        self.augment, self.align = augment, tuple(align)

    def draw(self, size: Sequence[int] | None, random: np.random.Generator) -> Crop:
        """An augmented crop of ``size`` (z, y, x); a whole volume when size is None."""
        array = self.arrays[random.choice(len(self.arrays), p=self.shares)]
        whole = array.shape[1:]
        origin = (0, 0, 0) if size is None else self._place(array, size, random)
        want = whole if size is None else tuple(size)
        box = tuple(slice(start, start + length) for start, length in zip(origin, want, strict=True))
        part = array[:, box[0], box[1], box[2]]
        short = [(0, length - have) for length, have in zip(want, part.shape[1:], strict=True)]
        crop = np.pad(np.asarray(part, dtype=np.float32), [(0, 0), *short], mode="edge")
        return Crop(vary(torch.from_numpy(crop)[None], self.augment, random), origin, whole)

    def _place(self, array: np.ndarray, size: Sequence[int], random: np.random.Generator) -> tuple[int, ...]:
        """An aligned origin, drawn again (8 times at most) until a third of the box is foreground."""
        origin: tuple[int, ...] = (0, 0, 0)
        for _ in range(8):
            last = [
                max(have - length, 0) // step
                for have, length, step in zip(array.shape[1:], size, self.align, strict=True)
            ]
            origin = tuple(
                int(random.integers(0, end + 1)) * step for end, step in zip(last, self.align, strict=True)
            )
            box = tuple(slice(start, start + length, 2) for start, length in zip(origin, size, strict=True))
            if (array[0][box] > FOREGROUND).mean() > 0.35:
                break
        return origin


def vary(volume: Tensor, augment: AugmentConfig, random: np.random.Generator) -> Tensor:
    """Vary ``volume [1, C, D, H, W]`` near [-1, 1]: flip all contrasts together, change each on its own."""
    if augment.flip:
        axes = [axis for axis in (2, 3, 4) if random.random() < 0.5]
        volume = volume.flip(axes) if axes else volume
    return torch.cat([_varied(channel, augment, random) for channel in volume.split(1, dim=1)], dim=1)


def _varied(volume: Tensor, augment: AugmentConfig, random: np.random.Generator) -> Tensor:
    """Sharpen, re-map, shade and add noise to one contrast ``[1, 1, D, H, W]``."""
    if augment.sharpen and random.random() < 0.5:
        blurred = F.avg_pool3d(F.pad(volume, (1,) * 6, mode="replicate"), 3, stride=1)
        volume = volume + float(random.uniform(-0.3, augment.sharpen)) * (volume - blurred)
    level = ((volume + 1) / 2).clamp(0, 2)
    if augment.gamma:
        level = level ** float(np.exp(random.normal(0, augment.gamma)))
    if random.random() < augment.remap:
        level = _remapped(level, random)
    if augment.bias:
        level = level * _shade(level.shape[2:], augment.bias, random)
    if random.random() < augment.noise_probability:
        sigma = float(random.uniform(0, augment.noise))
        first = torch.from_numpy(random.standard_normal(tuple(level.shape), dtype=np.float32))
        second = torch.from_numpy(random.standard_normal(tuple(level.shape), dtype=np.float32))
        level = ((level + sigma * first) ** 2 + (sigma * second) ** 2).sqrt()
    return level * 2 - 1


def _remapped(level: Tensor, random: np.random.Generator) -> Tensor:
    """Another contrast: a random piecewise linear curve through (0, 0), not always rising."""
    knots = np.concatenate([[0.0], np.cumsum(random.uniform(-0.15, 0.5, 6))])
    knots = np.abs(knots) / max(np.abs(knots[1:5]).max(), 0.3)
    position = (level * 4).clamp(0, 5.999)
    index = position.long()
    curve = torch.tensor(knots, dtype=level.dtype)
    return torch.lerp(curve[index], curve[index + 1], position - index)


def _shade(shape: Sequence[int], strength: float, random: np.random.Generator) -> Tensor:
    """A smooth multiplicative bias field ``[1, 1, D, H, W]`` about 1."""
    coarse = torch.from_numpy(random.normal(0, strength / 2, (1, 1, 2, 2, 2)).astype(np.float32))
    return 1 + F.interpolate(coarse, size=tuple(shape), mode="trilinear", align_corners=True)
