"""Count what a denoising step launches, moves and computes on a GPU, on a machine without one.

    python -m benchmarks.step_budget --model t1-sr4 --size 96 112 96
    python -m benchmarks.step_budget --model paper --size 152 192 192 --dtype bfloat16 --slab 2^20
    python -m benchmarks.step_budget --model FOLDER --size 96 112 96 --second 104 120 88

Prints JSON. The step is walked on fake CUDA tensors (benchmarks/step_walk.py has the rules of counting); no
time is measured or estimated.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from benchmarks.step_walk import Call, Kernel, Spec, Step, walk
from scorefusion.engine.planning.plan import slab_pixels
from scorefusion.errors import ScoreFusionError, unknown_name
from scorefusion.models.config import ModelConfig
from scorefusion.models.folder import load_config
from scorefusion.models.presets import PRESETS
from scorefusion.ops.device import DTYPES

MULTIPROCESSORS = 132
"""Multiprocessors of an H100 or H200 (SXM)."""

SCHEDULERS = 4
LARGE_CAST = 1 << 20
"""Bytes that a cast moves, beyond which it counts; likewise a pass over float32."""

LARGE_LAUNCH = 4 << 20
"""Bytes that a launch moves, beyond which it should fill the GPU."""

WARPS = 2
"""Warps for each scheduler, below which a large launch counts as starved."""


def config_of(model: str) -> ModelConfig:
    """Return the configuration of a preset, or of a model folder.

    Raises:
        ScoreFusionError: for what is neither.
    """
    return PRESETS[model]() if model in PRESETS else load_config(model)


def budget(
    step: Step, second: Step | None = None, *, multiprocessors: int = MULTIPROCESSORS
) -> dict[str, Any]:
    """Count a walked step.

    Args:
        step: from :func:`benchmarks.step_walk.walk`.
        second: a step of another size, whose new Triton compilations are counted.
        multiprocessors: of the GPU.

    Returns:
        kernels: launches.
        bytes: read and written, each element once for each kernel.
        flop: of products, a multiply-add being two.
        casts: over 1 MiB: how many, and their bytes.
        odd_channels: convolutions whose input or output channels are no multiple of 8, by shape.
        not_channels_last: convolutions whose input is not in channels-last memory.
        float32_passes: PyTorch's kernels that read or write 1 MiB and more of float32 in a step of 16 bits.
        starved: Triton launches over 4 MiB with fewer than two warps for each scheduler.
        compilations: of Triton, for this size, and new ones for the second.
        groups: kernels, bytes and FLOP by kind of kernel.
        triton: each distinct launch: programs, warps for each scheduler, serial iterations, bytes.
    """
    plan, kernels = step.plan, step.kernels
    return {
        "size": list(plan.size),
        "strategy": plan.strategy.name,
        "dtype": _name(plan.dtype),
        "slabs": dict(plan.rows),
        "kernels": len(kernels),
        "bytes": sum(kernel.bytes for kernel in kernels),
        "flop": sum(kernel.flop for kernel in kernels),
        "casts": _counted(kernel for call in step.calls if _is_cast(call) for kernel in call.kernels),
        "odd_channels": _odd_channels(step.calls),
        "not_channels_last": sum(
            _is_convolution(call) and not _channels_last(call.args[0]) for call in step.calls
        ),
        "float32_passes": sum(_passes_float32(call) for call in step.calls)
        if plan.dtype != torch.float32
        else 0,
        "starved": sum(_starved(kernel, multiprocessors) for kernel in kernels),
        "compilations": _compilations(step, second),
        "groups": _grouped(kernels),
        "triton": _launches(kernels, multiprocessors),
    }


def warps_per_scheduler(kernel: Kernel, multiprocessors: int) -> float:
    """Return how many warps of a Triton launch each scheduler gets, were all resident."""
    assert kernel.program is not None
    return kernel.program.programs * kernel.program.warps / (SCHEDULERS * multiprocessors)


def _starved(kernel: Kernel, multiprocessors: int) -> bool:
    large = kernel.program is not None and kernel.bytes > LARGE_LAUNCH
    return large and warps_per_scheduler(kernel, multiprocessors) < WARPS


def _is_cast(call: Call) -> bool:
    if call.name not in ("aten::_to_copy", "aten::copy_"):
        return False
    moved = sum(kernel.bytes for kernel in call.kernels)
    return call.inputs[-1].dtype != call.outputs[0].dtype and moved > LARGE_CAST


def _is_convolution(call: Call) -> bool:
    return call.name == "aten::convolution"


def _channels_last(x: Spec) -> bool:
    """Whether [N, C, ...] has its channels next to each other and then its voxels; of one channel always."""
    if x.shape[1] == 1:
        return True
    order = [0, *range(2, len(x.shape)), 1]
    expected, stride = [], 1
    for axis in reversed(order):
        expected.append((axis, stride))
        stride *= x.shape[axis]
    return all(x.shape[axis] == 1 or x.stride[axis] == wanted for axis, wanted in expected)


def _passes_float32(call: Call) -> bool:
    specs = [*call.inputs, *call.outputs]
    large = any(spec.dtype == torch.float32 and spec.bytes >= LARGE_CAST for spec in specs)
    return call.name.startswith("aten::") and large


def _odd_channels(calls: Sequence[Call]) -> dict[str, Any]:
    shapes: dict[str, int] = defaultdict(int)
    for call in calls:
        if _is_convolution(call):
            outputs, inputs, *extent = call.args[1].shape
            if outputs % 8 or inputs % 8:
                shapes[f"{inputs} to {outputs}, {'x'.join(map(str, extent))}"] += 1
    return {"kernels": sum(shapes.values()), "shapes": dict(sorted(shapes.items()))}


def _compilations(step: Step, second: Step | None) -> dict[str, Any]:
    keys = _keys(step)
    found: dict[str, Any] = {"first": len(keys) or None}
    if second is not None:
        found |= {"second": len(_keys(second) - keys) if keys else None, "size": list(second.plan.size)}
    return found


def _keys(step: Step) -> set[str]:
    return {
        kernel.program.key for kernel in step.kernels if kernel.program is not None and kernel.program.key
    }


def _counted(kernels: Iterable[Kernel]) -> dict[str, int]:
    counted = list(kernels)
    return {"kernels": len(counted), "bytes": sum(kernel.bytes for kernel in counted)}


def _grouped(kernels: Sequence[Kernel]) -> dict[str, dict[str, int]]:
    groups: dict[str, dict[str, int]] = {}
    for kernel in kernels:
        row = groups.setdefault(kernel.group, {"kernels": 0, "bytes": 0, "flop": 0})
        row["kernels"] += 1
        row["bytes"] += kernel.bytes
        row["flop"] += kernel.flop
    return dict(sorted(groups.items(), key=lambda item: -item[1]["bytes"]))


def _launches(kernels: Sequence[Kernel], multiprocessors: int) -> list[dict[str, Any]]:
    counts: dict[Kernel, int] = defaultdict(int)
    for kernel in kernels:
        if kernel.program is not None:
            counts[kernel] += 1
    rows = [
        {
            "kernel": kernel.program.kernel,
            "grid": list(kernel.program.grid),
            "launches": count,
            "bytes": kernel.bytes,
            "programs_per_multiprocessor": round(kernel.program.programs / multiprocessors, 3),
            "warps_per_scheduler": round(warps_per_scheduler(kernel, multiprocessors), 3),
            "serial": kernel.program.serial,
        }
        for kernel, count in counts.items()
        if kernel.program is not None
    ]
    return sorted(rows, key=lambda row: -row["bytes"] * row["launches"])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _pixels(text: str) -> int:
    """Read 131072, or 2^17."""
    base, _, power = text.partition("^")
    return int(base) ** int(power) if power else int(base)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the counts of a step as JSON; return 2 for what cannot be counted."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step_budget",
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--model", default="t1-sr4", help="a preset or a model folder (default: t1-sr4)")
    parser.add_argument("--size", type=int, nargs=3, metavar=("Z", "Y", "X"), default=(96, 112, 96))
    parser.add_argument("--dtype", default="bfloat16", help=f"of the networks: {', '.join(DTYPES)}")
    parser.add_argument(
        "--slab", type=_pixels, metavar="PIXELS",
        help="that a 2D network is given at once, such as 131072 or 2^17 (default: an engine's on CUDA)",
    )  # fmt: skip
    parser.add_argument("--strategy", help="how scores are fused (default: the model's)")
    parser.add_argument("--batch", type=int, default=1, help="volumes at once (default: 1)")
    parser.add_argument(
        "--second", type=int, nargs=3, metavar=("Z", "Y", "X"),
        help="count the Triton compilations that a volume of this size adds",
    )  # fmt: skip
    parser.add_argument(
        "--multiprocessors", type=int, default=MULTIPROCESSORS, help="of the GPU (default: %(default)s)"
    )
    given = parser.parse_args(arguments)
    pixels = slab_pixels("cuda") if given.slab is None else given.slab
    options: dict[str, Any] = {"batch": given.batch, "pixels": pixels}
    if given.strategy:
        options["strategy"] = given.strategy
    try:
        if given.dtype not in DTYPES:
            raise unknown_name("dtype", given.dtype, DTYPES)
        config = config_of(given.model)
        step, second = (
            walk(config, size, dtype=DTYPES[given.dtype], **options) if size else None
            for size in (given.size, given.second)
        )
        assert step is not None
        counts = budget(step, second, multiprocessors=given.multiprocessors)
    except ScoreFusionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps({"model": given.model, "slab": pixels, **counts}, indent=1, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
