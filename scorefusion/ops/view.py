"""A tensor as the C++ kernels take it: address, dtype code, sizes, strides in elements."""

from __future__ import annotations

import torch
from torch import Tensor

View = tuple[int, int, tuple[int, ...], tuple[int, ...]]

CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def view(tensor: Tensor) -> View:
    """Describe a CPU tensor to `scorefusion._C`; the caller keeps the tensor alive meanwhile."""
    return tensor.data_ptr(), CODES[tensor.dtype], tuple(tensor.shape), tensor.stride()
