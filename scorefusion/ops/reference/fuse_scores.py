"""Fusing the branches' scores with the 3D network's weight maps and residual: the definition.

    out = sum_k base_k s_k + sum_{k<K} w_k (s_k - s_K) + gain · r

which is `sum_{k<K} (base_k + w_k) s_k + (base_K - sum_{k<K} w_k) s_K + gain · r` (Zhu et al., ICML 2025).
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def fuse_scores(scores: Sequence[Tensor], maps: Tensor | None, base: Sequence[float], gain: float) -> Tensor:
    """Return the fused score; arguments are `scorefusion.ops.fuse_scores`'s, checked."""
    dtype = torch.float64 if torch.float64 in {score.dtype for score in scores} else torch.float32
    wide = [score.to(dtype) for score in scores]
    total = base[0] * wide[0]
    for weight, score in zip(base[1:], wide[1:], strict=True):
        total = total + weight * score
    if maps is not None:
        shares = maps.to(dtype)
        for k in range(len(wide) - 1):
            total = total + shares[:, k : k + 1] * (wide[k] - wide[-1])
        total = total + gain * shares[:, -1:]
    return total.contiguous()


def fuse_scores_backward(grad: Tensor, scores: Sequence[Tensor], gain: float) -> Tensor:
    """Return the gradient with respect to the maps, [B, K, D, H, W]: g (s_k - s_K), and gain · g."""
    wide = [score.to(grad.dtype) for score in scores]
    return torch.cat([*(grad * (score - wide[-1]) for score in wide[:-1]), gain * grad], dim=1)
