"""Make slices of a CT four times as thick, restore them with a model, and say how close it comes.

    python tools/restore_ct.py data/cranium.nii.gz MODEL -o ct.png

The slab is the one that configs/ct-thick.json leaves out, slices 44 to 71. The model is given nothing else of
the head: thick slices of the slab alone, as a NIfTI image. Errors are in Hounsfield units: over all voxels,
and over soft tissue, where the truth lies from -100 to 200.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import nibabel
import numpy as np
import torch

from scorefusion import Pipeline
from scorefusion.data import interpolate
from scorefusion.errors import ScoreFusionError
from scorefusion.io import read_scan
from scorefusion.io.figures import save_figure
from scorefusion.metrics import psnr, ssim
from scorefusion.optional import need

RANGE = 3000.0
"""White less black in Hounsfield units, for PSNR and SSIM."""
WINDOW = (-200.0, 1000.0)


def main() -> int:
    """Restore, print the table, draw the picture; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("model")
    parser.add_argument("-o", "--output", type=Path, default=Path("ct.png"))
    parser.add_argument("--slices", type=int, nargs=2, default=(44, 72), metavar=("FIRST", "STOP"))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    try:
        restore(given.data, given.model, given.slices, given.output, given.seed)
    except ScoreFusionError as error:
        print(f"restore_ct: {error}", file=sys.stderr)
        return 2
    return 0


def restore(data: Path, model: str, slices: tuple[int, int], output: Path, seed: int) -> None:
    """See the head of the file."""
    scan = read_scan(data)
    pipeline = Pipeline(model)
    config = pipeline.config
    truth = scan.values[slices[0] : slices[1]]
    fine = torch.from_numpy(truth)[None, None]
    thick = config.degradation.image(fine)
    operator = config.degradation.operator(truth.shape)
    assert operator is not None
    factors = config.degradation.factors

    affine = scan.ras_affine @ np.diag([*factors[::-1], 1.0])
    affine[:3, 3] = (scan.ras_affine @ [0, 0, slices[0] + (factors[0] - 1) / 2, 1])[:3]
    image = nibabel.Nifti1Image(thick[0, 0].numpy().transpose(2, 1, 0), affine)
    results = {name: interpolate(thick, name, factors) for name in ("nearest", "trilinear", "b-spline")}
    results["linear, consistent"] = interpolate(thick, "trilinear+consistency", factors)
    spline = results["b-spline"]
    results["b-spline, consistent"] = spline - operator.A_dagger(operator.A(spline) - thick)
    volumes = {name: volume[0, 0].numpy() for name, volume in results.items()}
    for strategy in config.strategies:
        for steps in (None, 1):
            result = pipeline(image, strategy=strategy, steps=steps, seed=seed)
            name = strategy if steps is None else f"{strategy}, one step"
            volumes[name] = result.volume.transpose(2, 1, 0)

    soft = (truth >= -100) & (truth <= 200)
    print(f"{'':26}{'PSNR dB':>9}{'SSIM':>8}{'RMSE HU':>9}{'soft tissue':>13}")
    for name, volume in volumes.items():
        error = (volume - truth).astype(np.float64)
        row = psnr(volume, truth, RANGE), ssim(volume, truth, RANGE)
        rms, inside = np.sqrt((error**2).mean()), np.sqrt((error[soft] ** 2).mean())
        print(f"{name:26}{row[0]:9.2f}{row[1]:8.4f}{rms:9.1f}{inside:13.1f}")
    shown = {name: volumes[name] for name in ("nearest", "b-spline, consistent", config.sampling.strategy)}
    save_figure(draw(shown | {"truth": truth}, scan.ras_affine), output)
    print(output)


def draw(volumes: dict[str, np.ndarray], affine: np.ndarray) -> object:
    """A coronal, a sagittal and an axial slice of each, cropped to the head."""
    dx, dy, dz = np.linalg.norm(affine[:3, :3], axis=0)
    d, h, w = volumes["truth"].shape
    figure = need("matplotlib.figure", "a picture").Figure(
        figsize=(9.6, 2.4 * (2 * d * dz / (0.7 * w * dx) + h / w) + 0.5), layout="constrained"
    )
    inner = slice(int(0.15 * w), int(0.85 * w))
    rows = figure.subplots(3, len(volumes), gridspec_kw={"height_ratios": [d * dz, d * dz, 0.7 * h * dy]})
    for column, (name, volume) in zip(rows.T, volumes.items(), strict=True):
        views = (
            (volume[:, int(0.62 * h), inner], dz / dx),
            (volume[:, inner, w // 2], dz / dy),
            (volume[5, inner, inner], dy / dx),
        )
        for axis, (view, aspect) in zip(column, views, strict=True):
            look = {"origin": "lower", "aspect": aspect, "interpolation": "nearest"}
            axis.imshow(view, cmap="gray", vmin=WINDOW[0], vmax=WINDOW[1], **look)
            axis.set_axis_off()
        column[0].set_title(name, fontsize=9)
    return figure


if __name__ == "__main__":
    sys.exit(main())
