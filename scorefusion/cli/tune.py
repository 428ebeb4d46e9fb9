"""``scorefusion tune``: quality against network evaluations, and the cheapest setting that is good enough."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from typer import Argument

from scorefusion.cli.options import Device, ModelArgument, Only, Output, Quiet, cut, loaded, numbers, opt
from scorefusion.pipeline import OWN, Options


@dataclass
class Tried:
    """The settings to try, and where."""

    solvers: str = opt(
        "Solvers to try, NAME, NAME:ETA or NAME:ETA:SPREAD.", "ddpm,ddim,ddim:0.5,ddim:0:0.2,dpmpp_2m"
    )
    evaluations: str = opt("Numbers of evaluations to try.", "1,2,3,4,6,8,12")
    sigma_min: str | None = opt("Where the noise ends; the model's own, 2 and 4 times that.")
    sigma_max: str | None = opt("Where the noise begins.", shown=OWN)
    rho: str | None = opt("How noise levels crowd at the clean end.", shown=OWN)
    reference: int = opt("Ancestral steps, over the model's own noise range, to be no worse than.", 50)
    write: bool = opt("Store the choice in the model's config.json.", False)
    seeds: int = opt("Samples of each setting, with seeds 0, 1, ...", 1)
    box: str = opt("Size of the box, Z,Y,X voxels, in the middle of each head; or SIZE@START.", "64,80,80")
    coarsen: int = opt("Average N x N x N voxels of the data first.", 1)


def tune(
    model: ModelArgument,
    data: Annotated[
        list[Path],
        Argument(
            help="True volumes at full resolution; for a model of another task CONDITION... TARGET of each."
        ),
    ],
    tried: Tried,
    options: Annotated[Options, Only("strategy", "nan")],
    machine: Device,
    output: Output = Path("tune_out"),
    quiet: Quiet = False,
) -> None:
    """Sample volumes of known truth in many ways, and choose the cheapest as good as many ancestral steps.

    As good is: no metric with a slack is worse than the reference's by more than that: PSNR, power spectrum,
    patch distance, Fourier shell correlation and those registered besides (docs/models.md). Leaves tune.json,
    tune.csv and tune.png in the output folder. Choose on volumes that no result is reported on.

    \b
    Examples:
      scorefusion tune t1-sr4 data/colin27_t1.nii.gz -o tuned
      scorefusion tune my_model a.nii.gz b.nii.gz --solvers ddim,dpmpp_2m --evaluations 2,3,4 --write
      scorefusion tune t1_to_t2 sub1_t1.nii.gz sub1_t2.nii.gz sub2_t1.nii.gz sub2_t2.nii.gz
    """
    from scorefusion.cli.console import note, progress
    from scorefusion.errors import ScoreFusionError
    from scorefusion.evaluate import make_cases
    from scorefusion.evaluate import tune as tuning
    from scorefusion.evaluate.output import check_folder
    from scorefusion.models.folder import find_folder, write_config
    from scorefusion.models.strategies import require_strategy

    place = cut(tried.box, tried.coarsen)
    reference, seeds = tried.reference, tried.seeds
    if seeds < 1 or reference < 2:
        raise ScoreFusionError(f"seeds must be at least 1 and reference 2; got {seeds} and {reference}")
    counts = [int(number) for number in numbers("--evaluations", tried.evaluations) or ()]
    pipeline = loaded(model, machine)
    config = pipeline.config
    strategy = require_strategy(options["strategy"], config).name
    candidates = tuning.candidates(
        config,
        solvers=[name.strip() for name in tried.solvers.split(",")],
        evaluations=counts,
        sigma_min=numbers("--sigma-min", tried.sigma_min),
        sigma_max=numbers("--sigma-max", tried.sigma_max),
        rho=numbers("--rho", tried.rho, signed=True),
    )
    subjects = make_cases(data, config, nan=options["nan"], device=pipeline.device, **place)
    folder = check_folder(output, tuning.FILES, tuning.NEEDED, "tuning")
    with progress("tuning", quiet=quiet) as report:
        curve = tuning.tune(
            pipeline.model,
            subjects,
            candidates,
            reference=tuning.reference_sampling(config, reference),
            strategy=strategy,
            seeds=range(seeds),
            callback=report,
        )
    computed = f"{str(pipeline.dtype).removeprefix('torch.')} on {pipeline.device}"
    print(tuning.table_text(curve))
    print(f"\n{tuning.verdict(curve)}")
    told: dict[str, Any] = {"model": config.name, "strategy": strategy, "seeds": seeds, "computed": computed}
    note(tuning.write_results(folder, curve, subjects, **told))
    if tried.write and curve.chosen is not None:
        chosen = curve.chosen.sampling.model_copy(update={"strategy": strategy})
        file = write_config(config.model_copy(update={"sampling": chosen}), find_folder(model))
        print(f"written to {file}")
    elif tried.write:
        print("config.json is unchanged")
    if not quiet:
        print(f"computed in {computed}; see {folder / 'tune.png'}")
