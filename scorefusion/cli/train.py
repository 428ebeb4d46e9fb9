"""``scorefusion train``: run, or go on with, a training run."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option


def train(
    config: Annotated[Path, Argument(help="The run's configuration, .json or .toml.")],
    out: Annotated[Path | None, Option("--out", "-o", help="The run's folder.")] = None,
    export: Annotated[
        Path | None, Option(help="Write the finished model here (default: the configuration's export).")
    ] = None,
    labels: Annotated[
        Path | None,
        Option(help="Folder of FreeSurfer-numbered label maps, for a run that learns from images of these."),
    ] = None,
    dry_run: Annotated[
        bool, Option("--dry-run", help="Time a few steps instead: parameters, FLOP, memory, hours.")
    ] = False,
    dry_run_seconds: Annotated[float, Option(min=0.0, help="How long to time, all stages together.")] = 60.0,
    replay: Annotated[
        Path | None, Option(help="Compute a step again whose loss was not finite, instead of training.")
    ] = None,
) -> None:
    """Train a model in stages: 2D slice networks, then the network that fuses them, then the feature layers.

    CONFIG is JSON or TOML; the run's folder keeps it, a checkpoint, the log, loss curves, sample pictures and
    TensorBoard's events. Stop it at any moment: the same command goes on from the last checkpoint, on one
    device to the same bits.

    Examples:

      scorefusion train configs/t1-sr4.json -o runs/t1-sr4

      scorefusion train my.toml --dry-run

      scorefusion train my.toml -o runs/mine --export models/mine

      scorefusion train configs/brain-iso.json --labels maps/ -o runs/brain-iso
      torchrun --nproc-per-node 4 -m scorefusion train my.toml -o runs/mine

      scorefusion train my.toml --replay runs/mine/nan-1-000123.safetensors
    """
    from functools import partial

    from scorefusion.cli.console import progress, require_stdout, stages, stderr_console
    from scorefusion.errors import ScoreFusionError
    from scorefusion.models.config import read_config
    from scorefusion.ops.device import DTYPES
    from scorefusion.train.config import TrainConfig
    from scorefusion.train.estimate import describe
    from scorefusion.train.estimate import dry_run as try_out
    from scorefusion.train.failure import replay as compute_again
    from scorefusion.train.loop import train as run
    from scorefusion.train.report import training_card
    from scorefusion.train.sources import domain_of, with_labels
    from scorefusion.train.step import is_first

    settings = with_labels(read_config(TrainConfig, config), labels)
    if replay:
        found = compute_again(replay)
        print(f"{found.reason}. {found.fix}")
        require_stdout()
        return
    if dry_run:
        with progress("stages", quiet=not is_first()) as report:
            cost = try_out(settings, seconds=dry_run_seconds, progress=report)
        if is_first():
            print(describe(cost))
            require_stdout()
        return
    if out is None:
        raise ScoreFusionError("a run needs a folder: scorefusion train CONFIG -o FOLDER (or --dry-run)")
    console = stderr_console(quiet=not is_first())
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    with stages(console) as show:
        model = run(settings, out, progress=show, warn=say)
    target = export or (Path(settings.export) if settings.export else None)
    if target and is_first():
        try:
            domain = domain_of(settings, model.config)
        except ScoreFusionError as error:
            say(f"what the model was made for is not recorded: {error}")
            domain = settings.domain
        model.config = model.config.model_copy(update={"domain": domain})
        card = training_card(settings, out, model.config)
        model.save_pretrained(target, card=card, dtype=DTYPES[settings.export_dtype])
        say(f"model written to {target}")
