"""From an image to its translation, in four stages: read, prepare, sample, finish."""

import copy
import functools
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Unpack

from scorefusion import data, io
from scorefusion.data import Box, Prepared
from scorefusion.degradations import Inpainting, Operator, SliceStack
from scorefusion.engine.engine import Engine, PlaneDeviation
from scorefusion.engine.isolation import isolated, require_device_after_fork
from scorefusion.engine.pool import Around, EnginePool
from scorefusion.errors import BadInput, ScoreFusionError, memory_named
from scorefusion.io import Affine, Image, Scan
from scorefusion.models.config import ModelConfig
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.ops.device import choose_device, choose_dtype
from scorefusion.pipeline.footprint import Footprint, Room, missing_voxels
from scorefusion.pipeline.options import CallOptions, Machine, Options, documented, filled
from scorefusion.pipeline.settings import SLICED, Settings
from scorefusion.pipeline.slices import Slices, slices_of
from scorefusion.pipeline.translation import Consistency, Translation

Progress = Callable[[int, int], None]


@dataclass(eq=False, repr=False)
class Job:
    """One translation, filled by ``read``, ``prepare`` and ``sample``; ``finish`` takes the result."""

    settings: Settings  #: how it is to be made
    #: the images as they were read, on the host, one per condition; after ``prepare`` the first only
    scans: tuple[Scan, ...] = ()
    mask: Scan | None = None  #: where voxels are missing, for a model that fills in; None after ``prepare``
    timings: dict[str, float] = field(default_factory=dict)  #: seconds by stage
    #: what of the input or of the run may have harmed the result, a sentence each
    warnings: tuple[str, ...] = ()
    slices: Slices | None = None  #: how the first image was sliced, for a model of thick slices
    room: Room = field(init=False)  #: the model, as the first image was measured, with its memory and engines
    prepared: Prepared = field(init=False)  #: conditions and base on the output's whole grid, on the device
    box: Box = field(init=False)  #: where to sample
    footprint: Footprint = field(init=False)  #: the memory that the translation takes besides its engine
    #: the residual of the box, ``[1, 1, d, h, w]``, averaged over the samples, in units of ``residual.scale``
    mean: Tensor = field(init=False)
    deviation: Tensor | None = None  #: its standard deviation over the samples; None for a single one
    #: the standard deviation over planes of the predicted clean volume; None if not asked for
    planes_apart: Tensor | None = None

    @property
    def scan(self) -> Scan:
        """The first image."""
        return self.scans[0]

    @property
    def config(self) -> ModelConfig:
        """The model's description, with the measurement of the first image."""
        return self.room.config

    @property
    def axes(self) -> tuple[int, int, int]:
        """The images' axes z, y, x in the order that the networks see them."""
        return (0, 1, 2) if self.slices is None else self.slices.axes

    def volume_of(self, scan: Scan, device: torch.device | str = "cpu") -> Tensor:
        """Return an image's voxels as ``[1, 1, d, h, w]`` on a device, its axes as the networks see them."""
        values = np.ascontiguousarray(scan.values.transpose(self.axes))
        return torch.from_numpy(values)[None, None].to(device)

    def own_order(self, volume: Tensor) -> np.ndarray:
        """Return ``[1, 1, D, H, W]`` on the output's grid in the first image's own order ``[i, j, k]``."""
        ras = volume[0, 0].cpu().numpy().transpose(np.argsort(self.axes))
        return self.scan.to_own_order(ras)

    def ras(self, sizes: Sequence[int]) -> tuple[int, int, int]:
        """Return sizes or factors along the networks' axes along the images' z, y and x."""
        z, y, x = (sizes[int(place)] for place in np.argsort(self.axes))
        return z, y, x

    def own_sizes(self, sizes: Sequence[int]) -> tuple[int, int, int]:
        """Return sizes or factors along the networks' axes along the first image's own (i, j, k)."""
        return self.scan.own_factors(self.ras(sizes))

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """Sizes of the images along the networks' axes."""
        found = []
        for scan in self.scans:
            z, y, x = (scan.values.shape[axis] for axis in self.axes)
            found.append((z, y, x))
        return found

    @contextmanager
    def stage(self, name: str, doing: str, subject: str = "") -> Iterator[None]:
        """Time a stage, and name the image where memory runs out in it."""
        start = time.perf_counter()
        with memory_named(subject or self.scan.name, doing):
            yield
        self.timings[name] = time.perf_counter() - start


