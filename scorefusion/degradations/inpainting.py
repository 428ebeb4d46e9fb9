"""Missing voxels of a volume: a mask, or boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from scorefusion.degradations.measurement import Count, Measurement, Share, register
from scorefusion.degradations.operator import LinearOperator
from scorefusion.errors import ScoreFusionError


class Inpainting(LinearOperator):
    """``A`` keeps what is known and puts 0 elsewhere; so do its adjoint and its pseudo-inverse.

    Args:
        known: bool, ``[D, H, W]`` or ``[B, 1, D, H, W]``.

    Raises:
        ScoreFusionError: for a mask of another type, and in ``A`` for a volume of another size.
    """

    known: Tensor
    exact_inverse = True

    def __init__(self, known: Tensor) -> None:
        if known.dtype != torch.bool or known.ndim not in (3, 5):
            raise ScoreFusionError(
                f"what is known is a bool mask [D, H, W] or [B, 1, D, H, W]; got {list(known.shape)} in "
                f"{known.dtype}"
            )
        self.known = known

    def A(self, x: Tensor) -> Tensor:
        """``[B, C, D, H, W]`` to the same."""
        if x.shape[-3:] != self.known.shape[-3:]:
            raise ScoreFusionError(
                f"the mask is for {list(self.known.shape[-3:])} (z, y, x), got shape {list(x.shape)}"
            )
        return torch.where(self.known.to(x.device), x, 0)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return self.A(y)

    def A_dagger(self, y: Tensor) -> Tensor:
        return self.A(y)

    @property
    def share(self) -> float:
        """Share of the voxels that are known."""
        return float(self.known.double().mean())

    def inside(self, index: tuple[Any, ...]) -> Inpainting:
        return Inpainting(self.known[index])


@register
class Inpaint(Measurement):
    """Everything outside some boxes."""

    takes_mask: ClassVar[bool] = True
    kind: Literal["inpaint"] = "inpaint"
    hole: Share = 0.25  #: edge of a missing box as a share of the volume's, along each axis
    holes: Count = 1  #: number of boxes
    seed: int | None = None  #: of their places; one box in the middle if None

    def make_operator(self, size: Sequence[int], seed: int | None, device: torch.device | str) -> Inpainting:
        known = known_outside_boxes(size, hole=self.hole, holes=self.holes, seed=seed)
        return Inpainting(known.to(device))


def known_outside_boxes(
    size: Sequence[int], *, hole: float, holes: int = 1, seed: int | None = None
) -> Tensor:
    """Mask, bool ``[D, H, W]``, of what lies outside boxes that may overlap: see :class:`Inpaint`."""
    known = torch.ones(*size, dtype=torch.bool)
    edges = [max(1, round(hole * n)) for n in size]
    spare = [n - edge + 1 for n, edge in zip(size, edges, strict=True)]
    shares = torch.full((1, 3), 0.5, dtype=torch.float32)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        shares = torch.stack([torch.rand(3, generator=generator, dtype=torch.float32) for _ in range(holes)])
    for place in shares.tolist():
        first = [int(share * n) for share, n in zip(place, spare, strict=True)]
        known[tuple(slice(at, at + edge) for at, edge in zip(first, edges, strict=True))] = False
    return known
