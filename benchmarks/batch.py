"""A folder's throughput against the sampling alone, and whether several volumes at once are faster.

    python -m benchmarks.batch [--model t1-sr4] [--count 12] [--size 20 24 20] [--steps 4] [--turns 3]

Both are timed in turns, in one process, with the model loaded. What a folder costs above its sampling
(reading, hashing, preparing, compressing, writing, thumbnails, books) is the ratio's distance from 1. In
processor time, which a busy machine disturbs less, all of it counts, though most runs on another core.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from scorefusion.batch.files import identify
from scorefusion.batch.queue import Queue
from scorefusion.batch.run import Journal, Limits, Run
from scorefusion.batch.sources import Query, list_folder
from scorefusion.batch.worker import Work, Worker


def write_scans(folder: Path, count: int, size: Sequence[int]) -> None:
    """Noisy balls, each its own."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in size), indexing="ij"))
    ball = np.sqrt((grid**2).sum(axis=0)) < 0.95
    folder.mkdir()
    for number in range(count):
        noise = np.random.default_rng(number).uniform(200, 1000, size)
        nib.save(nib.Nifti1Image((ball * noise).astype(np.int16), np.eye(4)), folder / f"{number:03d}.nii.gz")


def throughput(model: str, count: int, size: Sequence[int], steps: int, turns: int) -> dict[str, Any]:
    """Seconds a volume of the folder's run and of its sampling alone, and their ratios; medians over turns.

    Args:
        model: a name or a folder.
        count: scans.
        size: of each.
        steps: of the sampler.
        turns: both are timed so often.
    """
    worker = Worker(Work(model, {"steps": steps}, device="cpu", dtype="float32"))
    folder_seconds: list[tuple[float, float]] = []
    draw_seconds: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        write_scans(place / "in", count, size)
        for turn in range(turns):
            out = place / f"out{turn}"
            items = list_folder(place / "in", Query(out, ("t1",), "t1")).items
            (out / ".scorefusion").mkdir(parents=True)
            queue = Queue(out / ".scorefusion" / "queue.sqlite")
            queue.begin(items, out)
            ready = [worker.read(item, identify(item, worker.recipe)) for item in items]
            worker.draw(ready[0])
            start = _now()
            for each in ready:
                worker.draw(each)
            draw_seconds.append(_since(start, count))
            del ready
            start = _now()
            Run(worker, Journal(queue, out), limits=Limits()).go(items, {})
            folder_seconds.append(_since(start, count))
            queue.close()
    row: dict[str, Any] = {}
    for place, clock in enumerate(("wall", "processor")):
        draw, folder = ([each[place] for each in both] for both in (draw_seconds, folder_seconds))
        row[f"draw, {clock}"], row[f"folder, {clock}"] = statistics.median(draw), statistics.median(folder)
        row[f"ratios, {clock}"] = [d / f for d, f in zip(draw, folder, strict=True)]
        row[f"ratio, {clock}"] = statistics.median(row[f"ratios, {clock}"])
    return row


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _since(start: tuple[float, float], count: int) -> tuple[float, float]:
    wall, processor = _now()
    return (wall - start[0]) / count, (processor - start[1]) / count


def at_once(model: str, size: Sequence[int], steps: int, turns: int) -> dict[str, Any]:
    """Two samples drawn at once against one after the other: seconds, and whether the bits are the same."""
    workers = [
        Worker(Work(model, {"steps": steps, "samples": 2, "batch": batch}, device="cpu", dtype="float32"))
        for batch in (1, 2)
    ]
    seconds: list[list[tuple[float, float]]] = [[], []]
    means = []
    with tempfile.TemporaryDirectory() as name:
        write_scans(Path(name) / "in", 1, size)
        (item,) = list_folder(Path(name) / "in", Query(Path(name) / "out", ("t1",), "t1")).items
        for turn in range(turns + 1):
            for place, worker in enumerate(workers):
                ready = worker.read(item, identify(item, worker.recipe))
                start = _now()
                worker.draw(ready)
                means.append(ready.job.mean)
                if turn:
                    seconds[place].append(_since(start, 1))
    row: dict[str, Any] = {"same bits": all(bool((mean == means[0]).all()) for mean in means)}
    for place, clock in enumerate(("wall", "processor")):
        for name, found in zip(("one by one", "two at once"), seconds, strict=True):
            row[f"{name}, {clock}"] = statistics.median(each[place] for each in found)
    return row


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="t1-sr4")
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--size", type=int, nargs=3, default=(20, 24, 20))
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    row = throughput(given.model, given.count, given.size, given.steps, given.turns)
    for clock in ("wall", "processor"):
        turns = ", ".join(f"{ratio:.2f}" for ratio in row[f"ratios, {clock}"])
        alone, all_of_it = row[f"draw, {clock}"], row[f"folder, {clock}"]
        ratio = row[f"ratio, {clock}"]
        print(f"{clock}: sampling {alone:.2f} s a volume, all of it {all_of_it:.2f} s: {ratio:.2f} ({turns})")
    row = at_once(given.model, given.size, given.steps, given.turns)
    two, one = row["two at once, processor"], row["one by one, processor"]
    bits = "the same bits" if row["same bits"] else "other bits"
    print(f"two at once: {two / one:.2f} of the processor time of one by one, {bits}")


if __name__ == "__main__":
    main()
