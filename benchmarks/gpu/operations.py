"""Time every distinct operation of the traced steps, and bound its time by its work."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from benchmarks.step_walk import Call, Spec, Step

from .run import NOT_REACHED, Results, Run
from .sections import traced
from .timing import Buffers, Figure, copies_of, measure, scaled

Body = Callable[[], Any]
SEARCHED = "cuDNN's search"


def operations(run: Run, results: Results) -> None:
    """Time each distinct call of the traced steps, those that move or compute most first."""
    buffers = Buffers(run.device)
    for name, step in run.shares(traced(run).items()):
        counts = Counter(call.key for call in step.calls)
        distinct = {call.key: call for call in step.calls if call.kernels}
        calls = sorted(distinct.values(), key=lambda call: -_weight(run, call) * counts[call.key])
        rows: Results = {}
        results[name] = {"distinct": len(calls), "calls": rows}
        cases: dict[str, Body] = {
            label(call): functools.partial(one, run, buffers, call, counts[call.key]) for call in calls
        }
        run.cases(rows, cases)
        ups: Results = {}
        results[name]["up-sampling"] = ups
        run.cases(ups, _ups(run, buffers, step))
        buffers.free()


def label(call: Call) -> str:
    """Return an operation and its tensors in one line, with a mark that tells apart what else differs."""
    mark = hashlib.sha256(call.key.encode()).hexdigest()[:6]
    return f"{call.name.split('::')[1]} [{', '.join(map(str, call.inputs))}] {mark}"


def one(run: Run, buffers: Buffers, call: Call, count: int) -> Results:
    """Time a call in the ways that it can be done.

    Returns:
        count: calls of a step; bytes, flop: of one; ways: seconds by way; bound: the least seconds by the
        ceilings; of Triton launches programs for each multiprocessor and serial iterations.
    """
    moved = sum(kernel.bytes for kernel in call.kernels)
    flop = sum(kernel.flop for kernel in call.kernels)
    copies, cold = copies_of(run.device, moved)
    row: Results = {"count": count, "bytes": moved, "flop": flop, "copies": copies, "cold": cold}
    row["group"] = call.kernels[0].group
    programs = [kernel.program for kernel in call.kernels if kernel.program is not None]
    if programs:
        multiprocessors = run.device.multiprocessors
        row["programs per multiprocessor"] = [round(p.programs / multiprocessors, 2) for p in programs]
        row["serial iterations"] = [program.serial for program in programs]
    row["bound, us"] = bound(run, moved, flop)
    ways: Results = {}
    row["ways"] = ways
    for way, bodies in _ways(call, buffers, copies).items():
        if run.over():
            ways[way], run.cut = NOT_REACHED, True
            continue
        found = _timed(run, way, bodies)
        ways[way] = {
            "us": scaled(found, "us", lambda seconds: 1e6 * seconds),
            "bytes/s": moved / found["median"],
            "FLOP/s": flop / found["median"],
            "graph": found["graph"],
        }
    return row


def bound(run: Run, moved: int, flop: int) -> float | None:
    """Return the least microseconds by the measured copy and product rates; None if there are none."""
    found = run.results("ceilings")
    rates = [entry["median"] for name, entry in found.items() if _is(entry) and name.startswith("product")]
    copying = found.get("copying")
    if not rates or copying is None or not _is(copying):
        return None
    return 1e6 * max(moved / copying["median"], flop / max(rates))


def _is(entry: Any) -> bool:
    return isinstance(entry, Mapping) and "median" in entry


def _weight(run: Run, call: Call) -> float:
    """What a call costs by its bytes and FLOP, in bytes."""
    return sum(kernel.bytes + kernel.flop / 150 for kernel in call.kernels)


def _timed(run: Run, way: str, bodies: list[Body]) -> Figure:
    """Time bodies, with cuDNN's own search where the way asks for it.

    PyTorch keeps the plan of a convolution that it met before, searched for or not, by shape and flags. So
    the search has another TF32 flag, which means nothing to 16 bits.
    """
    search, tf32 = way == SEARCHED, torch.backends.cudnn.allow_tf32
    with (
        torch.no_grad(),
        torch.backends.cudnn.flags(enabled=True, benchmark=search, allow_tf32=tf32 != search),
    ):
        bodies[0]()
        return measure(run.device, bodies, seconds=run.sizes.seconds)


def _ways(call: Call, buffers: Buffers, copies: int) -> dict[str, list[Body]]:
    """Bodies by way: as the step runs it; PyTorch's definition; convolutions as cuDNN and padding allow."""
    ways = {"as it is": _bodies(call, buffers, copies)}
    if call.name.startswith("scorefusion::"):
        names = [argument.name for argument in call.function._schema.arguments]
        place = names.index("backend")
        args = list(call.args)
        args[place:] = ["torch"]
        ways["PyTorch's operations"] = _bodies(replace(call, args=tuple(args)), buffers, copies)
    if call.name == "aten::convolution":
        x, weight, bias, *rest = call.args
        if bias is not None:
            plain = replace(call, args=(x, weight, None, *rest))
            ways["without the bias"] = _bodies(plain, buffers, copies)
        if x.dtype != torch.float32:
            ways[SEARCHED] = ways["as it is"]
        if weight.shape[0] % 8 or weight.shape[1] % 8:
            outputs, inputs = (-(-n // 8) * 8 for n in weight.shape[:2])
            wide = _channels_last((x.shape[0], inputs, *x.shape[2:]), x.dtype)
            kernel = _channels_last((outputs, inputs, *weight.shape[2:]), weight.dtype)
            padded = replace(call, args=(wide, kernel, None, *rest))
            ways["channels padded to 8, without the bias"] = _bodies(padded, buffers, copies)
    return ways


def _bodies(call: Call, buffers: Buffers, copies: int) -> list[Body]:
    found: list[Body] = []
    for _ in range(copies):
        args, kwargs = buffers.arguments(call)
        found.append(functools.partial(call.function, *args, **kwargs))
    return found


def _channels_last(shape: tuple[int, ...], dtype: torch.dtype) -> Spec:
    memory = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    return Spec.of(torch.empty(shape, dtype=dtype, device="meta").contiguous(memory_format=memory))


def _ups(run: Run, buffers: Buffers, step: Step) -> dict[str, Body]:
    """Nearest up-sampling and the convolution after it, against one transposed convolution in their place."""
    cases: dict[str, Body] = {}
    for first, second in zip(step.calls, step.calls[1:], strict=False):
        if not first.name.startswith("aten::upsample_nearest") or second.name != "aten::convolution":
            continue
        if second.args[0].shape == first.outputs[0].shape:
            cases.setdefault(label(second), functools.partial(_up, run, buffers, first, second))
    return cases


def _up(run: Run, buffers: Buffers, first: Call, second: Call) -> Results:
    x, weight, bias, stride, padding, dilation, _, *rest = second.args
    coarse = first.args[0]
    dims = len(coarse.shape) - 2
    copies, _ = copies_of(run.device, sum(kernel.bytes for kernel in (*first.kernels, *second.kernels)))
    merged = _channels_last((weight.shape[1], weight.shape[0], *(4,) * dims), weight.dtype)
    transposed = replace(
        second,
        args=(coarse, merged, bias, [2] * dims, [1] * dims, dilation, True, *rest),
    )
    pairs = zip(_bodies(first, buffers, copies), _bodies(second, buffers, copies), strict=True)
    bodies: dict[str, list[Body]] = {
        "one after the other": [functools.partial(_both, *pair) for pair in pairs],
        "transposed convolution": _bodies(transposed, buffers, copies),
    }
    seconds = {way: _timed(run, way, some) for way, some in bodies.items()}
    return {way: scaled(found, "us", lambda value: 1e6 * value) for way, found in seconds.items()}


def _both(first: Body, second: Body) -> tuple[Any, Any]:
    return first(), second()
