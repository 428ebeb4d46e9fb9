"""From a subject's contrasts to training pairs: the clean residual, and the conditions it is given with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scorefusion.degradations.make import degrade
from scorefusion.errors import ScoreFusionError
from scorefusion.models.config import ModelConfig


@dataclass(frozen=True)
class Example:
    """A clean residual ``[B, 1, D, H, W]`` and its conditions ``[B, C, D, H, W]``."""

    residual: Tensor
    condition: Tensor


def is_degraded(config: ModelConfig) -> bool:
    """Whether the first condition is made from the target.

    Raises:
        ScoreFusionError: for a degradation of something other than the target, or a target that is given.
    """
    if config.degradation.kind == "none":
        if config.target in config.conditions:
            raise ScoreFusionError(
                f"model {config.name!r} is given its target, {config.target!r}, as it is; nothing to learn"
            )
        return False
    if config.conditions[0] != config.target:
        raise ScoreFusionError(
            f"model {config.name!r} degrades its target, {config.target!r}, so its first condition must be "
            f"that; got {config.conditions[0]!r}"
        )
    return True


def contrasts_of(config: ModelConfig) -> tuple[str, ...]:
    """The contrasts that a training subject needs, the target first."""
    read = config.conditions[1:] if is_degraded(config) else config.conditions
    return tuple(dict.fromkeys((config.target, *read)))


def factors_of(config: ModelConfig) -> tuple[tuple[int, int, int], ...]:
    """How much coarser (z, y, x) the input of each of :func:`contrasts_of` is than the target's grid."""
    factors = config.degradation.factors if is_degraded(config) else (1, 1, 1)
    return (factors, *[(1, 1, 1)] * (len(contrasts_of(config)) - 1))


def needs_whole(config: ModelConfig) -> bool:
    """Whether a crop's first condition can only be made from the whole volume, and so is stored beside it."""
    return is_degraded(config) and any(config.degradation.whole)


def whole_condition(volume: np.ndarray, config: ModelConfig) -> np.ndarray:
    """The first condition ``[D, H, W]`` of a whole subject ``[C, D, H, W]``, for :func:`needs_whole`.

    Lines and noise are those of the degradation's own seed.
    """
    target = torch.from_numpy(np.ascontiguousarray(volume[None, :1], dtype=np.float32))
    given = degrade(target, config.degradation, base=config.residual.base)
    return given.condition[0, 0].numpy()


def make_example(volume: Tensor, config: ModelConfig, *, seed: int | None = None) -> Example:
    """Form the conditions of a crop, and the residual to the base that they give.

    Args:
        volume: ``[B, C, D, H, W]`` near [-1, 1], contrasts as :func:`contrasts_of` names them, and last what
            :func:`whole_condition` made where it is needed.
        config: the model.
        seed: of the measurement's noise, holes or lines; the degradation's own if None.
    """
    names = contrasts_of(config)
    parts = volume.split(1, dim=1)
    given = dict(zip(names, parts[: len(names)], strict=True))
    target = given[config.target]
    if needs_whole(config):
        base = parts[len(names)]
    elif is_degraded(config):
        base = degrade(target, config.degradation, base=config.residual.base, seed=seed).condition
    else:
        base = given[config.conditions[0]]
    residual = (target - base) / config.residual.scale
    return Example(residual, torch.cat([base, *(given[name] for name in config.conditions[1:])], dim=1))
