"""What a run tells of itself: ``log.jsonl``, curves of it, TensorBoard where that is installed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from scorefusion.errors import one_line
from scorefusion.io.atomic import written_beside
from scorefusion.optional import need
from scorefusion.train.checkpoint import State
from scorefusion.train.config import TrainConfig

LOG = "log.jsonl"
_TENSORBOARD = "TensorBoard's file"
T = TypeVar("T")


class Journal:
    """Rows of figures, appended. What cannot be written is warned of once, and the training goes on.

    Args:
        folder: the run's.
        state: where the run is: what a stopped run wrote after its checkpoint is cut off.
        config: the run.
        warn: called with what could not be written, and why.
    """

    def __init__(
        self, folder: Path, state: State, config: TrainConfig, warn: Callable[[str], None] | None = None
    ) -> None:
        self.path, self.warn = folder / LOG, warn
        self._failed: set[str] = set()
        self._waiting = b""
        self._written = state.logged
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
