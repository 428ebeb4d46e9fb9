"""Training examples: random crops, their variations, and pairs of a noisy residual and its conditions.

Each example is a pure function of (seed, stage, step, index): a resumed run continues as if it had never
stopped, and the examples of a step are the same whether one process computes them or several share them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scorefusion.data.synth import LabelCrops
from scorefusion.diffusion.level import NoiseLevel, add_noise, training_target
from scorefusion.diffusion.schedule import paper_sampling, paper_training, sigma_to_abar
from scorefusion.errors import ScoreFusionError
from scorefusion.models.config import PLANES, BranchConfig, ModelConfig
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.models.slabs import pad
from scorefusion.ops.gather_slices import gather_slices
from scorefusion.ops.reference.planes import AXIS
from scorefusion.train.config import AugmentConfig, StageConfig

Random = np.random.Generator


@dataclass(frozen=True)
class Example:
    """A clean residual ``[B, 1, D, H, W]`` and its conditions ``[B, C, D, H, W]``."""

    residual: Tensor
    condition: Tensor


def is_degraded(config: ModelConfig) -> bool:
    """Whether the first condition is made from the target."""
    if not config.degradation.measures:
        if config.target in config.conditions:
            raise ScoreFusionError(
                f"model {config.name!r} is given its target, {config.target!r}, as it is; nothing to learn"
            )
        return False
    if config.conditions[0] != config.target:
        raise ScoreFusionError(
            f"model {config.name!r} degrades its target, {config.target!r}, so its first condition must be "
            f"that; got {config.conditions[0]!r}"
        )
    return True


def contrasts_of(config: ModelConfig) -> tuple[str, ...]:
    """The contrasts that a training subject needs, the target first."""
    read = config.conditions[1:] if is_degraded(config) else config.conditions
    return tuple(dict.fromkeys((config.target, *read)))


def factors_of(config: ModelConfig) -> tuple[tuple[int, int, int], ...]:
    """How much coarser (z, y, x) the input of each of :func:`contrasts_of` is than the target's grid."""
    factors = config.degradation.factors if is_degraded(config) else (1, 1, 1)
    return (factors, *[(1, 1, 1)] * (len(contrasts_of(config)) - 1))


def needs_whole(config: ModelConfig) -> bool:
    """Whether a crop's first condition can only be made from the whole volume, and so is stored beside it."""
    return (
        is_degraded(config) and any(config.degradation.whole) and not config.degradation.crops_measure_alike
    )


def whole_condition(volume: np.ndarray, config: ModelConfig) -> np.ndarray:
    """The first condition ``[D, H, W]`` of a whole subject ``[C, D, H, W]``, for :func:`needs_whole`.

    Lines and noise are those of the degradation's own seed.
    """
    target = torch.from_numpy(np.ascontiguousarray(volume[None, :1], dtype=np.float32))
    given = config.degradation.degrade(target, base=config.residual.base)
    return given.condition[0, 0].numpy()


def make_example(volume: Tensor, config: ModelConfig, *, seed: int | None = None) -> Example:
    """Form the conditions of a crop, and the residual to the base that they give.

    ``volume [B, C, D, H, W]`` near [-1, 1] has the contrasts of :func:`contrasts_of`, and last what
    :func:`whole_condition` made where it is needed. A ``seed`` is of the measurement's noise, holes or lines.
    """
    names = contrasts_of(config)
    parts = volume.split(1, dim=1)
    given = dict(zip(names, parts[: len(names)], strict=True))
    target = given[config.target]
    if needs_whole(config):
        base = parts[len(names)]
    elif is_degraded(config):
        base = config.degradation.degrade(target, base=config.residual.base, seed=seed).condition
    else:
        base = given[config.conditions[0]]
    residual = config.residual.of(target, base)
    return Example(residual, torch.cat([base, *(given[name] for name in config.conditions[1:])], dim=1))


FOREGROUND = -0.85


class Crop(NamedTuple):
    """A box ``volume [1, C, D, H, W]`` of a training subject, its (z, y, x) origin, the whole's size."""

    volume: Tensor
    origin: tuple[int, ...]
    full: tuple[int, ...]


