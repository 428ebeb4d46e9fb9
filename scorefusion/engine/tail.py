"""The end of a step: scores fused, the solver's row applied, the clean volume made consistent.

Where block means are measured, or nothing, that is one pass, `fuse_step`. For any other measurement it is two
with the projection between them: the first gives the clean volume, the second goes on from it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from scorefusion.degradations import Projection
from scorefusion.engine.graph import Segment
from scorefusion.engine.planning.plan import ROWS, Plan, projected_blocks
from scorefusion.errors import ScoreFusionError
from scorefusion.ops.fuse_scores import Fusion
from scorefusion.ops.fuse_step import fuse_step


class Tail:
    """The solver's rows on the device, and what they do to an engine's buffers.

    Args:
        plan: the engine's.
        buffers: the engine's, by name.
        index: the row's number, int32 ``[1]``.
        keys: of the noise.
    """

    def __init__(self, plan: Plan, buffers: dict[str, Tensor], index: Tensor, keys: Tensor):
        self.blocks, self.clamp = projected_blocks(plan.config), plan.config.sampling.clamp
        self.buffers, self.index, self.keys = buffers, index, keys
        self.rows = torch.zeros(ROWS, 6, dtype=torch.float32, device=index.device)
        self.clean, self.onward = torch.zeros_like(self.rows), torch.zeros_like(self.rows)
        self.project: Projection | None = None

    def take(self, rows: Tensor) -> None:
        """Put a table's rows (P, Q, A, B, C, S) on the device, whole and in two parts."""
        count = len(rows)
        self.rows[:count].copy_(rows)
        self.clean.zero_()
        self.clean[:count, :2].copy_(rows[:, :2])
        self.clean[:count, 3] = 1
        self.onward.zero_()
        self.onward[:count, 1] = 1
        self.onward[:count, 2:].copy_(rows[:, 2:])

    def take_projection(self, project: Projection | None) -> bool:
        """Use a projection from now on; say whether the step's segments are others than before.

        Raises:
            ScoreFusionError: for a projection onto the means of other blocks than the engine was made for.
        """
        before = self.project
        if project is None or project.blocks:
            if project is not None and project.blocks != self.blocks:
                raise ScoreFusionError(
                    f"the engine projects onto means of blocks {self.blocks}, got blocks {project.blocks}"
                )
            self.project = None
            if "measured" in self.buffers:
                measured = project.measured if project is not None else None
                self.buffers["measured"].copy_(torch.zeros(()) if measured is None else measured)
        else:
            self.project = project
        return (before is None) != (self.project is None)

    def segments(self, fused: Callable[[], Fusion]) -> list[Segment]:
        """The last of a step's segments; ``fused`` runs the fusion network."""
        if self.project is None:
            return [Segment("fusion and update", functools.partial(self._at_once, fused))]
        return [
            Segment("fusion and clean volume", functools.partial(self._denoise, fused)),
            Segment("projection", self._project, live=True),
            Segment("update", self._go_on),
        ]

    def _at_once(self, fused: Callable[[], Fusion]) -> None:
        found = self.buffers
        fuse_step(
            *fused(), found["x"], found["x0"], self.rows, self.index, self.keys,
            clamp=self.clamp, factor=self.blocks or (1, 1, 1), measured=found.get("measured"),
            out=(found["x.next"], found["x0.next"]),
        )  # fmt: skip
        for name in ("x", "x0"):
            found[name].copy_(found[f"{name}.next"])
        self.index.add_(1)

    def _denoise(self, fused: Callable[[], Fusion]) -> None:
        found = self.buffers
        fuse_step(
            *fused(), found["x"], found["x0"], self.clean, self.index, self.keys,
            clamp=self.clamp, out=(found["x.next"], found["x0.next"]),
        )  # fmt: skip

    def _project(self) -> None:
        clean = self.buffers["x0.next"]
        assert self.project is not None
        clean.copy_(self.project(clean))

    def _go_on(self) -> None:
        found = self.buffers
        x, x0 = fuse_step(
            (found["x0.next"],), None, (1.0,), 1.0, found["x"], found["x0"],
            self.onward, self.index, self.keys,
        )  # fmt: skip
        found["x"].copy_(x)
        found["x0"].copy_(x0)
        self.index.add_(1)
