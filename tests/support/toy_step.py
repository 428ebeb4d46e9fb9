"""A small step to capture: a convolution and the tail of a step over buffers, whole and in segments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from scorefusion.engine.graph import CapturedStep, CudaGraphs, Segment
from scorefusion.ops.fuse_step import fuse_step
from scorefusion.ops.noise import noise_keys, normal
from tests.support.tape_graphs import TapeGraphs

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="not run: no CUDA device")


class Toy:
    """A network and the tail of a step, over buffers that stay where they are."""

    def __init__(self, device: torch.device = CPU) -> None:
        torch.manual_seed(0)
        self.network = torch.nn.Conv3d(1, 1, 3, padding=1, device=device)
        self.rows = torch.tensor(
            [
                [1.2, -0.7, 0.6, 0.5, 0.0, 0.4],
                [1.1, -0.5, 0.3, 0.8, -0.1, 0.2],
                [1.0, -0.2, 0.0, 1.0, 0.0, 0.0],
            ]
        ).to(device)
        self.index = torch.zeros(1, dtype=torch.int32, device=device)
        self.keys = noise_keys([3, -4], device=device)
        self.x, self.x0 = (torch.zeros(2, 1, 4, 4, 8, device=device) for _ in range(2))
        self.state = (self.x, self.x0, self.index)

    def start(self, seeds: tuple[int, int]) -> None:
        self.keys.copy_(noise_keys(seeds))
        self.x.copy_(normal(tuple(self.x.shape), seeds, 0))
        self.x0.zero_()
        self.index.zero_()

    @torch.no_grad()
    def step(self) -> None:
        score = self.network(self.x)
        x, x0 = fuse_step(
            [score], None, [1.0], 1.0, self.x, self.x0, self.rows, self.index, self.keys,
            clamp=1.0, factor=(2, 2, 2),
        )  # fmt: skip
        self.x.copy_(x)
        self.x0.copy_(x0)
        self.index.add_(1)

    def run(self, step: Callable[[], object], seeds: tuple[int, int]) -> Tensor:
        """All steps; the buffers are then ready for a first one."""
        self.start(seeds)
        for _ in range(len(self.rows)):
            step()
        result = self.x.clone()
        self.start(seeds)
        return result


class Split(Toy):
    """The same step in parts, whose tensors between them are buffers; the network is another library's."""

    def __init__(self, engine: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.half, self.score = torch.empty_like(self.x), torch.empty_like(self.x)
        self.engine: Callable[[Tensor], Tensor] = engine or self.network
        self.segments = [
            Segment("gather", lambda: self.half.copy_(0.5 * self.x)),
            Segment("round", lambda: self.half.copy_(self.half.round(decimals=3))),
            Segment("engine", torch.no_grad()(lambda: self.score.copy_(self.engine(self.half))), False),
            Segment("update", self.update),
        ]

    def step(self) -> None:
        for segment in self.segments:
            segment.run()

    def update(self) -> None:
        x, x0 = fuse_step([self.score], None, [1.0], 1.0, self.x, self.x0, self.rows, self.index, self.keys)
        self.x.copy_(x)
        self.x0.copy_(x0)
        self.index.add_(1)


def captured(body: Any, graphs: CudaGraphs | None, **options: Any) -> CapturedStep:
    return CapturedStep(body, device=CUDA, graphs=graphs or TapeGraphs(), **options)
