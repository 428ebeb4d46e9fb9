"""The card that goes with a trained model: what it saw, how long, and what it is not for."""

from __future__ import annotations

import json
from pathlib import Path

from .config import TrainConfig

NOT_FOR = """Not for diagnosis or any clinical decision. Detail that the input does not hold is the model's
guess: plausible, not measured. Pathology, contrast agent, other contrasts, other organs, and inputs that are
not block means of a finer grid (slice-selective profiles, k-space truncation) were not in the training
data."""


def training_card(config: TrainConfig, folder: Path) -> str:
    """Markdown for a model that ``config`` trained in ``folder``."""
    name = config.model if isinstance(config.model, str) else config.model.name
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    volumes = "\n".join(
        f"| `{Path(volume.file).name}` | {volume.variants} | {volume.share:g} |" for volume in config.volumes
    )
    stages = []
    for number, stage in enumerate(config.stages):
        losses = [row["loss"] for row in rows if row["number"] == number]
        tail = losses[-max(len(losses) // 10, 1) :]
        mean = f"{sum(tail) / len(tail):.4f}" if tail else "-"
        box = f"{stage.crop}" if stage.crop else "whole volumes"
        stages.append(f"| {stage.kind} | {stage.steps} | {stage.batch} | {box} | {mean} |")
    minutes = rows[-1]["seconds"] / 60 if rows else 0.0
    return f"""# {name}

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

## What it is not for

{NOT_FOR}
"""
