"""A denoising step over buffers: the whole of it, from the noise level to the fused score and the update.

    level      the solver's row -> noise level; x scaled and padded -> seen; feature sums -> their bias
    slabs      for each branch, slab by slab: slices -> 2D network -> scores.K and, by feature scale, total.S
    3D         [seen, condition, common, scores] and the sums -> 3D network -> maps
    fuse_step  scores and maps fused, solver's row applied, clamped, projected, noise added -> x, x0

Whatever a step depends on lies in buffers that stay where they are: volumes, the solver's rows, the row's
number, the keys of the noise. So the same launches serve every step, seed and table, and on CUDA a captured
graph replays them. A step is therefore a list of segments, which :mod:`.graph` captures together or apart.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from scorefusion.diffusion.level import NoiseLevel, input_scale
from scorefusion.diffusion.solvers import Table
from scorefusion.engine.graph import Segment
from scorefusion.engine.planning.plan import ROWS, Plan, projected_blocks
from scorefusion.engine.planning.tiles import Tiling, run_tiled
from scorefusion.engine.runners import Runner
from scorefusion.models.config import PLANES
from scorefusion.models.score_fusion import ScoreFusion, network_time
from scorefusion.models.slabs import (
    Buffers,
    Outputs,
    cropped,
    fill_channels,
    gather_slab,
    keep_slab,
    pad,
    scores_of,
)
from scorefusion.models.strategies import Branches
from scorefusion.ops.fuse_scores import Fusion
from scorefusion.ops.fuse_step import fuse_step

Runners = Mapping[str, Runner]


def denoising_step(
    b: Buffers,
    model: ScoreFusion,
    plan: Plan,
    runners: Runners,
    branches: Branches,
    *,
    tiling: Tiling | None = None,
    project: Callable[[Tensor], Tensor] | None = None,
    given: Mapping[str, Tensor] | None = None,
) -> list[Segment]:
    """One evaluation and one row of the solver, as segments in order.

    Args:
        b: the plan's buffers and those of :func:`small_buffers`, by name.
        branches: of the model that this evaluation runs, by number.
        tiling: tiles that the 3D network runs on; whole when None.
        project: makes x0 consistent between two passes; when None, block means are set within `fuse_step`.
        given: ``scores.K`` and ``total.S`` of this evaluation, which are then not computed.
    """
    config, batch = plan.config, plan.batch
    layers = {scale: model.feature_layers[scale] for scale in plan.scales}
    outputs: dict[tuple[int, int], Outputs] = {}

    def time(network: str) -> Tensor:
        place = timed_networks(plan).index(network)
        return b["level"][0, place : place + 1]

    def cut(k: int, slices: int) -> Tensor:
        shape = plan.cut_shape(k, slices)
        return b["cut"][: math.prod(shape)].view(shape).permute(0, 3, 1, 2)  # channels last

    def begin() -> None:
        torch.index_select(b["levels"], 0, b["index"], out=b["level"])
        if b["seen"] is not b["x"]:
            pad(b["x"], plan.grid, scale=b["level"][0, -1], out=b["seen"])
        for scale, layer in layers.items():
            layer.restart(b[f"total.{scale}"])

    def gather(k: int, start: int, stop: int) -> None:
        gather_slab(b, config, k, start, stop, plan.dtype, out=cut(k, batch * (stop - start)))

    def run_slices(k: int, start: int, stop: int) -> None:
        branch, slices = config.branches[k], batch * (stop - start)
        label = b[f"label.{branch.plane}"].expand(slices)
        times = time(branch.network).expand(slices)
        outputs[k, start] = runners[branch.network](cut(k, slices), times, label)

    def keep(k: int, start: int, stop: int) -> None:
        keep_slab(b, layers, k, config.branches[k].plane, start, outputs[k, start])

    def slab(k: int, start: int, stop: int) -> None:
        gather(k, start, stop)
        run_slices(k, start, stop)
        keep(k, start, stop)
        del outputs[k, start]

    def run_volume() -> Tensor:
        stacked, network = b["stacked"], model.fusion
        assert network is not None
        fill_channels(stacked, 0, [b["seen"]])
        fill_channels(stacked, stacked.shape[1] - len(config.branches), scores_of(b, config, branches))
        totals = {scale: b[f"total.{scale}"] for scale in layers}
        if tiling is None:
            return network(stacked, time("fusion").expand(batch), inject=totals)
        return run_tiled(network, stacked, time("fusion").expand(batch), totals, tiling, b["maps"])

    def evaluated() -> Fusion:
        maps = run_volume() if plan.strategy.runs_volume else None
        return cropped(plan.strategy.fuse(config, scores_of(b, config, branches), maps), plan.size)

    def fuse_and_update() -> None:
        fuse_step(
            *evaluated(), b["x"], b["x0"], b["rows"], b["index"], b["keys"], clamp=config.sampling.clamp,
            factor=projected_blocks(config) or (1, 1, 1), measured=b.get("measured"),
            out=(b["x.next"], b["x0.next"]),
        )  # fmt: skip
        end(b["x.next"], b["x0.next"])

    def fuse_to_x0() -> None:
        fuse_step(
            *evaluated(), b["x"], b["x0"], b["rows.x0"], b["index"], b["keys"],
            clamp=config.sampling.clamp, out=(b["x.next"], b["x0.next"]),
        )  # fmt: skip

    def update_from_x0() -> None:
        clean = Fusion((b["x0.next"],), None, (1.0,))
        end(*fuse_step(*clean, b["x"], b["x0"], b["rows.update"], b["index"], b["keys"]))

    def end(x: Tensor, x0: Tensor) -> None:
        b["x"].copy_(x)
        b["x0"].copy_(x0)
        b["index"].add_(1)

    def projected() -> None:
        assert project is not None
        b["x0.next"].copy_(project(b["x0.next"]))

    parts = [Segment("level and totals", begin)]
    for name, value in (given or {}).items():
        if name in b:
            parts.append(Segment("given", partial(b[name].copy_, value)))
    for k, start, stop in plan.slabs(branches) if given is None else ():
        network = config.branches[k].network
        if runners[network].name != "tensorrt":
            parts.append(Segment("slab", partial(slab, k, start, stop)))
        else:  # may refuse capture; its outputs are the same tensors at every step
            parts.append(Segment("gather", partial(gather, k, start, stop)))
            parts.append(Segment(f"network {network}", partial(run_slices, k, start, stop), False))
            parts.append(Segment("scores and features", partial(keep, k, start, stop)))
    if project is None:
        return [*parts, Segment("fusion and update", fuse_and_update)]
    return [
        *parts,
        Segment("fusion to x0", fuse_to_x0),
        Segment("projection", projected, live=True),
        Segment("update from x0", update_from_x0),
    ]


def timed_networks(plan: Plan) -> list[str]:
    """The networks that a step conditions on the noise level, in the order of ``level``'s columns."""
    return [*plan.config.slice_networks, *(["fusion"] if plan.fuses else [])]