class Pipeline:
    """Translate images with a model. It prints nothing and changes no global state.

    Several threads may share one, and a callback may call it again: results are the same bits.
    """

    @documented(Machine)
    @isolated()
    def __init__(
        self, model: str | os.PathLike[str] | ScoreFusion = "auto", **machine: Unpack[Machine]
    ) -> None:
        """Load a model.

        Args:
            model: a bundled model's name, a model folder, or a model, which is copied first where it must be
                moved, cast or put in evaluation mode. ``auto`` is the one for thick-sliced scans.
            {options}

        Raises:
            OutOfMemory: if the model does not fit into memory.
            ScoreFusionError: for an unknown name, a broken model folder, a device that does not exist, or
                CUDA in a process forked after its parent had used it.
        """
        device, dtype, runner, engines, max_memory = filled(Machine, machine).values()
        self.device = choose_device(device)
        require_device_after_fork(self.device)
        self.dtype = choose_dtype(dtype, self.device)
        named = model.config.name if isinstance(model, ScoreFusion) else os.fspath(model)
        with memory_named(f"model {named}", "loading it", "Free some memory, or use a machine with more."):
            if not isinstance(model, ScoreFusion):
                model = ScoreFusion.from_pretrained(model, device=self.device)
            elif not _ready(model, self.device, self.dtype):
                model = copy.deepcopy(model)
            self.model = model if _ready(model, self.device, self.dtype) else self._placed(model)
        self._engines = EnginePool(self.model, runner=runner, engines=engines, max_memory=max_memory)
        self._room = Room(self.config, self._engines)

    @property
    def config(self) -> ModelConfig:
        """The model's description."""
        return self.model.config

    @documented(CallOptions)
    def __call__(self, images: Image | Sequence[Image], **options: Unpack[CallOptions]) -> Translation:
        """Translate one image, or several conditions in the order of ``config.conditions``.

        What is not given comes from the model's ``config.sampling``.

        Args:
            images: NIfTI files, folders of one DICOM series, nibabel or SimpleITK images, MONAI MetaTensors,
                arrays and tensors ``[i, j, k]``, or scans that were read; :meth:`Translation.native` gives
                the result back as what the first is. Several lie on one grid; for super-resolution all but
                the first may lie on the output's. Where something else than a coarser image was measured, the
                first is what the pseudo-inverse makes of it: a zero-filled MRI, a reconstructed CT.
            {options}

        Raises:
            BadInput: for an image that cannot be used.
            OutOfMemory: where memory would not suffice, before the work that would need it, or ran out.
            ScoreFusionError: for an unknown name or an impossible combination, before any file is read.
        """
        given = filled(CallOptions, options)
        affine, mask, operator, callback = (
            given.pop(name) for name in ("affine", "mask", "operator", "callback")
        )
        settings = self.settings(**given)
        if mask is not None and operator is not None:
            raise ScoreFusionError("a mask and an operator both say what is missing; give one of them")
        job = self.read(images, settings, affine=affine, mask=mask)
        self.prepare(job, operator=operator)
        self.sample(job, callback=callback)
        return self.finish(job)

    @documented(Options)
    def settings(self, **options: Unpack[Options]) -> Settings:
        """Check the options of a call and fill in the model's own, for :meth:`read`.

        Raises:
            ScoreFusionError: for an unknown name or an impossible combination.
        """
        return Settings(self.config, **options)

    @isolated()
    def read(
        self,
        images: Image | Sequence[Image],
        settings: Settings,
        *,
        affine: Affine | Sequence[Affine] | None = None,
        mask: Image | None = None,
    ) -> Job:
        """First of the four stages of a call: read and check the images. Needs no device, only the host.

        A call is ``read``, ``prepare``, ``sample`` and ``finish`` of one job; a program that translates many
        may read and finish some while another is sampled.

        Raises:
            BadInput: for an image that cannot be used.
            OutOfMemory: where memory ran out, or would before the result is written.
            ScoreFusionError: for another number of images than the model has conditions.
        """
        given, config, job = io.listed(images), self.config, Job(settings)
        job.room = self._room
        if len(given) != len(names := config.conditions):
            files = ", ".join(str(image) for image in given if isinstance(image, str | os.PathLike))
            raise ScoreFusionError(
                f"model '{config.name}' takes {len(names)} image{'s' * (len(names) != 1)} "
                f"({', '.join(names)}), got {len(given)}{': ' + files if files else ''}"
            )
        if mask is not None and not config.degradation.takes_mask:
            raise ScoreFusionError(f"a mask is for a model that fills in; '{config.name}' does not")
        first = given[0]
        name = str(first if isinstance(first, str | os.PathLike) else getattr(first, "name", "") or "image")
        with job.stage("read", "reading it", name):
            shapes = [io.shape_of(image, settings.max_voxels) for image in given]
            if shapes[0] is not None and not config.degradation.of_each_scan:
                _check_size(name, shapes[0], config, settings)
            self._room.check_reading(name, shapes, settings)
            limits: dict[str, Any] = {n: getattr(settings, n) for n in ("assume_affine", "max_voxels")}
            affines = io.affines_for(affine, len(given))
            pairs = zip(given, affines, strict=True)
            job.scans = scans = tuple(
                io.scan_of(image, affine=own, nan=settings.nan, **limits) for image, own in pairs
            )
            if isinstance(config.degradation, SliceStack):
                said = {name: getattr(settings, name) for name in SLICED}
                job.slices = slices_of(job.scan, config.degradation, said)
                job.room = self._room.measuring(job.slices.measurement)
            _check_size(job.scan.name, job.scan.shape, job.config, settings)
            factors = job.ras(job.config.degradation.factors)
            for other in scans[1:]:  # on the first one's grid, or for a coarser first one on the output's
                on_output = max(factors) > 1 and other.values.shape != job.scan.values.shape
                io.check_same_grid(job.scan, other, factors if on_output else 1)
            if mask is not None:
                job.mask = io.scan_of(mask, affine=affines[0], **limits)
                io.check_same_grid(job.scan, job.mask)
            unsuited = data.warnings_of(data.check_domain(scans, config), strict=settings.strict)
        texts = (t if len(scans) == 1 else f"{scan.name}: {t}" for scan in scans for t in scan.warnings)
        slicing = [] if job.slices is None else [f"{job.scan.name}: {t}" for t in job.slices.warnings]
        job.warnings = (*texts, *slicing, *unsuited)
        return job

    @isolated()
    def prepare(self, job: Job, *, operator: Operator | None = None) -> None:
        """Second stage: normalised conditions, the base, and the box to sample, on the device.

        Raises:
            OutOfMemory: where memory ran out, or would before the result is written.
            ScoreFusionError: for a volume that cannot be normalised.
        """
        require_device_after_fork(self.device)
        settings = job.settings
        with job.stage("prepare", "preparing it"):
            _check_room(job, operator)
            measured = operator
            if job.mask is not None:
                measured = Inpainting(job.volume_of(job.mask, self.device)[0, 0] == 0)
            volumes = [job.volume_of(scan, self.device) for scan in job.scans]
            job.prepared = data.prepare_conditions(volumes, job.config, operator=measured)
            job.box = Box.whole(job.prepared.base.shape[2:])
            if settings.crop and operator is None:
                job.box = data.sampling_box(job.prepared.condition, job.config, job.prepared.levels)
            job.footprint = job.room.footprint(
                job.shapes, job.box.size, settings, operator=operator is not None, walk=False
            )
        problems = [
            BadInput(scan.name, *text)
            for scan, texts in zip(job.scans, job.prepared.found, strict=True)
            for text in texts
        ]
        job.warnings += data.warnings_of(problems, strict=settings.strict)
        job.scans, job.mask = job.scans[:1], None

    @isolated()
    def sample(self, job: Job, *, callback: Progress | None = None) -> None:
        """Third stage: sample the residual of the job's box.

        Raises:
            OutOfMemory: where memory ran out, or would.
            ScoreFusionError: if the networks' output is not finite.
        """
        settings, notes = job.settings, list[str]()
        apart = PlaneDeviation(settings.table, job.box.size) if settings.disagreement else None

        def watch(engine: Engine) -> None:
            notes[:] = dict.fromkeys([*notes, *engine.notes])
            if apart is not None:
                apart.add(engine)

        with job.stage("sample", "sampling"):
            own, done = job.own_sizes, ("read", "prepare")
            fitting = job.room.check(job.scan.name, job.footprint, settings, done=done, own_order=own)
            job.mean, job.deviation = draw_residuals(
                job.room.engines,
                job.prepared,
                job.box,
                settings,
                around=fitting.around,
                callback=callback,
                watch=watch,
            )
            job.planes_apart = None if apart is None else apart.mean
        job.warnings += tuple(notes)

    @isolated()
    def finish(self, job: Job) -> Translation:
        """Last stage: the volume in the input's units and orientation, and how well it agrees with it.

        Raises:
            OutOfMemory: where memory ran out.
        """
        scan, settings, config = job.scan, job.settings, job.config
        factors = config.degradation.factors
        with job.stage("finish", "finishing it"):
            job.room.make_for_finishing(job.footprint)
            volume, consistency = _finished(job, config)
            spread, planes_apart = (
                _in_units(job, config, each) for each in (job.deviation, job.planes_apart)
            )
        return Translation(
            volume=volume,
            affine=io.fine_affine(scan.affine, job.own_sizes(factors)),
            timings=job.timings | {"total": sum(job.timings.values())},
            consistency_residual=consistency,
            spread=spread,
            planes_apart=planes_apart,
            seed=settings.seed,
            samples=settings.samples,
            strategy=settings.strategy,
            solver=settings.table.name,
            evaluations=len(settings.table),
            dtype=str(self.dtype).removeprefix("torch."),
            source=scan,
            factor=job.ras(factors),
            output_dtype=settings.output_dtype,
            model=config.name,
            conditions=config.conditions,
            target=config.target,
            warnings=job.warnings,
            slices=job.slices,
            calibration=config.sampling.error_bar,
        )

    def free(self) -> None:
        """Free the memory that is kept for the next volume of the same shape."""
        self._engines.free()

    def _placed(self, model: ScoreFusion) -> ScoreFusion:
        """The model on the device, its networks in the dtype, everything else in float32."""
        model = model.to(self.device, torch.float32).eval()
        model.slice_networks.to(self.dtype)
        if model.fusion is not None:
            model.fusion.to(self.dtype)
        return model


