"""Random crops, each a pure function of (seed, stage, step, index): the same after a resume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scorefusion.train.config import AugmentConfig

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
        part = torch.from_numpy(np.array(array[:, box[0], box[1], box[2]])).float()[None]
        short = [length - have for length, have in zip(want, part.shape[2:], strict=True)]
        if any(short):
            part = F.pad(part, (0, short[2], 0, short[1], 0, short[0]), mode="replicate")
        return Crop(vary(part, self.augment, random), origin, whole)

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


def normal(shape: Sequence[int], random: np.random.Generator) -> Tensor:
    """Independent normal numbers, float32; their generator is seeded from ``random``."""
    generator = torch.Generator().manual_seed(int(random.integers(2**63)))
    return torch.randn(tuple(shape), generator=generator)


def _varied(volume: Tensor, augment: AugmentConfig, random: np.random.Generator) -> Tensor:
    """Sharpen, re-map, shade and add noise to one contrast ``[1, 1, D, H, W]``."""
    if augment.sharpen and random.random() < 0.5:
        strength = float(random.uniform(-0.3, augment.sharpen))
        volume = volume + strength * (volume - _blurred(volume))
    level = (volume + 1).mul_(0.5).clamp_(0, 2)
    if augment.gamma:
        level = level ** float(np.exp(random.normal(0, augment.gamma)))
    if random.random() < augment.remap:
        level = _remapped(level, random)
    if augment.bias:
        level = level * _shade(level.shape[2:], augment.bias, random)
    if random.random() < augment.noise_probability:
        sigma = float(random.uniform(0, augment.noise))
        first, second = normal((2, *level.shape), random).mul_(sigma)
        level = first.add_(level).square_().add_(second.square_()).sqrt_()
    return level.mul_(2).sub_(1)


def _blurred(volume: Tensor) -> Tensor:
    """Means of 3x3x3 voxels, the edges repeated, one axis after another."""
    volume = F.pad(volume, (1,) * 6, mode="replicate")
    for axis in (2, 3, 4):
        left, middle, right = (volume.narrow(axis, at, volume.shape[axis] - 2) for at in range(3))
        volume = (left + middle).add_(right)
    return volume.div_(27)


def _remapped(level: Tensor, random: np.random.Generator) -> Tensor:
    """Another contrast: a random piecewise linear curve through (0, 0), not always rising."""
    knots = np.concatenate([[0.0], np.cumsum(random.uniform(-0.15, 0.5, 6))])
    knots = np.abs(knots) / max(np.abs(knots[1:5]).max(), 0.3)
    position = (level * 4).clamp_(0, 6)
    slopes = np.diff(knots)
    curve = position * float(slopes[0])
    for knot, bend in enumerate(np.diff(slopes), start=1):
        curve.add_((position - knot).clamp_(min=0), alpha=float(bend))
    return curve


def _shade(shape: Sequence[int], strength: float, random: np.random.Generator) -> Tensor:
    """A smooth multiplicative bias field ``[1, 1, D, H, W]`` about 1: trilinear between the corners."""
    field = torch.from_numpy(random.normal(0, strength / 2, (2, 2, 2)).astype(np.float32))
    for axis in (2, 1, 0):  # the last, and largest, step in one pass
        first, last = field.select(axis, 0).unsqueeze(axis), field.select(axis, 1).unsqueeze(axis)
        place = torch.linspace(0, 1, shape[axis]).reshape([-1 if axis == at else 1 for at in range(3)])
        field = torch.lerp(first, last, place)
    return field.add_(1)[None, None]
