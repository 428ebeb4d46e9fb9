"""Check what is measured: kernels against float64, graphs against eager steps, threads, the CPU."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from benchmarks.engine import condition_of, seeded
from benchmarks.step_walk import Call
from scorefusion.engine.engine import Engine
from scorefusion.engine.planning.plan import plan, slab_pixels
from scorefusion.models.table import table_for
from scorefusion.ops.device import choose_dtype
from scorefusion.ops.norm_act import norm_act

from .operations import label
from .run import Results, Run, said
from .sections import traced
from .timing import Buffers, poison

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9}
"""Largest error over the largest value, by the dtype of the result."""

ACCUMULATED = {"scorefusion::ensemble_features_": (0,)}
"""Arguments that an operation writes after it has read them."""

VOXEL = [(None, (48,)), (None, (48, 80)), (32, (64,)), (32, (128, 64))]
"""Groups and widths of normalisations of one voxel."""


def correctness(run: Run, results: Results) -> None:
    """Check the engine first, then every distinct call of this project's operations, the smallest first."""
    engine: Results = {}
    results["engine"] = engine
    run.cases(
        engine,
        {
            "a replayed step has the bits of an eager one": functools.partial(replayed, run),
            "two threads that capture at once": functools.partial(threads, run),
            "a volume of the CPU in float32": functools.partial(on_cpu, run),
        },
    )
    rows: Results = {}
    results["one voxel"] = rows
    run.cases(rows, {f"groups {g}, {w}": functools.partial(one_voxel, run, g, w) for g, w in VOXEL})
    for name, step in run.shares(traced(run).items()):
        calls = {call.key: call for call in step.calls if call.name.startswith("scorefusion::")}
        ordered = sorted(calls.values(), key=lambda call: sum(kernel.bytes for kernel in call.kernels))
        rows = {}
        results[name] = rows
        run.cases(rows, {label(call): functools.partial(against_float64, run, call) for call in ordered})
    wrong = [
        f"{group}: {case}"
        for group, rows in results.items()
        for case, row in rows.items()
        if isinstance(row, dict) and not row.get("right", False)
    ]
    results["wrong"] = wrong


def against_float64(run: Run, call: Call) -> Results:
    """Run a call on random data, with NaN in its outputs before, and its definition in float64."""
    buffers = Buffers(run.device)
    args, kwargs = buffers.arguments(call)
    written = _written(call)
    for place in written:
        if place not in ACCUMULATED.get(call.name, ()):
            args[place].fill_(math.nan)
    wide = tree_map_only(Tensor, _double, (args, kwargs))
    names = [argument.name for argument in call.function._schema.arguments]
    own = list(wide[0])
    own[names.index("backend") :] = ["torch"]
    for spec in call.outputs:
        poison(run.device, spec.shape, spec.dtype)
    with torch.no_grad():
        result = call.function(*args, **kwargs)
        expected = call.function(*own, **wide[1])
    found = [args[place] for place in written] or _tensors(result)
    wanted = [own[place] for place in written] or _tensors(expected)
    return compared(found, wanted)


def compared(found: Sequence[Tensor], wanted: Sequence[Tensor], tolerance: float | None = None) -> Results:
    """Return the largest error over the largest value, and whether that is within the tolerance."""
    errors, right = [], True
    for one, other in zip(found, wanted, strict=True):
        unit = max(float(other.abs().max()) if other.numel() else 0.0, 1e-30)
        error = float((one.double() - other.double()).abs().max()) / unit if one.numel() else 0.0
        errors.append(error if math.isfinite(error) else None)
        allowed = TOLERANCE.get(one.dtype, 1e-6) if tolerance is None else tolerance
        right = right and math.isfinite(error) and error <= allowed
    return {"errors": errors, "right": right}


