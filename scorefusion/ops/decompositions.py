"""The operations inside the networks as PyTorch's own, for programs that know nothing of scorefusion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scorefusion.ops import norm_act as _registers
from scorefusion.ops.reference import norm_act as reference


def decompositions() -> dict[Any, Callable[..., Tensor]]:
    """Return the table that `torch.export`'s `run_decompositions` takes, PyTorch's defaults included.

    A network exported by `torch.export` holds `scorefusion::norm_act`; after
    `program.run_decompositions(decompositions())` it holds PyTorch's operations alone, as ONNX and TensorRT
    need it.
    """
    assert _registers
    table = torch.export.default_decompositions()
    table[torch.ops.scorefusion.norm_act.default] = _norm_act
    return table


def _norm_act(
    x: Tensor,
    other: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    add: Tensor | None,
    groups: int | None,
    eps: float,
    act: str,
    pad: int,
    pad_mode: str,
    backend: str | None,
) -> Tensor:
    return reference.norm_act(x, other, groups, weight, bias, eps, scale, shift, add, act, pad, pad_mode)
