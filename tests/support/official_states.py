"""States in the authors' format, with weights that their names determine."""

from __future__ import annotations

import functools
import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"
ENSEMBLE = "denoise_fn."


@functools.cache
def weight(name: str, shape: tuple[int, ...], seed: int = 7) -> Tensor:
    """The weight that a name stands for."""
    z = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32).standard_normal(shape)
    if len(shape) >= 2:
        z = z / np.sqrt(np.prod(shape[1:]))
    elif name.endswith("weight"):
        z = 1 + 0.1 * z
    else:
        z = 0.1 * z
    return torch.from_numpy(z.astype(np.float32))


def noise(number: int, shape: tuple[int, ...]) -> Tensor:
    """Draw ``number`` of the golden trajectories; 0 is x_T."""
    seed = (zlib.crc32(f"noise_{number}".encode()) + 7) % 2**32
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


def keys(width: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the ``small`` or the ``full`` ensemble."""
    listed = json.loads((GOLDEN / f"official_{width}_keys.json").read_text())
    return {name: tuple(shape) for name, shape in listed.items()}


def state_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights for all the names."""
    return {name: weight(name, shape) for name, shape in shapes.items()}


def slice_keys(inputs: int = 10) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a small 2D file whose network has so many input channels."""
    prefix = f"{ENSEMBLE}model2D_1."
    found = {
        name.removeprefix(prefix): shape for name, shape in keys("small").items() if name.startswith(prefix)
    }
    found["denoise_fn.input_blocks.0.0.weight"] = (32, inputs, 3, 3)
    return found


def two_condition_keys(feature_layers: int = 3) -> dict[str, tuple[int, ...]]:
    """The small ensemble with three more 2D networks, for a second condition."""
    found = {}
    for name, shape in keys("small").items():
        found[name] = shape
        if "model2D_" in name:
            found[name.replace("model2D_", "model_cond2_")] = shape
        for view in range(4, feature_layers + 1):
            if f"layer_{view - 3}_" in name:
                found[name.replace(f"layer_{view - 3}_", f"layer_{view}_")] = shape
    found[f"{ENSEMBLE}model_3D.input_blocks.0.0.weight"] = (32, 13, 3, 3, 3)
    found[f"{ENSEMBLE}model_3D.out.2.weight"] = (6, 32, 3, 3, 3)
    found[f"{ENSEMBLE}model_3D.out.2.bias"] = (6,)
    return found


def two_view_keys() -> dict[str, tuple[int, ...]]:
    """The small ensemble of their two-view class: views 2 and 3, 3x3x3 layers at scale 1."""
    found = {
        name: shape
        for name, shape in keys("small").items()
        if not name.startswith(f"{ENSEMBLE}model2D_1.") and "layer_1_" not in name
    }
    for name in found:
        if "feature_extract_layer" in name and name.endswith("weight"):
            found[name] = (32, 32, 3, 3, 3)
    found[f"{ENSEMBLE}model_3D.input_blocks.0.0.weight"] = (32, 8, 3, 3, 3)
    found[f"{ENSEMBLE}model_3D.out.2.weight"] = (2, 32, 3, 3, 3)
    found[f"{ENSEMBLE}model_3D.out.2.bias"] = (2,)
    return found


def ensemble_tables(steps: int = 1000) -> dict[str, Tensor]:
    """The schedule tables of an ensemble file, in float32 as there."""
    betas = torch.linspace(1e-4, 0.09, steps)
    abar = torch.cumprod(1 - betas, dim=0)
    before = torch.cat([torch.ones(1), abar[:-1]])
    variance = betas * (1 - before) / (1 - abar)
    return {
        "betas": betas,
        "alphas_cumprod": abar,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": abar.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - abar).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - abar).log(),
        "sqrt_recip_alphas_cumprod": (1 / abar).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / abar - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * before.sqrt() / (1 - abar),
        "posterior_mean_coef2": (1 - before) * (1 - betas).sqrt() / (1 - abar),
    }


def slice_tables(steps: int = 2000) -> dict[str, Tensor]:
    """The schedule tables of a 2D file."""
    gammas = torch.cumprod(1 - torch.linspace(1e-6, 1e-2, steps), dim=0)
    names = ("posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2")
    tables = {name: torch.zeros(steps) for name in names}
    recip = {"sqrt_recip_gammas": (1 / gammas).sqrt(), "sqrt_recipm1_gammas": (1 / gammas - 1).sqrt()}
    return {"gammas": gammas, **recip, **tables}
