"""``scorefusion train``: run, or go on with, a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

HELP = """Train a model in stages: 2D slice networks, then the network that fuses them, then the feature
layers.

CONFIG is JSON or TOML; the run's folder keeps it, a checkpoint, the log, loss curves and sample pictures.
Stop it at any moment: the same command goes on from the last checkpoint, to the same bits.

Examples:

  scorefusion train configs/t1-sr4.json -o runs/t1-sr4

  scorefusion train my.toml -o runs/mine --export models/mine
"""


def train(
    config: Annotated[Path, typer.Argument(help="The run's configuration, .json or .toml.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The run's folder.")],
    export: Annotated[
        Path | None, typer.Option(help="Write the finished model here (default: the configuration's export).")
    ] = None,
) -> None:
    """Run, or go on with, a training run; see ``HELP``."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ..compute import DTYPES
    from ..models.config import read_config
    from ..models.folder import save_pretrained
    from ..train.card import training_card
    from ..train.config import TrainConfig
    from ..train.loop import train as run

    settings = read_config(TrainConfig, config)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("loss {task.fields[loss]:.4f}"), console=console) as bars:
        tasks: dict[str, int] = {}

        def show(stage: str, step: int, steps: int, loss: float) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=steps, loss=loss)
            bars.update(tasks[stage], completed=step, loss=loss)  # type: ignore[arg-type]

        model = run(settings, out, progress=show, warn=console.print)
    target = export or (Path(settings.export) if settings.export else None)
    if target:
        save_pretrained(model, target, card=training_card(settings, out), dtype=DTYPES[settings.export_dtype])
        console.print(f"model written to {target}")
