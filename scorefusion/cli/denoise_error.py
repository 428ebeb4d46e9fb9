"""``scorefusion denoise-error``: the error of each strategy's denoiser, noise level by noise level."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def denoise_error(
    data: Annotated[Path, typer.Argument(help="The true volume, at full resolution.")] = Path(
        "data/oasis_t1.nii.gz"
    ),
    model: Annotated[str, typer.Option(help="A bundled model's name, or a model folder.")] = "t1-sr4",
    box: Annotated[
        str, typer.Option(help="Size of the box, Z,Y,X voxels, in the middle of the head; or SIZE@START.")
    ] = "80,96,96",
    coarsen: Annotated[int, typer.Option(help="Average N x N x N voxels of the data first.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="auto (what is fast here), float32, bfloat16, float16.")
    ] = "auto",
    nan: Annotated[str, typer.Option(help="NaN and infinite voxels: error, or zero.")] = "error",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress; print the table only.")] = False,
) -> None:
    """Add noise to a known volume at eight levels, and see how far from it each strategy's estimate lands.

    Prints, as Markdown, the mean squared error of the denoised residual (in units of the model's residual
    scale) and the geometric means of its ratios. This, not a sample's PSNR, shows what fusing gains.

    \b
    Examples:
      scorefusion denoise-error data/oasis_t1.nii.gz
      scorefusion denoise-error data/second_head_t1.nii.gz --coarsen 2 --model runs/mine/model
    """
    from scorefusion.cli.bars import progress
    from scorefusion.cli.demo import parse_box
    from scorefusion.cli.streams import require_stdout
    from scorefusion.engine.planning.memory import keep_freed_memory
    from scorefusion.evaluate.demo import make_case
    from scorefusion.evaluate.denoise_error import denoising_errors
    from scorefusion.io.nifti import read_scan
    from scorefusion.pipeline.pipeline import Pipeline

    size, start = parse_box(box)
    keep_freed_memory()
    pipeline = Pipeline(model, device=device, dtype=dtype)
    case = make_case(read_scan(data, nan=nan), pipeline.config, coarsen=coarsen, size=size, start=start)
    case = case.to(pipeline.device)
    prepared, index = case.prepared, case.box.index
    truth = prepared.intensity.normalise(case.truth[index])
    residual = (truth - prepared.base[index]) / pipeline.config.residual.scale
    with progress("denoising", quiet=quiet) as report:
        found = denoising_errors(
            pipeline.model,
            residual,
            prepared.condition[index],
            origin=case.box.start,
            full=prepared.base.shape[2:],
            seed=seed,
            progress=report,
        )
    at = ", ".join(str(n) for n in case.box.start)
    size_text = " × ".join(str(n) for n in case.box.size)
    print(f"{case.name}, {size_text} voxels at ({at}), {str(pipeline.dtype).removeprefix('torch.')}\n")
    print(found.table())
    require_stdout()