def small_buffers(plan: Plan, device: torch.device) -> Buffers:
    """Buffers of a step beside the plan's: the solver's rows, noise levels, the noise's keys, labels."""
    levels = len(timed_networks(plan)) + 1
    b: Buffers = {
        name: torch.zeros(ROWS, 6, dtype=torch.float32, device=device)
        for name in ("rows", "rows.x0", "rows.update")
    }
    b["index"] = torch.zeros(1, dtype=torch.int32, device=device)
    b["keys"] = torch.zeros(plan.batch, 5, dtype=torch.int64, device=device)
    b["levels"], b["level"] = (torch.zeros(n, levels, dtype=torch.float32, device=device) for n in (ROWS, 1))
    for number, plane in enumerate(PLANES):
        b[f"label.{plane}"] = torch.full((1,), number, device=device)
    return b


def load_table(b: Buffers, plan: Plan, table: Table) -> None:
    """Put a solver's rows on the device, whole and in two parts, and what each network is told at each."""
    rows, config, count = torch.tensor(table.rows), plan.config, len(table)
    level = NoiseLevel(rows[:, 0], rows[:, 1].to(torch.int64))
    columns = []
    for name in timed_networks(plan):
        if name == "fusion" and config.fusion is not None:
            columns.append(network_time(config.fusion, level))
        else:
            columns.append(network_time(config.slice_networks[name], level, config.halved_slice_time))
    columns.append(input_scale(config.prediction, level.abar, config.sigma_data))
    b["levels"][:count].copy_(torch.stack([column.to(torch.float32) for column in columns], dim=1))
    b["rows"][:count].copy_(rows[:, 2:])  # P, Q, A, B, C, S
    b["rows.x0"].zero_()[:count, :2].copy_(rows[:, 2:4])
    b["rows.x0"][:count, 3] = 1
    b["rows.update"].zero_()[:count, 2:].copy_(rows[:, 4:])
    b["rows.update"][:count, 1] = 1
