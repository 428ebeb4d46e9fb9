"""Estimate what a training run takes: parameters, arithmetic, memory and hours, from a few timed steps.

The arithmetic of a step is compared with that of its convolutions alone, run bare on the same device.
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from scorefusion.data import Progress
from scorefusion.optional import need
from scorefusion.train.config import StageConfig, TrainConfig
from scorefusion.train.examples import Batch, CropSampler, factors_of
from scorefusion.train.loop import fresh_models
from scorefusion.train.sources import sources_of, volumes_of
from scorefusion.train.step import Stepper, on_device, start

AGAIN = 3  #: times that each convolution is run; the median counts
LEAST = 3  #: times that the bare convolutions are timed, however long they and the steps take
#: steps between two timings of the bare convolutions: near enough for other programs to slow both alike
APART = 2


class Convolution(NamedTuple):
    """A convolution as it ran, forward or backward."""

    input: tuple[int, ...]  #: shape
    weight: tuple[int, ...]  #: shape
    stride: tuple[int, ...]  #: along each axis
    padding: tuple[int, ...]  #: along each axis
    dtype: torch.dtype  #: of input and weight
    bias: bool  #: whether there is one
    wanted: tuple[bool, ...] = ()  #: for a backward one, whether the gradients of input, weight and bias were

    @property
    def output(self) -> tuple[int, ...]:
        """Shape of the result."""
        axes = zip(self.input[2:], self.weight[2:], self.stride, self.padding, strict=True)
        return self.input[0], self.weight[0], *((n + 2 * p - k) // s + 1 for n, k, s, p in axes)

    @property
    def flop(self) -> int:
        """A multiplication and an addition are two; each gradient of input or weight is once more."""
        once = 2 * math.prod(self.weight[1:]) * math.prod(self.output)
        return once * (sum(self.wanted[:2]) if self.wanted else 1)

    def runner(self, device: torch.device) -> Callable[[], object]:
        """What runs it, channels last, and nothing else."""
        memory = torch.channels_last if len(self.weight) == 4 else torch.channels_last_3d

        def filled(shape: tuple[int, ...]) -> Tensor:
            return torch.full(shape, 0.5, dtype=self.dtype, device=device).contiguous(memory_format=memory)

        x, weight = filled(self.input), filled(self.weight)
        none, ones = [0] * len(self.stride), [1] * len(self.stride)
        tail = (list(self.stride), list(self.padding), ones, False, none, 1)
        if self.wanted:
            gradient, sizes = filled(self.output), [self.weight[0]] if self.bias else None
            back = torch.ops.aten.convolution_backward
            return lambda: back(gradient, x, weight, sizes, *tail, list(self.wanted))
        bias = torch.zeros(self.weight[0], dtype=self.dtype, device=device) if self.bias else None
        return lambda: torch.ops.aten.convolution(x, weight, bias, *tail)


class Recorder(TorchDispatchMode):
    """Note every convolution that runs inside, in ``found``, and how often it does."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[Convolution] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        back = func is torch.ops.aten.convolution_backward.default
        if back or func is torch.ops.aten.convolution.default:
            x, weight, bias, stride, padding, _, transposed = args[1:8] if back else args[:7]
            if not transposed:
                wanted = tuple(args[10]) if back else ()
                shapes = tuple(x.shape), tuple(weight.shape), tuple(stride), tuple(padding)
                self.found[Convolution(*shapes, x.dtype, bias is not None, wanted)] += 1
        return func(*args, **(kwargs or {}))


class Moment(NamedTuple):
    """When it is: by the clock, and in processor seconds that the program has used (a GPU: by the clock)."""

    clock: float
    busy: float

    def since(self, other: Moment) -> Moment:
        """What lies between."""
        return Moment(self.clock - other.clock, self.busy - other.busy)


