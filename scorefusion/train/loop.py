"""The training run: stages in order, EMA, checkpoints that resume to the same bits, a log, an early look."""

from __future__ import annotations

import functools
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..compute import choose_dtype
from ..data.find import Refusal
from ..errors import BadInput, ScoreFusionError
from ..io.atomic import written_beside
from ..models.config import ModelConfig
from ..models.folder import channels_last
from ..models.presets import preset
from ..models.score_fusion import ScoreFusion
from .config import StageConfig, TrainConfig
from .crops import CropSampler
from .look import draw_curves, draw_look
from .pairs import factors_of
from .sources import take_weights, volumes_of
from .stages import fusion_loss, slices_loss

Progress = Callable[[str, int, int, float], None]


@dataclass
class State:
    """Where a run is: everything that a checkpoint holds beside the two sets of weights."""

    stage: int = 0
    step: int = 0
    seconds: float = 0.0
    optimiser: dict[str, Any] | None = None
    sources: dict[str, str] = field(default_factory=dict)


def train(
    config: TrainConfig,
    folder: Path,
    *,
    progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
) -> ScoreFusion:
    """Run, or go on with, a training run.

    Args:
        config: the run; saved as ``folder/config.json``.
        folder: holds the checkpoint, ``log.jsonl``, the pictures and the store of warped volumes.
        progress: called with (stage, step, steps, loss).
        warn: called with what a user should know, such as who was left out of a dataset.

    Returns:
        The model with its averaged (EMA) weights.

    Raises:
        BadInput: if ``folder`` holds a run of another configuration, or a checkpoint that cannot be read.
        ScoreFusionError: if the data or the weights to start from do not fit the model, or the loss is not
            finite.
    """
    description = config.model if isinstance(config.model, ModelConfig) else preset(config.model)
    _claim(folder, config)
    torch.manual_seed(config.seed)
    model = ScoreFusion(description)
    take_weights(model, config.start_from)
    model = channels_last(model)
    average = ScoreFusion(description)
    average.load_state_dict(model.state_dict())
    state = _resume(folder, model, average)

    def told(done: int, total: int) -> None:
        if progress:
            progress("volumes", done, total, math.nan)

    refused: list[Refusal] = []
    store = volumes_of(config, description, folder / "volumes", progress=told, refused=refused.append)
    _note_refused(folder / "refused.txt", refused, warn)
    crops = CropSampler(store, config.augment, factors_of(description)[0])
    while state.stage < len(config.stages):
        _run_stage(config, folder, model, average, crops, state, progress)
        model.load_state_dict(average.state_dict())
        state.stage, state.step, state.optimiser = state.stage + 1, 0, None
        _save(folder, model, average, state)
    return channels_last(average).eval()


def _run_stage(
    config: TrainConfig,
    folder: Path,
    model: ScoreFusion,
    average: ScoreFusion,
    crops: CropSampler,
    state: State,
    progress: Progress | None,
) -> None:
    stage = config.stages[state.stage]
    model.train().requires_grad_(False)
    parameters = [parameter.requires_grad_() for parameter in trained_parameters(model, stage)]
    optimiser = torch.optim.Adam(parameters, lr=stage.learning_rate, betas=(0.9, 0.99))
    if state.optimiser is not None:
        optimiser.load_state_dict(state.optimiser)
    if stage.kind != "slices":
        model.slice_networks.eval()
    dtype = choose_dtype(config.precision)
    compute = slices_loss if stage.kind == "slices" else functools.partial(fusion_loss, cache={})
    started = saved = time.perf_counter()
    before, losses = state.seconds, []
    while state.step < stage.steps:
        random = np.random.Generator(np.random.Philox(key=[config.seed * 1000 + state.stage + 1, state.step]))
        torch.manual_seed(int(random.integers(2**31)))
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(stage, state.step)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            total = compute(model, crops, stage, random)
        if not torch.isfinite(total):
            raise ScoreFusionError(f"the loss of stage {stage.kind!r} is {total.item()} at step {state.step}")
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(parameters, stage.clip)
        optimiser.step()
        state.step += 1
        _average(average, model, min(stage.ema, (1 + state.step) / (10 + state.step)))
        losses.append(total.item())
        now = time.perf_counter()
        state.seconds = before + now - started
        if state.step % config.log_every == 0 or state.step == stage.steps:
            row = {
                "number": state.stage,
                "stage": stage.kind,
                "step": state.step,
                "loss": round(float(np.mean(losses)), 6),
            }
            _log(
                folder, row | {"lr": learning_rate(stage, state.step - 1), "seconds": round(state.seconds, 1)}
            )
            losses = []
        if progress:
            progress(stage.kind, state.step, stage.steps, total.item())
        last = state.step == stage.steps
        if config.look_every and (last or state.step % config.look_every == 0):
            draw_look(config, folder, average, crops, state.stage, state.step)
        if last:
            draw_curves(folder)
        if now - saved > config.save_every:
            state.optimiser = optimiser.state_dict()
            _save(folder, model, average, state)
            saved = time.perf_counter()


