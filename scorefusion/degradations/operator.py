"""What a linear measurement is, and how two of them follow one another.

The names are those of deepinv's ``LinearPhysics``, so one of its physics objects can stand in for ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

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
        ...

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Return the volume with ``<A x, y> = <x, A_adjoint y>`` for every x."""
        ...

    def A_dagger(self, y: Tensor) -> Tensor:
        """Return the smallest volume whose measurement is nearest to y: ``A A_dagger A = A``."""
        ...


def inner(a: Tensor, b: Tensor) -> Tensor:
    """The real part of ``sum(conj(a) * b)`` over everything but the first axis, with that axis kept: ``[B]``.

    Args:
        a: ``[B, ...]``, real or complex.
        b: like ``a``.
    """
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    return (a * b).flatten(1).sum(dim=1)


def conjugate_gradients(
    operator: Operator,
    y: Tensor,
    *,
    iterations: int = 50,
    weigh: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The pseudo-inverse by conjugate gradients on the normal equations ``A* W A x = A* W y``.

    Beginning at nought, every iterate has nothing of what A cannot see. A measurement that no volume has,
    such as a noisy one, is met as nearly as can be. The number of iterations is fixed, so the result is
    deterministic and nothing waits for the device; an item that has converged stays as it is.

    Args:
        operator: gives ``A`` and ``A_adjoint``.
        y: ``[B, ...]``, a measurement.
        iterations: at most this many, each one ``A`` and one ``A_adjoint``.
        weigh: W, a symmetric positive map of measurements: what near means, and how fast it goes. Fastest is
            the inverse of ``A A*``. None for the plain distance.

    Returns:
        ``[B, C, D, H, W]``.
    """
    weigh = weigh or (lambda r: r)

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


class Chain:
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
        """See :class:`Operator`."""
        return self.second.A(self.first.A(x))

    def A_adjoint(self, y: Tensor) -> Tensor:
        """See :class:`Operator`."""
        return self.first.A_adjoint(self.second.A_adjoint(y))

    def A_dagger(self, y: Tensor) -> Tensor:
        """See :class:`Operator`."""
        return conjugate_gradients(self, y, iterations=self.iterations)
