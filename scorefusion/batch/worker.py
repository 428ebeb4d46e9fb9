"""Translate one item: identify, read, sample and write it, each callable from a thread of its own."""

from __future__ import annotations

import gc
import math
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scorefusion.batch.files import (
    DICOM,
    VOLUME,
    Identity,
    hash_file,
    identify,
    input_stamp,
    model_hash,
    side_path,
    stamp_of,
    store_image,
)
from scorefusion.batch.items import Item, Outcome, Stopped, failure, shown, stop_for
from scorefusion.errors import BadInput, OutOfMemory, ScoreFusionError, memory_named, one_line, out_of_memory
from scorefusion.io.nifti import ras_order
from scorefusion.models.config import ModelConfig
from scorefusion.models.folder import load_config
from scorefusion.ops.device import choose_device, choose_dtype
from scorefusion.pipeline import Job, Pipeline, Progress, Settings, Translation


@dataclass(frozen=True)
class Work:
    """A model, the choices of a call, where it runs, and what is written. Pickles."""

    model: str = "t1-sr4"  #: a bundled model's name, or a model folder
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
        """Refuse what cannot be written."""
        if not 0 <= self.level <= 9:
            raise ScoreFusionError(f"a gzip level is from 0 to 9, got {self.level}")
        if self.deidentify and not self.dicom:
            raise ScoreFusionError("only a derived DICOM series is de-identified; ask for it with --dicom")
        if self.spread and self.choices.get("samples", 1) < 2:
            raise ScoreFusionError("there is no spread of a single sample; ask for 2 samples or more")

    @property
    def sides(self) -> tuple[str, ...]:
        """What is written beside each translation."""
        planes = bool(self.choices.get("disagreement"))
        return ("sd",) * self.spread + ("planes",) * planes + ("dicom",) * self.dicom

    def config(self) -> ModelConfig:
        """Return the model's configuration."""
        return load_config(self.model)

    def settings(self) -> Settings:
        """Return the choices, checked, with the model's own filled in."""
        return Settings(self.config(), **self.choices)

    def recipe(self) -> dict[str, Any]:
        """Return what of it decides outputs' bits, as JSON takes it.

        Raises:
            ScoreFusionError: for a model, a device or a dtype that is not there.
        """
        dtype, settings = choose_dtype(self.dtype, choose_device(self.device)), self.settings()
        return {
            "model": model_hash(self.model),
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
    """A loaded model and how it translates items.

    The folder ``root`` of the outputs must continue to exist; folders below it are made.

    Raises:
        ScoreFusionError: for what the model or the machine cannot do.
    """

    work: Work
    root: Path | None = None
    recipe: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Load the model."""
        work = self.work
        self.recipe = self.recipe or work.recipe()
        self.pipeline = Pipeline(
            work.model,
            device=work.device,
            dtype=work.dtype,
            runner=work.runner,
            engines=work.engines,
            max_memory=work.max_memory,
        )
        self.settings = self.pipeline.settings(**work.choices)

    def read(self, item: Item, identity: Identity) -> Task:
        """Read and normalise an item's files.

        Raises:
            BadInput: for a file that cannot be used, or that changed since it was hashed.
            OutOfMemory: as for :meth:`~scorefusion.Pipeline.prepare`.
        """
        try:
            start = time.perf_counter()
            with memory_named(item.files[0], "reading it"):
                images = _images_of(item, self.settings.max_voxels)
            mask = images.pop() if item.masked else None
            before = time.perf_counter() - start
            job = self.pipeline.read(images, self.settings, mask=mask)
            job.timings["read"] += before
            self.pipeline.prepare(job)
        except ScoreFusionError as error:
            if isinstance(error, BadInput | OutOfMemory):
                raise
            raise BadInput(item.files[0], str(error), "") from error
        for file, stamp in zip(item.files, identity.stamps, strict=True):
            if input_stamp(file) != stamp:
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
        """Finish an item and write its outputs, each whole or not at all.

        Raises:
            Stopped: where the outputs' folder is gone, full or not writable.
            BadInput: where only this output cannot be written.
            OutOfMemory: where memory ran out.
        """
        item, result = task.item, self.pipeline.finish(task.job)
        start = time.perf_counter()
        outputs = {}
        try:
            with memory_named(item.files[0], "writing its translation"):
                if self.root is not None and not self.root.is_dir():
                    raise FileNotFoundError(2, "it is gone", str(self.root))
                item.output.parent.mkdir(parents=True, exist_ok=True)
                if self.work.dicom:
                    outputs[DICOM] = self._save_series(result, side_path(item.output, DICOM))
                for kind, image in self._images(result):
                    outputs[kind] = store_image(image, side_path(item.output, kind), self.work.level)
        except (OSError, BadInput) as error:
            stop = stop_for(error, shown(self.root or item.output.parent))
            raise stop or error from error
        before, after, undrawn = self._pictures(task.job, result)
        residual, numbers = _figures(task.job, result)
        seconds = {"hash": task.identity.seconds, **result.timings, "write": time.perf_counter() - start}
        return Outcome(
            item.name,
            work=task.identity.work,
            outputs=outputs,
            seconds={stage: round(value, 4) for stage, value in seconds.items() if stage != "total"},
            residual=residual,
            warnings=result.warnings + task.warnings + self._relieved() + undrawn,
            numbers=numbers,
            before=before,
            after=after,
        )

    def translate(
        self, item: Item, callback: Progress | None = None, identity: Identity | None = None
    ) -> Outcome:
        """Run all stages for one item; a failure other than :class:`Stopped` is an outcome that says why."""
        if item.problem is not None:
            return failure(item, item.problem)
        work = None
        try:
            identity = identity or identify(item, self.recipe)
            work = identity.work
            task = self.read(item, identity)
            try:
                self.draw(task, callback)
            except Exception as error:
                if not out_of_memory(error):
                    raise
                self.relieve()
                self.draw(task, callback)
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

    def _relieved(self) -> tuple[str, ...]:
        """Return the warning of outputs after memory ran out."""
        usual = min(self.recipe["at once"], self.settings.samples)
        if self.settings.batch >= usual:
            return ()
        return (f"memory ran out: {self.settings.batch} samples at once, not {usual}; equal to rounding",)

    def _pictures(self, job: Job, result: Translation) -> tuple[bytes | None, bytes | None, tuple[str, ...]]:
        """Return small pictures of input and result, and a warning where they cannot be drawn."""
        if not self.work.pictures:
            return None, None, ()
        try:
            from scorefusion.batch.thumbnails import pair

            scan, fine = job.scan, ras_order(result.volume, result.affine)
            spacing = _spacing(scan.ras_affine)
            return *pair(scan.values, spacing, fine, _spacing(scan.ras_affine, result.factor)), ()
        except Exception as error:
            return None, None, (f"its thumbnails could not be drawn ({one_line(error)})",)

    def _save_series(self, result: Translation, folder: Path) -> tuple[int, str]:
        """Write a derived DICOM series; return its size in bytes and its hash."""
        from scorefusion.io.dicom.write import save_dicom_series

        save_dicom_series(result, folder, deidentify=self.work.deidentify)
        return stamp_of(folder)[0], hash_file(folder)

    def _images(self, result: Translation) -> Sequence[tuple[str, Any]]:
        """Return the volumes, those beside first: where a translation exists, all that belongs to it does."""
        fields = (("sd", result.spread), ("planes", result.planes_apart))
        written = ((side, values) for side, values in fields if side in self.work.sides)
        images = [(side, result.image_of(values)) for side, values in written if values is not None]
        return [*images, (VOLUME, result.image())]


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


def _images_of(item: Item, max_voxels: int) -> list[Any]:
    """Return what the pipeline reads: files, or series that are read here."""
    if not item.series:
        return list(item.files)
    from scorefusion.io.dicom.read import read_dicom_series

    images: list[Any] = [read_dicom_series(series, max_voxels=max_voxels) for series in item.series]
    return [*images, item.files[-1]] if item.masked else images


def _spacing(affine: np.ndarray, factor: Sequence[int] = (1, 1, 1)) -> tuple[float, float, float]:
    """Return the voxel size (z, y, x) in mm of a grid finer than an affine's by a factor (z, y, x)."""
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0)
    return float(z) / factor[0], float(y) / factor[1], float(x) / factor[2]


def _figures(job: Job, result: Translation) -> tuple[float | None, dict[str, float]]:
    """Return the mean residual, and other figures for the report.

    Means over the sampled box are shares of the input's data range.
    """
    data_range, numbers = 2 * job.prepared.intensity.half_range, {"megavoxels": result.volume.size / 1e6}
    share = 1 / (data_range * math.prod(job.box.size))
    for name, values in (("spread", result.spread), ("planes apart", result.planes_apart)):
        if values is not None:
            numbers[name] = float(values.sum(dtype=np.float64)) * share
    residual = result.consistency_residual
    return None if residual is None else residual.mean / data_range, numbers
