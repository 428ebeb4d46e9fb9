"""What each example of a step is made of: a pure function of (seed, stage, step, index).

So a resumed run goes on as if it had never stopped, and the examples of a step are the same whether one
process computes them or several share them.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from scorefusion.diffusion.level import NoiseLevel, add_noise, training_target
from scorefusion.diffusion.schedule import paper_sampling, paper_training, sigma_to_abar
from scorefusion.errors import ScoreFusionError
from scorefusion.models.config import PLANES, BranchConfig
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.ops.gather_slices import gather_slices
from scorefusion.ops.reference.planes import AXIS
from scorefusion.train.config import StageConfig
from scorefusion.train.crops import CropSampler, normal
from scorefusion.train.pairs import factors_of, make_example

Batch = dict[str, Tensor]
"""Tensors by name, the examples along the first dimension of each."""

CACHED = 2**40
"""The step of the examples that a ``cached`` stage keeps: no step of a run has that number."""


DROPOUT = 2**41
"""From this index on, processes' own random numbers: no example has it."""


def stream(seed: int, stage: int, step: int, index: int) -> np.random.Generator:
    """The random numbers of one example; 2^128 of them before two examples would share any."""
    return np.random.Generator(np.random.Philox(key=[seed, stage], counter=[0, 0, index, step]))


def step_seed(seed: int, stage: int, step: int, process: int = 0) -> int:
    """What a process's dropout is seeded with."""
    return int(stream(seed, stage, step, DROPOUT + process).integers(2**31))


class Draws:
    """Draw the examples of a stage.

    Args:
        model: says what its networks are given; its weights do not matter.
        crops: where volumes come from.
        stage: what an example is.
        seed: of the run.
        number: of the stage.
    """

    def __init__(
        self, model: ScoreFusion, crops: CropSampler, stage: StageConfig, *, seed: int = 0, number: int = 0
    ):
        self.model, self.crops, self.stage = model, crops, stage
        self.seed, self.number = seed, number

    def batch(self, step: int, indices: Iterable[int]) -> Batch:
        """The examples of those numbers, of the ``stage.batch`` that a step has, on the CPU.

        In a ``slices`` stage an example is a few slices of each branch's plane, each from a box of its own:
        ``NETWORK.slab [N, C, H, W]``, ``.target [N, 1, H, W]``, ``.abar [N]`` and ``.label [N]`` for each
        network. In the others it is a box: ``x [B, 1, D, H, W]`` (noisy, scaled, padded), ``condition`` and
        ``common`` (padded, as :meth:`ScoreFusion.prepare` makes them), ``abar [B]``, ``t [B]`` and
        ``target [B, 1, D, H, W]``.
        """
        return together([part for index in indices for part in self.parts(step, index)])

    def parts(self, step: int, index: int) -> list[Batch]:
        """What one example is made of: a box, or slices of each branch."""
        random = stream(self.seed, self.number, step, index)
        if self.stage.kind != "slices":
            return [draw_box(self.model, self.crops, self.stage, random)]
        parts = []
        for branch in self.model.config.branches:
            slices = draw_slices(self.model, self.crops, self.stage, branch, random)
            parts.append({f"{branch.network}.{key}": tensor for key, tensor in slices.items()})
        return parts


def together(parts: list[Batch]) -> Batch:
    """Several batches as one; each may have some of its tensors.

    Raises:
        ScoreFusionError: for whole volumes of different sizes.
    """
    sizes = {tuple(part["target"].shape[2:]) for part in parts if "target" in part}
    if len(sizes) > 1:
        listed = ", ".join(str(list(size)) for size in sorted(sizes))
        raise ScoreFusionError(f"volumes of sizes {listed} cannot be one batch; set crop, or batch to 1")
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: torch.cat([part[name] for part in parts if name in part]) for name in names}


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


def draw_slices(
    model: ScoreFusion,
    crops: CropSampler,
    stage: StageConfig,
    branch: BranchConfig,
    random: np.random.Generator,
) -> Batch:
    """Slices of one branch, from a box as thin as they, their neighbours and the base's interpolation need.

    Each slice has its own noise level.
    """
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
    example = make_example(crop.volume, config, seed=int(random.integers(2**31)))
    window = [slice(None), slice(None)] + [
        slice(edge, length - edge) for edge, length in zip(edges, size, strict=True)
    ]
    origin = [start + edge for edge, start in zip(edges, crop.origin, strict=True)]
    residual, condition = example.residual[tuple(window)], example.condition[tuple(window)]

    first = reach + int(random.integers(0, inner - count + 1))
    level = draw_levels(count, stage, random)
    clean = residual.movedim(axis, 1)[0, first : first + count]
    noise = normal(clean.shape, random)
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
    label = torch.full((count,), PLANES.index(branch.plane))
    return {"slab": slab, "target": target, "abar": level.abar, "label": label}


def draw_box(
    model: ScoreFusion, crops: CropSampler, stage: StageConfig, random: np.random.Generator
) -> Batch:
    """A noisy box, or a whole volume, with its conditions."""
    config = model.config
    crop = crops.draw([stage.crop] * 3 if stage.crop else None, random)
    example = make_example(crop.volume, config, seed=int(random.integers(2**31)))
    level = draw_levels(1, stage, random)
    noise = normal(example.residual.shape, random)
    inputs = model.prepare(example.condition, origin=crop.origin, full=crop.full)
    batch = {
        "x": model.padded(model.scaled(add_noise(example.residual, noise, level.abar), level)),
        "condition": inputs.condition,
        "abar": level.abar,
        "t": level.t,
        "target": training_target(config.prediction, example.residual, noise, level.abar, config.sigma_data),
    }
    return batch if inputs.common is None else batch | {"common": inputs.common}
