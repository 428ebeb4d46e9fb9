"""Whole steps: over slabs and runners, with their launches, kernels by group, and memory; the plain ones."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch

from benchmarks.engine import condition_of, seeded
from benchmarks.plain import Plain
from scorefusion.diffusion.level import NoiseLevel
from scorefusion.engine.engine import Engine
from scorefusion.engine.graph import Body, CapturedStep, CudaGraphs
from scorefusion.engine.planning.plan import plan
from scorefusion.engine.runners import CompiledRunner, Runner
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.models.table import table_for
from scorefusion.models.unet import UNet
from scorefusion.ops.device import choose_dtype

from .run import Results, Run
from .sizes import Box
from .timing import Figure, scaled

KINDS = (
    ("Inductor", r"^triton_(poi|red|per|tem)_"),
    ("norm_act", r"norm_act"),
    ("gather_slices", r"gather_slices"),
    ("ensemble_features", r"ensemble_features"),
    ("fuse_step", r"fuse_step|fuse_scores|noise_kernel"),
    ("attention", r"flash|fmha|attention"),
    ("matrix products", r"^nvjet|xmma_gemm|wmma\w*gemm"),
    ("convolutions", r"conv|xmma|cudnn|implicit|sm\d+_.*gemm|cutlass|winograd|nchwToNhwc|nhwcToNchw"),
    ("matrix products", r"gemm|gemv|addmm|aten::mm|matmul|cublas"),
    ("resampling", r"upsample|pool"),
    ("copies", r"copy|Memcpy|Memset|memcpy"),
    ("elementwise", r"elementwise|vectorized|unrolled|aten::(add|mul|silu|div)"),
)
"""Groups of kernels, by what their names contain, first match first."""

OVERHEAD = re.compile(
    r"Activity Buffer Request|Lazy Function Loading|Command Buffer Full|Instrumentation|Buffer Flush|"
    r"Resource|Runtime Triggered"
)
"""Beginnings of the profiler's rows about itself, which some versions of PyTorch list as the device's."""


class TimedGraphs(CudaGraphs):
    """CUDA graphs that note how long the first step and the captures took.

    Attributes:
        asides: seconds of each run on the side stream; the first compiles kernels.
        captures: seconds of each capture.
    """

    def __init__(self, device: torch.device):
        super().__init__(device)
        self.asides: list[float] = []
        self.captures: list[float] = []

    def aside(self, body: Body) -> None:
        """See :class:`scorefusion.engine.graph.CudaGraphs`."""
        start = time.perf_counter()
        super().aside(body)
        self.synchronize()
        self.asides.append(time.perf_counter() - start)

    def capture(self, body: Body, pool: Any) -> Body:
        """See :class:`scorefusion.engine.graph.CudaGraphs`."""
        start = time.perf_counter()
        try:
            return super().capture(body, pool)
        finally:
            self.captures.append(time.perf_counter() - start)


class BackendRunner(CompiledRunner):
    """`torch.compile` with a backend of one's choice."""

    def __init__(self, network: UNet, scales: Sequence[int], backend: str):
        super().__init__(network, scales)
        self._run = torch.compile(network.forward_with_features, dynamic=False, backend=backend)


def steps(run: Run, results: Results) -> None:
    """Each model and box: the default slab as a graph and kernel by kernel, then other slabs.

    `torch.compile` comes after all of them, for the first model and box.
    """
    fast = choose_dtype(run.sizes.dtype, run.device.place)
    first, *others = run.sizes.slabs
    models: dict[tuple[str, torch.dtype], ScoreFusion] = {}
    for place, (name, size) in run.shares(enumerate(run.sizes.steps)):
        ways = [(first, "graph", fast), (first, "eager", fast), *((slab, "graph", fast) for slab in others)]
        if place == 0:
            if fast != torch.float32:
                ways += [(first, "graph", torch.float32), (first, "eager", torch.float32)]
        cases: dict[str, Callable[[], Results]] = {}
        for slab, runner, dtype in ways:
            cases[key(slab, runner, dtype)] = functools.partial(
                one, run, models, name, size, slab, runner, dtype
            )
        rows: Results = {}
        results[f"{name} {'x'.join(map(str, size))}"] = rows
        run.cases(rows, cases)
        models.clear()
    name, size = run.sizes.steps[0]
    compiled = functools.partial(one, run, models, name, size, first, "compile", fast)
    run.cases(next(iter(results.values())), {key(first, "compile", fast): compiled}, run.sizes.inductor)


def key(slab: int, runner: str, dtype: torch.dtype) -> str:
    """Return a way's name in the results."""
    return f"{runner}, slab {slab}, {str(dtype).removeprefix('torch.')}"


