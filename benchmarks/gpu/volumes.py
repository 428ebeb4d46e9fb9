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

from scorefusion.batch.items import StopFlag, Stopped
from scorefusion.batch.queue import Queue
from scorefusion.batch.run import Journal, Limits
from scorefusion.batch.run import Run as BatchRun
from scorefusion.batch.sources import Query, list_folder
from scorefusion.batch.worker import Work, Worker
from scorefusion.errors import ScoreFusionError
from scorefusion.pipeline import Pipeline

from .run import NOT_REACHED, Results, Run
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
    run.cases(results, cases)
    different = functools.partial(folder, run, name, (size, *run.sizes.boxes))
    equal = functools.partial(folder, run, name, (size,))
    folders = {"folder of different heads": different, "folder of equal heads": equal}
    run.cases(results, folders, run.sizes.translating)


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


class Deadline(StopFlag):
    """Stops a batch when the section's time is up."""

    def __init__(self, run: Run):
        super().__init__()
        self.run = run
        self.met = Stopped("the section's time is up", "Give more --minutes.")

    def check(self, *_: object) -> None:
        """Raise the reason, if there is one."""
        if self.run.over():
            self.set(self.met)
        super().check()


def folder(run: Run, model: str, boxes: Sequence[Box]) -> Results | str:
    """Translate a folder as `scorefusion translate FOLDER` does, until the deadline.

    Returns:
        volumes: that were written, of as many as `of`; seconds: until the last one; GPU busy: what nvidia-smi
        says.

    Raises:
        ScoreFusionError: if not all were written though there was time.
    """
    count = run.sizes.folder
    with tempfile.TemporaryDirectory() as name:
        place, out = Path(name), Path(name) / "out"
        (place / "in").mkdir()
        for number in range(count):
            nib.save(head(boxes[number % len(boxes)], number), place / "in" / f"{number:03d}.nii.gz")
        worker = Worker(
            Work(model, dict(run.sizes.settings), device=str(run.device.place), dtype=run.sizes.dtype)
        )
        items = list_folder(place / "in", Query(out, ("t1",), "t1")).items
        (out / ".scorefusion").mkdir(parents=True)
        queue = Queue(out / ".scorefusion" / "queue.sqlite")
        queue.begin(items, out)
        stop = Deadline(run)
        start, began = time.perf_counter(), time.time()
        with run.device.watched() as busy:
            try:
                BatchRun(worker, Journal(queue, out, stop=stop), limits=Limits()).go(items, {})
            except Stopped:
                if stop.reason is not stop.met:
                    raise
            seconds = time.perf_counter() - start
        queue.close()
        done = [file.stat().st_mtime for file in out.rglob("*.nii.gz")]
    written = len(done)
    if written < count:
        if stop.reason is not stop.met:
            raise ScoreFusionError(f"{count - written} of {count} volumes were not written")
        run.cut = True
        if not written:
            return NOT_REACHED
        seconds = max(done) - began
    return {
        "volumes": written,
        "of": count,
        "boxes": len({boxes[number % len(boxes)] for number in range(written)}),
        "seconds": seconds,
        "volumes per minute": 60 * written / seconds,
        "GPU busy, %": statistics.fmean(busy) if busy else None,
    }
