"""Reading a checkpoint of the authors' code: tensors only, never code, one clear error for anything else."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scorefusion.diffusion.schedule import paper_sampling
from scorefusion.errors import BadInput, out_of_memory
from scorefusion.models.official.names import is_table

State = dict[str, Tensor]
Source = str | os.PathLike[str] | Mapping[str, Any]


def read_state(source: Source, *, ema: bool = True, own_schedule: bool = False) -> tuple[State, str]:
    """Read a checkpoint's weights, without its schedule tables.

    Args:
        source: a file that ``torch.save`` wrote, or what it would load as.
        ema: of an ensemble file take the averaged weights, not the last ones.
        own_schedule: accept a file whose noise schedule is not the one that will be regenerated.

    Returns:
        The weights in float32 by the authors' names, and what to call the source in messages.

    Raises:
        BadInput: if it cannot be read, holds anything but tensors, or was trained with another schedule.
    """
    if isinstance(source, Mapping):
        label, content = "checkpoint", source
    else:
        label, content = os.fspath(source), _load(Path(source))
    if "model" in content and isinstance(content["model"], Mapping):
        wanted = "ema" if ema else "model"
        if not isinstance(content.get(wanted), Mapping):
            fix = "Import the weights of the last step instead (ema=False, --no-ema)." if ema else ""
            raise BadInput(label, f"holds no {wanted!r} weights, only {', '.join(map(str, content))}", fix)
        content = content[wanted]
    state = {}
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            problem = f"holds {name!r} of type {type(value).__name__} where a named tensor is expected"
            raise BadInput(label, problem, "Give a file as the authors' code saves it.")
        if is_table(name):
            if name in ("betas", "alphas_cumprod") and not own_schedule:
                _check_schedule(label, name, value)
            continue
        state[name] = _weight(label, name, value)
    return state, label


def _load(path: Path) -> Mapping[str, Any]:
    fix = "Give a .pth or .pt file as the authors' code saves it."
    if not path.is_file():
        raise BadInput(path, "is a folder" if path.is_dir() else "does not exist", fix)
    if path.stat().st_size == 0:
        raise BadInput(path, "is empty", fix)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile pickle can raise anything
        if out_of_memory(error):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if "weights only" in reason.lower() or "weights_only" in reason.lower():
            reason = "it holds something other than tensors, which is not loaded because it could run code"
        raise BadInput(path, f"cannot be read as a checkpoint ({reason})", fix) from None
    if not isinstance(content, Mapping):
        raise BadInput(path, f"holds a {type(content).__name__} where named tensors are expected", fix)
    return content


def _weight(label: str, name: str, value: Tensor) -> Tensor:
    problem = ""
    if value.layout != torch.strided or not value.is_floating_point():
        problem = f"is {value.dtype} {value.layout}, not a dense floating-point tensor"
    elif value.device.type != "cpu":
        problem = f"is on {value.device}, not on the CPU"
    elif value.numel() * value.element_size() > value.untyped_storage().nbytes():
        problem = f"claims shape {list(value.shape)} but stores only {value.untyped_storage().nbytes()} bytes"
    elif not torch.isfinite(value).all():
        problem = f"holds {int((~torch.isfinite(value)).sum())} values that are not finite"
    if problem:
        raise BadInput(label, f"tensor {name!r} {problem}", "The checkpoint is damaged.")
    return value.detach().to(torch.float32)


def _check_schedule(label: str, name: str, table: Tensor) -> None:
    abar = paper_sampling().abar
    found = table.detach().double().reshape(-1).cpu().numpy()
    found = np.cumprod(1.0 - found) if name == "betas" else found
    if found.shape != abar.shape or not np.allclose(found, abar, rtol=1e-2, atol=1e-6):
        raise BadInput(
            label,
            f"was trained with another noise schedule than betas 1e-4 to 0.09 in {abar.size} steps "
            f"({name!r} has {found.size} steps and ends at abar {found[-1] if found.size else 'nothing'})",
            "Pass own_schedule=True (--own-schedule) to import it and sample with those betas all the same.",
        )
