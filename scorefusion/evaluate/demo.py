"""The demonstration: a held-out volume made coarse, restored by every strategy, measured and pictured."""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from torch import Tensor

from scorefusion.data import BASELINES, interpolate
from scorefusion.degradations import SliceStack
from scorefusion.errors import ScoreFusionError
from scorefusion.evaluate.cases import Case, as_array, coarser_affine, make_case
from scorefusion.evaluate.output import aligned, write_text
from scorefusion.evaluate.run import Progress, Work
from scorefusion.evaluate.shared_start import SharedStart, first_rows, plane_row, strategy_runs
from scorefusion.io import Scan, save_figure, save_image, side_by_side, try_to_write
from scorefusion.metrics import METRICS, Pair, measure, shown
from scorefusion.models import ModelConfig, SamplingConfig, ScoreFusion, table_for
from scorefusion.models.strategies import ALTERNATE, STRATEGIES

BOX = (80, 96, 96)  #: default size (z, y, x) of the box that is translated, in voxels
VOLUMES = ("truth.nii.gz", "input.nii.gz", "output.nii.gz")
FILES = (*VOLUMES, "report.png", "table.txt", "table.json")
NEEDED = ("matplotlib", "scipy.ndimage", "skimage.metrics")  #: optional packages that measure and draw
Rows = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Result:
    """What the demonstration found."""

    rows: Rows  #: method to metric to value in the box, in the image's units, in the order they are printed
    volumes: dict[str, np.ndarray]  #: name, or ``truth``, to float32 ``[D, H, W]``, RAS, the image's units
    data_range: float  #: greatest less least value of the whole true volume, for PSNR and SSIM
    steps: int  #: network evaluations of a sample
    solver: str  #: its name
    seed: int  #: of the noise


def sliced(model: ScoreFusion, scan: Scan, thickness: float, coarsen: int = 1) -> ScoreFusion:
    """The same weights for slices of about so many mm along z, of whole voxels, without gaps.

    Raises:
        ScoreFusionError: for slices of more or fewer voxels than the model has learnt.
    """
    voxel = float(np.linalg.norm(scan.ras_affine[:3, 2])) * coarsen
    typical = model.config.degradation
    assert isinstance(typical, SliceStack)
    least, most = typical.steps
    step = round(thickness / voxel)
    if not least <= step <= most:
        raise ScoreFusionError(
            f"slices of {thickness:g} mm are {step} voxels of {voxel:.3g} mm, and '{model.config.name}' has "
            f"learnt {least} to {most}; give --slices {least * voxel:.2g} to {most * voxel:.2g}"
        )
    other = copy.copy(model)
    measurement = SliceStack(step=step, steps=typical.steps, widths=typical.widths)
    other.config = model.config.model_copy(update={"degradation": measurement})
    return other


def pooled_case(scan: Scan, config: ModelConfig, *, size: Sequence[int] = BOX, **where: Any) -> Case:
    """Pool a volume as the model expects its input; ``size`` and ``where`` are :func:`.cases.make_case`'s.

    Raises BadInput for a volume too small to pool, ScoreFusionError for a model of another task.
    """
    if not config.degradation.coarse or len(config.conditions) != 1:
        found = f"degradation '{config.degradation.kind}' and {len(config.conditions)} conditions"
        task = "the demonstration pools one volume and restores it"
        raise ScoreFusionError(f"{task}; model '{config.name}' has {found}")
    return make_case([scan], config, size=size, **where)


def run_demo(
    model: ScoreFusion,
    case: Case,
    *,
    sampling: SamplingConfig | None = None,
    steps: int | None = None,
    seed: int = 0,
    callback: Progress | None = None,
) -> Result:
    """Translate the box with every strategy of the model and every baseline, and measure them.

    The rows are the interpolations; ``single`` plane by plane and their mean; the other strategies; then the
    same strategies with one evaluation from pure noise, which is the posterior mean, unless all are that. The
    noise is the same for every strategy. A result that is not finite is a ScoreFusionError.

    The model is in evaluation mode, on the device of the case (:func:`pooled_case`). ``sampling`` and
    ``steps`` are its own when None. ``callback`` is called with (done, in all), in about one plane's work.
    """
    config, box = model.config, case.box
    sampled = config if sampling is None else config.model_copy(update={"sampling": sampling})
    table, once = table_for(sampled, steps=steps), table_for(sampled, steps=1)
    runs = [(run, table) for run in strategy_runs(config)]
    whole = [run for run, _ in runs if not STRATEGIES[run.strategy].takes_planes]
    if len(table) > 1:
        runs += [(replace(run, name=f"one-step {run.name}"), once) for run in whole]
    volumes = {"truth": as_array(case.target[box.index])}
    for name in BASELINES:
        fine = interpolate(case.measured, name, config.degradation.factors, case.prepared.operator)
        volumes[name] = as_array(fine[box.index])
    sampler = SharedStart(model, case.prepared, box, seed)
    work = Work(callback, SharedStart.COST + sum(run.cost * (len(rows) - 1) for run, rows in runs))
    for run, rows in runs:

        def tell(step: int, steps: int, x0: Tensor, cost: int = run.cost) -> None:
            work.add(cost if step > 1 else SharedStart.COST * (work.done == 0))

        volumes[run.name] = case.intensity.denormalise(case.volume(sampler.draw(run, rows, tell)))
    data_range = float(case.target.max() - case.target.min())
    return Result(_rows(volumes, data_range), volumes, data_range, len(table), table.name, seed)


