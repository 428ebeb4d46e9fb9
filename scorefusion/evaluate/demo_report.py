"""What the demonstration leaves behind: volumes, a table and a picture."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from scorefusion.errors import BadInput
from scorefusion.evaluate.demo import Case, Result, Row, box_affine, coarser_affine
from scorefusion.evaluate.shared_start import first_rows
from scorefusion.io.atomic import check_output, written_beside
from scorefusion.io.nifti import save_image
from scorefusion.models.strategies import ALTERNATE
from scorefusion.optional import need
from scorefusion.pipeline.figures import save_figure, side_by_side, try_to_write

VOLUMES = ("truth.nii.gz", "input.nii.gz", "output.nii.gz")
FILES = (*VOLUMES, "report.png", "table.txt", "table.json")
HEAD = ("PSNR dB", "SSIM", "spectrum")


def check_folder(folder: str | os.PathLike[str]) -> Path:
    """Make the folder, and find out before any work is done that the files can be written.

    Raises:
        BadInput: if the folder cannot be made or written.
    """
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(target, f"cannot be made ({error.strerror})", "Choose another folder.") from None
    for name in FILES:
        check_output(target / name, (Path(name).suffix,))
    for module in ("matplotlib", "scipy.ndimage", "skimage.metrics"):
        need(module, "the demonstration")
    return target


def table_text(rows: Sequence[Row]) -> str:
    """The rows as aligned columns: name, PSNR in dB, SSIM, error of the power spectrum's upper half."""
    width = max(len(row.name) for row in rows)
    lines = [f"{'':<{width}}  " + "  ".join(f"{title:>8}" for title in HEAD)]
    for row in rows:
        lines.append(f"{row.name:<{width}}  {row.psnr:8.2f}  {row.ssim:8.3f}  {row.spectrum:8.3f}")
    return "\n".join(lines)


def notes(case: Case, result: Result, *, model: str, seed: int) -> str:
    """What the figures were measured on, in a few lines."""
    z, y, x = ([a, b] for a, b in zip(case.box.start, case.box.stop, strict=True))
    size = "×".join(str(n) for n in case.box.size)
    whole = "×".join(str(n) for n in case.truth.shape[2:])
    voxel = "×".join(f"{length:g}" for length in _spacing(case.affine).round(3))
    return (
        f"{case.name}: {voxel} mm voxels, pooled {'×'.join(map(str, case.factors))}, "
        f"restored by {model}\n"
        f"box of {size} voxels (z, y, x) of {whole}: z {z[0]}..{z[1]}, y {y[0]}..{y[1]}, x {x[0]}..{x[1]}\n"
        f"PSNR and SSIM take white less black from the whole volume: {case.data_range:g}; "
        "'single' is the mean of its planes\n"
        f"sampled with {result.solver}, {result.steps} steps, seed {seed}; "
        "one-step is one evaluation from pure noise\n"
        "spectrum: mean |log10(power / true power)| over the upper half of the frequencies; 0 is perfect"
    )


def write_results(
    folder: Path, case: Case, result: Result, *, model: str, strategy: str, seed: int, seconds: float
) -> str | None:
    """Write truth, input and output, the table as text and JSON, and the picture.

    Args:
        folder: from :func:`check_folder`.
        case: the volume.
        result: what came out.
        model: its name.
        strategy: whose result is ``output.nii.gz`` (for ``single``, of the first plane).
        seed: of the noise.
        seconds: what the whole took.

    Returns:
        Why the picture could not be drawn, which is last; None if it was.

    Raises:
        BadInput: if another file cannot be written.
    """
    fine = box_affine(case.affine, case.box)
    coarse = coarser_affine(fine, case.factors)
    pooled = case.pooled[case.box.coarser(case.factors).index][0, 0].cpu().numpy()
    output = next(volume for name, volume in result.volumes.items() if name.split(" ")[0] == strategy)
    volumes = ((result.volumes["truth"], fine), (pooled, coarse), (output, fine))
    for name, (volume, affine) in zip(VOLUMES, volumes, strict=True):
        image = nib.Nifti1Image(np.ascontiguousarray(volume.transpose(2, 1, 0)), affine)
        image.header.set_xyzt_units("mm")
        save_image(image, folder / name)
    text = f"{table_text(result.rows)}\n\n{notes(case, result, model=model, seed=seed)}\n"
    content = {
        "data": case.name,
        "model": model,
        "output": strategy,
        "box": {"start": case.box.start, "stop": case.box.stop, "whole": list(case.truth.shape[2:])},
        "data_range": case.data_range,
        "solver": result.solver,
        "steps": result.steps,
        "seed": seed,
        "seconds": round(seconds, 1),
        "rows": [vars(row) for row in result.rows],
    }
    for name, value in (("table.txt", text), ("table.json", json.dumps(content, indent=2) + "\n")):
        with written_beside(folder / name) as beside:
            beside.write_text(value, encoding="utf-8")
    picture = folder / "report.png"
    return try_to_write(picture, lambda: save_figure(report_figure(case, result), picture))


def report_figure(case: Case, result: Result) -> Any:
    """Three planes, a zoom of the axial one, and its error, of a few baselines and strategies.

    Returns:
        A ``matplotlib.figure.Figure``.
    """
    pictured = ("nearest", "trilinear+consistency", *first_rows(), "truth")
    names = [name for name in pictured if name in result.volumes and name != ALTERNATE.name]
    labels = {name: "input (nearest)" if name == "nearest" else name for name in names}
    scores = {labels[row.name]: f"{row.psnr:.2f} dB" for row in result.rows if row.name in labels}
    dx, dy, dz = _spacing(case.affine)
    volumes = {labels[name]: result.volumes[name] for name in names}
    return side_by_side(volumes, (dz, dy, dx), case.data_range, scores)


def _spacing(affine: np.ndarray) -> np.ndarray:
    """Voxel size (x, y, z) in mm."""
    return np.asarray(np.linalg.norm(affine[:3, :3], axis=0))