def one(
    run: Run,
    models: dict[tuple[str, torch.dtype], ScoreFusion],
    name: str,
    size: Box,
    slab: int,
    runner: str,
    dtype: torch.dtype,
) -> Results:
    """Time a step.

    Returns:
        ms: of a step; first, capture: seconds of the first step with its compilations, and of the capture;
        launches and kernels: of one step, by group; peak: bytes allocated and reserved.
    """
    device = run.device
    if (name, dtype) not in models:
        models.clear()
        models[name, dtype] = _model(name, dtype, device.place)
    model = models[name, dtype]
    device.forget_peak()
    graphs = TimedGraphs(device.place) if device.place.type == "cuda" else None
    layout = plan(model.config, size, dtype=dtype, pixels=slab)
    runners: dict[str, Runner] | None = None
    if runner == "compile":
        runners = {
            network: BackendRunner(cast(UNet, module), layout.scales, run.sizes.backend)
            for network, module in model.slice_networks.items()
        }
    engine = Engine(model, layout, runners=runners, graphs=graphs)
    engine.load(condition_of(model, size).to(device.place))
    engine.start(table_for(model.config, solver="ddpm", steps=8), [0])
    start = time.perf_counter()
    with torch.no_grad():
        body = _eager(engine) if runner == "eager" else _captured(engine)
        body()
        device.synchronize()
    before = time.perf_counter() - start
    found: Results = {
        "slabs": dict(layout.rows),
        "first, s": graphs.asides[0] if graphs and graphs.asides else before,
    }
    if graphs is not None and graphs.captures:
        found["capture, ms"] = 1e3 * sum(graphs.captures)
        found["graphs"] = engine.captured[layout.cycle[0]].captured
    found["ms"] = scaled(_clocked(run, body), "ms", lambda seconds: 1e3 * seconds)
    found["peak, bytes"] = device.peak()
    found["launches"], found["kernels"] = profiled(run, body)
    return found


def _model(name: str, dtype: torch.dtype, place: torch.device) -> ScoreFusion:
    model = seeded(name).to(place)
    model.slice_networks.to(dtype)
    if model.fusion is not None:
        model.fusion.to(dtype)
    return model


def _eager(engine: Engine) -> Callable[[], None]:
    segments = engine.segments(engine.plan.cycle[0])

    def body() -> None:
        engine.index.zero_()
        for segment in segments:
            segment.run()

    return body


def _captured(engine: Engine) -> Callable[[], None]:
    captured: CapturedStep = engine._captured_step(engine.plan.cycle[0])
    captured.prepare()

    def body() -> None:
        engine.index.zero_()
        captured()

    return body


def _clocked(run: Run, body: Callable[[], Any]) -> Figure:
    """Time a body as it is, without another graph around it."""
    device = run.device
    with torch.no_grad():
        once = max(device.seconds(body, 1), 1e-7)
        times = int(min(200, max(1, 10 * run.sizes.seconds / once)))
        values = []
        for _ in range(3):
            device.synchronize()
            values.append(device.seconds(body, times))
    return {"groups": values}


def profiled(run: Run, body: Callable[[], Any]) -> tuple[int, dict[str, dict[str, float]]]:
    """Return the kernels that a body launches, and microseconds and launches by group.

    The second of two profiles counts: the first also sets the profiler up.
    """
    from torch.profiler import ProfilerActivity, profile

    cuda = run.device.place.type == "cuda"
    activities = [ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]
    for _ in range(2):
        with torch.no_grad(), profile(activities=activities) as found:
            body()
            run.device.synchronize()
    return kernels_of(found.key_averages(), cuda)


def kernels_of(events: Iterable[Any], cuda: bool) -> tuple[int, dict[str, dict[str, float]]]:
    """Add up a profile's events: all launches, and microseconds and launches by group, most time first."""
    groups: dict[str, dict[str, float]] = {}
    for event in events:
        if cuda and (event.device_type != torch.autograd.DeviceType.CUDA or OVERHEAD.match(event.key)):
            continue
        row = groups.setdefault(kind_of(event.key), {"launches": 0, "us": 0.0})
        row["launches"] += event.count
        row["us"] += event.self_device_time_total if cuda else event.self_cpu_time_total
    ordered = dict(sorted(groups.items(), key=lambda item: -item[1]["us"]))
    return int(sum(row["launches"] for row in groups.values())), ordered


def kind_of(kernel: str) -> str:
    """Return the group of a kernel's name."""
    return next((kind for kind, pattern in KINDS if re.search(pattern, kernel)), "others")


def plain(run: Run, results: Results) -> None:
    """The plain implementation: float32, autocast, and `torch.compile`."""
    name, size = run.sizes.plain
    place, fast = run.device.place, choose_dtype(run.sizes.dtype, run.device.place)
    model = seeded(name).to(place)
    x = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(2)).to(place)
    inputs = model.prepare(condition_of(model, size).to(place))
    level = NoiseLevel.of(0.5, 300, 1, place)

    def timed(network: Plain, autocast: bool) -> Results:
        body = functools.partial(network, x, inputs, level)
        run.device.forget_peak()
        with torch.autocast(place.type, fast, enabled=autocast), torch.no_grad():
            start = time.perf_counter()
            body()
            run.device.synchronize()
            first = time.perf_counter() - start
            found = scaled(_clocked(run, body), "ms", lambda seconds: 1e3 * seconds)
        return {"first, s": first, "ms": found, "peak, bytes": run.device.peak()}

    def compiled(autocast: bool) -> Results:
        network = Plain(model)
        network.network = torch.compile(network.network, dynamic=False, backend=run.sizes.backend)
        return timed(network, autocast)

    half = fast != torch.float32
    cases: dict[str, Callable[[], Results]] = {"float32": lambda: timed(Plain(model), False)}
    if half:
        cases["autocast"] = lambda: timed(Plain(model), True)
    rows: Results = {}
    results[f"{name} {'x'.join(map(str, size))}"] = rows
    run.cases(rows, cases)
    last = "torch.compile" + (", autocast" if half else "")
    run.cases(rows, {last: lambda: compiled(half)}, run.sizes.inductor)