def _rows(volumes: dict[str, np.ndarray], data_range: float) -> Rows:
    """Measure every volume but the truth; after the single planes comes their mean."""
    rows: Rows = {}
    for name, volume in volumes.items():
        if name == "truth":
            continue
        if not np.isfinite(volume).all():
            raise ScoreFusionError(f"the result of '{name}' is not finite; compute in float32")
        figures = measure(Pair(volume, volumes["truth"], data_range), "demo")
        rows[name] = {key: value for key, value in figures.items() if value is not None}
        strategy = plane_row(name)
        planes = [each for each in volumes if plane_row(each) == strategy]
        if strategy and name == planes[-1]:
            rows[strategy] = {key: float(np.mean([rows[p][key] for p in planes])) for key in rows[name]}
    return rows


def table_text(rows: Rows) -> str:
    """The rows as aligned columns: name, PSNR in dB, SSIM, error of the power spectrum's upper half."""
    metrics = [metric for metric in shown("demo") if any(metric.name in figures for figures in rows.values())]
    lines = [["", *(metric.head for metric in metrics)]]
    for name, figures in rows.items():
        lines.append([name, *(metric.format(figures[metric.name], narrow=True) for metric in metrics)])
    return aligned(lines, [-max(map(len, rows)), *(max(10, len(metric.head) + 2) for metric in metrics)])


def notes(case: Case, result: Result) -> str:
    """What the figures were measured on, in a few lines."""
    z, y, x = ([a, b] for a, b in zip(case.box.start, case.box.stop, strict=True))
    size = "×".join(str(n) for n in case.box.size)
    whole = "×".join(str(n) for n in case.target.shape[2:])
    voxel = "×".join(f"{length:g}" for length in np.round(case.spacing[::-1], 3))
    measurement = case.config.degradation
    coarse = "pooled " + "×".join(str(n) for n in measurement.factors)
    if isinstance(measurement, SliceStack):
        coarse = f"in slices of {measurement.step * case.spacing[0]:.2g} mm, {measurement.step} voxels"
    how = f"{result.steps} steps" if result.steps > 1 else "one step, the posterior mean"
    once = "; one-step is one evaluation from pure noise" if result.steps > 1 else ""
    return (
        f"{case.file}: {voxel} mm voxels, {coarse}, restored by {case.config.name}\n"
        f"box of {size} voxels (z, y, x) of {whole}: z {z[0]}..{z[1]}, y {y[0]}..{y[1]}, x {x[0]}..{x[1]}\n"
        f"PSNR and SSIM take white less black from the whole volume: {result.data_range:g}; "
        "'single' is the mean of its planes\n"
        f"sampled with {result.solver}, {how}, seed {result.seed}{once}\n"
        "spectrum: mean |log10(power / true power)| over the upper half of the frequencies; 0 is perfect"
    )


def write_results(folder: Path, case: Case, result: Result, seconds: float) -> str | None:
    """Write the volumes, the table as text and JSON, and last the picture; why that could not be, or None.

    ``output.nii.gz`` is by the model's own strategy; for ``single``, of the first plane.
    """
    factors, strategy = case.config.degradation.factors, case.config.sampling.strategy
    step = np.eye(4)
    step[:3, 3] = case.box.start[::-1]
    fine = case.affine @ step
    pooled = as_array(case.measured[case.box.coarser(factors).index])
    output = next(volume for name, volume in result.volumes.items() if name.split(" ")[0] == strategy)
    volumes = ((result.volumes["truth"], fine), (pooled, coarser_affine(fine, factors)), (output, fine))
    for name, (volume, affine) in zip(VOLUMES, volumes, strict=True):
        image = nib.Nifti1Image(np.ascontiguousarray(volume.transpose(2, 1, 0)), affine)
        image.header.set_xyzt_units("mm")
        save_image(image, folder / name)
    content = {
        "data": case.file,
        "model": case.config.name,
        "output": strategy,
        "box": {"start": case.box.start, "stop": case.box.stop, "whole": list(case.target.shape[2:])},
        "data_range": result.data_range,
        "solver": result.solver,
        "steps": result.steps,
        "seed": result.seed,
        "seconds": round(seconds, 1),
        "rows": [{"name": name, **figures} for name, figures in result.rows.items()],
    }
    text = f"{table_text(result.rows)}\n\n{notes(case, result)}\n"
    write_text(folder / "table.txt", text)
    write_text(folder / "table.json", json.dumps(content, indent=2) + "\n")
    picture = folder / "report.png"
    return try_to_write(picture, lambda: save_figure(report_figure(case, result), picture))


def report_figure(case: Case, result: Result) -> Any:
    """A figure of three planes, a zoom of the axial one, and its error, of a few baselines and strategies."""
    pictured = ("nearest", "trilinear+consistency", *first_rows(), "truth")
    names = [name for name in pictured if name in result.volumes and name != ALTERNATE.name]
    labels = {name: name for name in names} | {"nearest": "input (nearest)"}
    psnr, rows = METRICS["psnr"], result.rows
    scores = {labels[n]: f"{psnr.format(rows[n]['psnr'])} {psnr.unit}" for n in rows if n in labels}
    volumes = {label: result.volumes[name] for name, label in labels.items()}
    return side_by_side(volumes, case.spacing, result.data_range, scores)
