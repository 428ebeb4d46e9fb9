"""A slab of 2D features on its way onto the 3D grid: the definition.

    total[b, o, n, u, v] += sum_{j<s} sum_i W[o, i, j] · features[b, s·n + j][i, u, v]

with n the coarse coordinate along the plane's axis and (u, v) the other two: a convolution whose kernel is as
long as its stride (Zhu et al., ICML 2025), which is to say a matrix product over the s·I numbers of a pixel.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from scorefusion.ops.reference.planes import AXIS


def slab_share(features: Tensor, weight: Tensor, batch: int) -> Tensor:
    """Return what features [B·n, I, h, w] give to their n/s coarse slices, [B, n/s, O, h, w]."""
    dtype = torch.float64 if torch.float64 in (features.dtype, weight.dtype) else torch.float32
    outputs, inputs, scale = weight.shape
    height, width = features.shape[2:]
    coarse = features.shape[0] // (batch * scale)
    if features.numel() == 0 or outputs == 0:
        return features.new_zeros((batch, coarse, outputs, height, width), dtype=dtype)
    pixels = features.to(dtype).contiguous().reshape(batch * coarse, scale * inputs, height, width)
    matrix = weight.to(dtype).movedim(2, 1).reshape(outputs, scale * inputs, 1, 1)
    return F.conv2d(pixels, matrix).unflatten(0, (batch, coarse))


def ensemble_features(total: Tensor, features: Tensor, weight: Tensor, plane: str, start: int) -> Tensor:
    """Return a new total; arguments are `scorefusion.ops.ensemble_features`'s, checked."""
    share = slab_share(features, weight, total.shape[0])
    axis, first = AXIS[plane], start // weight.shape[2]
    beyond = total.shape[axis] - first - share.shape[1]
    # F.pad starts from the last axis.
    stack = F.pad(share.movedim(1, -1), (first, beyond))
    return (total + stack.movedim(-1, axis)).to(total.dtype)


def ensemble_features_(total: Tensor, features: Tensor, weight: Tensor, plane: str, start: int) -> None:
    """Change the total in place."""
    share = slab_share(features, weight, total.shape[0])
    first = start // weight.shape[2]
    total.movedim(AXIS[plane], 1)[:, first : first + share.shape[1]] += share


def ensemble_features_backward(grad: Tensor, features: Tensor, plane: str, start: int, scale: int) -> Tensor:
    """Return the gradient with respect to the weight, [O, I, s], of a gradient [B, O, D/s, H/s, W/s]."""
    dtype = torch.float64 if torch.float64 in (features.dtype, grad.dtype) else torch.float32
    batch, count = grad.shape[0], features.shape[0] // max(grad.shape[0], 1)
    first = start // scale
    slopes = grad.movedim(AXIS[plane], 1)[:, first : first + count // scale].to(dtype)
    slices = features.to(dtype).unflatten(0, (batch, count // scale, scale))
    return torch.einsum("bnouv,bnjiuv->oij", slopes, slices)
