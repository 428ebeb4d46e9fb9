"""``scorefusion import-official``: a checkpoint of the authors' code in, a model folder out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from scorefusion.cli.options import Target, argument, opt


@dataclass
class Reading:
    """How the files are read."""

    plane: list[str] | None = opt(
        "The plane of each 2D file: axial, coronal or sagittal; repeated in their order."
    )
    strategy: str | None = opt(
        "What the model does by default: {strategies}, or 2D, merge, 3D, 3D_feature.",
        shown="the best there are weights for",
    )
    ema: bool = opt("Of model-{n}.pt, the averaged weights or the last ones.", True, "--ema/--no-ema")
    timesteps: int = opt("What --timesteps was: 1000 or 2000.", 1000)
    condition_order: str = opt(
        "Channels of several 5-slice conditions: modality (as trained) or slice.", "modality"
    )
    context: int | None = opt("Neighbouring slices on either side.", shown="inferred")
    factor: int = opt("Super-resolution factor; 1 for a translation between modalities.", 4)
    conditions: list[str] | None = opt(
        "Name of a condition; repeated.", None, "--condition", shown="input, input2, ..."
    )
    target: str = opt("Name of what comes out.", "target")
    own_schedule: bool = opt("Accept a file trained with another noise schedule.", False)


def import_official(
    files: Annotated[
        list[Path], argument("model-{n}.pt, or {epoch}_Network_ema.pth: one, or one a plane.", "FILE...")
    ],
    output: Target,
    read: Reading,
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
    from scorefusion.models.official import load_official, official_card

    options = vars(read)
    planes = options.pop("plane") or ["axial"]
    if len(planes) != len(files) or len(set(planes)) != len(planes):
        raise ScoreFusionError(
            f"give a different --plane for each 2D file: {len(files)} files, planes {', '.join(planes)}"
        )
    for name in planes:
        if name not in PLANES:
            raise unknown_name("plane", name, PLANES)
    check_folder(output)
    model = load_official(dict(zip(planes, files, strict=True)), name=output.name, **options)
    model.save_pretrained(output, card=official_card(model, [file.name for file in files]))
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(
        f"{output}: {len(model.config.branches)} 2D networks, "
        f"{'one' if model.fusion is not None else 'no'} 3D network, {size:.2f} M parameters; "
        f"strategies {', '.join(model.config.strategies)} (default {model.config.sampling.strategy})"
    )
