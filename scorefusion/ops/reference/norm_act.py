"""Normalisation, FiLM and SiLU over a virtual concatenation, into a padded buffer: the definition.

h = concat(x, other) + add                                            over channels; add [N, C]
m, v = mean and variance of h over a group's channels and voxels      or over the channels of each voxel
y = (h - m) / sqrt(v + eps) · weight + bias
out = pad(act(y · (1 + scale) + shift))                               scale, shift [N, C]; act is SiLU
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def norm_act(
    x: Tensor,
    other: Tensor | None,
    groups: int | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    scale: Tensor | None,
    shift: Tensor | None,
    add: Tensor | None,
    act: str,
    pad: int,
    pad_mode: str,
) -> Tensor:
    """Return the padded result; arguments are `scorefusion.ops.norm_act`'s, checked."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    dims = x.ndim - 2
    across = (...,) + (None,) * dims
    hidden = (x if other is None else torch.cat([x, other], dim=1)).to(dtype)
    if add is not None:
        hidden = hidden + add.to(dtype)[across]
    weight, bias = weight.to(dtype), bias.to(dtype)
    if groups is None:
        hidden = F.layer_norm(hidden.movedim(1, -1), weight.shape, weight, bias, eps).movedim(-1, 1)
    else:
        # PyTorch's GroupNorm of a channels-last tensor takes E[x²] - E[x]² on the CPU, which a large mean
        # ruins: errors of 1e3 at mean 1e4 and standard deviation 1, where the contiguous form has 1e-3.
        hidden = F.group_norm(hidden.contiguous(), groups, weight, bias, eps)
    if scale is not None:
        hidden = hidden * (1 + scale.to(dtype)[across])
    if shift is not None:
        hidden = hidden + shift.to(dtype)[across]
    if act == "silu":
        hidden = F.silu(hidden)
    hidden = hidden.to(x.dtype)
    if pad:
        mode = "constant" if pad_mode == "zeros" else "replicate"
        hidden = F.pad(hidden, (pad,) * (2 * dims), mode=mode)
    return hidden.contiguous(memory_format=memory_format(dims))


def memory_format(dims: int) -> torch.memory_format:
    """Return the channels-last memory format of 2 or 3 dimensions."""
    return torch.channels_last if dims == 2 else torch.channels_last_3d
