"""``scorefusion demo``: a held-out volume made coarse, restored by every strategy, measured and pictured."""

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
    data: Annotated[
        Path | None, Option(help="The true volume, at full resolution.", show_default="a held-out head")
    ] = None,
    slices: Annotated[float, Option(help="For a model of thick slices: how thick, in mm.")] = 4.0,
    output: Output = Path("demo_out"),
    model: Model = "auto",
    quiet: Quiet = False,
) -> None:
    """Make a volume coarse, restore it by interpolation and every strategy, and say how close each comes.

    What is coarse is what the model is for: thick slices, or with `--model t1-sr4` blocks of 4×4×4 voxels.
    Leaves truth, input and output as .nii.gz, report.png, table.txt and table.json in the output folder. The
    default data is fetched by `python tools/fetch_data.py demo`; the bundled models were not trained on it.

    \b
    Examples:
      scorefusion demo
      scorefusion demo --data my_t1.nii.gz --slices 6 -o my_demo
      scorefusion demo --model t1-sr4 --data data/second_head_t1.nii.gz --coarsen 2 -o second
      scorefusion demo --box 64,64,64@80,90,70 --steps 12
      scorefusion demo --solver ddpm --steps 6 --sigma-min 0.3 --rho 7
    """
    import time

    from scorefusion.cli.console import note, progress
    from scorefusion.errors import BadInput
    from scorefusion.evaluate import demo as demonstration
    from scorefusion.evaluate.demo import notes, pooled_case, run_demo, sliced, table_text, write_results
    from scorefusion.evaluate.methods import other_sampling
    from scorefusion.evaluate.output import check_folder
    from scorefusion.io import read_scan
    from scorefusion.models.table import table_for

    began = time.perf_counter()
    place = cut(where.box, where.coarsen)
    steps, seed = sampling["steps"], sampling["seed"]
    pipeline = loaded(model, machine)
    network, thick = pipeline.model, pipeline.config.degradation.of_each_scan
    data = data or Path("data", "ds000031_t1.nii.gz" if thick else "oasis_t1.nii.gz")
    if not data.exists():
        raise BadInput(data, "does not exist", "For the default data run `python tools/fetch_data.py demo`.")
    levels = {"sigma_min": where.sigma_min, "rho": where.rho}
    other = other_sampling(pipeline.config, sampling["solver"], None, levels)
    table_for(pipeline.config.model_copy(update={"sampling": other}), steps=steps)
    scan = read_scan(data, nan=sampling["nan"])
    if thick:
        network = sliced(network, scan, slices, where.coarsen)
    case = pooled_case(scan, network.config, device=pipeline.device, **place)
    folder = check_folder(output, demonstration.FILES, demonstration.NEEDED, "the demonstration")
    with progress("translating", quiet=quiet) as report:
        result = run_demo(network, case, sampling=other, steps=steps, seed=seed, callback=report)
    seconds = time.perf_counter() - began
    print(table_text(result.rows))
    note(write_results(folder, case, result, seconds))
    if not quiet:
        computed = f"{str(pipeline.dtype).removeprefix('torch.')} on {pipeline.device}"
        print(f"\n{notes(case, result)}")
        print(f"{time.perf_counter() - began:.0f} s in all, in {computed}; see {folder / 'report.png'}")
