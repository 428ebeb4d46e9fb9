"""``scorefusion translate``: a volume in, its translation out; or a folder in, and a folder out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from scorefusion.models.strategies import names_text

_OWN = "the model's own"


def translate(
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IN",
            help="NIfTI files or folders of a DICOM series, one a condition of the model; or a folder of "
            "scans, a CSV or a TSV.",
            show_default=False,
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            help="Where to write: .nii.gz, .mgz, .nrrd, .mha, or a folder.",
            show_default=False,
        ),
    ],
    model: Annotated[str, typer.Option(help="A bundled model's name, or a model folder.")] = "t1-sr4",
    strategy: Annotated[
        str | None,
        typer.Option(help=f"{names_text()}.", show_default=_OWN),
    ] = None,
    plane: Annotated[
        list[str] | None,
        typer.Option(help="For single and alternate: axial, coronal or sagittal; may be repeated."),
    ] = None,
    solver: Annotated[
        str | None,
        typer.Option(help="ddpm, ddim, dpmpp_2m, dpmpp_2m_sde, euler, heun or official.", show_default=_OWN),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Noise levels.", show_default=_OWN)] = None,
    eta: Annotated[float | None, typer.Option(help="Fresh noise of ddim and dpmpp_2m_sde.")] = None,
    start_abar: Annotated[
        float | None, typer.Option(help="Start late, at this cumulative alpha between 0 and 1.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Draw several and average them.")] = 1,
    seed: Annotated[int, typer.Option(help="The same seed gives the same volume.")] = 0,
    batch: Annotated[int, typer.Option(help="Samples drawn at once.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="auto (what is fast here), float32, bfloat16, float16.")
    ] = "auto",
    runner: Annotated[
        str, typer.Option(help="How the 2D networks run: auto, eager, compile or tensorrt.")
    ] = "auto",
    engines: Annotated[
        Path | None,
        typer.Option(help="TensorRT engines from `scorefusion engine build`.", show_default=False),
    ] = None,
    max_memory: Annotated[
        str | None, typer.Option(help="The most memory to use, such as 9GB.", show_default="no limit")
    ] = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="Compute everywhere, not only around the foreground.")
    ] = False,
    mask: Annotated[
        Path | None,
        typer.Option(help="For a model that fills in: not 0 where voxels are missing.", show_default=False),
    ] = None,
    nan: Annotated[str, typer.Option(help="NaN and infinite voxels: error, or zero.")] = "error",
    assume_affine: Annotated[
        bool,
        typer.Option(
            "--assume-affine", help="Without an orientation in the header, use pixdim and RAS axes."
        ),
    ] = False,
    output_dtype: Annotated[
        str, typer.Option(help="float32, or input: the type and scaling of the input file.")
    ] = "float32",
    max_voxels: Annotated[int, typer.Option(help="Refuse larger volumes, in and out.")] = 2**30,
    clip: Annotated[
        str, typer.Option(help="none, or input: a result within the range of the input's values.")
    ] = "none",
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Refuse what the model was not made for, instead of a warning."),
    ] = False,
    spread: Annotated[
        Path | None,
        typer.Option(help="Also write the standard deviation over the samples.", show_default=False),
    ] = None,
    disagreement: Annotated[
        bool,
        typer.Option("--disagreement", help="Also write how far the planes are from each other: _planes."),
    ] = False,
    figure: Annotated[
        Path | None,
        typer.Option(help="Also draw three planes, before and after: .png, .pdf, .svg.", show_default=False),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
    layout: Annotated[
        str, typer.Option(help="Of a folder: auto, files (each file a scan), bids, brats, folder, ...")
    ] = "auto",
    choose: Annotated[
        list[str] | None,
        typer.Option(
            help="Of several files of a condition, the one with this in its path.", show_default=False
        ),
    ] = None,
    series: Annotated[
        str | None,
        typer.Option(
            help="Of DICOM: the series with this SeriesInstanceUID (or its end), SeriesNumber, or part of "
            "its description.",
            show_default="the only one; of a folder all",
        ),
    ] = None,
    ending: Annotated[
        str, typer.Option(help="Of a folder's outputs: .nii.gz, .nii, .mgz, .nrrd, .mha.")
    ] = ".nii.gz",
    level: Annotated[int, typer.Option("--gzip-level", help="Of a folder's outputs: 0 to 9.")] = 1,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read all inputs and outputs to see whether they changed.")
    ] = False,
    keep_failed: Annotated[
        bool, typer.Option("--keep-failed", help="Do not try again what failed before.")
    ] = False,
    dicom: Annotated[
        bool,
        typer.Option("--dicom", help="Of DICOM: also write each result as a derived series, OUT/NAME_dicom."),
    ] = False,
    deidentify: Annotated[
        bool, typer.Option("--deidentify", help="Leave the patient out of these series.")
    ] = False,
    shard: Annotated[
        str | None, typer.Option(help="Only the i-th of n parts, such as 3/8.", show_default=False)
    ] = None,
    ray: Annotated[
        bool, typer.Option("--ray", help="Let processes of Ray, started on this machine, do the work.")
    ] = False,
    ray_address: Annotated[
        str | None,
        typer.Option(help="Those of a Ray cluster: HOST:PORT, or auto.", show_default=False),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="How many of them.", show_default="one a GPU, or one a machine")
    ] = None,
    prefetch: Annotated[int, typer.Option(help="Volumes read ahead.")] = 2,
    prefetch_memory: Annotated[
        str | None, typer.Option(help="The most memory for these, such as 4GB.", show_default="no limit")
    ] = None,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Translate nothing; write OUT/report.html of all shards.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Of a folder: print each event as a line of JSON.")
    ] = False,
) -> None:
    """Translate a volume, such as a T1 image to four times the resolution along each axis; or many.

    Where IN is a folder or a table, or OUT is a folder, each scan gives a file in OUT. What goes wrong with
    one does not stop the others, and the same command again does what is missing. Where OUT is a file, a
    folder of one DICOM series is one volume.

    The result lies in the input's own orientation and units. For super-resolution its 4 × 4 × 4 block means
    are the input's voxels. Nothing is written unless all went well.

    \b
    Examples:
      scorefusion translate t1.nii.gz -o t1_fine.nii.gz
      scorefusion translate t1.nii.gz -o mean.nii.gz --samples 4 --spread sd.nii.gz
      scorefusion translate t1.nii.gz -o fast.nii.gz --strategy average --steps 1
      scorefusion translate t1.nii.gz -o out.nii.gz --solver dpmpp_2m --steps 12 --figure out.png
      scorefusion translate t1.nii.gz t2.nii.gz -o flair.nii.gz --model my_model
      scorefusion translate t1.nii.gz -o t1_fine.nii.gz --max-memory 4GB
      scorefusion translate scans -o fine/
      scorefusion translate pairs.csv -o flair/ --model my_model --shard 3/8
      scorefusion translate scans -o fine/ --ray --workers 4
      scorefusion translate study -o fine/ --dicom --deidentify
      scorefusion translate study -o fine.nii.gz --series t1_mprage
    """
    from scorefusion.batch.sources import is_batch
    from scorefusion.errors import ScoreFusionError

    choices = {
        "strategy": strategy,
        "planes": plane,
        "solver": solver,
        "steps": steps,
        "eta": eta,
        "start_abar": start_abar,
        "samples": samples,
        "seed": seed,
        "batch": batch,
        "disagreement": disagreement,
        "crop": not whole,
        "nan": nan,
        "assume_affine": assume_affine,
        "output_dtype": output_dtype,
        "max_voxels": max_voxels,
        "clip": clip,
        "strict": strict,
    }
    machine: dict[str, Any] = {
        "device": device,
        "dtype": dtype,
        "runner": runner,
        "engines": engines,
        "max_memory": max_memory,
    }
    if not report_only and not is_batch(images, output):
        if ray or ray_address is not None or workers is not None:
            raise ScoreFusionError("--ray is for many volumes; give a folder, a table, or a folder for OUT")
        if dicom or deidentify:
            raise ScoreFusionError("--dicom is for folders of DICOM files; give one, and a folder for OUT")
        _one(images, Path(output), model, machine, choices, mask, spread, figure, quiet, series)
        return

    if report_only:
        from scorefusion.batch.report import report

        print(report(Path(output)))
        return

    from scorefusion.cli.batch_run import make_batch, run_batch

    many = make_batch(
        images,
        Path(output),
        model,
        machine,
        choices,
        layout=layout,
        choose=choose or (),
        series=series,
        ending=ending,
        level=level,
        verify=verify,
        keep_failed=keep_failed,
        shard=shard,
        prefetch=prefetch,
        prefetch_memory=prefetch_memory,
        dicom=dicom,
        deidentify=deidentify,
        refused={"--mask": mask, "--spread": spread, "--figure": figure},
    )
    address = ray_address or ("local" if ray else None)
    raise typer.Exit(run_batch(many, as_json=as_json, quiet=quiet, ray=address, workers=workers))


def _one(
    images: list[Path],
    output: Path,
    model: str,
    machine: dict[str, Any],
    choices: dict[str, Any],
    mask: Path | None,
    spread: Path | None,
    figure: Path | None,
    quiet: bool,
    series: str | None,
) -> None:
    """Translate one volume, and say how it went."""
    from scorefusion.batch.files import side_path
    from scorefusion.errors import BadInput, ScoreFusionError
    from scorefusion.io.atomic import check_output
    from scorefusion.io.dicom.file import is_dicom
    from scorefusion.io.formats import check_volume_output
    from scorefusion.io.nifti import save_image
    from scorefusion.pipeline.figures import FIGURE_ENDINGS, try_to_write

    check_volume_output(output, images)
    if output.is_file() and is_dicom(output):
        raise BadInput(output, "is a DICOM file, perhaps of the input", "Give the output another name.")
    if spread is not None:
        check_volume_output(spread, [*images, output])
        if choices["samples"] < 2:
            raise ScoreFusionError(
                "--spread needs --samples 2 or more: there is no spread of a single sample"
            )
    if choices["disagreement"]:
        check_volume_output(side_path(output, "planes"), images)
    if figure is not None:
        from scorefusion.optional import need

        check_output(figure, FIGURE_ENDINGS, images)
        need("matplotlib", "--figure")

    from scorefusion.cli.bars import progress
    from scorefusion.engine.planning.memory import keep_freed_memory
    from scorefusion.pipeline.pipeline import Pipeline

    if machine["max_memory"] is None:
        keep_freed_memory()
    given: list[Any] = [*images]
    if series is not None:
        from scorefusion.io.dicom.read import read_dicom_series

        most = choices["max_voxels"]
        given = [read_dicom_series(image, series=series, max_voxels=most) for image in images]
    pipeline = Pipeline(model, **machine)
    with progress("translating", quiet=quiet) as report:
        result = pipeline(given, **choices, mask=mask, callback=report)
    result.save(output)
    if not quiet:
        for warning in result.warnings:
            print(f"warning: {warning}", file=sys.stderr)
    problems = []
    if result.planes_apart is not None:
        image, planes = result.image_of(result.planes_apart), side_path(output, "planes")
        problems.append(try_to_write(planes, lambda: save_image(image, planes)))
    if spread is not None:
        problems.append(try_to_write(spread, lambda: result.save_spread(spread)))
    if figure is not None:
        problems.append(try_to_write(figure, lambda: result.figure(figure)))
    if not quiet:
        size = " × ".join(str(n) for n in result.volume.shape)
        effort = f"{result.solver}, {result.samples} × {result.evaluations} evaluations"
        print(f"{output}: {size} voxels, {result.strategy}, {effort}, seed {result.seed}")
        print(f"  {result.timings['total']:.1f} s on {pipeline.device} in {result.dtype}")
        if result.consistency_residual is not None:
            worst, mean = result.consistency_residual
            what = "block means differ" if pipeline.config.degradation.blocks else "what is measured differs"
            print(f"  {what} from the input by {mean:.2g} on average, {worst:.2g} at most")
    failed = [problem for problem in problems if problem is not None]
    if failed:
        raise ScoreFusionError(f"{output} was written; {'; '.join(failed)}")
