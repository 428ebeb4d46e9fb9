"""The card that goes with a trained model: what it saw, how long, and what it is not for."""

from __future__ import annotations

from pathlib import Path

from scorefusion.models.config import ModelConfig
from scorefusion.models.domain import made_for
from scorefusion.train.config import TrainConfig, VolumeConfig
from scorefusion.train.journal import read_rows

NOT_FOR = """Not for diagnosis or any clinical decision. Detail that the input does not hold is the model's
guess: plausible, not measured. Pathology, contrast agent, other contrasts, other organs, and inputs that are
not block means of a finer grid (slice-selective profiles, k-space truncation) were not in the training
data."""


def training_card(config: TrainConfig, folder: Path, model: ModelConfig) -> str:
    """Markdown for a model that ``config`` trained in ``folder``; ``model`` says what it was made for."""
    rows = read_rows(folder)
    volumes = "\n".join(
        [f"| {_named(volume)} | {volume.variants} | {volume.share:g} |" for volume in config.volumes]
        + [
            f"| `{Path(part.data.root).name}`, {part.data.split} | {part.variants} | {part.share:g} |"
            for part in config.datasets
        ]
    )
    stages = []
    for number, stage in enumerate(config.stages):
        losses = [row["loss"] for row in rows if row["number"] == number]
        tail = losses[-max(len(losses) // 10, 1) :]
        mean = f"{sum(tail) / len(tail):.4f}" if tail else "-"
        box = f"{stage.crop}" if stage.crop else "whole volumes"
        stages.append(f"| {stage.kind} | {stage.steps} | {stage.batch} | {box} | {mean} |")
    minutes = rows[-1]["seconds"] / 60 if rows else 0.0
    return f"""# {model.name}

Trained by `scorefusion train` in {minutes:.0f} minutes of steps; `config.json` beside this card is the model,
the run's own configuration is in the repository's `configs/`.

## What it saw

| volume | warped variants | share of crops |
| --- | --- | --- |
{volumes}

Variants differ in voxel size, pose, size and a smooth deformation; every crop in contrast, sharpness, bias
field and noise.

| stage | steps | batch | crop | loss, mean of the last tenth |
| --- | --- | --- | --- | --- |
{chr(10).join(stages)}

{made_for(model)}
## What it is not for

{NOT_FOR}
"""


def _named(volume: VolumeConfig) -> str:
    """The files of a training subject, and what part of it was seen."""
    files = [volume.file] if volume.file else [*volume.files.values()]
    text = ", ".join(f"`{Path(file).name}`" for file in files)
    kept = [
        f"{axis} from {ends[0]} to {ends[1]}"
        for axis, ends in zip("zyx", volume.region, strict=True)
        if ends is not None
    ]
    return f"{text} ({', '.join(kept)})" if kept else text
