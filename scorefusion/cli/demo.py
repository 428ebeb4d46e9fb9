"""``scorefusion demo``: a held-out volume pooled, translated with every strategy, measured and pictured."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option

from scorefusion.cli.options import Device, Model, Only, Output, Place, Quiet, cut, loaded, opt
from scorefusion.pipeline import OWN, Options


@dataclass
class Sampler(Place):
    """Where, and with which noise levels."""

    sigma_min: float | None = opt("Where the noise ends.", shown=OWN)
    rho: float | None = opt("How noise levels crowd at the clean end.", shown=OWN)


def demo(
    where: Sampler,
    sampling: Annotated[Options, Only("steps", "solver", "seed", "nan")],
    machine: Device,
    data: Annotated[Path, Option(help="The true volume, at full resolution.")] = Path("data/oasis_t1.nii.gz"),
    output: Output = Path("demo_out"),
    model: Model = "t1-sr4",
    quiet: Quiet = False,
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

    from scorefusion.cli.console import note, progress
    from scorefusion.errors import BadInput
    from scorefusion.evaluate import demo as demonstration
    from scorefusion.evaluate.demo import notes, pooled_case, run_demo, table_text, write_results
    from scorefusion.evaluate.methods import other_sampling
    from scorefusion.evaluate.output import check_folder
    from scorefusion.io import read_scan
    from scorefusion.models.table import table_for

    began = time.perf_counter()
    place = cut(where.box, where.coarsen)
    steps, seed = sampling["steps"], sampling["seed"]
    if not data.exists():
        raise BadInput(data, "does not exist", "For the default data run `python tools/fetch_data.py demo`.")
    pipeline = loaded(model, machine)
    levels = {"sigma_min": where.sigma_min, "rho": where.rho}
    other = other_sampling(pipeline.config, sampling["solver"], None, levels)
    table_for(pipeline.config.model_copy(update={"sampling": other}), steps=steps)
    scan = read_scan(data, nan=sampling["nan"])
    case = pooled_case(scan, pipeline.config, device=pipeline.device, **place)
    folder = check_folder(output, demonstration.FILES, demonstration.NEEDED, "the demonstration")
    with progress("translating", quiet=quiet) as report:
        result = run_demo(pipeline.model, case, sampling=other, steps=steps, seed=seed, callback=report)
    seconds = time.perf_counter() - began
    print(table_text(result.rows))
    note(write_results(folder, case, result, seconds))
    if not quiet:
        computed = f"{str(pipeline.dtype).removeprefix('torch.')} on {pipeline.device}"
        print(f"\n{notes(case, result)}")
        print(f"{time.perf_counter() - began:.0f} s in all, in {computed}; see {folder / 'report.png'}")
