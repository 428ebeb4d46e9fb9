"""How fast this machine's convolutions are: those of a training step, bare, forward and backward."""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

AGAIN = 3
"""Times that each convolution is run; the median counts."""


class Convolution(NamedTuple):
    """A convolution as it ran, forward or backward.

    Attributes:
        input: shape.
        weight: shape.
        stride: along each axis.
        padding: along each axis.
        dtype: of input and weight.
        bias: whether there is one.
        wanted: for a backward one, whether the gradients of input, weight and bias were.
    """

    input: tuple[int, ...]
    weight: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dtype: torch.dtype
    bias: bool
    wanted: tuple[bool, ...] = ()

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
        if func is torch.ops.aten.convolution.default and not args[6]:
            x, weight, bias, stride, padding = args[:5]
            self._note(x, weight, stride, padding, bias is not None)
        elif func is torch.ops.aten.convolution_backward.default and not args[7]:
            _, x, weight, bias, stride, padding = args[:6]
            self._note(x, weight, stride, padding, bias is not None, tuple(args[10]))
        return func(*args, **(kwargs or {}))

    def _note(
        self, x: Tensor, weight: Tensor, stride: Any, padding: Any, bias: bool, wanted: Any = ()
    ) -> None:
        shapes = tuple(x.shape), tuple(weight.shape)
        self.found[Convolution(*shapes, tuple(stride), tuple(padding), x.dtype, bias, wanted)] += 1


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
    """What bare convolutions reach.

    Attributes:
        flop: of all of them.
        busy: seconds of a processor that they take, one after another; of a GPU, by the clock.
        best: FLOP a second of the fastest one.
    """

    flop: int
    busy: float
    best: float

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
