"""``scorefusion denoise-error``: the error of each strategy's denoiser, noise level by noise level."""

from pathlib import Path
from typing import Annotated

from typer import Argument

from scorefusion.cli.options import Device, Model, Only, Place, Quiet, cut, loaded
from scorefusion.pipeline import Options


def denoise_error(
    where: Place,
    options: Annotated[Options, Only("seed", "nan")],
    machine: Device,
    data: Annotated[Path, Argument(help="The true volume, at full resolution.")] = Path(
        "data/oasis_t1.nii.gz"
    ),
    model: Model = "t1-sr4",
    quiet: Quiet = False,
) -> None:
    """Add noise to a known volume at eight levels, and see how far from it each strategy's estimate lands.

    Prints, as Markdown, the mean squared error of the denoised residual (in units of the model's residual
    scale) and the geometric means of its ratios. This, not a sample's PSNR, shows what fusing gains.

    \b
    Examples:
      scorefusion denoise-error data/oasis_t1.nii.gz
      scorefusion denoise-error data/second_head_t1.nii.gz --coarsen 2 --model runs/mine/model
    """
    from scorefusion.cli.console import progress, require_stdout
    from scorefusion.evaluate import denoising_errors, pooled_case
    from scorefusion.io import read_scan

    place = cut(where.box, where.coarsen)
    pipeline = loaded(model, machine)
    scan = read_scan(data, nan=options["nan"])
    case = pooled_case(scan, pipeline.config, device=pipeline.device, **place)
    with progress("denoising", quiet=quiet) as report:
        found = denoising_errors(
            pipeline.model,
            case.residual(),
            case.prepared.condition[case.box.index],
            origin=case.box.start,
            full=case.prepared.base.shape[2:],
            seed=options["seed"],
            progress=report,
        )
    at = ", ".join(str(n) for n in case.box.start)
    size_text = " × ".join(str(n) for n in case.box.size)
    print(f"{case.file}, {size_text} voxels at ({at}), {str(pipeline.dtype).removeprefix('torch.')}\n")
    print(found.table())
    require_stdout()
