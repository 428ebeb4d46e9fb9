"""An early look at a run: the loss curves, and what the averaged model makes of a few crops."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..diffusion.consistency import BlockPooling
from ..diffusion.level import NoiseLevel
from ..diffusion.sample import sample
from ..models.score_fusion import Inputs, ScoreFusion
from ..models.table import table_for
from .config import TrainConfig
from .crops import CropSampler
from .pairs import contrasts_of, is_degraded, make_example

CROP = 48
STRATEGY = {"slices": "average", "patches": "fuse", "features": "fuse+features", "volume": "volume"}


@torch.no_grad()
def draw_look(
    config: TrainConfig, folder: Path, model: ScoreFusion, crops: CropSampler, stage: int, step: int
) -> None:
    """Write ``folder/look-STAGE-STEP.png``: truth, base, one step and a sample of three crops."""
    from matplotlib.figure import Figure

    description = model.config
    strategy = STRATEGY[config.stages[stage].kind]
    target = contrasts_of(description).index(description.target)
    was_training = model.training
    model.eval()
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    axes = figure.subplots(3, 4, squeeze=False)
    for row in range(3):
        crop = crops.draw([CROP] * 3, np.random.Generator(np.random.Philox(key=[config.seed, 10**6 + row])))
        example = make_example(crop.volume, description)
        inputs = model.prepare(example.condition, origin=crop.origin, full=crop.full)
        truth, base = crop.volume[:, target : target + 1], example.condition[:, :1]
        volumes = {"truth": truth, "base": base}
        for label, steps in (
            ("one step", 1),
            (f"{description.sampling.steps} steps", description.sampling.steps),
        ):
            table = table_for(description, steps=steps)
            residual = sample(
                functools.partial(_predict, model, inputs, strategy),
                example.condition,
                table,
                seeds=[row],
                clamp=description.sampling.clamp,
                project=BlockPooling(description.degradation.factor) if is_degraded(description) else None,
            )
            volumes[label] = base + description.residual.scale * residual
        for axis, (label, volume) in zip(axes[row], volumes.items(), strict=True):
            error = (volume - truth).square().mean().sqrt().item()
            axis.imshow(_middle(volume), cmap="gray", vmin=-1, vmax=1)
            axis.set_title(f"{label}  rmse {error:.4f}", fontsize=8)
            axis.axis("off")
    figure.savefig(folder / f"look-{stage + 1}-{step:06d}.png", dpi=80)
    model.train(was_training)


def _predict(model: ScoreFusion, inputs: Inputs, strategy: str, x: Tensor, level: NoiseLevel) -> Tensor:
    return model(x, inputs, level, strategy=strategy)


def draw_curves(folder: Path) -> None:
    """Draw ``folder/log.jsonl`` as ``folder/curves.png``: the loss of each stage against steps."""
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    kinds = list(dict.fromkeys(row["stage"] for row in rows))
    figure = Figure(figsize=(4 * max(len(kinds), 1), 3), layout="constrained")
    for axis, kind in zip(figure.subplots(1, max(len(kinds), 1), squeeze=False)[0], kinds, strict=False):
        steps = np.array([row["step"] for row in rows if row["stage"] == kind])
        losses = np.array([row["loss"] for row in rows if row["stage"] == kind])
        axis.plot(steps, losses, lw=0.5, alpha=0.5)
        window = max(len(losses) // 20, 1)
        axis.plot(steps[window - 1 :], np.convolve(losses, np.ones(window) / window, mode="valid"))
        axis.set(title=kind, xlabel="step", ylabel="loss", yscale="log")
    figure.savefig(folder / "curves.png", dpi=100)


def _middle(volume: Tensor) -> np.ndarray:
    return volume[0, 0, volume.shape[2] // 2].flip(0).numpy()
