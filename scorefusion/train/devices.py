"""Where a run computes: on one device, or on several, a process for each (``torchrun``)."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

import torch

from scorefusion.errors import ScoreFusionError
from scorefusion.ops.device import choose_device, choose_dtype
from scorefusion.optional import need
from scorefusion.train.config import StageConfig, TrainConfig

if TYPE_CHECKING:
    from accelerate import Accelerator

PRECISIONS = {torch.float32: "no", torch.bfloat16: "bf16"}


def start(config: TrainConfig) -> Accelerator:
    """Join the other processes of the run, if there are any, and choose device and precision.

    Raises:
        ScoreFusionError: without accelerate, or for a device that is not there.
    """
    accelerate = need("accelerate", "training")
    device = choose_device(config.device)
    precision = PRECISIONS[choose_dtype(config.precision, device)]
    state = need("accelerate.state", "training").AcceleratorState
    if state._shared_state and state().mixed_precision != precision:
        state._reset_state()  # an earlier run of this program had another precision
    # PyTorch's remark on 1x1 convolutions, whose strides may be written in two ways
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    return accelerate.Accelerator(cpu=device.type == "cpu", mixed_precision=precision)


def is_first() -> bool:
    """Whether this process is the one of its run that writes and prints."""
    return os.environ.get("RANK", "0") == "0"


def my_share(stage: StageConfig, accelerator: Accelerator) -> range:
    """Which of a step's examples this process computes: as many as every other.

    Raises:
        ScoreFusionError: if they cannot be shared equally.
    """
    count = accelerator.num_processes
    if stage.batch % count:
        raise ScoreFusionError(
            f"{count} processes cannot share a batch of {stage.batch} in stage {stage.kind!r}; "
            f"make it a multiple of {count}"
        )
    each = stage.batch // count
    return range(accelerator.process_index * each, (accelerator.process_index + 1) * each)
