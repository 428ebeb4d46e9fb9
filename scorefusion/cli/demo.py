"""``scorefusion demo``: a held-out volume pooled, translated with every strategy, measured and pictured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from scorefusion.models.config import ModelConfig, SamplingConfig


def demo(
    data: Annotated[Path, typer.Option(help="The true volume, at full resolution.")] = Path(
        "data/oasis_t1.nii.gz"
    ),
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path(
        "demo_out"
    ),
    model: Annotated[str, typer.Option(help="A bundled model's name, or a model folder.")] = "t1-sr4",
    box: Annotated[
        str,
        typer.Option(
            help="Size of the box translated, Z,Y,X voxels, in the middle of the head; or SIZE@START."
        ),
    ] = "80,96,96",
    coarsen: Annotated[
        int,
        typer.Option(help="Average N x N x N voxels of the data first; the truth is then N times coarser."),
    ] = 1,
    steps: Annotated[int | None, typer.Option(help="Noise levels; the model's own choice.")] = None,
    solver: Annotated[
        str | None, typer.Option(help="The solver, without eta or spread; the model's own choice.")
    ] = None,
    sigma_min: Annotated[float | None, typer.Option(help="Where the noise ends; the model's own.")] = None,
    rho: Annotated[
        float | None, typer.Option(help="How noise levels crowd at the clean end; the model's own.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the noise, the same for every strategy.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="auto (what is fast here), float32, bfloat16, float16.")
    ] = "auto",
    nan: Annotated[str, typer.Option(help="NaN and infinite voxels: error, or zero.")] = "error",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress; print the table only.")] = False,
) -> None:
    """Pool a volume, restore it with every strategy and by interpolation, and say how close each comes.

    Leaves truth, input and output as .nii.gz, report.png, table.txt and table.json in the output folder. The
    default data is fetched by `python tools/fetch_data.py demo`; the bundled model was not trained on it.

    \b
    Examples:
      scorefusion demo
      scorefusion demo --data my_t1.nii.gz -o my_demo
      scorefusion demo --data data/second_head_t1.nii.gz --coarsen 2 -o second
      scorefusion demo --box 64,64,64@80,90,70 --steps 12
      scorefusion demo --solver ddpm --steps 6 --sigma-min 0.3 --rho 7
    """
    import time

    from scorefusion.cli.bars import progress
    from scorefusion.cli.streams import note
    from scorefusion.engine.planning.memory import keep_freed_memory
    from scorefusion.errors import BadInput, ScoreFusionError
    from scorefusion.evaluate.demo import make_case, run_demo
    from scorefusion.evaluate.demo_report import check_folder, notes, table_text, write_results
    from scorefusion.io.nifti import read_scan
    from scorefusion.models.table import table_for
    from scorefusion.pipeline.pipeline import Pipeline

    began = time.perf_counter()
    size, start = parse_box(box)
    if steps is not None and steps < 1:
        raise ScoreFusionError(f"sampling needs at least 1 step, got {steps}")
    if not data.exists():
        raise BadInput(data, "does not exist", "For the default data run `python tools/fetch_data.py demo`.")
    keep_freed_memory()
    pipeline = Pipeline(model, device=device, dtype=dtype)
    sampling = other_sampling(pipeline.config, solver, sigma_min, rho)
    table_for(pipeline.config.model_copy(update={"sampling": sampling}), steps=steps)
    scan = read_scan(data, nan=nan)
    case = make_case(scan, pipeline.config, coarsen=coarsen, size=size, start=start).to(pipeline.device)
    folder = check_folder(output)
    with progress("translating", quiet=quiet) as report:
        result = run_demo(pipeline.model, case, sampling=sampling, steps=steps, seed=seed, callback=report)
    seconds = time.perf_counter() - began
    name = pipeline.config.name
    strategy = pipeline.config.sampling.strategy
    print(table_text(result.rows))
    note(write_results(folder, case, result, model=name, strategy=strategy, seed=seed, seconds=seconds))
    if not quiet:
        computed = f"{str(pipeline.dtype).removeprefix('torch.')} on {pipeline.device}"
        print(f"\n{notes(case, result, model=name, seed=seed)}")
        print(f"{time.perf_counter() - began:.0f} s in all, in {computed}; see {folder / 'report.png'}")


def other_sampling(
    config: ModelConfig, solver: str | None, sigma_min: float | None, rho: float | None
) -> SamplingConfig:
    """The model's sampling, changed where something is given; another solver takes no eta or spread.

    Raises:
        ScoreFusionError: for noise levels of a model whose schedule is fixed.
    """
    from scorefusion.errors import ScoreFusionError

    changes: dict[str, Any] = {} if solver is None else {"solver": solver, "eta": None, "spread": None}
    levels = {name: value for name, value in (("sigma_min", sigma_min), ("rho", rho)) if value is not None}
    if levels and config.sampling.schedule != "karras":
        raise ScoreFusionError(
            f"--{next(iter(levels)).replace('_', '-')} is for the karras schedule; model '{config.name}' "
            f"has '{config.sampling.schedule}'"
        )
    return config.sampling.model_copy(update=changes | levels)


def parse_box(text: str) -> tuple[list[int], list[int] | None]:
    """Read ``SIZE`` or ``SIZE@START``, three whole numbers (z, y, x) each.

    Raises:
        ScoreFusionError: for anything else.
    """
    from scorefusion.errors import ScoreFusionError

    try:
        parts = [[int(number) for number in part.split(",")] for part in text.split("@")]
    except ValueError:
        parts = []
    if len(parts) not in (1, 2) or any(len(part) != 3 for part in parts):
        raise ScoreFusionError(
            f"--box needs Z,Y,X or Z,Y,X@Z,Y,X, whole numbers, such as 80,96,96; got '{text}'"
        )
    return parts[0], parts[1] if len(parts) == 2 else None