def one_voxel(run: Run, groups: int | None, widths: Sequence[int]) -> Results:
    """Normalise a single voxel, in 3D."""
    dtype = choose_dtype(run.sizes.dtype, run.device.place)
    parts = [torch.randn(1, 1, 1, 1, n, device=run.device.place).to(dtype).movedim(-1, 1) for n in widths]
    channels = sum(widths)
    weight, bias = torch.randn(2, channels, device=run.device.place).to(dtype)
    given: dict[str, Any] = {"groups": groups, "weight": weight, "bias": bias}
    with torch.no_grad():
        found = norm_act(*parts, **given)
        wide = tree_map_only(Tensor, _double, (parts, given))
        wanted = norm_act(*wide[0], **wide[1], backend="torch")
    return compared([found], [wanted])


def small_engine(run: Run, dtype: torch.dtype, place: torch.device) -> Engine:
    """Return an engine of the small model, ready for its first step."""
    name, size = run.sizes.small
    model = seeded(name).to(place)
    model.slice_networks.to(dtype)
    if model.fusion is not None:
        model.fusion.to(dtype)
    layout = plan(model.config, size, dtype=dtype, pixels=slab_pixels(place.type))
    engine = Engine(model, layout)
    engine.load(condition_of(model, size).to(place))
    return engine


@torch.no_grad()
def replayed(run: Run) -> Results:
    """Two steps as an engine takes them, and two kernel by kernel."""
    engine = small_engine(run, choose_dtype(run.sizes.dtype, run.device.place), run.device.place)
    table = table_for(engine.model.config, steps=3)
    volumes = []
    for eagerly in (False, True):
        engine.start(table, [5])
        for _ in range(2):
            if eagerly:
                for segment in engine.segments(engine.plan.cycle[0]):
                    segment.run()
            else:
                engine.step()
        volumes.append(engine.buffers["x"].clone())
    graphs = engine.captured[engine.plan.cycle[0]].captured
    return {"right": bool(torch.equal(*volumes)), "graphs": graphs}


def threads(run: Run) -> Results:
    """Two engines in two threads at once, and the same one after another."""
    dtype = choose_dtype(run.sizes.dtype, run.device.place)
    engines = [small_engine(run, dtype, run.device.place) for _ in range(4)]
    table = table_for(engines[0].model.config, steps=2)
    volumes: dict[int, Tensor] = {}
    errors: list[str] = []

    def draw(number: int) -> None:
        try:
            volumes[number] = engines[number].run(table, [number % 2])
        except Exception as error:
            errors.append(said(error))

    both = [threading.Thread(target=draw, args=(number,)) for number in (0, 1)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    for number in (2, 3):
        draw(number)
    same = not errors and all(torch.equal(volumes[n], volumes[n + 2]) for n in (0, 1))
    return {"right": same, "errors": errors}


def on_cpu(run: Run) -> Results:
    """Draw a volume in three steps here and on the CPU, both in float32 without TF32; and in this dtype."""
    flags: Callable[..., Any] = torch.backends.cudnn.flags
    volumes = {}
    dtype = choose_dtype(run.sizes.dtype, run.device.place)
    ways = {"cpu": (torch.float32, torch.device("cpu")), "here": (torch.float32, run.device.place)}
    ways["dtype"] = (dtype, run.device.place)
    for way, (own, place) in ways.items():
        engine = small_engine(run, own, place)
        with flags(enabled=True, allow_tf32=False):
            volumes[way] = engine.run(table_for(engine.model.config, steps=3), [5]).cpu()
    row = compared([volumes["here"]], [volumes["cpu"]], 2e-4)
    narrow = compared([volumes["dtype"]], [volumes["cpu"]], 5e-2 if dtype != torch.float32 else 2e-4)
    name = str(dtype).removeprefix("torch.")
    return {"float32": row["errors"][0], name: narrow["errors"][0], "right": row["right"] and narrow["right"]}


def _written(call: Call) -> list[int]:
    """Places of the arguments that the operation writes."""
    arguments = call.function._schema.arguments
    return [
        place
        for place, argument in enumerate(arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor.clone()


def _tensors(result: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
