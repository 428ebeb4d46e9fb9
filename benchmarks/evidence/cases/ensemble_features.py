"""Feature layers at the paper's channel counts: every plane, scale and dtype, and weight gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from benchmarks.evidence.case import Case, Work

if TYPE_CHECKING:
    from scorefusion.kernels.launch import Config

_LIMIT = 1.10
_VOLUME = (152, 192, 192)
_AXIS = {"axial": 2, "coronal": 3, "sagittal": 4}


@dataclass(frozen=True)
class _Layer:
    """A branch's share of one feature layer: s, I, O, the plane, and dtypes of features and total."""

    scale: int
    inputs: int
    outputs: int
    plane: str
    features: torch.dtype
    total: torch.dtype

    @property
    def name(self) -> str:
        kinds = "/".join(str(dtype).removeprefix("torch.") for dtype in (self.features, self.total))
        return f"s={self.scale}, {self.inputs} to {self.outputs} channels, {self.plane}, {kinds}"

    def tensors(self, device: str) -> tuple[Tensor, Tensor, Tensor]:
        """Return total, features and weight; on the CPU of one coarse slice, at s = 8 two."""
        grid = [length // self.scale for length in _VOLUME]
        if device == "cpu":
            grid[_AXIS[self.plane] - 2] = 2 if self.scale == 8 else 1
        total = torch.zeros(1, self.outputs, *grid, dtype=self.total, device=device)
        count = grid.pop(_AXIS[self.plane] - 2) * self.scale
        features = torch.zeros(count, self.inputs, *grid, dtype=self.features, device=device)
        weight = torch.zeros(self.scale, self.inputs, self.outputs, dtype=self.features, device=device)
        return (
            total.to(memory_format=torch.channels_last_3d),
            features.to(memory_format=torch.channels_last),
            weight.permute(2, 1, 0),
        )


_BF16, _F16, _F32 = torch.bfloat16, torch.float16, torch.float32
_FORWARD = (
    _Layer(8, 512, 192, "axial", _BF16, _F32),
    _Layer(4, 256, 192, "coronal", _BF16, _BF16),
    _Layer(2, 128, 128, "sagittal", _BF16, _F32),
    _Layer(1, 64, 64, "coronal", _BF16, _BF16),
    _Layer(4, 256, 192, "sagittal", _F16, _F32),
    _Layer(2, 128, 128, "coronal", _F32, _F32),
    _Layer(1, 64, 64, "axial", _F32, _F32),
)
_BACKWARD = (
    _Layer(4, 256, 192, "axial", _BF16, _F32),
    _Layer(1, 64, 64, "sagittal", _BF16, _BF16),
    _Layer(2, 128, 128, "coronal", _F32, _F32),
)


def cases(device: str) -> Iterator[Case]:
    """Yield slabs of whole planes, on the CPU of a coarse slice or two; then weight gradients."""
    for layer in _FORWARD:
        yield _forward(layer, device)
    for layer in _BACKWARD:
        yield _backward(layer, device)


def _forward(layer: _Layer, device: str) -> Case:
    from scorefusion.kernels.ensemble_features import CONFIGS, ensemble_features

    total, features, weight = layer.tensors(device)
    wide = layer.features == _F32
    configs = tuple(
        config
        for config in CONFIGS
        if config.name.endswith("tf32x3") == wide
        and (layer.outputs % config.constants["BLOCK_N"] == 0 or config.constants["BLOCK_N"] == 64)
    )

    def run(config: Config) -> None:
        ensemble_features(total, features, weight, _AXIS[layer.plane], 0, config)

    share = total.numel() * features.element_size()
    work = Work(
        read=total.nbytes + features.nbytes + weight.nbytes,
        written=total.nbytes,
        flop=2 * features.numel() * layer.outputs,
        # A permuted copy, the convolution of it, and the sum.
        unfused=3 * features.nbytes + weight.nbytes + 2 * share + 2 * total.nbytes,
        limit=_LIMIT,
        dot=True,
    )
    fast = layer in (_FORWARD[1], _FORWARD[-1])
    return Case("ensemble_features", layer.name, configs, run, {"_ensemble_features_kernel": work}, fast=fast)


def _backward(layer: _Layer, device: str) -> Case:
    from scorefusion.kernels.ensemble_features import BACKWARD_CONFIGS, ensemble_features_backward

    grad, features, weight = layer.tensors(device)
    wide = layer.features == _F32 or layer.features != layer.total
    configs = tuple(config for config in BACKWARD_CONFIGS if config.name.endswith("tf32x3") == wide)
    out = torch.zeros(weight.shape, device=device)

    def run(config: Config) -> None:
        ensemble_features_backward(out, grad, features, _AXIS[layer.plane], 0, config)

    work = Work(
        read=grad.nbytes + features.nbytes,
        written=out.nbytes,
        flop=2 * features.numel() * layer.outputs,
        unfused=3 * features.nbytes + grad.nbytes + out.nbytes,
        limit=_LIMIT,
        dot=True,
    )
    name = f"weight gradient, {layer.name}"
    fast = layer == _BACKWARD[1]
    return Case(
        "ensemble_features", name, configs, run, {"_ensemble_features_backward_kernel": work}, fast=fast
    )
