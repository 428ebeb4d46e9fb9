"""The run's folder: whose it is, and where the run stands, so that it goes on to the same bits."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from scorefusion.errors import BadInput, out_of_memory
from scorefusion.io.atomic import output_target, replace_file, written_beside
from scorefusion.models.config import read_config
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.train.config import TrainConfig

CHECKPOINT = "checkpoint.pt"
FREE = {"device", "workers", "validation", "save_every", "look_every", "tensorboard"}
FREE |= {"domain", "export", "export_dtype"}
"""Settings that may change while a run goes on: they change no weight, but for a device's rounding."""


@dataclass
class State:
    """Where a run is: everything that a checkpoint holds beside the two sets of weights."""

    stage: int = 0  #: index of the stage
    step: int = 0  #: steps of it that are done
    seconds: float = 0.0  #: of all steps so far
    logged: int = 0  #: bytes of ``log.jsonl`` that belong to these
    losses: list[float] = field(default_factory=list)  #: of the steps since its last row
    optimiser: dict[str, Any] | None = None  #: its state; None at a stage's start


def claim(folder: Path, config: TrainConfig) -> None:
    """Make the run's folder, or check that it holds this very run; only :data:`FREE` settings may differ."""
    path = folder / "config.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(folder, f"cannot be a run's folder ({error.strerror})", "Choose another.") from None
    if path.exists():
        there, here = read_config(TrainConfig, path).model_dump(), config.model_dump()
        if differ := [name for name in here if name not in FREE and there[name] != here[name]]:
            problem = f"is the configuration of another run ({', '.join(differ)} differ)"
            raise BadInput(path, problem, "Choose another folder, or remove this one.")
    text = config.model_dump_json(indent=2) + "\n"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        with written_beside(path) as beside:
            beside.write_text(text, encoding="utf-8")


def save(folder: Path, model: ScoreFusion, average: ScoreFusion, state: State) -> None:
    """Write the checkpoint, whole or not at all: beside, then renamed."""
    content = {"model": model.state_dict(), "average": average.state_dict(), "state": vars(state)}
    final = output_target(folder / CHECKPOINT)
    beside = final.with_name("checkpoint.tmp")  # one writer, so a kill leaves one file at most
    try:
        with open(beside, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        replace_file(beside, final)
    except OSError as error:
        problem = f"could not be written ({error.strerror})"
        raise BadInput(folder / CHECKPOINT, problem, "Free some space; the last one is kept.") from None


def load(folder: Path, model: ScoreFusion, average: ScoreFusion) -> State:
    """Load both models' weights in place and return where the run is; its start without a checkpoint."""
    path = folder / CHECKPOINT
    if not path.exists():
        return State()
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
        model.load_state_dict(content["model"])
        average.load_state_dict(content["average"])
        return State(**content["state"])
    except Exception as error:
        if out_of_memory(error):
            raise
        problem = f"cannot be resumed from ({' '.join(str(error).split())[:300]})"
        raise BadInput(path, problem, "Remove the run's folder to start again.") from None