def now(device: torch.device) -> Moment:
    """The time, once the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return Moment(time.perf_counter(), time.perf_counter())
    return Moment(time.perf_counter(), time.process_time())


@dataclass(frozen=True)
class Rate:
    """What bare convolutions reach."""

    flop: int  #: of all of them
    busy: float  #: seconds of a processor that they take, one after another; of a GPU, by the clock
    best: float  #: FLOP a second of the fastest one

    @property
    def each_second(self) -> float:
        """FLOP a second of them all."""
        return self.flop / self.busy if self.busy else 0.0


def measure(found: Mapping[Convolution, int], device: torch.device) -> Rate:
    """Run each kind of convolution bare: its operands in memory, channels last, and nothing around it."""
    flop, busy, best = 0, 0.0, 0.0
    for convolution, count in found.items():
        run = convolution.runner(device)
        run()
        times = []
        for _ in range(AGAIN):
            before = now(device)
            run()
            times.append(now(device).since(before).busy)
        median = statistics.median(times)
        flop += count * convolution.flop
        busy += count * median
        best = max(best, convolution.flop / median)
    return Rate(flop, busy, best)


@dataclass(frozen=True)
class StageCost:
    """What a stage takes."""

    stage: StageConfig  #: which
    parameters: int  #: that it trains
    flop: int  #: of a step of one process, forward and backward; convolutions and matrix products
    seconds: float  #: of a step, the median
    busy: float  #: seconds of a processor that a step takes; of a GPU, by the clock
    drawing: float  #: of these, what making the examples takes, where no other process does that
    first: float  #: seconds before the steps that a ``cached`` stage spends on what it keeps
    convolutions: Rate  #: the step's own, run bare; the median of several times
    #: of what the same convolutions reach bare, a step's FLOP a second: those run bare just then and the
    #: steps just before, in ascending order
    shares: tuple[float, ...]
    peak_bytes: int  #: the most that was resident (on a GPU: allocated), the whole program's
    examples: int  #: slices or boxes of a step, of all processes

    @property
    def hours(self) -> float:
        """Of the whole stage; pictures and validation come on top."""
        return (self.first + self.seconds * self.stage.steps) / 3600

    @property
    def share(self) -> float:
        """Of what the same convolutions reach bare: the median of ``shares``."""
        return self.shares[len(self.shares) // 2]

    @property
    def spread(self) -> tuple[float, float]:
        """The quartiles of ``shares``."""
        return self.shares[len(self.shares) // 4], self.shares[3 * len(self.shares) // 4]


@dataclass(frozen=True)
class Cost:
    """What a run takes."""

    stages: tuple[StageCost, ...]  #: in order
    parameters: int  #: of the whole model
    device: str  #: where it was timed
    precision: str  #: of convolutions and matrix products
    threads: int  #: of a process
    processes: int  #: that share a step
    arrays: int  #: volumes and variants to be stored
    store_seconds: float  #: to make one of them
    store_bytes: int  #: of one of them


def dry_run(config: TrainConfig, *, seconds: float = 60.0, progress: Progress | None = None) -> Cost:
    """Time a few steps of every stage on the run's first subject; nothing is kept.

    Args:
        config: the run.
        seconds: for all stages together; a stage takes longer if its first steps do.
        progress: called with (stages done, in all).

    Raises:
        BadInput: for volumes that cannot be used.
        ScoreFusionError: as training would.
    """
    accelerator = start(config)
    model, average = fresh_models(config)
    model, average = model.to(accelerator.device), average.to(accelerator.device)
    with tempfile.TemporaryDirectory() as folder:
        sources = [*sources_of(config, model.config)]
        first = replace(sources[0], variants=min(sources[0].variants, 1))
        began = time.perf_counter()
        store = volumes_of(config, model.config, Path(folder), sources=[first])
        store_seconds = (time.perf_counter() - began) / len(store)
        crops = CropSampler(store, config.augment, factors_of(model.config)[0])
        costs = []
        for number, stage in enumerate(config.stages):
            small = stage.model_copy(update={"cached": min(stage.cached, stage.batch)})
            stages = (*config.stages[:number], small, *config.stages[number + 1 :])
            tried = config.model_copy(update={"stages": stages})
            stepper = Stepper(tried, number, accelerator, model, average, crops)
            each = stage.slices * len(model.config.branches) if stage.kind == "slices" else 1
            costs.append(_cost(stage, stepper, seconds / len(config.stages), stage.batch * each))
            accelerator.free_memory()
            if progress:
                progress(number + 1, len(config.stages))
    return Cost(
        tuple(costs),
        sum(parameter.numel() for parameter in model.parameters()),
        str(accelerator.device),
        {"no": "float32", "bf16": "bfloat16"}[accelerator.mixed_precision],
        torch.get_num_threads(),
        accelerator.num_processes,
        sum(1 + source.variants for source in sources),
        store_seconds,
        store[0][0].nbytes,
    )


def describe(cost: Cost) -> str:
    """A table: a line for each stage, and what they sum up to."""
    head = ("stage", "trains", "steps", "GFLOP", "s/step", "drawing", "a second", "GFLOP/s", "bare", "share")
    rows = [(*head, "peak GB", "hours")]
    for each in cost.stages:
        what = "slices" if each.stage.kind == "slices" else "boxes" if each.stage.crop else "volumes"
        rows.append(
            (
                each.stage.kind,
                f"{each.parameters / 1e6:.2f} M",
                str(each.stage.steps),
                f"{each.flop / 1e9:.4g}",
                f"{each.seconds:.3g}",
                f"{each.drawing / each.seconds:.0%}",
                f"{each.examples / each.seconds:.3g} {what}",
                f"{each.flop / each.busy / 1e9:.4g}",
                f"{each.convolutions.each_second / 1e9:.4g}",
                "{:.0%} ({:.0f}-{:.0f})".format(each.share, *(100 * side for side in each.spread)),
                f"{each.peak_bytes / 1e9:.2f}",
                f"{each.hours:.2f}",
            )
        )
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    store = cost.arrays * cost.store_seconds / 3600
    total = store + sum(each.hours for each in cost.stages)
    where = f"{cost.device}, {cost.precision}, {cost.threads} threads"
    where += f", {cost.processes} processes" if cost.processes > 1 else ""
    load, processors = (os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0), os.cpu_count() or 1
    busy = f"other programs are running (load {load:.1f} on {processors} processors): hours are too many"
    return "\n".join(
        [
            f"{cost.parameters / 1e6:.2f} M parameters; {where}",
            f"{cost.arrays} volumes to store: {store:.2f} h, {cost.arrays * cost.store_bytes / 1e9:.2f} GB",
            *lines,
            f"in all {total:.1f} h, without pictures and validation",
            "GFLOP: of one process; GFLOP/s: for each second of a processor (a GPU); bare: what the same",
            "convolutions reach with nothing around them; share: of that, median and quartiles of ratios",
            *([busy] if load >= 1.3 * processors else []),
        ]
    )


def _cost(stage: StageConfig, stepper: Stepper, seconds: float, examples: int) -> StageCost:
    device = stepper.accelerator.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    began = now(device)
    batch = _drawn(stepper, 0)
    with Recorder() as convolutions, FlopCounterMode(display=False) as counter:
        stepper.gradient(0, batch)
    stepper.update(0)
    first = now(device).since(began).clock
    draws, steps, bare, shares = list[float](), list[Moment](), list[Rate](), list[float]()
    began = now(device)
    while len(bare) < LEAST or now(device).since(began).clock < seconds:
        before, number = now(device), len(steps) + 1
        batch = _drawn(stepper, number)
        draws.append(now(device).since(before).clock)
        stepper.gradient(number, batch)
        stepper.update(number)
        steps.append(now(device).since(before))
        if len(steps) % APART == 0:
            bare.append(measure(convolutions.found, device))
            near = statistics.fmean(step.busy for step in steps[-APART:])
            shares.append(counter.get_total_flops() / near / bare[-1].each_second)
    drawing, whole = statistics.median(draws), statistics.median(step.clock for step in steps)
    if stepper.workers:
        whole, drawing = max(whole - drawing, drawing / stepper.workers), 0.0
    return StageCost(
        stage=stage,
        parameters=sum(parameter.numel() for parameter in stepper.parameters),
        flop=counter.get_total_flops(),
        seconds=whole,
        busy=statistics.median(step.busy for step in steps),
        drawing=drawing,
        first=max(first - whole, 0.0) * stage.cached / stage.batch,
        convolutions=sorted(bare, key=lambda rate: rate.busy)[len(bare) // 2],
        shares=tuple(sorted(shares)),
        peak_bytes=_peak(device),
        examples=examples,
    )


def _drawn(stepper: Stepper, step: int) -> Batch:
    return on_device(stepper.draws.batch(step, stepper.mine), stepper.accelerator.device)


def _peak(device: torch.device) -> int:
    """Bytes at the peak; where the system does not tell, bytes now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError, StopIteration):
        status = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in status if line.startswith("VmHWM")).split()[1])
    return int(need("psutil", "measuring memory").Process().memory_info().rss)