def _ready(model: ScoreFusion, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a model can be used as it is."""
    networks = [*model.slice_networks.parameters()]
    networks += [*model.fusion.parameters()] if model.fusion is not None else []
    cast = all(parameter.dtype == dtype for parameter in networks)
    rest = all(parameter.dtype == torch.float32 for parameter in model.features.parameters())
    return cast and rest and not model.training and all(p.device == device for p in model.parameters())


def _check_size(name: str, shape: Sequence[int], config: ModelConfig, settings: Settings) -> None:
    factors, limit = config.degradation.factors, settings.max_voxels
    if (count := math.prod(shape) * math.prod(factors)) > limit:
        finer = " × ".join(str(factor) for factor in dict.fromkeys(factors))
        problem = f"would become {count:,} voxels, {finer}× finer; the limit is {limit:,}"
        raise BadInput(name, problem, "Crop it first.")


def _check_room(job: Job, operator: Operator | None) -> None:
    """Refuse what cannot be sampled before anything is put on the output's grid."""
    shapes, settings, room = job.shapes, job.settings, job.room
    if room.roomy(shapes, settings):
        return
    box: Box | None = Box.whole(job.config.degradation.grid(shapes[0]))
    if settings.crop and operator is None:
        box = data.least_box([job.volume_of(scan) for scan in job.scans], job.config)
    size, own = shapes[0] if box is None else box.size, job.own_sizes
    least = room.footprint(shapes, size, settings, operator=operator is not None)
    room.check(job.scan.name, least, settings, done=("read",), sample=box is not None, own_order=own)


def draw_residuals(
    engines: EnginePool,
    prepared: Prepared,
    box: Box,
    settings: Settings,
    *,
    around: Around | None = None,
    callback: Progress | None = None,
    watch: Callable[[Engine], None] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Sample a volume's residual, clamped and projected as the model's configuration says.

    Args:
        engines: of the model, on the device of ``prepared``.
        prepared: the conditions and the base on the whole output grid.
        box: where to compute. A voxel's noise depends on its place in the whole volume, not on the box.
        settings: the strategy, the solver, how many samples, how many of them at once, and the seed; sample n
            draws noise of its own with the same seed.
        around: what the translation takes besides its engine; where memory is short, fewer samples are drawn
            at once, and the engine is made to fit.
        callback: called with (network evaluations done, in all); raise in it to cancel.
        watch: called with the engine each time it has drawn.

    Returns:
        Mean and standard deviation (None for one sample) ``[1, 1, d, h, w]`` of the box, in units of
        ``residual.scale``.

    Raises:
        OutOfMemory: for what does not fit, whatever is changed.
        ScoreFusionError: if the networks' output is not finite.
    """
    config, around = engines.config, around or Around()
    inside, whole = Box.whole(box.size).index, prepared.base.shape[2:]
    prepared, box = whole_patches(config, prepared, box)
    mean = torch.zeros_like(prepared.base[box.index])
    squares = torch.zeros_like(mean)
    condition, project = prepared.condition[box.index], prepared.projection(config, box)
    samples, table, strategy, planes = settings.samples, settings.table, settings.strategy, settings.planes
    asked = min(settings.batch, samples)
    batch = engines.batch_that_fits(box.size, asked, strategy=strategy, planes=planes, around=around)
    total = len(table) * -(-samples // batch)
    for first in range(0, samples, batch):
        members = range(first, min(first + batch, samples))
        report = None
        if callback is not None:
            report = functools.partial(_report, callback, first // batch * len(table), total)
        with engines.borrow(
            box.size, batch=len(members), strategy=strategy, planes=planes, around=around
        ) as engine:
            if batch < asked:
                engine.note(f"memory is short: {batch} samples at once, not {asked}; equal to rounding")
            engine.load(condition, origin=box.start, full=whole, project=project)
            drawn = engine.run(table, [settings.seed] * len(members), sample=members, callback=report)
            if watch is not None:
                watch(engine)
        for count, residual in enumerate(drawn.split(1), start=first + 1):
            change = residual - mean
            mean += change / count
            squares += change * (residual - mean)
    if not bool(torch.isfinite(mean).all()):
        raise ScoreFusionError("the networks' output is not finite; compute in float32 (--dtype float32)")
    mean, squares = mean[inside], squares[inside]
    return mean, (squares / (samples - 1)).sqrt() if samples > 1 else None


def whole_patches(config: ModelConfig, prepared: Prepared, box: Box) -> tuple[Prepared, Box]:
    """Extend a box to whole patches of the networks, beyond the volume by repeating its last voxels.

    Networks pad what they are given in the same way, but that repeats the noise as well, and they take it for
    something that is there; here it is drawn for the voxels beyond, too. Only where a measurement is local:
    of blocks or slices, or none.
    """
    local = prepared.operator is None or prepared.operator.local
    beyond = missing_voxels(config, box)
    if not local or not any(beyond):
        return prepared, box
    stop = [last + more for last, more in zip(box.stop, beyond, strict=True)]
    short = [max(0, last - have) for last, have in zip(stop, prepared.base.shape[2:], strict=True)]
    pads = (0, short[2], 0, short[1], 0, short[0])

    def longer(volume: Tensor) -> Tensor:
        return F.pad(volume, pads, mode="replicate")

    base = longer(prepared.base)
    outside = base if prepared.outside is prepared.base else longer(prepared.outside)
    larger = replace(prepared, condition=longer(prepared.condition), base=base, outside=outside)
    return larger, Box(box.start, (stop[0], stop[1], stop[2]))


def _report(callback: Progress, before: int, total: int, step: int, steps: int, x0: Tensor) -> None:
    callback(before + step, total)


def _finished(job: Job, config: ModelConfig) -> tuple[np.ndarray, Consistency | None]:
    """The volume in the input's units and orientation, and how well it agrees with the input."""
    prepared, box, scan = job.prepared, job.box, job.scan
    whole = prepared.outside.clone()
    whole[box.index] = config.residual.added_to(prepared.base[box.index], job.mean)
    whole = prepared.intensity.denormalise(whole)
    measured = job.volume_of(scan, whole.device)
    if job.slices is not None and prepared.operator is not None and config.sampling.consistency:
        # Sampling was consistent in a box of whole patches; where profiles overlap, its border was not.
        whole -= prepared.operator.A_dagger(prepared.operator.A(whole) - measured)
    if prepared.held is not None:
        _hold(whole, prepared.held, measured, config.degradation.factors)
    if job.settings.clip == "input":
        lo, hi = float(scan.values.min()), float(scan.values.max())
        if prepared.operator is None:
            whole = whole.clamp(lo, hi)
        else:
            whole = prepared.operator.bounded(whole, measured, lo, hi)
    volume = job.own_order(whole)
    consistency = None
    if prepared.operator is not None:
        consistency = Consistency(*config.degradation.disagreement(prepared.operator, whole, measured))
    return volume, consistency


def _in_units(job: Job, config: ModelConfig, deviation: Tensor | None) -> np.ndarray | None:
    """A deviation of the residual in the input's units, 0 outside the box and where values are held."""
    if deviation is None:
        return None
    prepared = job.prepared
    field = torch.zeros_like(prepared.base)
    field[job.box.index] = deviation * config.residual.scale * prepared.intensity.half_range
    if prepared.held is not None:
        _hold(field, prepared.held, torch.zeros((), device=field.device), config.degradation.factors)
    return job.own_order(field)


def _hold(volume: Tensor, held: Tensor, values: Tensor, factors: tuple[int, int, int]) -> None:
    """Give the block of each voxel that is held, on the first condition's grid, its value, in place."""
    z, y, x = factors
    d, h, w = held.shape[2:]
    values = torch.where(held, values, 0)
    marked, kept = (part[:, :, :, None, :, None, :, None] for part in (held, values))
    volume.view(1, 1, d, z, h, y, w, x).masked_fill_(marked, 0).add_(kept)
