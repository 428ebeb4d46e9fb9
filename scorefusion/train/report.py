"""Report on a training run: log, loss curves, TensorBoard, sample pictures with PSNR, the model card."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from scorefusion.data import Refused
from scorefusion.engine.engine import Engine
from scorefusion.engine.planning.plan import plan, without_projection
from scorefusion.errors import one_line
from scorefusion.io.atomic import written_beside
from scorefusion.metrics import Pair, measure
from scorefusion.models.config import ModelConfig
from scorefusion.models.domain import made_for
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.models.strategies import AVERAGE, FUSE, FUSE_FEATURES, VOLUME, strategy_named
from scorefusion.models.table import table_for
from scorefusion.optional import need
from scorefusion.train.checkpoint import State
from scorefusion.train.config import AugmentConfig, FolderConfig, StageConfig, TrainConfig, VolumeConfig
from scorefusion.train.examples import Crop, CropSampler, contrasts_of, factors_of, is_degraded, make_example
from scorefusion.train.sources import volumes_of

LOG = "log.jsonl"
_TENSORBOARD = "TensorBoard's file"
T = TypeVar("T")


class Journal:
    """Rows of figures, appended; what a stopped run wrote after its checkpoint (``state``) is cut off.

    What cannot be written is warned of once, and the training goes on.
    """

    def __init__(
        self, folder: Path, state: State, config: TrainConfig, warn: Callable[[str], None] | None = None
    ) -> None:
        self.path, self.warn = folder / LOG, warn
        self._failed: set[str] = set()
        self._waiting, self._written = b"", state.logged
        self.attempt(LOG, self._append)
        steps = [stage.steps for stage in config.stages]
        self.before = [sum(steps[:number]) for number in range(len(steps) + 1)]
        done = self.before[state.stage] + state.step
        self.writer: Any = None
        if config.tensorboard:
            self.writer = self.attempt(_TENSORBOARD, lambda: _writer(folder / "tensorboard", done))

    def attempt(self, name: str, write: Callable[[], T]) -> T | None:
        """Write a part of the report; None if that fails, of which the first time is warned."""
        try:
            return write()
        except Exception as error:
            if name not in self._failed and self.warn is not None:
                self.warn(f"{name} could not be written ({one_line(error)}); the training goes on")
            self._failed.add(name)
            return None

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row: ``number`` and ``stage``, ``step``, and figures. One that cannot be written waits."""
        self._waiting += json.dumps(row).encode() + b"\n"
        self.attempt(LOG, self._append)
        if self.writer is not None:
            self.attempt(_TENSORBOARD, lambda: self._add_scalars(row))
            if _TENSORBOARD in self._failed:
                self.writer = None

    def settled(self) -> int:
        """Bytes of the log that the disk has."""
        self.attempt(LOG, self._sync)
        return self._written

    def close(self) -> None:
        """Close TensorBoard's file."""
        if self.writer is not None:
            self.attempt(_TENSORBOARD, self.writer.close)

    def _append(self) -> None:
        """Cut off what follows the last row that was written whole, and write the rows that wait."""
        with open(self.path, "ab") as file:
            end = min(self._written, file.tell())
            file.truncate(end)
            file.write(self._waiting)
        self._written, self._waiting = end + len(self._waiting), b""

    def _sync(self) -> None:
        with open(self.path, "ab") as file:
            os.fsync(file.fileno())

    def _add_scalars(self, row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            if isinstance(value, float):
                tag = f"{row['number'] + 1} {row['stage']}/{name}"
                self.writer.add_scalar(tag, value, self.before[row["number"]] + row["step"])
        self.writer.flush()


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's log; a last one that is not whole is left out."""
    path = folder / LOG
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def draw_curves(folder: Path) -> None:
    """Draw ``folder/log.jsonl`` as ``folder/curves.png``: loss, and validation PSNR, of each stage."""
    figures = need("matplotlib.figure", "loss curves")
    rows = read_rows(folder)
    stages = list(dict.fromkeys((row["number"], row["stage"]) for row in rows))
    judged = any("psnr" in row for row in rows)
    if not stages:
        return
    figure = figures.Figure(figsize=(4 * len(stages), 6 if judged else 3), layout="constrained")
    axes = figure.subplots(1 + judged, len(stages), squeeze=False)
    for column, (number, kind) in zip(axes.T, stages, strict=True):
        mine = [row for row in rows if row["number"] == number]
        steps, losses = (np.array([row[name] for row in mine]) for name in ("step", "loss"))
        column[0].plot(steps, losses, lw=0.5, alpha=0.5)
        window = max(len(losses) // 20, 1)
        column[0].plot(steps[window - 1 :], np.convolve(losses, np.ones(window) / window, mode="valid"))
        column[0].set(title=kind, xlabel="step", ylabel="loss", yscale="log")
        looks = [row for row in mine if "psnr" in row]
        for name, label in (("psnr", "sampled"), ("psnr_one_step", "one step"), ("psnr_base", "base")):
            if looks:
                seen, values = ([row[key] for row in looks] for key in ("step", name))
                column[1].plot(seen, values, ".-", label=label)
                column[1].set(xlabel="step", ylabel="PSNR, dB")
                column[1].legend(fontsize=7)
    with written_beside(folder / "curves.png") as beside:
        figure.savefig(beside, dpi=100)


def _writer(folder: Path, done: int) -> Any:
    """TensorBoard's, which leaves out what was written beyond step ``done``; None without the package."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=done + 1)


CROP = 48  #: edge of the boxes that are looked at where there is no validation
SHOWN = 3
WHITE_LESS_BLACK = 2.0
STRATEGY = {"slices": AVERAGE, "patches": FUSE, "features": FUSE_FEATURES, "volume": VOLUME}
PLAIN = AugmentConfig(flip=False, gamma=0, remap=0, sharpen=0, bias=0, noise=0, noise_probability=0)


def boxes_of(
    config: TrainConfig, model: ModelConfig, folder: Path, crops: CropSampler, refused: Refused | None = None
) -> list[Crop]:
    """Return the validation's boxes, unvaried, or without validation three varied crops of the training's."""
    given = config.validation
    if given is None:
        return [crops.draw([CROP] * 3, _random(config, number)) for number in range(SHOWN)]
    of_these = config.model_copy(update={"volumes": given.volumes, "datasets": given.datasets})
    store = volumes_of(of_these, model, folder, refused=refused)
    sampler = CropSampler(store, PLAIN, factors_of(model)[0])
    return [sampler.draw([given.size] * 3, _random(config, number)) for number in range(given.boxes)]


@torch.no_grad()
def look(model: ScoreFusion, boxes: Sequence[Crop], stage: StageConfig) -> list[dict[str, Tensor]]:
    """Restore the boxes in one step and in the model's own number of steps; see :func:`restore`."""
    return [restore(model, crop, stage, seed) for seed, crop in enumerate(boxes)]


def judge(restored: Sequence[dict[str, Tensor]]) -> dict[str, float]:
    """Return means over the boxes of the metrics of early looks, white less black being 2.

    For each there are the base's (``psnr_base``), one step's (``psnr_one_step``) and a sample's (``psnr``).
    """
    means = {}
    for ending, label in zip(("_base", "_one_step", ""), list(restored[0])[1:], strict=True):
        pairs = [(each[label][0, 0].numpy(), each["truth"][0, 0].numpy()) for each in restored]
        measured = [measure(Pair(*pair, WHITE_LESS_BLACK), "look") for pair in pairs]
        for name in measured[0]:
            means[f"{name}{ending}"] = round(float(np.mean([figures[name] for figures in measured])), 4)
    return means


def restore(model: ScoreFusion, crop: Crop, stage: StageConfig, seed: int) -> dict[str, Tensor]:
    """Truth, base, one step's result and a sample of a crop, each ``[1, 1, D, H, W]`` on the CPU."""
    description = model.config
    strategy = STRATEGY[stage.kind]
    if not strategy.available(description):
        strategy = strategy_named(description.sampling.strategy)
    target = contrasts_of(description).index(description.target)
    truth = crop.volume[:, target : target + 1]
    example = make_example(crop.volume, description)
    condition = example.condition.to(next(model.parameters()).device)
    # As when a whole volume is sampled; none where what is measured mixes voxels beyond the box.
    degradation, operator = description.degradation, None
    if is_degraded(description) and description.sampling.consistency and not any(degradation.whole):
        operator = degradation.operator(condition.shape[2:], device=condition.device)
    project = None if operator is None else operator.project()
    planned = without_projection(description) if project is None else description
    engine = Engine(model, plan(planned, condition.shape[2:], strategy=strategy))
    engine.load(condition, origin=crop.origin, full=crop.full, project=project)
    volumes = {"truth": truth, "base": example.condition[:, :1]}
    steps = description.sampling.steps
    for label, count in (("one step", 1), (f"a sample, {steps} steps", steps)):
        residual = engine.run(table_for(description, steps=count), [seed])
        volumes[label] = description.residual.added_to(volumes["base"], residual.cpu())
    return volumes


def draw_look(restored: Sequence[dict[str, Tensor]], picture: Path) -> None:
    """Draw the first boxes: truth, base, one step, a sample."""
    restored = restored[:SHOWN]
    size = (10, 2.5 * len(restored))
    figure = need("matplotlib.figure", "a look").Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(restored), 4, squeeze=False)
    for row, volumes in zip(axes, restored, strict=True):
        for axis, (label, volume) in zip(row, volumes.items(), strict=True):
            error = (volume - volumes["truth"]).square().mean().sqrt().item()
            middle = volume[0, 0, volume.shape[2] // 2].flip(0).numpy()
            axis.imshow(middle, cmap="gray", vmin=-1, vmax=1)
            axis.set_title(f"{label}  rmse {error:.4f}", fontsize=8)
            axis.axis("off")
    with written_beside(picture) as beside:
        figure.savefig(beside, dpi=80)


def _random(config: TrainConfig, number: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[config.seed, 10**6 + number]))


def training_card(config: TrainConfig, folder: Path, model: ModelConfig) -> str:
    """Markdown for a model that ``config`` trained in ``folder``; ``model`` says what it was made for."""
    rows = read_rows(folder)
    volumes: list[tuple[str, VolumeConfig | FolderConfig]]
    volumes = [(_named(volume), volume) for volume in config.volumes]
    volumes += [(f"`{Path(part.data.root).name}`, {part.data.split}", part) for part in config.datasets]
    seen = "\n".join(f"| {name} | {part.variants} | {part.share:g} |" for name, part in volumes)
    if config.labels is not None:
        painted = f"images painted of the label maps in `{Path(config.labels.folder).name}`"
        if config.labels.hold_out:
            painted += f", but for the last {config.labels.hold_out}"
        seen = f"| {painted} | | {config.labels.share:g} |\n{seen}".rstrip()
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
{seen}

Variants differ in voxel size, pose, size and a smooth deformation; every crop in contrast, sharpness, bias
field and noise.

| stage | steps | batch | crop | loss, mean of the last tenth |
| --- | --- | --- | --- | --- |
{chr(10).join(stages)}

{made_for(model)}
## What it is not for

Not for diagnosis or any clinical decision. Detail that the input does not hold is the model's
guess: plausible, not measured. Pathology, contrast agent, other contrasts, other organs, and inputs that are
not block means of a finer grid (slice-selective profiles, k-space truncation) were not in the training
data.
"""


def _named(volume: VolumeConfig) -> str:
    """The files of a training subject, and what part of it was seen."""
    files = [volume.file] if volume.file else [*volume.files.values()]
    text = ", ".join(f"`{Path(file).name}`" for file in files)
    kept = [f"{axis} from {e[0]} to {e[1]}" for axis, e in zip("zyx", volume.region, strict=True) if e]
    return f"{text} ({', '.join(kept)})" if kept else text
