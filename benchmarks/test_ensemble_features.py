"""Feature layers: every backend against PyTorch's permute + conv3d of the same slab, in the same run.

The reference convolves a permuted, channels-last copy of the slab with kernel = stride = s along the plane's
axis and adds the result; beside it the definition (a grouped conv2d) eager and compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.conftest import check, needs_cuda
from scorefusion.ops import backends
from scorefusion.ops.ensemble_features import ensemble_features
from scorefusion.ops.reference import ensemble_features as definition
from scorefusion.ops.reference.planes import AXIS

CASES = [
    pytest.param("conv3d", "cpu", id="permute + conv3d"),
    pytest.param("torch", "cpu", id="torch reference"),
    pytest.param("compiled", "cpu", id="torch.compile", marks=pytest.mark.compiled),
    pytest.param(
        "cpp",
        "cpu",
        id="cpp",
        marks=pytest.mark.skipif(bool(backends.missing("cpp")), reason=str(backends.missing("cpp"))),
    ),
    pytest.param("conv3d", "cuda", id="cuda permute + conv3d", marks=[needs_cuda, pytest.mark.gpu]),
    pytest.param("triton", "cuda", id="triton", marks=[needs_cuda, pytest.mark.gpu]),
]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Slab:
    """s, I, O, the slab's slices and their coarse pixels."""

    scale: int
    inputs: int
    outputs: int
    slices: int
    pixels: tuple[int, int]


SLABS = {
    "128 to 128, s=4": Slab(4, 128, 128, 8, (192, 192)),
    "t1-sr4, s=2": Slab(2, 48, 48, 32, (96, 96)),
    "t1-sr4, s=4": Slab(4, 80, 64, 64, (48, 48)),
    "paper, s=8": Slab(8, 512, 192, 32, (24, 24)),
}
PLANES = {name: ("axial",) for name in SLABS} | {"128 to 128, s=4": tuple(AXIS)}
RUNS = [(name, plane) for name in SLABS for plane in PLANES[name]]


def tensors(slab: Slab, plane: str, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    grid = list(slab.pixels)
    grid.insert(AXIS[plane] - 2, slab.slices // slab.scale)
    total = torch.zeros(1, slab.outputs, *grid).to(memory_format=torch.channels_last_3d)
    features = torch.randn(slab.slices, slab.inputs, *slab.pixels).to(memory_format=torch.channels_last)
    weight = torch.randn(slab.scale, slab.inputs, slab.outputs).permute(2, 1, 0)
    weight = weight / (slab.scale * slab.inputs) ** 0.5
    return total.to(device), features.to(device, dtype), weight.to(device, dtype)


def convolution(plane: str, weight: Tensor) -> Callable[[Tensor, Tensor], None]:
    """Return permute + conv3d as a change of the total in place; its weight is laid out beforehand."""
    axis, scale = AXIS[plane], weight.shape[2]
    extent = tuple(scale if place == axis else 1 for place in (2, 3, 4))
    kernel = weight.reshape(*weight.shape[:2], *extent).to(memory_format=torch.channels_last_3d)

    def add(total: Tensor, features: Tensor) -> None:
        volume = features.unflatten(0, (total.shape[0], -1)).movedim(1, axis)
        volume = volume.contiguous(memory_format=torch.channels_last_3d)
        total += F.conv3d(volume, kernel, stride=extent)

    return add


def body_of(
    kind: str, plane: str, weight: Tensor, compiled: Callable[..., Any]
) -> Callable[[Tensor, Tensor], Any]:
    if kind == "conv3d":
        return convolution(plane, weight)
    if kind == "compiled":
        add = compiled(definition.ensemble_features_)
        return lambda total, features: add(total, features, weight, plane, 0)
    return lambda total, features: ensemble_features(total, features, weight, plane, 0, backend=kind)


@pytest.mark.main_case(name="t1-sr4, s=4", dtype="float32")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "plane"), RUNS, ids=[f"{name}, {plane}" for name, plane in RUNS])
@pytest.mark.parametrize(("kind", "device"), CASES)
def test_ensemble_features(
    measure: Callable[..., Any],
    compiled: Callable[..., Any],
    timed: bool,
    name: str,
    plane: str,
    dtype: str,
    kind: str,
    device: str,
) -> None:
    slab = SLABS[name] if timed else Slab(SLABS[name].scale, 6, 5, 2 * SLABS[name].scale, (4, 3))
    total, features, weight = tensors(slab, plane, DTYPES[dtype], device)
    expected = total.clone()
    with torch.no_grad():
        with torch.backends.cudnn.flags(allow_tf32=False):
            definition.ensemble_features_(expected, features, weight, plane, 0)
        add = body_of(kind, plane, weight, compiled)
        result = total.clone()
        add(result, features)
        # A bfloat16 convolution rounds its result before it is added; cuDNN rounds float32 factors to TF32.
        exact = kind != "conv3d" or (DTYPES[dtype] == torch.float32 and device == "cpu")
        tolerance = 1e-4 if exact else 2e-2
        check(result, expected, baseline=kind == "compiled", rtol=tolerance, atol=tolerance)

        measure(
            lambda: add(total, features),
            group=f"ensemble_features, {name}, {plane}, {dtype}, {device}",
            device=device,
            reference=kind == "conv3d",
            dtype=DTYPES[dtype],
            FLOP=2 * features.numel() * slab.outputs,
        )
