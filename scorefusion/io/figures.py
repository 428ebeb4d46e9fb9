"""Pictures of volumes, by matplotlib. Nothing here touches pyplot or any other global state."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scorefusion.errors import one_line
from scorefusion.io.atomic import written_beside
from scorefusion.optional import need

FIGURE_ENDINGS = (".png", ".pdf", ".svg")


def plane_images(
    volume: np.ndarray, spacing: tuple[float, float, float], where: tuple[float, float, float]
) -> list[tuple[str, np.ndarray, float]]:
    """Axial, coronal and sagittal slices, anterior or superior up; the patient's right is on the right.

    The volume ``[D, H, W]`` is in RAS+ order, its voxel size (z, y, x) in mm, the place of the slices in
    fractions of each axis. Returns for each plane its name, the image ``[rows, columns]`` with row 0 at the
    bottom, and the height of a pixel over its width.
    """
    z, y, x = (min(int(f * n), n - 1) for f, n in zip(where, volume.shape, strict=True))
    dz, dy, dx = spacing
    return [
        ("axial", volume[z], dy / dx),
        ("coronal", volume[:, y], dz / dx),
        ("sagittal", volume[:, :, x], dz / dy),
    ]


def panels(
    size: tuple[float, float], rows: Mapping[str, float], titles: Sequence[str]
) -> tuple[Any, np.ndarray]:
    """Return a figure of pictures without ticks, ``size`` in inches, and its axes ``[rows, columns]``.

    ``rows`` are names with relative heights, ``titles`` those of the columns.
    """
    figure = need("matplotlib.figure", "a figure").Figure(figsize=size, layout="constrained")
    grid = {"height_ratios": list(rows.values())}
    axes = figure.subplots(len(rows), len(titles), squeeze=False, gridspec_kw=grid)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=8)
    for axis, name in zip(axes[:, 0], rows, strict=True):
        axis.set_ylabel(name, fontsize=8)
    return figure, axes


def side_by_side(
    volumes: Mapping[str, np.ndarray],
    spacing: tuple[float, float, float],
    span: float,
    scores: Mapping[str, str],
) -> Any:
    """Draw three planes, a zoom of the axial one, and its error, of several results and the truth.

    Args:
        volumes: name to ``[d, h, w]`` in RAS order; ``truth`` is one.
        spacing: voxel size (z, y, x) in mm.
        span: data range, to which errors are relative.
        scores: the text below each name.
    """
    truth = volumes["truth"]
    lo, hi = (float(value) for value in np.percentile(truth, (0.5, 99.5)))
    d, h, w = truth.shape
    heights = {"axial": h, "coronal": d, "sagittal": d, "axial, zoom": h, "error, axial": h}
    size = 1.95 * len(volumes), 1.9 / w * sum(heights.values()) + 0.9
    figure, axes = panels(size, heights, [f"{name}\n{scores.get(name, '')}" for name in volumes])
    shown = None
    for column, volume in zip(axes.T, volumes.values(), strict=True):
        images = [(image, aspect) for _, image, aspect in plane_images(volume, spacing, (0.5, 0.5, 0.5))]
        rows, columns = images[0][0].shape
        zoom = images[0][0][rows // 4 : rows - rows // 4, columns // 4 : columns - columns // 4]
        for axis, (image, aspect) in zip(column[:4], [*images, (zoom, images[0][1])], strict=True):
            look = {"origin": "lower", "aspect": aspect, "interpolation": "nearest"}
            axis.imshow(image, cmap="gray", vmin=lo, vmax=hi, **look)
        error = plane_images(volume - truth, spacing, (0.5, 0.5, 0.5))[0]
        look = {"origin": "lower", "aspect": error[2], "interpolation": "nearest"}
        shown = column[4].imshow(error[1], cmap="RdBu_r", vmin=-0.15 * span, vmax=0.15 * span, **look)
    figure.colorbar(shown, ax=list(axes[4]), fraction=0.012, pad=0.005).ax.tick_params(labelsize=6)
    return figure


def save_figure(figure: Any, path: str | os.PathLike[str]) -> Path:
    """Write a figure beside ``path`` and rename it; BadInput if it cannot be written."""
    final = Path(path)
    with written_beside(final) as beside:
        figure.savefig(beside, dpi=150)
    return final


def try_to_write(path: str | os.PathLike[str], write: Callable[[], object]) -> str | None:
    """Write what only illustrates results: return why it could not be written in one line, else None."""
    try:
        write()
    except Exception as error:
        text = one_line(error)
        return text if text.startswith(os.fspath(path)) else f"{path}: could not be written ({text})"
    return None


def middle(volume: np.ndarray, threshold: float) -> tuple[float, float, float]:
    """The centre (z, y, x) of the box around what exceeds the threshold, as fractions of the axes."""
    places = np.argwhere(volume > threshold)
    if not len(places):
        return 0.5, 0.5, 0.5
    z, y, x = (places.min(axis=0) + places.max(axis=0) + 1) / 2 / np.array(volume.shape)
    return float(z), float(y), float(x)
