"""The training run: stages in order, EMA, checkpoints that resume to the same bits, a log, an early look."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from scorefusion.data import Refusal
from scorefusion.io.atomic import written_beside
from scorefusion.models.folder import channels_last
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.train import checkpoint
from scorefusion.train.checkpoint import State
from scorefusion.train.config import StageConfig, TrainConfig
from scorefusion.train.examples import Crop, CropSampler
from scorefusion.train.failure import not_finite
from scorefusion.train.report import Journal, boxes_of, draw_curves, draw_look, judge, look
from scorefusion.train.sources import sampler_of, take_weights, volumes_of
from scorefusion.train.step import Stepper, learning_rate, start

if TYPE_CHECKING:
    from accelerate import Accelerator

Progress = Callable[[str, int, int, float], None]
Warn = Callable[[str], None]


def train(
    config: TrainConfig, folder: Path, *, progress: Progress | None = None, warn: Warn | None = None
) -> ScoreFusion:
    """Run, or go on with, a training run; return the model with its averaged (EMA) weights.

    Args:
        config: the run; saved as ``folder/config.json``.
        folder: holds the checkpoint, ``log.jsonl``, the pictures and the store of warped volumes.
        progress: called with (stage, step, steps, loss), by the first process only.
        warn: called with what a user should know, such as who was left out of a dataset.

    Raises:
        BadInput: if ``folder`` holds a run of another configuration, or a checkpoint that cannot be read.
        ScoreFusionError: if the data or the weights to start from do not fit the model, or the loss is not
            finite.
    """
    accelerator = start(config)
    main = accelerator.is_main_process
    if main:
        checkpoint.claim(folder, config)
    accelerator.wait_for_everyone()
    model, average = fresh_models(config, resumed=(folder / checkpoint.CHECKPOINT).exists())
    state = checkpoint.load(folder, model, average)
    model, average = model.to(accelerator.device), average.to(accelerator.device)
    accelerator.wait_for_everyone()

    def told(done: int, total: int) -> None:
        if progress and main:
            progress("volumes", done, total, math.nan)

    refused: list[Refusal] = []
    store = volumes_of(config, model.config, folder / "volumes", progress=told, refused=refused.append)
    crops = sampler_of(config, model.config, store)
    boxes: list[Crop] = []
    if main and config.look_every:
        boxes = boxes_of(config, model.config, folder / "volumes", crops, refused.append)
    journal = Journal(folder, state, config, warn) if main else None
    if journal is not None:
        journal.attempt("refused.txt", lambda: _note_refused(folder / "refused.txt", refused, warn))
    shown = progress if main else None
    run = Run(config, folder, accelerator, model, average, crops, boxes, state, journal, shown)
    try:
        while state.stage < len(config.stages):
            run_stage(run)
    finally:
        if journal is not None:
            journal.close()
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return channels_last(average.cpu())


def fresh_models(config: TrainConfig, *, resumed: bool = False) -> tuple[ScoreFusion, ScoreFusion]:
    """The model at the run's start, and its averaged twin; ``resumed`` runs have their weights elsewhere."""
    torch.manual_seed(config.seed)
    model = ScoreFusion(config.description)
    if not resumed:
        take_weights(model, config.start_from)
    model = channels_last(model)
    average = channels_last(ScoreFusion(config.description)).eval()  # as the model: averaging reads in order
    average.load_state_dict(model.state_dict())
    return model, average


@dataclass
class Run:
    """A run under way; only the first process has a journal and shows progress."""

    config: TrainConfig
    folder: Path
    accelerator: Accelerator
    model: ScoreFusion
    average: ScoreFusion
    crops: CropSampler
    boxes: Sequence[Crop]
    state: State
    journal: Journal | None
    progress: Progress | None

    def save(self, optimiser: torch.optim.Optimizer | None) -> None:
        """Write a checkpoint."""
        if self.journal is not None:
            self.state.optimiser = optimiser.state_dict() if optimiser else None
            self.state.logged = self.journal.settled()
            checkpoint.save(self.folder, self.model, self.average, self.state)


def run_stage(run: Run) -> None:
    """Do what is left of the current stage, and go over to the next."""
    config, state = run.config, run.state
    stage = config.stages[state.stage]
    models = run.model, run.average
    stepper = Stepper(config, state.stage, run.accelerator, *models, run.crops, state.optimiser)
    state.optimiser = None
    saved = began = time.perf_counter()
    for batch in stepper.batches(state.step):
        loss, norm = stepper.gradient(state.step, batch)
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise not_finite(run, stepper.draws, loss, norm)
        stepper.update(state.step)
        state.step += 1
        state.losses.append(loss)
        state.seconds += time.perf_counter() - began
        _tell(run, stage)
        if time.perf_counter() - saved > config.save_every:
            run.save(stepper.optimiser)
            saved = time.perf_counter()
        began = time.perf_counter()
    run.model.load_state_dict(run.average.state_dict())
    state.stage, state.step, state.losses = state.stage + 1, 0, []
    run.save(None)
    run.accelerator.free_memory()


def _tell(run: Run, stage: StageConfig) -> None:
    """Log, and look at, the step that was done, where it is due."""
    state, config = run.state, run.config
    if run.progress:
        run.progress(stage.kind, state.step, stage.steps, state.losses[-1])
    last = state.step == stage.steps
    look_now = bool(config.look_every) and (last or state.step % config.look_every == 0)
    if not (last or look_now or state.step % config.log_every == 0):
        return
    row = {
        "number": state.stage,
        "stage": stage.kind,
        "step": state.step,
        "loss": round(float(np.mean(state.losses)), 6),
        "lr": learning_rate(stage, state.step - 1),
        "seconds": round(state.seconds, 1),
    }
    state.losses = []
    if run.journal is None:
        return
    if look_now:
        row |= run.journal.attempt("the look", lambda: _look(run, stage)) or {}
    run.journal.write(row)
    if last or look_now:
        run.journal.attempt("loss curves", lambda: draw_curves(run.folder))


def _look(run: Run, stage: StageConfig) -> dict[str, float]:
    """Draw what the averaged model makes of the fixed boxes; the figures of a validation, if there is one."""
    assert run.journal is not None
    with run.accelerator.autocast():
        restored = look(run.average, run.boxes, stage)
    picture = run.folder / f"look-{run.state.stage + 1}-{run.state.step:06d}.png"
    run.journal.attempt("the look's picture", lambda: draw_look(restored, picture))
    return judge(restored) if run.config.validation else {}


def _note_refused(file: Path, refused: Sequence[Refusal], warn: Warn | None) -> None:
    """Keep the reasons why subjects were left out, and say that there are some."""
    if not refused:
        file.unlink(missing_ok=True)
        return
    with written_beside(file) as beside:
        text = "".join(f"{refusal}\n" for refusal in refused)
        beside.write_text(text, encoding="utf-8", errors="backslashreplace")
    if warn:
        warn(f"{len(refused)} subjects are left out, the reasons are in {file}; the first: {refused[0]}")
