"""Ensemble-2D-feature layers: the 2D models' decoder features, summed onto the 3D network's grid.

A kernel as long as its stride s runs along each plane's own axis (``[s,1,1]``, ``[1,s,1]``, ``[1,1,s]``)::

    acc_s[b, o, z, y, x] = bias[o] + sum_k sum_{j<s} sum_i W_k[o, i, j] · feature_k[s·n + j][i, u, v]

with n the coarse coordinate along the plane's axis and (u, v) the other two. Everything starts at zero.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scorefusion.models.config import Plane
from scorefusion.ops.ensemble_features import ensemble_features
from scorefusion.ops.reference.planes import AXIS


class FeatureLayer(nn.Module):
    """The layer of one scale: a weight ``[outputs, inputs_k, s]`` for each branch, one bias ``[outputs]``.

    ``kernel`` 3, at scale 1, is 3×3×3 zero-padded: ``[outputs, inputs_k, 3, 3, 3]`` (z, y, x), which the
    authors' two-plane model has. ``random`` starts as a convolution would, instead of at zero.
    """

    def __init__(
        self, scale: int, inputs: Sequence[int], outputs: int, *, kernel: int = 1, random: bool = False
    ):
        super().__init__()
        if kernel not in (1, 3) or (kernel == 3 and scale != 1):
            raise ValueError(f"a feature layer's kernel is 1, or 3 at scale 1; got {kernel} at scale {scale}")
        self.scale, self.outputs, self.kernel = scale, outputs, kernel
        extent = (scale,) if kernel == 1 else (3, 3, 3)
        self.weights = nn.ParameterList([nn.Parameter(torch.zeros(outputs, n, *extent)) for n in inputs])
        self.bias = nn.Parameter(torch.zeros(outputs))
        if random:
            bound = math.sqrt(1.0 / sum(weight[0].numel() for weight in self.weights))
            for weight in self.weights:
                nn.init.uniform_(weight, -bound, bound)

    def start(self, size: Sequence[int], batch: int) -> Tensor:
        """A fresh accumulator ``[B, outputs, D/s, H/s, W/s]`` that holds the bias, channels last."""
        grid = [length // self.scale for length in size]
        memory = torch.channels_last_3d
        return self.restart(self.bias.new_empty(batch, self.outputs, *grid).contiguous(memory_format=memory))

    def restart(self, total: Tensor) -> Tensor:
        """Put the bias into an accumulator, in place."""
        return total.copy_(self.bias[None, :, None, None, None])

    def add(self, total: Tensor, features: Tensor, branch: int, plane: Plane, start: int) -> Tensor:
        """Add a slab of a branch's features ``[B·n, inputs, h/s, w/s]`` to ``[B, outputs, D/s, H/s, W/s]``.

        The slab starts at a multiple of s and has whole blocks of s slices. Returns the accumulator, changed
        in place unless autograd needs a new one.
        """
        weight = self.weights[branch]
        if self.kernel == 1:
            return ensemble_features(total, features, weight, plane, start)
        stack = total.movedim(AXIS[plane], 1)
        weight = weight.to(features.dtype).movedim(AXIS[plane], 2)
        share = self._neighbours(features, weight, total.shape[0])
        share = share[:, max(0, 1 - start) : stack.shape[1] + 1 - start].to(total.dtype)
        first = max(0, start - 1)
        last = first + share.shape[1]
        if torch.is_grad_enabled() and weight.requires_grad:
            zeros = torch.zeros_like(stack)
            whole = torch.cat([zeros[:, :first], share, zeros[:, last:]], dim=1)
            return total + whole.movedim(1, AXIS[plane])
        stack[:, first:last] += share
        return total

    def _neighbours(self, features: Tensor, weight: Tensor, batch: int) -> Tensor:
        """What the slab gives to its slices and one beyond on either side, ``[B, n + 2, outputs, h, w]``."""
        parts = F.conv2d(features, weight.movedim(2, 0).flatten(0, 1), padding=1)
        near, own, far = parts.unflatten(1, (3, self.outputs)).unflatten(0, (batch, -1)).unbind(2)
        pads = ((2, 0), (1, 1), (0, 2))
        shifted = [F.pad(part, (0,) * 6 + pad) for part, pad in zip((near, own, far), pads, strict=True)]
        return shifted[0] + shifted[1] + shifted[2]
