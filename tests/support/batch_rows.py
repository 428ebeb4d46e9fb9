"""Rows of a batch as one might come in the morning: thumbnails, failures, outliers, harmful names."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from scorefusion.batch import thumbnails
from scorefusion.batch.queue import Entry

HOSTILE = (
    "<script>window.harmed=1</script>",
    "</script><script>window.harmed=2</script>",
    "<!--<script>window.harmed=3",
    '"><img src=x onerror="window.harmed=4">',
    "'onmouseover='window.harmed=5",
    "a\u2028b\u2029c",
    "\u202egnp.nii\u202c",
    "nul\x00 and bell\x07",
    "bytes \udcff\udcfe",
    "$title ${script} {{data}} &lt;b&gt; %3Cb%3E",
    "javascript:window.harmed=6",
    "../é ü/#?&=;%.nii.gz",
)
HOSTILE_ROWS = tuple(
    Entry(
        name=f"{number} {text}",
        state="failed" if number % 2 else "done",
        inputs=(text, text),
        output="" if number % 2 else f"hostile/{text.replace('/', ':').replace(chr(0), '')}",
        seconds={"sample": 60.0},
        residual=0.003,
        warnings=(text,),
        error=text if number % 2 else None,
        fix=text if number % 2 else None,
        numbers={"mean change": 0.02},
    )
    for number, text in enumerate(HOSTILE)
)


@functools.cache
def phantom(seed: int, size: int = 96) -> np.ndarray:
    """A head of ellipsoids, ``[size, size, size]``: scalp, skull, folded brain, ventricles, lesions."""
    random = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, size, dtype=np.float32)] * 3, indexing="ij")
    volume = np.zeros(z.shape, np.float32)
    shape = np.array([0.86, 0.92, 0.74]) * random.uniform(0.92, 1.05, 3)
    for scale, value in ((1.0, 700), (0.93, 80), (0.88, 420), (0.8, 600)):
        volume[(z / shape[0]) ** 2 + (y / shape[1]) ** 2 + (x / shape[2]) ** 2 < scale**2] = value
    folds = np.sin(30 * z + 3 * np.sin(9 * x)) * np.sin(28 * y + 4 * np.cos(8 * z)) * np.cos(26 * x)
    volume[(volume == 600) & (folds > 0.25)] = 380
    for side in (-1, 1):
        volume[((z - 0.1) / 0.2) ** 2 + (y / 0.35) ** 2 + ((x - 0.14 * side) / 0.09) ** 2 < 1] = 150
    for centre in random.uniform(-0.4, 0.4, (3, 3)):
        place = np.stack([z, y, x], axis=-1) - centre
        volume[(place**2).sum(axis=-1) < random.uniform(0.05, 0.15) ** 2] = 900
    return volume + random.normal(0, 15, volume.shape).astype(np.float32) * (volume > 0)


def pooled(volume: np.ndarray) -> np.ndarray:
    """Means of blocks of 2 × 2 × 2 voxels."""
    n = volume.shape[0] // 2
    return volume.reshape(n, 2, n, 2, n, 2).mean(axis=(1, 3, 5))


@functools.cache
def phantom_thumbnails(seed: int) -> tuple[bytes, bytes]:
    """A pooled phantom and the phantom itself, as the page shows them."""
    fine = phantom(seed)
    return thumbnails.pair(pooled(fine), (2, 2, 2), fine, (1, 1, 1))


def morning(count: int, kinds: int = 12) -> list[Entry]:
    """So many scans, the hostile names among them; every 29th failed, every 41st is unlike the others."""
    random = np.random.default_rng(0)
    before, after = phantom_thumbnails(0)
    rows = [dataclasses.replace(row, before=before, after=after) for row in HOSTILE_ROWS[:count]]
    for number in range(len(rows), count):
        name = f"sub-{number:04d}/anat/sub-{number:04d}_T1w.nii.gz"
        before, after = phantom_thumbnails(number % kinds)
        if number % 29 == 28:
            rows.append(
                Entry(
                    name=name,
                    state="failed",
                    inputs=(name,),
                    error="holds 812 voxels that are NaN or infinite",
                    fix="Pass --nan zero (nan='zero' in Python) to count them as 0.",
                    before=before if number % 2 else None,
                )
            )
            continue
        strange = number % 41 == 40
        rows.append(
            Entry(
                name=name,
                state="done",
                inputs=(name,),
                output=name.replace("_T1w", "_desc-fine_T1w"),
                seconds={"sample": float(random.lognormal(4.1, 0.2)) * (12 if strange and number % 2 else 1)},
                residual=float(random.lognormal(-6, 0.2)) * (9 if strange and not number % 2 else 1),
                warnings=("voxels of 4 × 4 × 6 mm; the model was trained on cubes",)
                if number % 7 == 3
                else (),
                before=before,
                after=after,
                numbers={
                    "mean intensity change": float(random.normal(0.012, 0.002)),
                    "fraction above range": float(random.uniform(0, 0.003)),
                },
            )
        )
    return rows
