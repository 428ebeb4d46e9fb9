"""Whole volumes: a pipeline's first, the next, one of another box, and a folder of different heads."""

from __future__ import annotations

import functools
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from scorefusion.batch.folders import list_folder
from scorefusion.batch.queue import Queue
from scorefusion.batch.run import Limits
from scorefusion.batch.run import Run as BatchRun
from scorefusion.batch.wanted import Wanted
from scorefusion.batch.work import Work
from scorefusion.batch.worker import Worker
from scorefusion.pipeline import Pipeline

from .run import Results, Run
from .sizes import Box
from .timing import figure

SPACING = 4.0
"""Millimetres of a scan's voxels."""


def head(size: Sequence[int], number: int = 0) -> nib.Nifti1Image:
    """Return a synthetic head: a textured ellipsoid that fills the scan, noise of its own number."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in size), indexing="ij"))
    inside = np.sqrt((grid**2).sum(axis=0)) < 1.05
    noise = np.random.default_rng(number).uniform(200, 1000, tuple(size))
    return nib.Nifti1Image((inside * noise).astype(np.int16), np.diag([SPACING, SPACING, SPACING, 1.0]))


def volumes(run: Run, results: Results) -> None:
    """Seconds of volumes by stage, and volumes per minute of a folder of different heads."""
    name, size = run.sizes.volume
    start = time.perf_counter()
    pipeline = Pipeline(name, device=run.device.place, dtype=run.sizes.dtype)
    results["load, s"] = time.perf_counter() - start
    cases: dict[str, Any] = {"first": functools.partial(translated, run, pipeline, [size])}
    cases["again"] = functools.partial(translated, run, pipeline, [size] * 3)
    cases["other boxes"] = functools.partial(translated, run, pipeline, run.sizes.boxes)
    boxes = (size, *run.sizes.boxes)
    cases["folder of different heads"] = functools.partial(folder, run, name, boxes)
    cases["folder of equal heads"] = functools.partial(folder, run, name, (size,))
    run.cases(results, cases)


def translated(run: Run, pipeline: Pipeline, boxes: Sequence[Box]) -> Results:
    """Translate a scan of each size; return seconds of the whole and of each stage."""
    run.device.forget_peak()
    settings: dict[str, Any] = dict(run.sizes.settings)
    seconds, stages = [], []
    for number, size in enumerate(boxes):
        start = time.perf_counter()
        translation = pipeline(head(size, number), **settings)
        run.device.synchronize()
        seconds.append(time.perf_counter() - start)
        stages.append(translation.timings)
        if run.over():
            break
    return {
        "seconds": figure(seconds, "s") if len(seconds) > 1 else seconds[0],
        "volumes": len(seconds),
        "stages, s": {stage: statistics.median(each[stage] for each in stages) for stage in stages[0]},
        "peak, bytes": run.device.peak(),
    }


def folder(run: Run, model: str, boxes: Sequence[Box]) -> Results:
    """Translate a folder as `scorefusion translate FOLDER` does; the GPU's share of work is nvidia-smi's."""
    count = run.sizes.folder
    with tempfile.TemporaryDirectory() as name:
        place, out = Path(name), Path(name) / "out"
        (place / "in").mkdir()
        for number in range(count):
            nib.save(head(boxes[number % len(boxes)], number), place / "in" / f"{number:03d}.nii.gz")
        worker = Worker(
            Work(model, dict(run.sizes.settings), device=str(run.device.place), dtype=run.sizes.dtype)
        )
        items = list_folder(place / "in", Wanted(out, ("t1",), "t1")).items
        (out / ".scorefusion").mkdir(parents=True)
        queue = Queue(out / ".scorefusion" / "queue.sqlite")
        queue.begin(items, out)
        start = time.perf_counter()
        with run.device.watched() as busy:
            BatchRun(worker, queue, out, limits=Limits()).go(items, {})
            seconds = time.perf_counter() - start
        queue.close()
        written = len(list(out.rglob("*.nii.gz")))
    return {
        "volumes": count,
        "written": written,
        "boxes": len(set(boxes)),
        "seconds": seconds,
        "volumes per minute": 60 * count / seconds,
        "GPU busy, %": statistics.fmean(busy) if busy else None,
    }
