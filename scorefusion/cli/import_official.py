"""``scorefusion import-official``: a checkpoint of the authors' code in, a model folder out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scorefusion.models.strategies import names_text


def import_official(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="model-{n}.pt, or {epoch}_Network_ema.pth: one, or one a plane.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The model folder to write.", show_default=False)
    ],
    plane: Annotated[
        list[str] | None,
        typer.Option(help="The plane of each 2D file: axial, coronal or sagittal; repeated in their order."),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            help=f"What the model does by default: {names_text()}, or 2D, merge, 3D, 3D_feature.",
            show_default="the best there are weights for",
        ),
    ] = None,
    ema: Annotated[
        bool, typer.Option("--ema/--no-ema", help="Of model-{n}.pt, the averaged weights or the last ones.")
    ] = True,
    timesteps: Annotated[int, typer.Option(help="What --timesteps was: 1000 or 2000.")] = 1000,
    condition_order: Annotated[
        str,
        typer.Option(help="Channels of several 5-slice conditions: modality (as trained) or slice."),
    ] = "modality",
    context: Annotated[
        int | None,
        typer.Option(help="Neighbouring slices on either side.", show_default="inferred"),
    ] = None,
    factor: Annotated[
        int, typer.Option(help="Super-resolution factor; 1 for a translation between modalities.")
    ] = 4,
    condition: Annotated[
        list[str] | None,
        typer.Option(help="Name of a condition; repeated.", show_default="input, input2, ..."),
    ] = None,
    target: Annotated[str, typer.Option(help="Name of what comes out.")] = "target",
    own_schedule: Annotated[
        bool, typer.Option("--own-schedule", help="Accept a file trained with another noise schedule.")
    ] = False,
) -> None:
    """Import a checkpoint of the authors' code (github.com/score-fusion/ScoreFusion) as a model folder.

    Widths and options are read off the weights. Nothing in the file is executed. Every weight must be of
    use: a missing or unexpected one is an error that names it.

    \b
    Examples:
      scorefusion import-official model-40.pt -o my_model
      scorefusion translate t1.nii.gz -o fine.nii.gz --model my_model
      scorefusion import-official 300_Network_ema.pth -o palette --plane sagittal
      scorefusion import-official a.pth c.pth --plane axial --plane coronal -o averaged
      scorefusion import-official model-40.pt -o t1_to_t2 --factor 1 --condition t1 --target t2
    """
    from scorefusion.errors import ScoreFusionError, unknown_name
    from scorefusion.models.config import PLANES
    from scorefusion.models.folder import check_folder
    from scorefusion.models.official.convert import load_official, official_card

    planes = plane or ["axial"]
    if len(planes) != len(files) or len(set(planes)) != len(planes):
        raise ScoreFusionError(
            f"give a different --plane for each 2D file: {len(files)} files, planes {', '.join(planes)}"
        )
    for name in planes:
        if name not in PLANES:
            raise unknown_name("plane", name, PLANES)
    check_folder(output)
    model = load_official(
        dict(zip(planes, files, strict=True)),
        strategy=strategy,
        ema=ema,
        timesteps=timesteps,
        condition_order=condition_order,
        context=context,
        factor=factor,
        conditions=condition,
        target=target,
        name=output.name,
        own_schedule=own_schedule,
    )
    model.save_pretrained(output, card=official_card(model, [file.name for file in files]))
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(
        f"{output}: {len(model.config.branches)} 2D networks, "
        f"{'one' if model.fusion is not None else 'no'} 3D network, {size:.2f} M parameters; "
        f"strategies {', '.join(model.config.strategies)} (default {model.config.sampling.strategy})"
    )
