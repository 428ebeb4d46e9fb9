"""From a degradation's description to its operator, and from a target to what a model is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from scorefusion.degradations.base import base_volume
from scorefusion.degradations.config import AXES, DegradationConfig
from scorefusion.degradations.inpainting import Inpainting, known_outside_boxes
from scorefusion.degradations.kspace import KSpace, central_box, random_lines
from scorefusion.degradations.noise import Noisy
from scorefusion.degradations.operator import Operator
from scorefusion.degradations.pooling import Pooling
from scorefusion.degradations.sparse_view import SparseView
from scorefusion.degradations.thickness import ThickSlices
from scorefusion.errors import ScoreFusionError


def make_operator(
    config: DegradationConfig,
    size: Sequence[int],
    *,
    seed: int | None = None,
    device: torch.device | str = "cpu",
) -> Operator | None:
    """The operator of a degradation for volumes of one size.

    Args:
        config: the degradation.
        size: (z, y, x) of the target's grid.
        seed: of random lines or holes instead of the config's own, to train on many.
        device: where what the operator holds lies.

    Returns:
        The operator, without noise; None for kind ``none``.

    Raises:
        ScoreFusionError: for a size that the degradation cannot measure.
    """
    for length, factor, axis in zip(size, config.factors, AXES, strict=True):
        if length % factor:
            raise ScoreFusionError(
                f"degradation {config.kind} needs a length along {axis} that is a multiple of {factor}; "
                f"got {length}"
            )
    seed = config.seed if seed is None else seed
    if config.blocks is not None:
        return Pooling(config.blocks)
    if config.kind == "thick-slices":
        assert config.axis is not None and config.thickness is not None
        return ThickSlices(AXES.index(config.axis), config.thickness, config.gap, config.profile)
    if config.kind == "sparse-view":
        assert config.views is not None
        return SparseView(config.views, size[1], size[2], detector=config.detector)
    if config.kind == "inpaint":
        known = known_outside_boxes(size, hole=config.hole, holes=config.holes, seed=seed)
        return Inpainting(known.to(device))
    if config.kind == "none":
        return None
    axes = [axis for axis, whole in enumerate(config.whole) if whole]
    if config.kind == "k-space":
        lengths = [length if axis in axes else 1 for axis, length in enumerate(size)]
        return KSpace(central_box(lengths, config.fractions).to(device), axes)
    assert config.acceleration is not None
    encoded = axes[:-1]  # along the last axis a line is read out
    lines = random_lines(
        [size[axis] for axis in encoded],
        acceleration=config.acceleration,
        centre=config.centre,
        seed=seed or 0,
    )
    shape = [length if axis in encoded else 1 for axis, length in enumerate(size)]
    return KSpace(lines.reshape(shape).to(device), axes)


class Degraded(NamedTuple):
    """What is left of a target.

    Attributes:
        measured: y, of the operator's own shape, complex for k-space; None for kind ``none``.
        condition: ``[B, 1, D, H, W]`` on the target's grid: what the networks are given as the first
            condition, and the base that the residual is added to.
    """

    measured: Tensor | None
    condition: Tensor


def degrade(
    target: Tensor,
    config: DegradationConfig,
    *,
    base: str = "trilinear+consistency",
    seed: int | None = None,
    operator: Operator | None = None,
) -> Degraded:
    """Measure a target and bring the measurement back to its grid.

    Args:
        target: ``[B, 1, D, H, W]``, normalised; a crop must be whole along the axes of ``config.whole``.
        config: the degradation.
        base: ``config.residual.base`` of a model; see :func:`~scorefusion.degradations.base.base_volume`.
        seed: of noise, random lines and holes; the config's own, or 0, if None.
        operator: the operator, if made before, or an object of deepinv's that stands in for it; else
            :func:`make_operator`'s.

    Returns:
        For kind ``none`` the target itself is the condition.

    Raises:
        ScoreFusionError: for a size that the degradation cannot measure, or an unknown base.
    """
    if operator is None:
        operator = make_operator(config, target.shape[2:], seed=seed, device=target.device)
    if operator is None:
        return Degraded(None, target)
    measured = _measure(operator, target, config, seed)
    return Degraded(measured, condition_of(measured, config, base, operator))


def _measure(operator: Operator, target: Tensor, config: DegradationConfig, seed: int | None) -> Tensor:
    if not config.noise:
        return operator.A(target)
    return Noisy(operator, config.noise).measure(target, config.seed or 0 if seed is None else seed)


def condition_of(measured: Tensor, config: DegradationConfig, base: str, operator: Operator) -> Tensor:
    """The condition ``[B, 1, D, H, W]`` on the target's grid that a measurement gives."""
    image = measured if config.coarse else operator.A_dagger(measured)
    return base_volume(image, base, config.factors, operator)


def input_image(
    target: Tensor, config: DegradationConfig, *, seed: int | None = None, operator: Operator | None = None
) -> Tensor:
    """What a pipeline is given where a target is known: the measured image, coarse or put back on the grid.

    Args:
        target: ``[B, 1, D, H, W]``, any units.
        config: the degradation; its noise is in normalised intensity, so ``target`` then is, too.
        seed: as for :func:`degrade`.
        operator: as for :func:`degrade`.

    Returns:
        ``[B, 1, d, h, w]`` of a coarser measurement, or else ``[B, 1, D, H, W]``.

    Raises:
        ScoreFusionError: for a size that the degradation cannot measure.
    """
    if operator is None:
        operator = make_operator(config, target.shape[2:], seed=seed, device=target.device)
    if operator is None:
        return target
    measured = _measure(operator, target, config, seed)
    return measured if config.coarse else operator.A_dagger(measured)


def disagreement(
    operator: Operator, volume: Tensor, given: Tensor, config: DegradationConfig
) -> tuple[float, float]:
    """How far what is measured of a volume is from what was given.

    Args:
        operator: what is measured.
        volume: ``[1, 1, D, H, W]``, any units.
        given: in the same units, the measured image: coarse, or else on the volume's grid, where it is
            measured again.
        config: says which.

    Returns:
        The greatest and the mean magnitude of the difference, over what is measured.
    """
    apart = operator.A(volume) - given if config.coarse else operator.A(volume - given)
    size = apart.abs()
    share = 1.0
    if isinstance(operator, KSpace | Inpainting):
        share = float((operator.mask if isinstance(operator, KSpace) else operator.known).double().mean())
    return float(size.max()), float(size.double().mean()) / share
