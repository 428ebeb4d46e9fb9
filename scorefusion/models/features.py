"""Ensemble-2D-feature layers: the 2D models' decoder features, summed onto the 3D network's grid.

A kernel as long as its stride s runs along each plane's own axis (``[s,1,1]``, ``[1,s,1]``, ``[1,1,s]``)::

    acc_s[b, o, z, y, x] = bias[o] + sum_k sum_{j<s} sum_i W_k[o, i, j] · feature_k[s·n + j][i, u, v]

with n the coarse coordinate along the plane's axis and (u, v) the other two. Everything starts at zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import Plane
from .planes import as_slices


class FeatureLayer(nn.Module):
    """The layer of one scale: a weight ``[outputs, inputs_k, s]`` for each branch, one bias ``[outputs]``.

    Args:
        scale: s, the grid spacing in voxels and the length of the kernel.
        inputs: feature channels of each branch.
        outputs: channels of the 3D encoder where the sum is added.
    """

    def __init__(self, scale: int, inputs: Sequence[int], outputs: int):
        super().__init__()
        self.scale, self.outputs = scale, outputs
        self.weights = nn.ParameterList([nn.Parameter(torch.zeros(outputs, n, scale)) for n in inputs])
        self.bias = nn.Parameter(torch.zeros(outputs))

    def start(self, size: Sequence[int], batch: int) -> Tensor:
        """A fresh accumulator ``[B, outputs, D/s, H/s, W/s]`` that holds the bias."""
        grid = [length // self.scale for length in size]
        return self.bias[None, :, None, None, None].expand(batch, -1, *grid).contiguous()

    def add(self, total: Tensor, features: Tensor, branch: int, plane: Plane, start: int) -> Tensor:
        """Add a slab of one branch's features.

        Args:
            total: accumulator ``[B, outputs, D/s, H/s, W/s]``.
            features: ``[B·n, inputs, h/s, w/s]``, n a multiple of s.
            branch: index of the branch.
            plane: its plane.
            start: the slab's first slice, a multiple of s.

        Returns:
            The accumulator: the same tensor, changed in place, unless autograd needs a new one.
        """
        batch = total.shape[0]
        coarse = features.shape[0] // (batch * self.scale)
        grouped = features.contiguous().reshape(
            batch * coarse, self.scale * features.shape[1], *features.shape[2:]
        )
        weight = self.weights[branch].movedim(2, 1).flatten(1)[:, :, None, None]
        share = F.conv2d(grouped, weight.to(grouped.dtype)).unflatten(0, (batch, coarse)).to(total.dtype)
        first = start // self.scale
        if torch.is_grad_enabled() and weight.requires_grad:
            whole = torch.zeros_like(as_slices(total, plane))
            return total + _back(torch.cat([whole[:, :first], share, whole[:, first + coarse :]], 1), plane)
        as_slices(total, plane)[:, first : first + coarse] += share
        return total


def _back(stack: Tensor, plane: Plane) -> Tensor:
    """``[B, n, C, h, w]`` as a volume ``[B, C, D, H, W]``."""
    return stack.movedim(1, {"axial": 2, "coronal": 3, "sagittal": 4}[plane])
