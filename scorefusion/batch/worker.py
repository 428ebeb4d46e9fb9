"""Translate one item: identify, read, sample and write it, each callable from a thread of its own."""

import gc
import math
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from scorefusion.batch import files
from scorefusion.batch.files import DICOM, SIDECAR, VOLUME, Identity
from scorefusion.batch.items import Item, Outcome, Stopped, failure, shown, stop_for
from scorefusion.errors import BadInput, OutOfMemory, ScoreFusionError, memory_named, one_line, out_of_memory
from scorefusion.io.nifti import ras_order, save_sidecar
from scorefusion.models.config import ModelConfig
from scorefusion.models.folder import load_config
from scorefusion.ops.device import choose_device, choose_dtype
from scorefusion.pipeline import Job, Pipeline, Progress, Settings, Translation, side_path

Result = TypeVar("Result")


@dataclass(frozen=True)
class Work:
    """A model, the choices of a call, where it runs, and what is written. Pickles."""

    model: str = "auto"  #: a bundled model's name, or a model folder
    #: of :meth:`scorefusion.Pipeline.settings`; the model's own are filled in
    choices: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"  #: see :class:`scorefusion.Pipeline`, as all up to ``max_memory``
    dtype: str = "auto"  #: what the networks compute in
    runner: str = "auto"  #: how the 2D networks run
    engines: str | None = None  #: folder of TensorRT engines
    max_memory: str | int | None = None  #: the most that may be resident
    level: int = 1  #: of gzip, 1 to 9; 0 stores
    #: also write the standard deviation over the samples; the planes' disagreement is written where
    #: ``choices`` ask for it
    spread: bool = False
    pictures: bool = True  #: make small pictures for the report
    dicom: bool = False  #: also write each translation of a DICOM series as a derived series
    deidentify: bool = False  #: leave the patient out of it

    def __post_init__(self) -> None:
        if not 0 <= self.level <= 9:
            raise ScoreFusionError(f"a gzip level is from 0 to 9, got {self.level}")
        if self.deidentify and not self.dicom:
            raise ScoreFusionError("only a derived DICOM series is de-identified; ask for it with --dicom")
        if self.spread and self.choices.get("samples", 1) < 2:
            raise ScoreFusionError("there is no spread of a single sample; ask for 2 samples or more")

    @property
    def sides(self) -> tuple[str, ...]:
        """What is written beside each translation."""
        planes, sidecar = bool(self.choices.get("disagreement")), self.config().degradation.of_each_scan
        return ("sd",) * self.spread + ("planes",) * planes + (DICOM,) * self.dicom + (SIDECAR,) * sidecar

    def config(self) -> ModelConfig:
        """Return the model's configuration."""
        return load_config(self.model)

    def settings(self) -> Settings:
        """Return the choices, checked, with the model's own filled in."""
        return Settings(self.config(), **self.choices)

    def recipe(self) -> dict[str, Any]:
        """Return what of it decides outputs' bits, as JSON takes it."""
        dtype, settings = choose_dtype(self.dtype, choose_device(self.device)), self.settings()
        return {
            "model": files.model_hash(self.model),
            "settings": settings.identity,
            "at once": min(settings.batch, settings.samples),  # in another batch a sum is rounded otherwise
            "dtype": str(dtype).removeprefix("torch."),
            "max_memory": self.max_memory,
            "level": self.level,
            "sides": list(self.sides),
            **({"deidentify": True} if self.deidentify else {}),
        }


@dataclass(eq=False)
class Task:
    """An item between reading and writing, with the warnings that sampling it raised."""

    item: Item
    identity: Identity
    job: Job
    warnings: tuple[str, ...] = ()


