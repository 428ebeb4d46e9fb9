"""An early look at a run: what the averaged model makes of a few fixed boxes, as a picture and as PSNR."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scorefusion.data.find import Refusal
from scorefusion.degradations.make import make_operator
from scorefusion.degradations.projection import BlockPooling, MeasurementProjection
from scorefusion.diffusion.level import NoiseLevel
from scorefusion.diffusion.sample import sample
from scorefusion.io.atomic import written_beside
from scorefusion.metrics.image import psnr
from scorefusion.models.config import ModelConfig
from scorefusion.models.score_fusion import Inputs, ScoreFusion
from scorefusion.models.table import table_for
from scorefusion.optional import need
from scorefusion.train.config import AugmentConfig, StageConfig, TrainConfig
from scorefusion.train.crops import Crop, CropSampler
from scorefusion.train.pairs import contrasts_of, factors_of, is_degraded, make_example
from scorefusion.train.sources import volumes_of

CROP = 48
"""Edge of the boxes that are looked at where there is no validation."""

SHOWN = 3
WHITE_LESS_BLACK = 2.0
STRATEGY = {"slices": "average", "patches": "fuse", "features": "fuse+features", "volume": "volume"}
PLAIN = AugmentConfig(flip=False, gamma=0, remap=0, sharpen=0, bias=0, noise=0, noise_probability=0)


def boxes_of(
    config: TrainConfig,
    model: ModelConfig,
    folder: Path,
    crops: CropSampler,
    refused: Callable[[Refusal], None] | None = None,
) -> list[Crop]:
    """The boxes that are looked at: the validation's, unvaried, or else three varied crops of the training's.

    Raises:
        BadInput: for validation volumes that cannot be used.
    """
    given = config.validation
    if given is None:
        return [crops.draw([CROP] * 3, _random(config, number)) for number in range(SHOWN)]
    of_these = config.model_copy(update={"volumes": given.volumes, "datasets": given.datasets})
    store = volumes_of(of_these, model, folder, refused=refused)
    sampler = CropSampler(store, PLAIN, factors_of(model)[0])
    return [sampler.draw([given.size] * 3, _random(config, number)) for number in range(given.boxes)]


@torch.no_grad()
def look(model: ScoreFusion, boxes: Sequence[Crop], stage: StageConfig) -> list[dict[str, Tensor]]:
    """Restore the boxes in one step and in the model's own number of steps; see :func:`restore`.

    Args:
        model: the averaged one; its mode is kept.
        boxes: from :func:`boxes_of`.
        stage: decides the strategy.
    """
    was_training = model.training
    model.eval()
    try:
        return [restore(model, crop, stage, seed) for seed, crop in enumerate(boxes)]
    finally:
        model.train(was_training)


def judge(restored: Sequence[dict[str, Tensor]]) -> dict[str, float]:
    """Return means over the boxes of the PSNR, white less black being 2, in dB.

    They are ``psnr_base``, ``psnr_one_step`` and ``psnr`` of the sample.
    """
    named = zip(("psnr_base", "psnr_one_step", "psnr"), list(restored[0])[1:], strict=True)
    return {
        name: round(
            float(
                np.mean(
                    [psnr(each[label].numpy(), each["truth"].numpy(), WHITE_LESS_BLACK) for each in restored]
                )
            ),
            4,
        )
        for name, label in named
    }


def restore(model: ScoreFusion, crop: Crop, stage: StageConfig, seed: int) -> dict[str, Tensor]:
    """Truth, base, one step's result and a sample of a crop, each ``[1, 1, D, H, W]`` on the CPU."""
    description = model.config
    strategy = STRATEGY[stage.kind]
    strategy = strategy if strategy in description.strategies else description.sampling.strategy
    target = contrasts_of(description).index(description.target)
    truth = crop.volume[:, target : target + 1]
    example = make_example(crop.volume, description)
    condition = example.condition.to(next(model.parameters()).device)
    inputs = model.prepare(condition, origin=crop.origin, full=crop.full)
    volumes = {"truth": truth, "base": example.condition[:, :1]}
    steps = description.sampling.steps
    for label, count in (("one step", 1), (f"a sample, {steps} steps", steps)):
        residual = sample(
            functools.partial(_predict, model, inputs, strategy),
            condition,
            table_for(description, steps=count),
            seeds=[seed],
            clamp=description.sampling.clamp,
            project=_projection(description, condition),
        )
        volumes[label] = volumes["base"] + description.residual.scale * residual.cpu()
    return volumes


def _projection(description: ModelConfig, condition: Tensor) -> BlockPooling | MeasurementProjection | None:
    """As when a whole volume is sampled; none where what is measured mixes voxels beyond the box."""
    degradation = description.degradation
    if not is_degraded(description) or not description.sampling.consistency or any(degradation.whole):
        return None
    if degradation.blocks is not None:
        return BlockPooling(degradation.blocks)
    operator = make_operator(degradation, condition.shape[2:], device=condition.device)
    return None if operator is None else MeasurementProjection(operator)


def _predict(model: ScoreFusion, inputs: Inputs, strategy: str, x: Tensor, level: NoiseLevel) -> Tensor:
    return model(x, inputs, level, strategy=strategy)


def draw_look(restored: Sequence[dict[str, Tensor]], picture: Path) -> None:
    """Draw the first boxes: truth, base, one step, a sample."""
    restored = restored[:SHOWN]
    figure = need("matplotlib.figure", "a look").Figure(
        figsize=(10, 2.5 * len(restored)), layout="constrained"
    )
    axes = figure.subplots(len(restored), 4, squeeze=False)
    for row, volumes in zip(axes, restored, strict=True):
        for axis, (label, volume) in zip(row, volumes.items(), strict=True):
            error = (volume - volumes["truth"]).square().mean().sqrt().item()
            axis.imshow(_middle(volume), cmap="gray", vmin=-1, vmax=1)
            axis.set_title(f"{label}  rmse {error:.4f}", fontsize=8)
            axis.axis("off")
    with written_beside(picture) as beside:
        figure.savefig(beside, dpi=80)


def _middle(volume: Tensor) -> np.ndarray:
    return volume[0, 0, volume.shape[2] // 2].flip(0).numpy()


def _random(config: TrainConfig, number: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[config.seed, 10**6 + number]))
