"""``scorefusion translate``: a volume in, its translation out; or a folder in, and a folder out."""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from scorefusion.cli.options import Model, Quiet, argument, loaded, opt, target
from scorefusion.pipeline import CallOptions, Machine


@dataclass
class Many:
    """Options of a translation of many scans."""

    layout: str = opt("Of a folder: auto, files (each file a scan), bids, brats, folder, ...", "auto")
    choose: list[str] | None = opt("Of several files of a condition, the one with this in its path.")
    series: str | None = opt(
        "Of DICOM: the series with this SeriesInstanceUID (or its end), SeriesNumber, or part of its "
        "description.",
        shown="the only one; of a folder all",
    )
    ending: str = opt("Of a folder's outputs: .nii.gz, .nii, .mgz, .nrrd, .mha.", ".nii.gz")
    level: int = opt("Of a folder's outputs: 0 to 9.", 1, "--gzip-level")
    verify: bool = opt("Read all inputs and outputs to see whether they changed.", False)
    keep_failed: bool = opt("Do not try again what failed before.", False)
    dicom: bool = opt("Of DICOM: also write each result as a derived series, OUT/NAME_dicom.", False)
    deidentify: bool = opt("Leave the patient out of these series.", False)
    shard: str | None = opt("Only the i-th of n parts, such as 3/8.")
    ray: bool = opt("Let processes of Ray, started on this machine, do the work.", False)
    ray_address: str | None = opt("Those of a Ray cluster: HOST:PORT, or auto.")
    workers: int | None = opt("How many of them.", shown="one per GPU, or one per machine")
    prefetch: int = opt("Volumes read ahead.", 2)
    prefetch_memory: str | None = opt("The most memory for these, such as 4GB.", shown="no limit")
    report_only: bool = opt("Translate nothing; write OUT/report.html of all shards.", False)
    as_json: bool = opt("Of a folder: print each event as a line of JSON.", False, "--json")


@dataclass
class Beside:
    """What else is written for one volume."""

    spread: Path | None = opt("Also write the standard deviation over the samples.")
    error_bar: Path | None = opt(
        "Also write how far off each voxel is at most, for 80% of them, by the deviation over the samples."
    )
    figure: Path | None = opt("Also draw three planes, before and after: .png, .pdf, .svg.")


