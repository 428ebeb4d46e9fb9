"""What a run tells of itself: ``log.jsonl``, curves of it, TensorBoard where that is installed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..io.atomic import written_beside
from ..optional import need
from .checkpoint import State
from .config import TrainConfig

LOG = "log.jsonl"


class Journal:
    """Rows of figures, appended.

    Args:
        folder: the run's.
        state: where the run is: what a stopped run wrote after its checkpoint is cut off.
        config: the run.
    """

    def __init__(self, folder: Path, state: State, config: TrainConfig) -> None:
        self.path = folder / LOG
        with open(self.path, "ab") as file:
            file.truncate(min(state.logged, file.tell()))
        steps = [stage.steps for stage in config.stages]
        self.before = [sum(steps[:number]) for number in range(len(steps) + 1)]
        done = self.before[state.stage] + state.step
        self.writer = _writer(folder / "tensorboard", done) if config.tensorboard else None

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row: ``number`` and ``stage``, ``step``, and figures."""
        with open(self.path, "a") as file:
            file.write(json.dumps(row) + "\n")
        if self.writer is not None:
            for name, value in row.items():
                if isinstance(value, float):
                    tag = f"{row['number'] + 1} {row['stage']}/{name}"
                    self.writer.add_scalar(tag, value, self.before[row["number"]] + row["step"])
            self.writer.flush()

    def settled(self) -> int:
        """Bytes written, after the disk has them."""
        with open(self.path, "ab") as file:
            os.fsync(file.fileno())
            return file.tell()

    def close(self) -> None:
        """Close TensorBoard's file."""
        if self.writer is not None:
            self.writer.close()


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's log; a last one that is not whole is left out."""
    path = folder / LOG
    text = path.read_text() if path.exists() else ""
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
                column[1].plot(
                    [row["step"] for row in looks], [row[name] for row in looks], ".-", label=label
                )
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
