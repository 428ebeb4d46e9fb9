"""How far the 2D networks of the planes are from each other in what they take for the clean volume."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from scorefusion.diffusion.solvers import Table
from scorefusion.engine.engine import Engine
from scorefusion.ops.reference.planes import AXIS


class PlaneDeviation:
    """Collects the standard deviation over planes of x0 at the last noise level, averaged over samples.

    A branch's x0 is p x + q m of its output m, so the deviation is |q| times that of the outputs, which lie
    in the engine after its last step: nothing is evaluated for it. Branches of one plane are averaged first.

    Args:
        table: the solver that the engine ran.
        size: (z, y, x) of the box; what an engine draws beyond it is left out.
    """

    def __init__(self, table: Table, size: Sequence[int]):
        self.gain, self.size = abs(float(table.rows[-1, 3])), tuple(size)
        self.count = 0
        self.total: Tensor | None = None

    def add(self, engine: Engine) -> None:
        """Take what an engine has just drawn, by a strategy that runs every plane at each step."""
        d, h, w = self.size
        planes: dict[str, list[Tensor]] = defaultdict(list)
        for k in engine.plan.branches:
            plane = engine.plan.config.branches[k].plane
            score = engine.buffers[f"scores.{k}"].movedim(1, AXIS[plane])
            planes[plane].append(score[:, :, :d, :h, :w].float())
        means = torch.stack([torch.stack(scores).mean(dim=0) for scores in planes.values()])
        apart = self.gain * means.std(dim=0, correction=0)
        total = apart.sum(dim=0, keepdim=True)
        self.total = total if self.total is None else self.total + total
        self.count += apart.shape[0]

    @property
    def mean(self) -> Tensor | None:
        """``[1, 1, d, h, w]``, in units of ``residual.scale``; None before anything was added."""
        return None if self.total is None else self.total / self.count