class CropSampler:
    """Draw boxes of the training volumes, mostly where there is something, and vary their contrast.

    The store has arrays ``[C, D, H, W]`` near [-1, 1], each with its share of the draws. Origins of crops are
    multiples of ``align`` (z, y, x), the block edges of the degradation. Images painted of ``labels`` have a
    share as well. If ``turned``, a volume's axes are exchanged at random, so that each is
    measured along, and a crop is a volume of its own.
    """

    def __init__(
        self,
        store: Sequence[tuple[np.ndarray, float]],
        augment: AugmentConfig,
        align: Sequence[int],
        *,
        labels: tuple[LabelCrops, float] | None = None,
        turned: bool = False,
    ):
        self.arrays = [array for array, _ in store]
        self.labels = None if labels is None else labels[0]
        share_of_labels = 0.0 if labels is None else labels[1]
        shares = np.array([share for _, share in store] + [share_of_labels] * (labels is not None))
        self.shares = shares / shares.sum()
        self.augment, self.align, self.turned = augment, tuple(align), turned

    def draw(self, size: Sequence[int] | None, random: Random) -> Crop:
        """An augmented crop of ``size`` (z, y, x); a whole volume when size is None."""
        chosen = random.choice(len(self.shares), p=self.shares)
        if chosen == len(self.arrays):
            assert self.labels is not None
            if size is None:
                raise ScoreFusionError("images of label maps are drawn in crops; give each stage a crop")
            return _own_volume(torch.from_numpy(self.labels.draw(size, random))[None])
        array = self.arrays[chosen]
        if self.turned:
            order = [int(axis) for axis in random.permutation(3)]
            array = array.transpose(0, *(axis + 1 for axis in order))
            crop = self._crop(array, size, random)
            return _own_volume(crop.volume)
        return self._crop(array, size, random)

    def _crop(self, array: np.ndarray, size: Sequence[int] | None, random: Random) -> Crop:
        whole = array.shape[1:]
        origin = (0, 0, 0) if size is None else self._place(array, size, random)
        want = whole if size is None else tuple(size)
        box = tuple(slice(start, start + length) for start, length in zip(origin, want, strict=True))
        part = torch.from_numpy(np.array(array[:, box[0], box[1], box[2]])).float()[None]
        short = [length - have for length, have in zip(want, part.shape[2:], strict=True)]
        if any(short):
            part = F.pad(part, (0, short[2], 0, short[1], 0, short[0]), mode="replicate")
        return Crop(vary(part, self.augment, random), origin, whole)

    def _place(self, array: np.ndarray, size: Sequence[int], random: Random) -> tuple[int, ...]:
        """An aligned origin, drawn again (8 times at most) until a third of the box is foreground."""
        origin: tuple[int, ...] = (0, 0, 0)
        for _ in range(8):
            origin = tuple(
                int(random.integers(0, max(have - length, 0) // step + 1)) * step
                for have, length, step in zip(array.shape[1:], size, self.align, strict=True)
            )
            box = tuple(slice(start, start + length, 2) for start, length in zip(origin, size, strict=True))
            if (array[0][box] > FOREGROUND).mean() > 0.35:
                break
        return origin


def _own_volume(volume: Tensor) -> Crop:
    return Crop(volume, (0, 0, 0), tuple(volume.shape[2:]))


def vary(volume: Tensor, augment: AugmentConfig, random: Random) -> Tensor:
    """Vary ``volume [1, C, D, H, W]`` near [-1, 1]: flip all contrasts together, change each on its own."""
    if augment.flip:
        axes = [axis for axis in (2, 3, 4) if random.random() < 0.5]
        volume = volume.flip(axes) if axes else volume
    return torch.cat([_varied(channel, augment, random) for channel in volume.split(1, dim=1)], dim=1)


def normal(shape: Sequence[int], random: Random) -> Tensor:
    """Independent normal numbers, float32; their generator is seeded from ``random``."""
    generator = torch.Generator().manual_seed(int(random.integers(2**63)))
    return torch.randn(tuple(shape), generator=generator)


def _varied(volume: Tensor, augment: AugmentConfig, random: Random) -> Tensor:
    """Sharpen, re-map, shade and add noise to one contrast ``[1, 1, D, H, W]``."""
    if augment.sharpen and random.random() < 0.5:
        strength = float(random.uniform(-0.3, augment.sharpen))
        volume = volume + strength * (volume - _blurred(volume))
    level = (volume + 1).mul_(0.5).clamp_(0, 2)
    if augment.gamma:
        level = level ** float(np.exp(random.normal(0, augment.gamma)))
    if random.random() < augment.remap:
        level = _remapped(level, random)
    if augment.bias:
        level = level * _shade(level.shape[2:], augment.bias, random)
    if random.random() < augment.noise_probability:
        sigma = float(random.uniform(0, augment.noise))
        first, second = normal((2, *level.shape), random).mul_(sigma)
        level = first.add_(level).square_().add_(second.square_()).sqrt_()
    return level.mul_(2).sub_(1)


def _blurred(volume: Tensor) -> Tensor:
    """Means of 3x3x3 voxels, the edges repeated, one axis after another."""
    volume = F.pad(volume, (1,) * 6, mode="replicate")
    for axis in (2, 3, 4):
        left, middle, right = (volume.narrow(axis, at, volume.shape[axis] - 2) for at in range(3))
        volume = (left + middle).add_(right)
    return volume.div_(27)


def _remapped(level: Tensor, random: Random) -> Tensor:
    """Another contrast: a random piecewise linear curve through (0, 0), not always rising."""
    knots = np.concatenate([[0.0], np.cumsum(random.uniform(-0.15, 0.5, 6))])
    knots = np.abs(knots) / max(np.abs(knots[1:5]).max(), 0.3)
    position = (level * 4).clamp_(0, 6)
    slopes = np.diff(knots)
    curve = position * float(slopes[0])
    for knot, bend in enumerate(np.diff(slopes), start=1):
        curve.add_((position - knot).clamp_(min=0), alpha=float(bend))
    return curve


def _shade(shape: Sequence[int], strength: float, random: Random) -> Tensor:
    """A smooth multiplicative bias field ``[1, 1, D, H, W]`` about 1: trilinear between the corners."""
    field = torch.from_numpy(random.normal(0, strength / 2, (2, 2, 2)).astype(np.float32))
    for axis in (2, 1, 0):  # the last, and largest, step in one pass
        first, last = field.select(axis, 0).unsqueeze(axis), field.select(axis, 1).unsqueeze(axis)
        place = torch.linspace(0, 1, shape[axis]).reshape([-1 if axis == at else 1 for at in range(3)])
        field = torch.lerp(first, last, place)
    return field.add_(1)[None, None]


Batch = dict[str, Tensor]  #: tensors by name, the examples along the first dimension of each
CACHED = 2**40  #: the step of the examples that a ``cached`` stage keeps: no step of a run has that number
DROPOUT = 2**41  #: from this index on, processes' own random numbers: no example has it


def stream(seed: int, stage: int, step: int, index: int) -> Random:
    """The random numbers of one example; 2^128 of them before two examples would share any."""
    return np.random.Generator(np.random.Philox(key=[seed, stage], counter=[0, 0, index, step]))


def step_seed(seed: int, stage: int, step: int, process: int = 0) -> int:
    """What a process's dropout is seeded with."""
    return int(stream(seed, stage, step, DROPOUT + process).integers(2**31))


@dataclass
class Draws:
    """Draw the examples of a stage."""

    model: ScoreFusion  #: says what its networks are given; its weights do not matter
    crops: CropSampler  #: where volumes come from
    stage: StageConfig  #: what an example is
    seed: int = 0  #: of the run
    number: int = 0  #: of the stage

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
        branches = self.model.config.branches
        return [draw_slices(self.model, self.crops, self.stage, branch, random) for branch in branches]


def together(parts: list[Batch]) -> Batch:
    """Several batches as one; each may have some of its tensors."""
    sizes = {tuple(part["target"].shape[2:]) for part in parts if "target" in part}
    if len(sizes) > 1:
        listed = ", ".join(str(list(size)) for size in sorted(sizes))
        raise ScoreFusionError(f"volumes of sizes {listed} cannot be one batch; set crop, or batch to 1")
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: torch.cat([part[name] for part in parts if name in part]) for name in names}


def draw_levels(count: int, stage: StageConfig, random: Random, start: float = 0.0) -> NoiseLevel:
    """Noise levels ``[count]``: log-normal in sigma, or uniform over one of the paper's schedules.

    The paper's 2D stage draws abar uniformly between neighbouring steps of its training schedule. Sampling
    starts at sigma ``start``, for a stage that asks for some examples there.
    """
    if stage.noise_levels == "log-normal":
        sigma = np.exp(random.normal(stage.ln_sigma_mean, stage.ln_sigma_std, count))
        if stage.at_start:
            sigma[random.random(count) < stage.at_start] = start
        return NoiseLevel.continuous(torch.from_numpy(sigma_to_abar(sigma)))
    schedule = paper_training() if stage.noise_levels == "paper-training" else paper_sampling()
    steps = random.integers(1, len(schedule.abar), count)
    if stage.noise_levels == "paper-training":
        share = random.random(count)
        abar = schedule.abar[steps] * (1 - share) + schedule.abar[steps - 1] * share
        return NoiseLevel.continuous(torch.from_numpy(abar))
    return NoiseLevel(torch.from_numpy(schedule.abar[steps]), torch.from_numpy(steps))


def measured_anew(config: ModelConfig, random: Random) -> ModelConfig:
    """The configuration with the measurement of one example; itself where all are alike."""
    drawn = config.degradation.drawn(random)
    return config if drawn is config.degradation else config.model_copy(update={"degradation": drawn})


def _extended(size: list[int], along: int, block: int, random: Random) -> int:
    """Extend a size to whole blocks along an axis, in place; a random place of what was wanted within."""
    more = -size[along] % block
    size[along] += more
    return int(random.integers(0, more + 1)) if more else 0


def draw_slices(
    model: ScoreFusion, crops: CropSampler, stage: StageConfig, branch: BranchConfig, random: Random
) -> Batch:
    """Slices of one branch, from a box as thin as they, their neighbours and the base's interpolation need.

    Each slice has its own noise level.
    """
    config, count = measured_anew(model.config, random), stage.slices
    axis, blocks = AXIS[branch.plane], factors_of(config)[0]
    block = blocks[axis - 2]
    reach = -(-config.context // block) * block
    if config.degradation.crops_measure_alike:
        reach += block if block > 1 else 0
    inner = -(-count // block) * block
    edges = [edge if edge > 1 else 0 for edge in blocks]  # what the base's interpolation reaches
    edges[axis - 2] = 0
    wanted = [int(stage.crop or 0)] * 3
    wanted[axis - 2] = inner + 2 * reach
    size = [length + 2 * edge for length, edge in zip(wanted, edges, strict=True)]
    places = [_extended(size, along, blocks[along], random) + edges[along] for along in range(3)]
    crop = crops.draw(size, random)
    example = make_example(crop.volume, config, seed=int(random.integers(2**31)))
    window: Any = (..., *(slice(place, place + n) for place, n in zip(places, wanted, strict=True)))
    origin = [start + place for place, start in zip(places, crop.origin, strict=True)]
    residual, condition = example.residual[window], example.condition[window]

    first = reach + int(random.integers(0, inner - count + 1))
    level = draw_levels(count, stage, random, config.sampling.sigma_max)
    clean = residual.movedim(axis, 1)[0, first : first + count]
    noise = normal(clean.shape, random)
    noisy = torch.zeros_like(residual)
    seen = model.scaled(add_noise(clean, noise, level.abar), level)
    noisy.movedim(axis, 1)[0, first : first + count] = seen
    inputs = model.prepare(condition, origin=origin, full=crop.full, measurement=config.degradation)
    padded = pad(noisy, config.grid(noisy.shape[2:]))
    slab = gather_slices(
        padded, inputs.condition, inputs.common, branch.plane, first, first + count,
        channels=branch.conditions, context=config.context, order=config.context_order,
    )  # fmt: skip
    target = training_target(config.prediction, clean, noise, level.abar, config.sigma_data)
    label = torch.full((count,), PLANES.index(branch.plane))
    example_of = {"slab": slab, "target": target, "abar": level.abar, "label": label}
    return {f"{branch.network}.{key}": tensor for key, tensor in example_of.items()}


def draw_box(model: ScoreFusion, crops: CropSampler, stage: StageConfig, random: Random) -> Batch:
    """A noisy box, or a whole volume, with its conditions."""
    config = measured_anew(model.config, random)
    measurement, blocks = config.degradation, factors_of(config)[0]
    size = [stage.crop] * 3 if stage.crop else None
    places = [0, 0, 0]
    if size is not None and measurement.crops_measure_alike:
        edges = [edge if edge > 1 else 0 for edge in blocks]
        size = [length + 2 * edge for length, edge in zip(size, edges, strict=True)]
        places = [_extended(size, along, blocks[along], random) + edges[along] for along in range(3)]
    crop = crops.draw(size, random)
    example = make_example(crop.volume, config, seed=int(random.integers(2**31)))
    if size is not None and any(places):
        window: Any = (..., *(slice(place, place + int(stage.crop or 0)) for place in places))
        example = Example(example.residual[window], example.condition[window])
    origin = [start + place for place, start in zip(places, crop.origin, strict=True)]
    level = draw_levels(1, stage, random, config.sampling.sigma_max)
    noise = normal(example.residual.shape, random)
    inputs = model.prepare(example.condition, origin=origin, full=crop.full, measurement=measurement)
    batch = {
        "x": model.seen(add_noise(example.residual, noise, level.abar), level),
        "condition": inputs.condition,
        "abar": level.abar,
        "t": level.t,
        "target": training_target(config.prediction, example.residual, noise, level.abar, config.sigma_data),
    }
    return batch if inputs.common is None else batch | {"common": inputs.common}
