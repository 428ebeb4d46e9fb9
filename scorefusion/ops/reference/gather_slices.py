"""Cutting a slab of 2.5D slices out of volumes: the definition.

    out[b·n + s, :, u, v] = [condition at slices s - context .. s + context, common at s, x_t at s]

with the slices of one plane, and the edge slice repeated beyond the volume (Zhu et al., ICML 2025).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from scorefusion.ops.reference.planes import AXIS


def gather_slices(
    x_t: Tensor,
    condition: Tensor,
    common: Tensor | None,
    plane: str,
    start: int,
    stop: int,
    channels: Sequence[int] | None,
    context: int,
    order: str,
    dtype: torch.dtype,
) -> Tensor:
    """Return the slab; arguments are `scorefusion.ops.gather_slices`'s, checked."""
    axis = AXIS[plane]
    seen = condition if channels is None else condition[:, list(channels)]
    stack = seen.movedim(axis, 1)
    offsets = torch.arange(-context, context + 1, device=condition.device)
    places = torch.arange(start, stop, device=condition.device)
    near = stack[:, (places[:, None] + offsets).clamp(0, stack.shape[1] - 1)]
    if order == "modality":
        near = near.transpose(2, 3)
    parts = [near.flatten(2, 3)]
    parts += [volume.movedim(axis, 1)[:, start:stop] for volume in (common, x_t) if volume is not None]
    slab = torch.cat([part.to(dtype) for part in parts], dim=2).flatten(0, 1)
    return slab.contiguous(memory_format=torch.channels_last)