def translate(
    images: Annotated[
        list[Path],
        argument(
            "NIfTI files or folders of a DICOM series, one per condition of the model; or a folder of scans, "
            "a CSV or a TSV.",
            "IN",
        ),
    ],
    output: Annotated[str, target("Where to write: .nii.gz, .mgz, .nrrd, .mha, or a folder.")],
    options: CallOptions,
    machine: Machine,
    many: Many,
    beside: Beside,
    model: Model = "auto",
    quiet: Quiet = False,
) -> None:
    """Translate a volume, such as a thick-sliced scan of any contrast to isotropic voxels; or many.

    Where IN is a folder or a table, or OUT is a folder, each scan gives a file in OUT. What goes wrong with
    one does not stop the others, and the same command again does what is missing. Where OUT is a file, a
    folder of one DICOM series is one volume.

    The result lies in the input's own orientation and units, and measures as the input does: sliced again as
    thickly, it is the input. Nothing is written unless all went well. `scorefusion models` lists the models.

    \b
    Examples:
      scorefusion translate flair_5mm.nii.gz -o flair_iso.nii.gz
      scorefusion translate t2.nii.gz -o t2_iso.nii.gz --thickness 4 --gap 1
      scorefusion translate t2.nii.gz -o mean.nii.gz --samples 8 --error-bar bar.nii.gz
      scorefusion translate t1.nii.gz -o t1_fine.nii.gz --model t1-sr4 --figure out.png
      scorefusion translate t1.nii.gz t2.nii.gz -o flair.nii.gz --model my_model
      scorefusion translate t1.nii.gz -o t1_iso.nii.gz --max-memory 4GB
      scorefusion translate scans -o iso/
      scorefusion translate pairs.csv -o flair/ --model my_model --shard 3/8
      scorefusion translate scans -o iso/ --ray --workers 4
      scorefusion translate study -o iso/ --dicom --deidentify
      scorefusion translate study -o iso.nii.gz --series t1_mprage
    """
    from scorefusion.batch import is_batch
    from scorefusion.errors import BadInput, ScoreFusionError

    if many.report_only:
        from scorefusion.batch import write_report

        print(write_report(Path(output)))
        return
    if is_batch(images, output):
        from scorefusion.cli.batch_run import translate_many

        raise typer.Exit(translate_many(images, Path(output), model, machine, options, many, beside, quiet))
    if many.ray or many.ray_address is not None or many.workers is not None:
        raise ScoreFusionError("--ray is for many volumes; give a folder, a table, or a folder for OUT")
    if many.dicom or many.deidentify:
        raise ScoreFusionError("--dicom is for folders of DICOM files; give one, and a folder for OUT")

    from scorefusion.cli.console import progress
    from scorefusion.io import FIGURE_ENDINGS, check_output, check_volume_output, save_image, try_to_write
    from scorefusion.io.dicom.file import is_dicom
    from scorefusion.io.nifti import check_sidecar
    from scorefusion.pipeline import side_path

    file, figure, series = Path(output), beside.figure, many.series
    of_samples = {"spread": beside.spread, "error-bar": beside.error_bar}
    check_volume_output(file, images)
    if file.is_file() and is_dicom(file):
        raise BadInput(file, "is a DICOM file, perhaps of the input", "Give the output another name.")
    taken = [*images, file]
    for name, path in of_samples.items():
        if path is None:
            continue
        check_volume_output(path, taken)
        taken.append(path)
        if options["samples"] < 2:
            raise ScoreFusionError(
                f"--{name} needs --samples 2 or more: there is no spread of a single sample"
            )
    if options["disagreement"]:
        check_volume_output(side_path(file, "planes"), images)
    if figure is not None:
        from scorefusion.optional import need

        check_output(figure, FIGURE_ENDINGS, images)
        need("matplotlib", "--figure")
    given: list[Any] = [*images]
    if series is not None:
        from scorefusion.io.dicom.read import read_dicom_series

        most = options["max_voxels"]
        given = [read_dicom_series(image, series=series, max_voxels=most) for image in images]
    pipeline = loaded(model, machine)
    if beside.error_bar is not None and pipeline.config.sampling.error_bar is None:
        name = pipeline.config.name
        raise ScoreFusionError(f"--error-bar: what the spread of model '{name}' is worth was not measured")
    if pipeline.config.degradation.of_each_scan:
        check_sidecar(file, images)
    with progress("translating", quiet=quiet) as report:
        options["callback"] = report
        result = pipeline(given, **options)
    result.save(file)
    if not quiet:
        for warning in result.warnings:
            print(f"warning: {warning}", file=sys.stderr)
    problems = []
    if result.planes_apart is not None:
        image, planes = result.image_of(result.planes_apart), side_path(file, "planes")
        problems.append(try_to_write(planes, lambda: save_image(image, planes)))
    savers = {"spread": result.save_spread, "error-bar": result.save_error_bar}
    for name, path in of_samples.items():
        if path is not None:
            problems.append(try_to_write(path, partial(savers[name], path)))
    if figure is not None:
        problems.append(try_to_write(figure, lambda: result.figure(figure)))
    if not quiet:
        size = " × ".join(str(n) for n in result.volume.shape)
        effort = f"{result.solver}, {result.samples} × {result.evaluations} evaluations"
        print(f"{file}: {size} voxels, {result.strategy}, {effort}, seed {result.seed}")
        print(f"  {result.timings['total']:.1f} s on {pipeline.device} in {result.dtype}")
        if result.slices is not None:
            chosen = f"{result.model}, chosen because the scan is thick-sliced" if model == "auto" else model
            print(f"  model {chosen}: {result.slices}")
            for text in result.slices.assumed:
                print(f"  assumed: {text}")
        if beside.error_bar is not None and (bar := result.calibration) is not None:
            how = f"measured with {bar.samples} samples of {bar.steps} steps"
            print(
                f"  error bar: held {bar.share:.0%} of the voxels of heads that the model had not seen, {how}"
            )
        if result.consistency_residual is not None:
            worst, mean = result.consistency_residual
            pooled = result.slices is None and pipeline.config.degradation.blocks
            what = "block means differ" if pooled else "what is measured differs"
            print(f"  {what} from the input by {mean:.2g} on average, {worst:.2g} at most")
    failed = [problem for problem in problems if problem is not None]
    if failed:
        raise ScoreFusionError(f"{file} was written; {'; '.join(failed)}")
