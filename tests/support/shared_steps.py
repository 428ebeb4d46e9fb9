"""Train, and keep the gradients of each stage's first step; alone or as one of torchrun's processes.

torchrun --nproc-per-node 2 tests/support/shared_steps.py CONFIG FOLDER GRADIENTS
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from scorefusion.errors import ScoreFusionError
from scorefusion.models.config import read_config
from scorefusion.train.config import TrainConfig
from scorefusion.train.loop import train


def gradients(config: str | Path, folder: str | Path) -> list[list[torch.Tensor]]:
    """For each stage, the gradients that its optimiser is first given."""
    seen: dict[int, tuple[Any, list[torch.Tensor]]] = {}

    def keep(optimiser: torch.optim.Optimizer, *given: Any) -> None:
        if id(optimiser) not in seen:
            parameters = [p for group in optimiser.param_groups for p in group["params"]]
            seen[id(optimiser)] = optimiser, [parameter.grad.clone() for parameter in parameters]

    hook = register_optimizer_step_pre_hook(keep)
    try:
        train(read_config(TrainConfig, config), Path(folder))
    finally:
        hook.remove()
    return [found for _, found in seen.values()]


def stopped(config: str, folder: str) -> str:
    """What a run that cannot go on says."""
    try:
        train(read_config(TrainConfig, config), Path(folder))
    except ScoreFusionError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    diverging, config, folder, kept = sys.argv[1:]
    said = stopped(diverging, f"{folder}-diverging")
    torch.save((said, gradients(config, folder)), f"{kept}.{os.environ['RANK']}")
