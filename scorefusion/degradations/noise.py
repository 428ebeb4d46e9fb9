"""Gaussian noise on top of a measurement."""

from __future__ import annotations

import torch
from torch import Tensor

from scorefusion.degradations.operator import Operator
from scorefusion.errors import ScoreFusionError


class Noisy:
    """An operator whose measurements are noisy. ``A`` and its inverses are the operator's own, without noise.

    Args:
        operator: what is measured.
        deviation: standard deviation of the noise, in the measurement's units; of a complex number, of its
            real and of its imaginary part each.

    Raises:
        ScoreFusionError: for a negative deviation.
    """

    def __init__(self, operator: Operator, deviation: float) -> None:
        if not deviation >= 0:
            raise ScoreFusionError(f"a standard deviation is at least 0, got {deviation}")
        self.operator, self.deviation = operator, deviation

    def A(self, x: Tensor) -> Tensor:
        """See :class:`~scorefusion.degradations.operator.Operator`."""
        return self.operator.A(x)

    def A_adjoint(self, y: Tensor) -> Tensor:
        """See :class:`~scorefusion.degradations.operator.Operator`."""
        return self.operator.A_adjoint(y)

    def A_dagger(self, y: Tensor) -> Tensor:
        """See :class:`~scorefusion.degradations.operator.Operator`."""
        return self.operator.A_dagger(y)

    def measure(self, x: Tensor, seed: int) -> Tensor:
        """Measure a volume, with noise drawn from a seed: the same seed draws the same noise on any device.

        Args:
            x: ``[B, C, D, H, W]``.
            seed: of the noise.
        """
        y = self.A(x)
        generator = torch.Generator().manual_seed(seed)
        real = torch.view_as_real(y) if y.is_complex() else y
        noise = torch.randn(real.shape, generator=generator, dtype=torch.float32).to(real)
        real = real + self.deviation * noise
        return torch.view_as_complex(real) if y.is_complex() else real
