"""Measurements in k-space: the low frequencies, or random lines for compressed sensing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from scorefusion.degradations.measurement import AXES, Axis, Measurement, Share, register
from scorefusion.degradations.operator import LinearOperator
from scorefusion.errors import ScoreFusionError


class KSpace(LinearOperator):
    """``A`` is the Fourier transform along some axes, zero where it is not measured.

    Frequencies ascend, with zero in the middle, and the transform is orthonormal: along all axes it is
    ``numpy.fft.fftshift(numpy.fft.fftn(x, norm="ortho"))``. Volumes are real. So a frequency and its mirror
    image hold the same number, and the pseudo-inverse fills in a mirror image that was not measured: of a
    mask that is its own mirror image, as those made here are, it is the plain zero-filled transform.

    Args:
        mask: bool, what is measured, ``[D, H, W]`` or 1 along axes where it does not vary.
        axes: the transform's, of 0, 1, 2 for z, y, x.

    Raises:
        ScoreFusionError: for a mask of another type, or without axes.
    """

    exact_inverse = True

    def __init__(self, mask: Tensor, axes: Sequence[int] = (0, 1, 2)) -> None:
        if mask.dtype != torch.bool or mask.ndim != 3 or not axes or not set(axes) <= {0, 1, 2}:
            raise ScoreFusionError(
                f"k-space needs a bool mask [D, H, W] and axes of 0, 1, 2; got {list(mask.shape)} in "
                f"{mask.dtype} and axes {tuple(axes)}"
            )
        self.mask, self.axes = mask, tuple(axis + 2 for axis in axes)
        mirror = mask
        for axis in axes:
            mirror = mirror.flip(axis)
            if mask.shape[axis] % 2 == 0:
                mirror = mirror.roll(1, axis)
        self.weight = torch.where(mask, torch.where(mirror, 1.0, 2.0), 0.0)

    def A(self, x: Tensor) -> Tensor:
        """``[B, C, D, H, W]`` to the same, complex; 16-bit volumes are transformed in float32."""
        if x.ndim != 5 or any(m not in (1, n) for m, n in zip(self.mask.shape, x.shape[2:], strict=True)):
            raise ScoreFusionError(
                f"the mask of k-space is for {list(self.mask.shape)} (z, y, x), got shape {list(x.shape)}"
            )
        wide = x if x.dtype == torch.float64 else x.float()
        spectrum = torch.fft.fftn(wide, dim=self.axes, norm="ortho")
        return torch.fft.fftshift(spectrum, self.axes) * self.mask.to(x.device)

    def A_adjoint(self, y: Tensor) -> Tensor:
        """The real part of the inverse transform of what was measured; float32 or float64."""
        return self._inverse(y * self.mask.to(y.device))

    def A_dagger(self, y: Tensor) -> Tensor:
        return self._inverse(y * self.weight.to(y.real))

    @property
    def share(self) -> float:
        """Share of the frequencies that are measured."""
        return float(self.mask.double().mean())

    def _inverse(self, y: Tensor) -> Tensor:
        return torch.fft.ifftn(torch.fft.ifftshift(y, self.axes), dim=self.axes, norm="ortho").real


@register
class LowFrequencies(Measurement):
    """The low frequencies of k-space."""

    kind: Literal["k-space"] = "k-space"
    #: share of the frequencies kept along each axis, one number or (z, y, x)
    fraction: Share | tuple[Share, Share, Share] = 0.5

    @model_validator(mode="after")
    def _check(self) -> LowFrequencies:
        if min(self.fractions) == 1:
            raise ValueError("'fraction' is 1 along every axis, so nothing would be missing")
        return self

    @property
    def fractions(self) -> tuple[float, float, float]:
        """``fraction`` along z, y and x."""
        return self.fraction if isinstance(self.fraction, tuple) else (self.fraction,) * 3

    @property
    def whole(self) -> tuple[bool, bool, bool]:
        z, y, x = (fraction < 1 for fraction in self.fractions)
        return z, y, x

    def make_operator(self, size: Sequence[int], seed: int | None, device: torch.device | str) -> KSpace:
        lengths = [length if whole else 1 for length, whole in zip(size, self.whole, strict=True)]
        axes = [axis for axis, whole in enumerate(self.whole) if whole]
        return KSpace(central_box(lengths, self.fractions).to(device), axes)


@register
class CompressedSensing(Measurement):
    """Random lines of k-space."""

    kind: Literal["cs-mri"] = "cs-mri"
    #: of the slices that are each measured by itself, along lines of their plane; None for lines through a 3D
    #: k-space
    axis: Axis | None = None
    acceleration: float = Field(ge=1)  #: lines in all for each line measured
    centre: Share = 0.08  #: share of the lines, in the middle of k-space, that are all measured
    seed: int | None = None  #: of the random lines

    @property
    def whole(self) -> tuple[bool, bool, bool]:
        z, y, x = (axis != self.axis for axis in AXES)
        return z, y, x

    def make_operator(self, size: Sequence[int], seed: int | None, device: torch.device | str) -> KSpace:
        axes = [axis for axis, whole in enumerate(self.whole) if whole]
        encoded = axes[:-1]  # along the last axis a line is read out
        lengths = [size[axis] for axis in encoded]
        lines = random_lines(lengths, acceleration=self.acceleration, centre=self.centre, seed=seed or 0)
        shape = [length if axis in encoded else 1 for axis, length in enumerate(size)]
        return KSpace(lines.reshape(shape).to(device), axes)


def central_box(size: Sequence[int], shares: Sequence[float]) -> Tensor:
    """Mask, bool ``[D, H, W]``, of the frequencies k with abs(k) <= share · length / 2 along each axis."""
    kept = [_frequencies(n).abs() <= share * n / 2 for n, share in zip(size, shares, strict=True)]
    return kept[0][:, None, None] & kept[1][:, None] & kept[2]


def random_lines(size: Sequence[int], *, acceleration: float, centre: float, seed: int) -> Tensor:
    """Draw lines of k-space for compressed sensing: all in the centre, and random ones, denser near it.

    A line beside the centre is drawn with weight (1 - r)³, r being its distance from the middle over the
    largest, and always with its mirror image, which for a real volume holds the same. ``size`` is one length
    for lines in a plane, two for lines in a volume; the mask, bool of that shape, has zero in the middle.
    """
    axes = [_frequencies(n) for n in size]
    share = centre ** (1 / len(axes))
    grids = torch.meshgrid(*axes, indexing="ij")
    middle = torch.stack([k.abs() <= share * n / 2 for k, n in zip(grids, size, strict=True)]).all(dim=0)
    own = mirror = torch.arange(math.prod(size)).reshape(*size)
    for axis, n in enumerate(size):
        mirror = mirror.index_select(axis, (-axes[axis] + n // 2) % n)
    left, inner = round(own.numel() / acceleration), int(middle.sum())
    if left < inner:
        raise ScoreFusionError(
            f"acceleration {acceleration:g} leaves {left} of {own.numel()} lines, fewer than the {inner} of "
            f"a centre of {centre:g}"
        )
    squares = [(k / max(n / 2, 1)) ** 2 for k, n in zip(grids, size, strict=True)]
    radius = torch.stack(squares).sum(dim=0).sqrt()
    weight = (1 - radius / radius.max().clamp(min=1)).clamp(min=1e-3) ** 3
    generator = torch.Generator().manual_seed(seed)
    turn = torch.empty(*size, dtype=torch.float64).exponential_(generator=generator) / weight
    turn[middle | (own > mirror)] = math.inf  # of a pair the first is drawn
    order = turn.flatten().argsort()[: int(torch.isfinite(turn).sum())]
    partner = mirror.flatten()[order]
    drawn = torch.where(partner == order, 1, 2).cumsum(0) <= left - inner
    mask = middle.flatten()
    mask[torch.cat([order[drawn], partner[drawn]])] = True
    return mask.reshape(*size)


def _frequencies(n: int) -> Tensor:
    """The frequencies of n samples in ascending order, in cycles over their length."""
    return torch.arange(n) - n // 2
