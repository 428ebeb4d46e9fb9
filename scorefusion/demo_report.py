"""What the demonstration leaves behind: volumes, a table and a picture."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from scorefusion.demo import Case, Result, Row, box_affine, coarser_affine
from scorefusion.errors import BadInput
from scorefusion.figures import plane_images, save_figure
from scorefusion.io.atomic import check_output, written_beside
from scorefusion.io.nifti import save_image
from scorefusion.optional import need

VOLUMES = ("truth.nii.gz", "input.nii.gz", "output.nii.gz")
FILES = (*VOLUMES, "report.png", "table.txt", "table.json")
HEAD = ("PSNR dB", "SSIM", "spectrum")
PICTURED = ("nearest", "trilinear+consistency", "single axial", "average", "fuse", "fuse+features", "truth")


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
        f"{case.name}: {voxel} mm voxels, pooled {case.factor}×{case.factor}×{case.factor}, "
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
) -> None:
    """Write truth, input and output, the table as text and JSON, and the picture.

    Args:
        folder: from :func:`check_folder`.
        case: the volume.
        result: what came out.
        model: its name.
        strategy: whose result is ``output.nii.gz`` (for ``single``, of the first plane).
        seed: of the noise.
        seconds: what the whole took.

    Raises:
        BadInput: if a file cannot be written.
    """
    fine = box_affine(case.affine, case.box)
    coarse = coarser_affine(fine, case.factor)
    pooled = case.pooled[case.box.coarser(case.factor).index][0, 0].cpu().numpy()
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
    save_figure(report_figure(case, result), folder / "report.png")


def report_figure(case: Case, result: Result) -> Any:
    """Three planes, a zoom of the axial one, and its error, of what :data:`PICTURED` names.

    Returns:
        A ``matplotlib.figure.Figure``.
    """
    matplotlib_figure = need("matplotlib.figure", "a figure")
    truth = result.volumes["truth"]
    names = [name for name in PICTURED if name in result.volumes]
    measured = {row.name: row for row in result.rows}
    lo, hi = (float(value) for value in np.percentile(truth, (0.5, 99.5)))
    limit = 0.15 * case.data_range
    dx, dy, dz = _spacing(case.affine)
    middle = (0.5, 0.5, 0.5)
    heights = [truth.shape[1], truth.shape[0], truth.shape[0], truth.shape[1], truth.shape[1]]
    scale = 1.9 / truth.shape[2]
    figure = matplotlib_figure.Figure(
        figsize=(1.95 * len(names), scale * sum(heights) + 0.9), layout="constrained"
    )
    grid = figure.subplots(5, len(names), squeeze=False, gridspec_kw={"height_ratios": heights})
    titles = ("axial", "coronal", "sagittal", "axial, zoom", "error, axial")
    shown = None
    for column, name in enumerate(names):
        volume = result.volumes[name]
        images = [(image, aspect) for _, image, aspect in plane_images(volume, (dz, dy, dx), middle)]
        images.append((_quarter(images[0][0]), images[0][1]))
        for axis, (image, aspect) in zip(grid[:4, column], images, strict=True):
            axis.imshow(
                image, cmap="gray", vmin=lo, vmax=hi, origin="lower", aspect=aspect, interpolation="nearest"
            )
        error = plane_images(volume - truth, (dz, dy, dx), middle)[0][1]
        shown = grid[4, column].imshow(
            error, cmap="RdBu_r", vmin=-limit, vmax=limit, origin="lower", aspect=dy / dx,
            interpolation="nearest",
        )  # fmt: skip
        label = "input (nearest)" if name == "nearest" else name
        score = f"{measured[name].psnr:.2f} dB" if name in measured else ""
        grid[0, column].set_title(f"{label}\n{score}", fontsize=8)
    for row, title in enumerate(titles):
        grid[row, 0].set_ylabel(title, fontsize=8)
        for axis in grid[row]:
            axis.set_xticks([])
            axis.set_yticks([])
    bar = figure.colorbar(shown, ax=list(grid[4]), fraction=0.012, pad=0.005)
    bar.ax.tick_params(labelsize=6)
    return figure


def _quarter(image: np.ndarray) -> np.ndarray:
    """The middle of an image, half as wide and half as high."""
    rows, columns = image.shape
    return image[rows // 4 : rows // 4 + rows // 2, columns // 4 : columns // 4 + columns // 2]


def _spacing(affine: np.ndarray) -> np.ndarray:
    """Voxel size (x, y, z) in mm."""
    return np.asarray(np.linalg.norm(affine[:3, :3], axis=0))
