"""``scorefusion plan``: what a step will need, before anything runs."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from scorefusion.cli.options import Only
from scorefusion.pipeline import Machine, Options


def plan(
    shape: Annotated[tuple[int, int, int], Option(help="The volume's size: D H W voxels (z, y, x).")],
    options: Annotated[Options, Only("strategy", "batch")],
    machine: Annotated[Machine, Only("device", "dtype", "max_memory")],
    model: Annotated[
        str, Option(help="A bundled model's name, a model folder, or a preset such as paper.")
    ] = "t1-sr4",
    figure: Annotated[
        Path | None, Option(help="Also draw the step and its buffers: .png, .pdf, .svg.", show_default=False)
    ] = None,
) -> None:
    """Say what one denoising step will need: buffers, weights, workspace, slabs, FLOP, and the peak.

    Nothing is allocated: the networks are walked on tensors that hold nothing. With --max-memory, slabs are
    made smaller, then sums kept in 16 bits, then the 3D network run on tiles, until it fits; where nothing
    fits, it says what would, and ends with status 1. The last line compares a whole translation with what
    this machine has free.

    \b
    Examples:
      scorefusion plan --shape 152 192 192
      scorefusion plan --model paper --shape 152 192 192 --dtype bfloat16 --max-memory 9GiB
      scorefusion plan --shape 80 96 96 --figure step.png
    """
    import torch

    from scorefusion.cli.console import require_stdout
    from scorefusion.engine.planning.fit import fit, parse_memory
    from scorefusion.engine.planning.plan import plan as lay_out
    from scorefusion.engine.planning.plan import slab_pixels
    from scorefusion.engine.planning.report import report
    from scorefusion.models.folder import bundled_models, load_config
    from scorefusion.models.presets import PRESETS, preset
    from scorefusion.ops.device import DTYPES, choose_device, choose_dtype
    from scorefusion.pipeline import compared_with_this_machine

    device, dtype, max_memory = machine["device"], machine["dtype"], machine["max_memory"]
    limit = None if max_memory is None else parse_memory(max_memory)
    is_preset = model in PRESETS and model not in bundled_models()
    config = preset(model) if is_preset else load_config(model)
    if dtype in DTYPES and device in ("cpu", "cuda"):
        kind, number = device, DTYPES[dtype]  # not necessarily this machine's
    else:
        chosen = choose_device(device)
        kind, number = chosen.type, choose_dtype(dtype, chosen)
    how: dict[str, Any] = {**options, "dtype": number, "pixels": slab_pixels(kind)}
    layout = lay_out(config, shape, **how)
    found = fit(layout, limit, device=kind)
    here = torch.cuda.is_available() if kind == "cuda" else kind == "cpu"
    print(report(found, limit))
    if here:
        print(f"\n{compared_with_this_machine(layout, torch.device(kind))}")
    if figure is not None:
        from scorefusion.engine.planning.report import step_figure
        from scorefusion.io import save_figure

        save_figure(step_figure(found.forecast), figure)
    require_stdout()
    if not found.fits:
        raise typer.Exit(1)
