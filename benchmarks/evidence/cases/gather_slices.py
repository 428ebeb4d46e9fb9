"""Slabs of 2.5D slices of the paper's volume: six source channels, five slices of the first, ten out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from benchmarks.evidence.case import Case, Work

if TYPE_CHECKING:
    from scorefusion.kernels.launch import Config

_BOX = (152, 192, 192)
_CONTEXT = 2


def cases(device: str) -> Iterator[Case]:
    """Yield slabs of each plane and result dtype: the paper's ten channels, and the bundled model's six."""
    from scorefusion.kernels.gather_slices import CONFIGS

    one, sixteen, eight = CONFIGS
    for plane, axis, rows, config in (
        ("axial", 2, 8, one),
        ("coronal", 3, 8, one),
        ("sagittal", 4, 8, eight),
        ("sagittal", 4, 32, sixteen),
    ):
        for common, dtype in ((4, torch.bfloat16), (0, torch.float32)):
            yield _case(device, plane, axis, rows, common, dtype, config)


def _case(
    device: str, plane: str, axis: int, rows: int, common: int, dtype: torch.dtype, config: Config
) -> Case:
    from scorefusion.kernels.gather_slices import gather_slices

    box = list(_BOX)
    if device != "meta":
        # Programs go through a slab's slices first: a part of each slice shows all re-reading there is.
        box[axis - 2] = rows + 16
        box[1 if axis == 2 else 0] = 48 if axis == 2 else 16
    x_t, condition = (torch.empty(1, 1, *box, device=device) for _ in range(2))
    shared = torch.empty(1, common, *box, device=device) if common else None
    size = [length for place, length in enumerate(box) if place != axis - 2]
    channels = (2 * _CONTEXT + 1) + common + 1
    out = torch.empty((rows, channels, *size), dtype=dtype, device=device, memory_format=torch.channels_last)

    def run(
        config: Config,
        out: Tensor = out,
        x_t: Tensor = x_t,
        condition: Tensor = condition,
        shared: Tensor | None = shared,
    ) -> None:
        gather_slices(
            out, x_t, condition, shared, axis, 8, 8 + rows, [0], _CONTEXT, "modality", config=config
        )

    pixels, item = size[0] * size[1], out.element_size()
    read = 4 * pixels * (rows + 2 * _CONTEXT + rows * (common + 1))
    written = out.numel() * item
    # As separate operations: neighbours gathered, parts converted where they must be, and joined, and the
    # result laid out channels last.
    gathered = 2 * 4 * pixels * rows * (2 * _CONTEXT + 1)
    converted = 0 if item == 4 else out.numel() * (4 + item)
    name = f"{plane}, {rows} slices of {channels} channels in {str(dtype).removeprefix('torch.')}"
    work = Work(read, written, 0, gathered + converted + 4 * written)
    fast = common == 4 and dtype == torch.bfloat16 and plane != "coronal"
    return Case("gather_slices", name, (config,), run, {"_gather_slices_kernel": work}, fast=fast)
