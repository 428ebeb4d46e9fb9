"""``scorefusion tune``: quality against network evaluations, and the cheapest setting that is good enough."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scorefusion.models.strategies import names_text


def tune(
    model: Annotated[str, typer.Argument(help="A bundled model's name, or a model folder.")],
    data: Annotated[
        list[Path],
        typer.Argument(
            help="True volumes at full resolution; for a model of another task CONDITION... TARGET of each."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path(
        "tune_out"
    ),
    strategy: Annotated[str | None, typer.Option(help=f"{names_text()}; the model's own choice.")] = None,
    solvers: Annotated[
        str, typer.Option(help="Solvers to try, NAME, NAME:ETA or NAME:ETA:SPREAD.")
    ] = "ddpm,ddim,ddim:0.5,ddim:0:0.2,dpmpp_2m",
    evaluations: Annotated[str, typer.Option(help="Numbers of evaluations to try.")] = "1,2,3,4,6,8,12",
    sigma_min: Annotated[
        str | None, typer.Option(help="Where the noise ends; the model's own, 2 and 4 times that.")
    ] = None,
    sigma_max: Annotated[str | None, typer.Option(help="Where it begins; the model's own.")] = None,
    rho: Annotated[
        str | None, typer.Option(help="How noise levels crowd at the clean end; the model's own.")
    ] = None,
    reference: Annotated[
        int, typer.Option(help="Ancestral steps, over the model's own noise range, to be no worse than.")
    ] = 50,
    write: Annotated[
        bool, typer.Option("--write", help="Store the choice in the model's config.json.")
    ] = False,
    box: Annotated[
        str,
        typer.Option(
            help="Size of the box sampled, Z,Y,X voxels, in the middle of each head; or SIZE@START."
        ),
    ] = "64,80,80",
    coarsen: Annotated[int, typer.Option(help="Average N x N x N voxels of the data first.")] = 1,
    seeds: Annotated[int, typer.Option(help="Samples of each setting, with seeds 0, 1, ...")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="auto (what is fast here), float32, bfloat16, float16.")
    ] = "auto",
    nan: Annotated[str, typer.Option(help="NaN and infinite voxels: error, or zero.")] = "error",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress; print the table only.")] = False,
) -> None:
    """Sample volumes of known truth in many ways, and choose the cheapest as good as many ancestral steps.

    As good is: PSNR, power spectrum, patch distance and Fourier shell correlation no worse than the
    reference's, to the slack in docs/models.md. Leaves tune.json, tune.csv and tune.png in the output folder.
    Choose on volumes that no result is reported on.

    \b
    Examples:
      scorefusion tune t1-sr4 data/colin27_t1.nii.gz -o tuned
      scorefusion tune my_model a.nii.gz b.nii.gz --solvers ddim,dpmpp_2m --evaluations 2,3,4 --write
      scorefusion tune t1_to_t2 sub1_t1.nii.gz sub1_t2.nii.gz sub2_t1.nii.gz sub2_t2.nii.gz
    """
    from scorefusion.cli.bars import progress
    from scorefusion.cli.demo import parse_box
    from scorefusion.cli.streams import note
    from scorefusion.engine.planning.memory import keep_freed_memory
    from scorefusion.errors import ScoreFusionError
    from scorefusion.evaluate import tune as tuning
    from scorefusion.evaluate.known_truth import read_subjects
    from scorefusion.evaluate.tune_report import check_folder, table_text, verdict, write_results
    from scorefusion.models.folder import find_folder, write_config
    from scorefusion.models.strategies import require_strategy
    from scorefusion.pipeline.pipeline import Pipeline

    size, start = parse_box(box)
    if seeds < 1 or reference < 2:
        raise ScoreFusionError(f"seeds must be at least 1 and reference 2; got {seeds} and {reference}")
    counts = [int(number) for number in numbers("--evaluations", evaluations)]
    keep_freed_memory()
    pipeline = Pipeline(model, device=device, dtype=dtype)
    config = pipeline.config
    strategy = require_strategy(strategy, config).name
    tried = tuning.candidates(
        config,
        solvers=[name.strip() for name in solvers.split(",")],
        evaluations=counts,
        sigma_min=None if sigma_min is None else numbers("--sigma-min", sigma_min),
        sigma_max=None if sigma_max is None else numbers("--sigma-max", sigma_max),
        rho=None if rho is None else numbers("--rho", rho, signed=True),
    )
    subjects = read_subjects(
        data, config, coarsen=coarsen, size=size, start=start, nan=nan, device=pipeline.device
    )
    folder = check_folder(output)
    with progress("tuning", quiet=quiet) as report:
        curve = tuning.tune(
            pipeline.model,
            subjects,
            tried,
            reference=tuning.reference_sampling(config, reference),
            strategy=strategy,
            seeds=range(seeds),
            callback=report,
        )
    computed = f"{str(pipeline.dtype).removeprefix('torch.')} on {pipeline.device}"
    print(table_text(curve))
    print(f"\n{verdict(curve)}")
    note(
        write_results(
            folder, curve, subjects, model=config.name, strategy=strategy, seeds=seeds, computed=computed
        )
    )
    if write and curve.chosen is not None:
        chosen = curve.chosen.sampling.model_copy(update={"strategy": strategy})
        file = write_config(config.model_copy(update={"sampling": chosen}), find_folder(model))
        print(f"written to {file}")
    elif write:
        print("config.json is unchanged")
    if not quiet:
        print(f"computed in {computed}; see {folder / 'tune.png'}")


def numbers(option: str, text: str, *, signed: bool = False) -> list[float]:
    """Read numbers with commas between them, positive unless ``signed``.

    Raises:
        ScoreFusionError: naming the option, for anything else.
    """
    from scorefusion.errors import ScoreFusionError

    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or (min(values) <= 0 and not signed):
        kind = "numbers" if signed else "positive numbers"
        raise ScoreFusionError(f"{option} needs {kind} with commas between them; got '{text}'")
    return values
