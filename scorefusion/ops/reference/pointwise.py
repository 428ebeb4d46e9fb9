"""A product over the channels of each voxel, a 1×1 convolution or a linear layer: the definition."""

import torch
from torch import Tensor


def pointwise(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, products: torch.dtype
) -> Tensor:
    """Return `weight x + bias + residual`, `[N, O, ...]` of x's dtype, of x `[N, C, ...]`, weight `[C, O]`.

    What is multiplied is rounded to `products`; sums are float32 (float64 for float64).
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    y = x.movedim(1, -1).to(products).to(dtype) @ weight.to(products).to(dtype)
    if bias is not None:
        y = y + bias.to(dtype)
    y = y.movedim(-1, 1)
    return (y if residual is None else y + residual.to(dtype)).to(x.dtype)