def trained_parameters(model: ScoreFusion, stage: StageConfig) -> Iterator[nn.Parameter]:
    """The parameters that a stage trains.

    Raises:
        ScoreFusionError: if the model has no network of that kind.
    """
    if stage.kind == "slices":
        yield from model.slice_networks.parameters()
        return
    if model.fusion is None or (stage.kind == "features" and not model.features):
        raise ScoreFusionError(f"model {model.config.name!r} has nothing that a {stage.kind!r} stage trains")
    yield from model.fusion.parameters()
    if stage.kind == "features":
        yield from model.features.parameters()


def learning_rate(stage: StageConfig, step: int) -> float:
    """Linear warm-up, then a cosine down to a hundredth."""
    if step < stage.warmup:
        return stage.learning_rate * (step + 1) / stage.warmup
    done = (step - stage.warmup) / max(stage.steps - stage.warmup, 1)
    return stage.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


@torch.no_grad()
def _average(average: ScoreFusion, model: ScoreFusion, decay: float) -> None:
    kept: list[Tensor] = list(average.parameters())
    torch._foreach_lerp_(kept, list(model.parameters()), 1 - decay)


def _claim(folder: Path, config: TrainConfig) -> None:
    """Make the run's folder, or check that it holds this very run."""
    folder.mkdir(parents=True, exist_ok=True)
    path, text = folder / "config.json", config.model_dump_json(indent=2)
    if path.exists() and json.loads(path.read_text()) != json.loads(text):
        raise BadInput(
            path, "is the configuration of another run", "Choose another folder, or remove this one."
        )
    path.write_text(text)


def _note_refused(file: Path, refused: Sequence[Refusal], warn: Callable[[str], None] | None) -> None:
    """Keep the reasons why subjects were left out, and say that there are some."""
    if not refused:
        file.unlink(missing_ok=True)
        return
    with written_beside(file) as beside:
        beside.write_text("".join(f"{refusal}\n" for refusal in refused))
    if warn:
        warn(f"{len(refused)} subjects are left out, the reasons are in {file}; the first: {refused[0]}")


def _save(folder: Path, model: ScoreFusion, average: ScoreFusion, state: State) -> None:
    content = {"model": model.state_dict(), "average": average.state_dict(), "state": vars(state)}
    beside = folder / "checkpoint.tmp"
    torch.save(content, beside)
    os.replace(beside, folder / "checkpoint.pt")


def _resume(folder: Path, model: ScoreFusion, average: ScoreFusion) -> State:
    path = folder / "checkpoint.pt"
    if not path.exists():
        return State()
    try:
        content = torch.load(path, weights_only=True)
        model.load_state_dict(content["model"])
        average.load_state_dict(content["average"])
        state = State(**content["state"])
    except Exception as error:
        raise BadInput(
            path, f"cannot be resumed from ({error})", "Remove the run's folder to start again."
        ) from None
    lines = (folder / "log.jsonl").read_text().splitlines() if (folder / "log.jsonl").exists() else []
    rows = [json.loads(line) for line in lines]
    kept = [row for row in rows if (row["number"], row["step"]) <= (state.stage, state.step)]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    return state


def _log(folder: Path, row: dict[str, Any]) -> None:
    with open(folder / "log.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")
