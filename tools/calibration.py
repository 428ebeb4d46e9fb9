"""Does the deviation over samples, or over planes, predict the error? Errors of voxels by deviation.

    python tools/calibration.py t1-sr4 data/phantoms/test --contrast t1 --subjects 3 --samples 8

A box in the middle of each head is made coarse as the model's own degradation does, translated, and compared
with the truth. Voxels of the foreground are put into ten equal bins by deviation; a bin's error is the root
mean square of (mean over samples - truth). Were the truth one more sample, that would be sqrt(1 + 1/N) times
the deviation. Everything is divided by the truth's range (99.9th percentile).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import nibabel
import numpy as np
import torch
from scipy.stats import spearmanr

from scorefusion import Pipeline
from scorefusion.errors import ScoreFusionError
from scorefusion.io import ras_order, read_scan

FOREGROUND = 0.05
"""Of the truth's range: voxels above count."""


def measure(
    pipeline: Pipeline, file: Path, box: tuple[int, ...], samples: int, strategy: str | None
) -> dict[str, np.ndarray]:
    """Error, and both deviations, of the foreground of one head's box, as a share of its range."""
    scan = read_scan(file)
    start = [(have - want) // 2 for have, want in zip(scan.values.shape, box, strict=True)]
    inner = tuple(slice(first, first + want) for first, want in zip(start, box, strict=True))
    truth = scan.values[inner]
    degradation = pipeline.config.degradation
    if not degradation.coarse:
        raise ScoreFusionError("calibration is measured for models that make a coarse image finer")
    coarse = degradation.image(torch.from_numpy(truth.copy())[None, None])[0, 0].numpy()
    coarser = np.diag([*degradation.factors[::-1], 1.0])  # voxels count, not where they lie
    image = nibabel.Nifti1Image(coarse.transpose(2, 1, 0), scan.ras_affine @ coarser)
    result = pipeline(image, strategy=strategy, samples=samples, crop=False, disagreement=True)
    assert result.spread is not None and result.planes_apart is not None
    scale = float(np.percentile(truth, 99.9))
    seen = truth > FOREGROUND * scale
    fields = {"error": result.volume, "samples": result.spread, "planes": result.planes_apart}
    found = {name: ras_order(field, result.affine)[seen] / scale for name, field in fields.items()}
    return {**found, "error": found["error"] - truth[seen] / scale}


def table(found: dict[str, np.ndarray], samples: int) -> str:
    """Ten bins by each deviation as Markdown, with Spearman's correlation of deviation and absolute error."""
    lines = []
    for kind in ("samples", "planes"):
        deviation, error = found[kind], found["error"]
        rank = spearmanr(deviation, np.abs(error)).statistic
        bins = np.array_split(np.argsort(deviation), 10)
        scaled = ", scaled" if kind == "samples" else ""
        wide = np.sqrt(1 + 1 / samples) if kind == "samples" else 1.0
        rms = [[np.sqrt(np.mean(values[b] ** 2)) for b in bins] for values in (deviation * wide, error)]
        lines += [
            f"\n{len(error):,} voxels, deviation over {kind}, Spearman {rank:.2f}\n",
            "| tenth of the voxels | " + " | ".join(str(n + 1) for n in range(10)) + " | all |",
            "| --- " * 12 + "|",
        ]
        for title, row, values in zip(
            (f"deviation{scaled}, %", "error, %"), rms, (deviation * wide, error), strict=True
        ):
            numbers = [*row, np.sqrt(np.mean(values**2))]
            lines.append(f"| {title} | " + " | ".join(f"{100 * each:.2f}" for each in numbers) + " |")
    return "\n".join(lines)


def main() -> int:
    """Measure, print; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("data", type=Path, help="a folder of subjects, or one NIfTI file")
    parser.add_argument("--contrast", default="t1")
    parser.add_argument("--subjects", type=int, default=3)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--strategy")
    parser.add_argument("--box", default="64,80,80", help="Z,Y,X voxels")
    given = parser.parse_args()
    files = [given.data]
    if given.data.is_dir():
        files = sorted(given.data.glob(f"*/*_{given.contrast}.nii.gz"))[: given.subjects]
    try:
        pipeline = Pipeline(given.model)
        box = tuple(int(n) for n in given.box.split(","))
        each = [measure(pipeline, file, box, given.samples, given.strategy) for file in files]
    except ScoreFusionError as error:
        print(f"calibration: {error}", file=sys.stderr)
        return 2
    print(table({key: np.concatenate([one[key] for one in each]) for key in each[0]}, given.samples))
    return 0


if __name__ == "__main__":
    sys.exit(main())
