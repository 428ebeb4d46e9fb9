"""What one training step computes: the loss of each stage.

Every random number of a step comes from a generator seeded by (seed, stage, step), so a resumed run goes on
as if it had never stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..diffusion.level import NoiseLevel, add_noise, training_target
from ..diffusion.schedule import paper_sampling, paper_training, sigma_to_abar
from ..models.config import PLANES, BranchConfig
from ..models.score_fusion import Inputs, ScoreFusion, Scores, network_time, no_scores
from ..ops.gather_slices import gather_slices
from ..reference.planes import AXIS
from .config import StageConfig
from .crops import Crop, CropSampler
from .pairs import factors_of, make_example

CACHED = 2**40
"""Key of the random numbers of cached crops: no step of a run has it."""


def draw_levels(count: int, stage: StageConfig, random: np.random.Generator) -> NoiseLevel:
    """Noise levels ``[count]``: log-normal in sigma, or uniform over one of the paper's schedules.

    The paper's 2D stage draws abar uniformly between neighbouring steps of its training schedule.
    """
    if stage.noise_levels == "log-normal":
        sigma = np.exp(random.normal(stage.ln_sigma_mean, stage.ln_sigma_std, count))
        return NoiseLevel.continuous(torch.from_numpy(sigma_to_abar(sigma)))
    schedule = paper_training() if stage.noise_levels == "paper-training" else paper_sampling()
    steps = random.integers(1, len(schedule.abar), count)
    if stage.noise_levels == "paper-training":
        share = random.random(count)
        abar = schedule.abar[steps] * (1 - share) + schedule.abar[steps - 1] * share
        return NoiseLevel.continuous(torch.from_numpy(abar))
    return NoiseLevel(torch.from_numpy(schedule.abar[steps]), torch.from_numpy(steps))


def loss(output: Tensor, target: Tensor, stage: StageConfig) -> Tensor:
    """``l1·mean|d| + l2·mean(d²)`` in float32."""
    difference = output.float() - target.float()
    total = stage.l2 * difference.square().mean()
    return total + stage.l1 * difference.abs().mean() if stage.l1 else total


def slices_loss(
    model: ScoreFusion, crops: CropSampler, stage: StageConfig, random: np.random.Generator
) -> Tensor:
    """The 2D networks' loss on 2.5D slices of every branch's plane.

    Each of ``stage.batch`` boxes a branch is as thin as the slices, their neighbours and the interpolation of
    the condition need; each slice has its own noise level.
    """
    config, total = model.config, torch.zeros(())
    for name, network in model.slice_networks.items():
        parts = [
            _slab(model, crops, stage, branch, random)
            for branch in config.branches
            if branch.network == name
            for _ in range(stage.batch)
        ]
        slabs, targets, abars, labels = (torch.cat(column) for column in zip(*parts, strict=True))
        time = network_time(config.slice_networks[name], NoiseLevel.continuous(abars))
        total = total + loss(network(slabs, time, label=labels), targets, stage)
    return total / len(model.slice_networks)


def _slab(
    model: ScoreFusion,
    crops: CropSampler,
    stage: StageConfig,
    branch: BranchConfig,
    random: np.random.Generator,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Slices of one branch: network input, target, abar and plane label of each."""
    config, count = model.config, stage.slices
    axis, blocks = AXIS[branch.plane], factors_of(config)[0]
    block = blocks[axis - 2]
    reach = -(-config.context // block) * block
    inner = -(-count // block) * block
    edges = [edge if edge > 1 else 0 for edge in blocks]  # what the base's interpolation reaches
    edges[axis - 2] = 0
    size = [int(stage.crop or 0) + 2 * edge for edge in edges]
    size[axis - 2] = inner + 2 * reach
    crop = crops.draw(size, random)
    example = make_example(crop.volume, config)
    window = [slice(None), slice(None)] + [
        slice(edge, length - edge) for edge, length in zip(edges, size, strict=True)
    ]
    origin = [start + edge for edge, start in zip(edges, crop.origin, strict=True)]
    residual, condition = example.residual[tuple(window)], example.condition[tuple(window)]

    first = reach + int(random.integers(0, inner - count + 1))
    level = draw_levels(count, stage, random)
    clean = residual.movedim(axis, 1)[0, first : first + count]
    noise = torch.from_numpy(random.standard_normal(tuple(clean.shape), dtype=np.float32))
    noisy = torch.zeros_like(residual)
    noisy.movedim(axis, 1)[0, first : first + count] = model.scaled(
        add_noise(clean, noise, level.abar), level
    )
    inputs = model.prepare(condition, origin=origin, full=crop.full)
    slab = gather_slices(
        model.padded(noisy), inputs.condition, inputs.common, branch.plane, first, first + count,
        channels=branch.conditions, context=config.context, order=config.context_order,
    )  # fmt: skip
    target = training_target(config.prediction, clean, noise, level.abar, config.sigma_data)
    return slab, target, level.abar, torch.full((count,), PLANES.index(branch.plane))


class Prepared(NamedTuple):
    """What a stage of the fusion network computes its loss from: all that does not depend on its weights."""

    x: Tensor
    inputs: Inputs
    level: NoiseLevel
    target: Tensor
    scores: Scores
    totals: dict[int, Tensor]


def prepare_step(
    model: ScoreFusion, crops: CropSampler, stage: StageConfig, random: np.random.Generator
) -> Prepared:
    """Draw crops, noise levels and noise, and run the 2D networks where the stage has a use for them."""
    config = model.config
    picked = [crops.draw([stage.crop] * 3 if stage.crop else None, random) for _ in range(stage.batch)]
    example = make_example(torch.cat([crop.volume for crop in picked]), config)
    level = draw_levels(stage.batch, stage, random)
    noise = torch.from_numpy(random.standard_normal(tuple(example.residual.shape), dtype=np.float32))
    x = model.padded(model.scaled(add_noise(example.residual, noise, level.abar), level))
    inputs = _inputs(model, example.condition, picked)
    target = training_target(config.prediction, example.residual, noise, level.abar, config.sigma_data)
    if stage.kind == "volume":
        return Prepared(x, inputs, level, target, no_scores(model, x), {})
    scores, totals = model.branch_outputs(x, inputs, level, features=stage.kind == "features")
    return Prepared(x, inputs, level, target, scores, totals)


def fusion_loss(
    model: ScoreFusion,
    crops: CropSampler,
    stage: StageConfig,
    random: np.random.Generator,
    cache: dict[int, Prepared] | None = None,
) -> Tensor:
    """The fusion network's loss on 3D crops (or whole volumes), the 2D networks frozen.

    In a ``features`` stage the mean of the losses with and without the ensemble-2D-feature layers; the 2D
    networks run once for both. In a ``volume`` stage there are no 2D networks. With ``stage.cached`` the step
    takes one of that many crops, whose branch outputs are kept in ``cache``.
    """
    if stage.cached and cache is not None:
        place = int(random.integers(stage.cached))
        if place not in cache:
            own = np.random.Generator(np.random.Philox(key=[CACHED, place]))
            with torch.no_grad():
                cache[place] = prepare_step(model, crops, stage, own)
        step = cache[place]
    else:
        step = prepare_step(model, crops, stage, random)
    d, h, w = (slice(stage.margin, length - stage.margin) for length in step.inputs.size)
    total = torch.zeros(())
    ways: list[dict[int, Tensor]] = [{}, step.totals] if stage.kind == "features" else [{}]
    compute = model.predict_volume if stage.kind == "volume" else model.fuse
    for given in ways:
        arguments = (step.x, step.inputs, step.level, step.scores, given)
        if stage.checkpointing:
            output = checkpoint(compute, *arguments, use_reentrant=False)
        else:
            output = compute(*arguments)
        total = total + loss(output[:, :, d, h, w], step.target[:, :, d, h, w], stage) / len(ways)
    return total


def _inputs(model: ScoreFusion, conditions: Tensor, picked: Sequence[Crop]) -> Inputs:
    """The networks' inputs of crops from different places."""
    each = [
        model.prepare(condition[None], origin=crop.origin, full=crop.full)
        for condition, crop in zip(conditions, picked, strict=True)
    ]
    common = [item.common for item in each if item.common is not None]
    together = torch.cat([item.condition for item in each])
    return Inputs(together, torch.cat(common) if common else None, each[0].size)
