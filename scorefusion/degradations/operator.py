"""Linear operators, the projection onto what one measured, and a pseudo-inverse by conjugate gradients.

The names are those of deepinv's ``LinearPhysics``, so one of its physics objects can stand in for ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from scorefusion.errors import ScoreFusionError


class Operator(Protocol):
    """A linear map from volumes to measurements.

    Volumes are ``[B, C, D, H, W]`` of any float dtype; measurements have any shape and may be complex. The
    inner product of measurements is the real part of ``sum(conj(y1) * y2)``.
    """

    def A(self, x: Tensor) -> Tensor:
        """Measure a volume."""

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Return the volume with ``<A x, y> = <x, A_adjoint y>`` for every x."""

    def A_dagger(self, y: Tensor) -> Tensor:
        """Return the smallest volume whose measurement is nearest to y: ``A A_dagger A = A``."""


class LinearOperator(Operator):
    """An :class:`Operator` with the properties that normalisation, sampling and reports ask for.

    The defaults hold for any operator.
    """

    #: (z, y, x) edges of the blocks whose means ``A`` takes; None for any other operator. Those are projected
    #: inside the fused solver step.
    blocks: tuple[int, int, int] | None = None
    #: bool mask of the voxels that are measured one by one, where the others hold nothing; else None
    known: Tensor | None = None
    #: whether a measured value depends on near voxels only: a volume may be extended by repeating its border
    local = False
    exact_inverse = False  #: whether ``A A_dagger A = A`` to rounding, measured on the volume's grid

    @property
    def share(self) -> float:
        """Share of the measurement's entries that are measured; the others are 0."""
        return 1.0

    def inside(self, index: tuple[Any, ...]) -> LinearOperator:
        """Return the operator for a box, ``index`` into ``[..., D, H, W]``."""
        return self

    def project(self, measured: Tensor | None = None) -> Projection:
        """Return the projection onto the volumes that measure as ``measured``; as zero if None."""
        return Projection(self, measured)

    def bounded(self, x: Tensor, y: Tensor, lo: float, hi: float) -> Tensor:
        """Limit x to [lo, hi]; where ``A`` takes block means, keep those at y."""
        return x.clamp(lo, hi)


class _Foreign(LinearOperator):
    """An object with the three functions of an operator, such as a physics object of deepinv."""

    def __init__(self, operator: Operator) -> None:
        for name in ("A", "A_adjoint", "A_dagger"):
            setattr(self, name, getattr(operator, name))


def linear_operator(operator: Operator) -> LinearOperator:
    """Return the operator itself, or one of ours around any other object with its three functions."""
    return operator if isinstance(operator, LinearOperator) else _Foreign(operator)  # type: ignore[abstract]


class Projection:
    """The projection ``x0 - A_dagger(A x0 - measured)``: x0 then measures as was measured.

    It is linear and idempotent, and moves x0 no further than it must, as far as ``A_dagger`` is the
    pseudo-inverse.

    Args:
        operator: ours, or an object with the same three functions.
        measured: of the operator's own shape, real or complex; None is zero, as for a residual.

    Attributes:
        blocks: (z, y, x) block edges where block means are projected; the fused solver step does that itself.
    """

    def __init__(self, operator: Operator, measured: Tensor | None = None) -> None:
        self.operator, self.measured = linear_operator(operator), measured
        self.blocks = self.operator.blocks

    def __call__(self, x0: Tensor) -> Tensor:
        """Return x0, ``[B, C, D, H, W]``, with the given measurement.

        Raises:
            ScoreFusionError: for a size that cannot be measured, or has not as many blocks as ``measured``.
        """
        apart = self.operator.A(x0)
        if self.measured is not None:
            if self.blocks and apart.shape[-3:] != self.measured.shape[-3:]:
                given, own = list(self.measured.shape[-3:]), list(apart.shape[-3:])
                raise ScoreFusionError(f"measured has {given} blocks, the volume has {own}")
            apart = apart - self.measured
        return x0 - self.operator.A_dagger(apart)


def inner(a: Tensor, b: Tensor) -> Tensor:
    """The real part of ``sum(conj(a) * b)``, ``[B, ...]`` both, over all but the first axis: ``[B]``."""
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    return (a * b).flatten(1).sum(dim=1)


def conjugate_gradients(
    operator: Operator, y: Tensor, *, iterations: int = 50, weigh: Callable[[Tensor], Tensor] = lambda r: r
) -> Tensor:
    """Apply the pseudo-inverse by conjugate gradients on the normal equations ``A* W A x = A* W y``.

    Starting from zero keeps every iterate in the row space of A. A measurement that no volume has, such as a
    noisy one, is met in the least-squares sense. The number of iterations is fixed, so the result is
    deterministic and nothing waits for the device; an item that has converged stays as it is.
    Convergence is fastest with the inverse of ``A A*`` as W (``weigh``).
    """

    def scaled(a: Tensor, v: Tensor) -> Tensor:
        return a.reshape(-1, *(1,) * (v.ndim - 1)) * v

    residual = weigh(y)
    direction = operator.A_adjoint(residual)
    x, size = torch.zeros_like(direction), inner(direction, direction)
    enough = size * torch.finfo(size.dtype).eps ** 2
    for _ in range(iterations):
        seen = operator.A(direction)
        weighed = weigh(seen)
        turn = inner(seen, weighed)
        going = (size > enough) & (turn > 0)
        step = torch.where(going, size / torch.where(going, turn, 1), 0)
        x = x + scaled(step, direction)
        residual = residual - scaled(step, weighed)
        gradient = operator.A_adjoint(residual)
        before, size = size, inner(gradient, gradient)
        share = torch.where(going, size / torch.where(going, before, 1), 0)
        direction = gradient + scaled(share, direction)
    return x


class Chain(LinearOperator):
    """One operator after another: ``A x = second.A(first.A(x))``.

    The pseudo-inverse of a product is not the product of the pseudo-inverses, so it is found by
    :func:`conjugate_gradients`.

    Args:
        second: measures what ``first`` yields, which must be a volume again.
        first: measures volumes.
        iterations: of the pseudo-inverse.
    """

    def __init__(self, second: Operator, first: Operator, *, iterations: int = 50) -> None:
        if iterations < 1:
            raise ScoreFusionError(f"a pseudo-inverse needs at least 1 iteration, got {iterations}")
        self.second, self.first, self.iterations = second, first, iterations

    def A(self, x: Tensor) -> Tensor:
        return self.second.A(self.first.A(x))

    def A_adjoint(self, y: Tensor) -> Tensor:
        return self.first.A_adjoint(self.second.A_adjoint(y))

    def A_dagger(self, y: Tensor) -> Tensor:
        return conjugate_gradients(self, y, iterations=self.iterations)


def add_noise(y: Tensor, deviation: float, seed: int) -> Tensor:
    """Add Gaussian noise to a measurement, the same on any device; to a complex one's two parts each."""
    real = torch.view_as_real(y) if y.is_complex() else y
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(real.shape, generator=generator, dtype=torch.float32).to(real)
    real = real + deviation * noise
    return torch.view_as_complex(real) if y.is_complex() else real