@dataclass
class Worker:
    """A loaded model and how it translates items."""

    work: Work
    root: Path | None = None  #: of the outputs: it must continue to exist; folders below it are made
    recipe: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.recipe = self.recipe or self.work.recipe()
        machine = ("device", "dtype", "runner", "engines", "max_memory")
        self.pipeline = Pipeline(self.work.model, **{name: getattr(self.work, name) for name in machine})
        self.settings = self.pipeline.settings(**self.work.choices)

    def read(self, item: Item, identity: Identity) -> Task:
        """Read and normalise an item's files, which must not have changed since they were hashed."""
        try:
            start = time.perf_counter()
            with memory_named(item.files[0], "reading it"):
                images: list[Any] = list(item.files)
                if item.series:
                    from scorefusion.io.dicom.read import read_dicom_series as read

                    scans = [read(series, max_voxels=self.settings.max_voxels) for series in item.series]
                    images = [*scans, *images[-1:] * item.masked]
            mask = images.pop() if item.masked else None
            before = time.perf_counter() - start
            job = self.pipeline.read(images, self.settings, mask=mask)
            job.timings["read"] += before
            self.pipeline.prepare(job)
        except (BadInput, OutOfMemory):
            raise
        except ScoreFusionError as error:
            raise BadInput(item.files[0], str(error), "") from error
        for file, stamp in zip(item.files, identity.stamps, strict=True):
            if files.input_stamp(file) != stamp:
                raise BadInput(file, "changed while it was read", "Translate it when it is complete.")
        return Task(item, identity, job)

    def draw(self, task: Task, callback: Progress | None = None) -> None:
        """Sample. One thread at a time."""
        task.job.settings = self.settings
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self.pipeline.sample(task.job, callback=callback)
        texts = (str(warning.message) for warning in caught)
        task.warnings = tuple(text for text in texts if text not in task.job.warnings)

    def write(self, task: Task) -> Outcome:
        """Finish an item and write its outputs, each whole or not at all, those beside the translation first.

        Raises :class:`Stopped` where the outputs' folder is gone, full or not writable.
        """
        item, result = task.item, self.pipeline.finish(task.job)
        start, outputs = time.perf_counter(), {}
        apart = [("sd", "spread", result.spread), ("planes", "planes apart", result.planes_apart)]
        beside = [(kind, name, values) for kind, name, values in apart if values is not None]
        try:
            with memory_named(item.files[0], "writing its translation"):
                if self.root is not None and not self.root.is_dir():
                    raise FileNotFoundError(2, "it is gone", str(self.root))
                item.output.parent.mkdir(parents=True, exist_ok=True)
                if self.work.dicom:
                    from scorefusion.io.dicom.write import save_dicom_series

                    folder = side_path(item.output, DICOM)
                    save_dicom_series(result, folder, deidentify=self.work.deidentify)
                    outputs[DICOM] = files.stamp_of(folder)[0], files.hash_file(folder)
                written = (side for side in beside if side[0] in self.recipe["sides"])
                images = [(kind, result.image_of(values)) for kind, _, values in written]
                if result.slices is not None:
                    sidecar = save_sidecar(result.sidecar, item.output)
                    outputs[SIDECAR] = files.stamp_of(sidecar)[0], files.hash_file(sidecar)
                for kind, image in (*images, (VOLUME, result.image())):
                    outputs[kind] = files.store_image(image, side_path(item.output, kind), self.work.level)
        except (OSError, BadInput) as error:
            stop = stop_for(error, shown(self.root or item.output.parent))
            raise stop or error from error
        seconds = {"hash": task.identity.seconds, **result.timings, "write": time.perf_counter() - start}
        # Means over the sampled box, as shares of the input's data range.
        data_range = 2 * task.job.prepared.intensity.half_range
        share = 1 / (data_range * math.prod(task.job.box.size))
        numbers = {name: float(values.sum(dtype=np.float64)) * share for _, name, values in beside}
        batch, usual = self.settings.batch, min(self.recipe["at once"], self.settings.samples)
        text = f"memory ran out: {batch} samples at once, not {usual}; equal to rounding"
        relieved = (text,) if batch < usual else ()
        residual = result.consistency_residual
        outcome = Outcome(
            item.name,
            work=task.identity.work,
            outputs=outputs,
            seconds={stage: round(value, 4) for stage, value in seconds.items() if stage != "total"},
            residual=None if residual is None else residual.mean / data_range,
            warnings=result.warnings + task.warnings + relieved,
            numbers={"megavoxels": result.volume.size / 1e6, **numbers},
        )
        return _with_pictures(outcome, task.job, result) if self.work.pictures else outcome

    def translate(
        self, item: Item, callback: Progress | None = None, identity: Identity | None = None
    ) -> Outcome:
        """Run all stages for one item; a failure other than :class:`Stopped` is an outcome that says why."""
        if item.problem is not None:
            return failure(item, item.problem)
        work = None
        try:
            identity = identity or files.identify(item, self.recipe)
            work = identity.work
            task = self.read(item, identity)
            twice(lambda: self.draw(task, callback), self.relieve)
            return self.write(task)
        except (Stopped, KeyboardInterrupt):
            raise
        except Exception as error:
            return failure(item, error, work)

    def relieve(self) -> None:
        """Free what is idle, and draw half as many samples at once from now on: memory ran out."""
        self.settings = self.settings.changed(batch=max(1, self.settings.batch // 2))
        self.pipeline.free()
        gc.collect()
        if self.pipeline.device.type == "cuda":
            torch.cuda.empty_cache()


def twice(work: Callable[[], Result], relieve: Callable[[], object]) -> Result:
    """Return what work returns; where memory runs out, once more after some was freed."""
    try:
        return work()
    except Exception as error:
        if not out_of_memory(error):
            raise
    relieve()
    return work()


_lock = threading.Lock()
_last: list[Worker] = []


def translate_item(work: Work, item: Item, callback: Progress | None = None) -> Outcome:
    """Translate one item in this process, which keeps the model loaded for the next one of the same work.

    Args:
        work: how it is translated.
        item: what is translated, and where to; folders of the output are made.
        callback: called with (evaluations done, in all); raise in it to cancel.

    Raises:
        ScoreFusionError: for work that cannot be done at all: a model that is not there, say.
        Stopped: where nothing can be written.
    """
    with _lock:
        if not _last or _last[0].work != work:
            _last[:] = [Worker(work)]
        return _last[0].translate(item, callback)


def _with_pictures(outcome: Outcome, job: Job, result: Translation) -> Outcome:
    """Return the outcome with small pictures of input and result, or a warning that they cannot be drawn."""
    try:
        from scorefusion.batch.thumbnails import pair

        scan, fine = job.scan, ras_order(result.volume, result.affine)
        x, y, z = (float(size) for size in np.linalg.norm(scan.ras_affine[:3, :3], axis=0))
        rz, ry, rx = result.factor
        before, after = pair(scan.values, (z, y, x), fine, (z / rz, y / ry, x / rx))
        return replace(outcome, before=before, after=after)
    except Exception as error:
        warning = f"its thumbnails could not be drawn ({one_line(error)})"
        return replace(outcome, warnings=(*outcome.warnings, warning))
