"""Missing boxes of a volume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from scorefusion.errors import ScoreFusionError


class Inpainting:
    """``A`` keeps what is known and puts 0 elsewhere; so do its adjoint and its pseudo-inverse.

    Args:
        known: bool, ``[D, H, W]`` or ``[B, 1, D, H, W]``.

    Raises:
        ScoreFusionError: for a mask of another type, and in ``A`` for a volume of another size.
    """

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

    def inside(self, index: tuple[Any, ...]) -> Inpainting:
        """The same for a box, ``index`` into ``[..., D, H, W]``."""
        return Inpainting(self.known[index])

    A_adjoint = A
    A_dagger = A


def known_outside_boxes(
    size: Sequence[int], *, hole: float, holes: int = 1, seed: int | None = None
) -> Tensor:
    """The mask of what lies outside some boxes.

    Args:
        size: (z, y, x).
        hole: edge of a box as a share of the volume's along each axis, at least one voxel.
        holes: how many boxes; they may overlap.
        seed: of their places, anywhere inside the volume; one box in the middle if None.

    Returns:
        bool ``[D, H, W]``.
    """
    known = torch.ones(*size, dtype=torch.bool)
    edges = [max(1, round(hole * n)) for n in size]
    spare = [n - edge + 1 for n, edge in zip(size, edges, strict=True)]
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    for _ in range(1 if seed is None else holes):
        shares = (
            torch.full((3,), 0.5, dtype=torch.float32)
            if generator is None
            else torch.rand(3, generator=generator, dtype=torch.float32)
        )
        first = [int(share * n) for share, n in zip(shares.tolist(), spare, strict=True)]
        known[tuple(slice(at, at + edge) for at, edge in zip(first, edges, strict=True))] = False
    return known
