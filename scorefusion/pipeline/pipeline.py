"""From an image to its translation: read, normalise, sample inside the foreground box, put back, check."""

from __future__ import annotations

import copy
import math
import operator as operators
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scorefusion.data import Box, check_domain, least_box, prepare_conditions, sampling_box, warnings_of
from scorefusion.degradations import Inpainting, Operator
from scorefusion.diffusion.solvers import Table
from scorefusion.engine.engine import Engine
from scorefusion.engine.isolation import isolated, require_device_after_fork
from scorefusion.engine.plane_deviation import PlaneDeviation
from scorefusion.engine.pool import EnginePool
from scorefusion.errors import BadInput, ScoreFusionError, memory_named
from scorefusion.io.header import MAX_VOXELS
from scorefusion.io.kinds import Affine, Image, affines_for, listed, scan_of, shape_of
from scorefusion.io.nifti import Scan, check_same_grid, make_image
from scorefusion.models.config import ModelConfig, Plane
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.models.table import table_for
from scorefusion.ops.device import choose_device, choose_dtype
from scorefusion.pipeline.footprint import Room
from scorefusion.pipeline.job import STAGES, Drawn, Job, Reading, timed
from scorefusion.pipeline.sample import Progress, draw_residuals
from scorefusion.pipeline.settings import Settings
from scorefusion.pipeline.translation import Consistency, Translation

__all__ = ["Pipeline", "Translation"]


class Pipeline:
    """Translate images with a model. It prints nothing and changes no global state.

    Several threads may share one, and a callback may call it again: results are the same bits.

    Args:
        model: a bundled model's name, a model folder, or a model. A model that must be moved, cast or put in
            evaluation mode is copied first.
        device: ``auto`` (CUDA where there is a device), or as PyTorch names it.
        dtype: what the networks compute in: ``float32``, ``bfloat16``, ``float16``, or ``auto``, what this
            machine is fast at. The volume being sampled is always float32.
        runner: how the 2D networks run: ``eager``, ``compile``, ``tensorrt``, or ``auto``, which is TensorRT
            on CUDA where ``engines`` are given and else eager; ``scorefusion doctor`` says why.
        engines: folder of TensorRT engines that ``scorefusion engine build`` wrote for this model.
        max_memory: the most that may be resident, such as ``9GB``: fewer slices go at once, then features are
            summed in 16 bits, and last of all the 3D network runs on tiles; ``scorefusion plan`` tells. What
            the machine has left, control groups and ``ulimit`` included, limits it as well.

    Raises:
        OutOfMemory: if the model does not fit into memory.
        ScoreFusionError: for an unknown name, a broken model folder, a device that is not there, or CUDA in a
            process forked after its parent had used it.
    """

    @isolated()
    def __init__(
        self,
        model: str | os.PathLike[str] | ScoreFusion = "t1-sr4",
        *,
        device: str | torch.device = "auto",
        dtype: str = "auto",
        runner: str = "auto",
        engines: str | os.PathLike[str] | None = None,
        max_memory: str | int | None = None,
    ):
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

    def __call__(
        self,
        images: Image | Sequence[Image],
        *,
        affine: Affine | Sequence[Affine] | None = None,
        strategy: str | None = None,
        planes: Sequence[Plane] | None = None,
        solver: str | None = None,
        steps: int | None = None,
        eta: float | None = None,
        start_abar: float | None = None,
        samples: int = 1,
        seed: int = 0,
        batch: int = 1,
        disagreement: bool = False,
        crop: bool = True,
        mask: Image | None = None,
        operator: Operator | None = None,
        nan: str = "error",
        assume_affine: bool = False,
        output_dtype: str = "float32",
        max_voxels: int = MAX_VOXELS,
        clip: str = "none",
        strict: bool = False,
        callback: Progress | None = None,
    ) -> Translation:
        """Translate one image, or several conditions in the order of ``config.conditions``.

        What is not given comes from the model's ``config.sampling``.

        Args:
            images: NIfTI files, folders of one DICOM series, nibabel or SimpleITK images, MONAI MetaTensors,
                arrays and tensors ``[i, j, k]``, or scans that were read; :meth:`Translation.native` gives
                the result back as what the first is. Several lie on one grid; for super-resolution all but
                the first may lie on the output's. Where something else than a coarser image was measured, the
                first is what the pseudo-inverse makes of it: a zero-filled MRI, a reconstructed CT.
            affine: of arrays and tensors: ``[4, 4]``, (i, j, k) to RAS+ millimetres, or one an image.
            strategy: how scores are fused; one of ``config.strategies``.
            planes: for ``single`` and ``alternate``: axial, coronal, sagittal.
            solver: see ``scorefusion.diffusion.solvers.SOLVERS``.
            steps: number of noise levels.
            eta: how much fresh noise ``ddim`` and ``dpmpp_2m_sde`` add.
            start_abar: start late, at this cumulative alpha.
            samples: draw several and average them; ``spread`` is then their standard deviation.
            seed: of the noise, which depends on it and on the voxel's place in the output alone. The volume
                is the same again on the same machine, and to rounding in another dtype or on another device.
            batch: samples drawn at once; more memory, the same result to rounding.
            disagreement: keep the standard deviation over the planes, at the last noise level, of what each
                takes for the clean volume; for strategies that run every plane at each step.
            crop: compute only in a box around the foreground; the result elsewhere is the base.
            mask: for a model that fills in: an image that is not 0 where voxels are missing, on the first
                image's grid; the holes of ``config.degradation`` when None.
            operator: what was measured, instead of what ``config.degradation`` says; with ``A``,
                ``A_adjoint`` and ``A_dagger`` as deepinv's physics have. Everything is computed, as for
                ``crop=False``.
            nan: ``error``, or ``zero`` to count NaN and infinite voxels as 0.
            assume_affine: accept an image without orientation; see :func:`~scorefusion.io.nifti.read_scan`.
                For an array or tensor it is the identity.
            output_dtype: what ``save`` stores and ``native`` gives: ``float32``, or ``input`` for the input's
                own type.
            max_voxels: refuse larger inputs and outputs.
            clip: ``none``, or ``input``: the result is within the range of the (first) input's values. For
                super-resolution the block means stay; a result may exceed the input's range rightly, where
                detail is brighter than the blocks that hold it.
            strict: refuse an input that is not what the model was made for (``config.domain``); else
                :attr:`Translation.warnings` says so.
            callback: called with (evaluations done, evaluations in all), in the calling thread; raise
                :class:`~scorefusion.Cancelled` in it to cancel.

        Raises:
            BadInput: for an image that cannot be used.
            OutOfMemory: where memory would not suffice, before the work that would need it, or ran out.
            ScoreFusionError: for an unknown name or an impossible combination, before any file is read.
        """
        settings = self.settings(
            strategy=strategy,
            planes=planes,
            solver=solver,
            steps=steps,
            eta=eta,
            start_abar=start_abar,
            samples=samples,
            seed=seed,
            batch=batch,
            disagreement=disagreement,
            crop=crop,
            nan=nan,
            assume_affine=assume_affine,
            output_dtype=output_dtype,
            max_voxels=max_voxels,
            clip=clip,
            strict=strict,
        )
        if mask is not None and operator is not None:
            raise ScoreFusionError("a mask and an operator both say what is missing; give one of them")
        job = self.prepare(self.read(images, settings, affine=affine, mask=mask), settings, operator=operator)
        return self.finish(job, self.draw(job, settings, callback=callback), settings)

    def settings(self, **choices: Any) -> Settings:
        """The choices of a call, checked, with the model's own filled in; for :meth:`read` to :meth:`finish`.

        Raises:
            ScoreFusionError: for an unknown name or an impossible combination.
        """
        return Settings.of(self.config, **choices)

    @isolated()
    def read(
        self,
        images: Image | Sequence[Image],
        settings: Settings,
        *,
        affine: Affine | Sequence[Affine] | None = None,
        mask: Image | None = None,
    ) -> Reading:
        """First of the four stages of a call: read and check the files. Needs no device, only the host.

        A call is ``finish(job, draw(job, settings), settings)`` of ``job = prepare(read(images, settings),
        settings)``; whoever translates many may read and finish some while another is drawn.

        Raises:
            BadInput: for an image that cannot be used.
            OutOfMemory: where memory ran out, or would before the result is written.
            ScoreFusionError: for another number of images than the model has conditions.
        """
        given = listed(images)
        self._check_count(given)
        if mask is not None and not self.config.degradation.takes_mask:
            raise ScoreFusionError(f"a mask is for a model that fills in; '{self.config.name}' does not")
        timings: dict[str, float] = {}
        with timed("read", timings), memory_named(_name(given[0]), "reading it"):
            shapes = [shape_of(image, settings.max_voxels) for image in given]
            if shapes[0] is not None:
                self._check_size(_name(given[0]), shapes[0], settings.max_voxels)
            known = [(shape[2], shape[1], shape[0]) for shape in shapes if shape is not None]
            if len(known) == len(given) and self._room.suits(known):
                around = self._room.footprint(known, known[0], settings, walk=False)
                turned = operators.itemgetter(2, 1, 0)
                self._room.check(_name(given[0]), around, settings, until="read", own_order=turned)
            how: dict[str, Any] = {
                "assume_affine": settings.assume_affine,
                "max_voxels": settings.max_voxels,
            }
            affines = affines_for(affine, len(given))
            scans = tuple(
                scan_of(image, affine=own, nan=settings.nan, **how)
                for image, own in zip(given, affines, strict=True)
            )
            self._check_grids(scans, settings.max_voxels)
            missing = None if mask is None else scan_of(mask, affine=affines[0], **how)
            if missing is not None:
                check_same_grid(scans[0], missing)
            found = warnings_of(check_domain(scans, self.config), strict=settings.strict)
        remarks = (
            text if len(scans) == 1 else f"{scan.name}: {text}" for scan in scans for text in scan.warnings
        )
        return Reading(scans, missing, timings, (*remarks, *found))

    @isolated()
    def prepare(self, reading: Reading, settings: Settings, *, operator: Operator | None = None) -> Job:
        """Second stage: normalised conditions, the base, and the box to sample, on the device.

        Raises:
            OutOfMemory: where memory ran out, or would before the result is written.
            ScoreFusionError: for a volume that cannot be normalised.
        """
        require_device_after_fork(self.device)
        timings, name = dict(reading.timings), reading.scans[0].name
        with timed("prepare", timings), memory_named(name, "preparing it"):
            self._check_room(reading, settings, operator)
            given = operator is not None
            if reading.mask is not None:
                operator = Inpainting(self._tensor(reading.mask)[0, 0] == 0)
            volumes = [self._tensor(scan) for scan in reading.scans]
            prepared = prepare_conditions(volumes, self.config, operator=operator)
            box = Box.whole(prepared.base.shape[2:])
            if settings.crop and (operator is None or reading.mask is not None):
                box = sampling_box(prepared.condition, self.config, prepared.levels)
            shapes = [scan.values.shape for scan in reading.scans]
            footprint = self._room.footprint(shapes, box.size, settings, operator=given, walk=False)
        found = [
            BadInput(scan.name, *text)
            for scan, texts in zip(reading.scans, prepared.found, strict=True)
            for text in texts
        ]
        warnings = reading.warnings + warnings_of(found, strict=settings.strict)
        return Job(reading.scans[0], prepared, box, footprint, timings, warnings)

    @isolated()
    def draw(self, job: Job, settings: Settings, *, callback: Progress | None = None) -> Drawn:
        """Third stage: sample the residual of the job's box.

        Raises:
            OutOfMemory: where memory ran out, or would.
            ScoreFusionError: if the networks' output is not finite.
        """
        timings, notes = dict(job.timings), list[str]()
        apart = PlaneDeviation(settings.table, job.box.size) if settings.disagreement else None

        def watch(engine: Engine) -> None:
            notes[:] = dict.fromkeys([*notes, *engine.notes])
            if apart is not None:
                apart.add(engine)

        with timed("sample", timings), memory_named(job.scan.name, "sampling"):
            own = job.scan.own_factors
            found = self._room.check(
                job.scan.name, job.footprint, settings, done=("read", "prepare"), own_order=own
            )
            mean, deviation = draw_residuals(
                self.model,
                job.prepared,
                job.box,
                settings.table,
                strategy=settings.strategy,
                planes=settings.planes,
                samples=settings.samples,
                seed=settings.seed,
                batch=settings.batch,
                callback=callback,
                engines=self._engines,
                watch=watch,
                around=found.around,
            )
        return Drawn(mean, deviation, None if apart is None else apart.mean, timings, tuple(notes))

    @isolated()
    def finish(self, job: Job, drawn: Drawn, settings: Settings) -> Translation:
        """Last stage: the volume in the input's units and orientation, and how well it agrees with it.

        Raises:
            OutOfMemory: where memory ran out.
        """
        timings = dict(drawn.timings)
        with timed("finish", timings), memory_named(job.scan.name, "finishing it"):
            self._room.make_for_finishing(job.footprint)
            volume, consistency = self._finish(job, drawn.mean, settings.clip)
            spread = self._in_units(job, drawn.deviation)
            planes_apart = self._in_units(job, drawn.planes_apart)
            factor = self.config.degradation.factors
            image = make_image(job.scan, volume, factor=factor, dtype=settings.output_dtype)
        timings["total"] = sum(timings[stage] for stage in STAGES)
        return Translation(
            volume=volume,
            affine=np.asarray(image.affine),
            header=image.header,
            timings=timings,
            consistency_residual=consistency,
            spread=spread,
            planes_apart=planes_apart,
            seed=settings.seed,
            samples=settings.samples,
            strategy=settings.strategy,
            solver=settings.table.name,
            evaluations=len(settings.table),
            dtype=str(self.dtype).removeprefix("torch."),
            source=job.scan,
            factor=factor,
            output_dtype=settings.output_dtype,
            model=self.config.name,
            conditions=self.config.conditions,
            target=self.config.target,
            warnings=job.warnings + drawn.warnings,
        )

    def table(
        self,
        solver: str | None = None,
        steps: int | None = None,
        *,
        eta: float | None = None,
        start_abar: float | None = None,
    ) -> Table:
        """The solver's table for this model; what is not given comes from ``config.sampling``.

        Raises:
            ScoreFusionError: for an unknown solver, with the nearest, or numbers it cannot take.
        """
        return table_for(self.config, solver=solver, steps=steps, eta=eta, start_abar=start_abar)

    def free(self) -> None:
        """Give back the memory that is kept for the next volume of the same shape."""
        self._engines.free()

    def _finish(self, job: Job, mean: Tensor, clip: str) -> tuple[np.ndarray, Consistency | None]:
        """The volume in the input's units and orientation, and how well it agrees with the input."""
        prepared, box, scan = job.prepared, job.box, job.scan
        scale, intensity = self.config.residual.scale, prepared.intensity
        whole = prepared.outside.clone()
        whole[box.index] = prepared.base[box.index] + scale * mean
        whole = intensity.denormalise(whole)
        if prepared.held is not None:
            self._hold(whole, prepared.held, self._tensor(scan))
        if clip == "input":
            lo, hi = float(scan.values.min()), float(scan.values.max())
            if prepared.operator is None:
                whole = whole.clamp(lo, hi)
            else:
                whole = prepared.operator.bounded(whole, self._tensor(scan), lo, hi)
        volume = scan.to_own_order(whole[0, 0].cpu().numpy())
        consistency = None
        if prepared.operator is not None:
            given = self._tensor(scan)
            consistency = Consistency(*self.config.degradation.disagreement(prepared.operator, whole, given))
        return volume, consistency

    def _in_units(self, job: Job, deviation: Tensor | None) -> np.ndarray | None:
        """A deviation of the residual in the input's units, 0 outside the box and where values are held."""
        if deviation is None:
            return None
        field = torch.zeros_like(job.prepared.base)
        field[job.box.index] = deviation * self.config.residual.scale * job.prepared.intensity.half_range
        if job.prepared.held is not None:
            self._hold(field, job.prepared.held, torch.zeros((), device=field.device))
        return job.scan.to_own_order(field[0, 0].cpu().numpy())

    def _hold(self, volume: Tensor, held: Tensor, values: Tensor) -> None:
        """Give the block of each voxel that is held, on the first condition's grid, its value, in place."""
        z, y, x = self.config.degradation.factors
        d, h, w = held.shape[2:]
        values = torch.where(held, values, 0)
        marked, kept = (part[:, :, :, None, :, None, :, None] for part in (held, values))
        volume.view(1, 1, d, z, h, y, w, x).masked_fill_(marked, 0).add_(kept)

    def _placed(self, model: ScoreFusion) -> ScoreFusion:
        """The model on the device, its networks in the dtype, everything else in float32."""
        model = model.to(self.device, torch.float32).eval()
        model.slice_networks.to(self.dtype)
        if model.fusion is not None:
            model.fusion.to(self.dtype)
        return model

    def _tensor(self, scan: Scan) -> Tensor:
        return torch.from_numpy(scan.values)[None, None].to(self.device)

    def _check_count(self, given: Sequence[Image]) -> None:
        names = self.config.conditions
        if len(given) != len(names):
            files = ", ".join(str(image) for image in given if isinstance(image, str | os.PathLike))
            raise ScoreFusionError(
                f"model '{self.config.name}' takes {len(names)} image{'s' * (len(names) != 1)} "
                f"({', '.join(names)}), got {len(given)}{': ' + files if files else ''}"
            )

    def _check_size(self, name: str, shape: Sequence[int], max_voxels: int) -> None:
        factors = self.config.degradation.factors
        count = math.prod(shape) * math.prod(factors)
        if count > max_voxels:
            finer = " × ".join(str(factor) for factor in dict.fromkeys(factors))
            problem = f"would become {count:,} voxels, {finer}× finer; the limit is {max_voxels:,}"
            raise BadInput(name, problem, "Crop it first.")

    def _check_room(self, reading: Reading, settings: Settings, operator: Operator | None) -> None:
        """Before anything is put on the output's grid, refuse what cannot be sampled there."""
        shapes, first = [scan.values.shape for scan in reading.scans], reading.scans[0]
        if self._room.roomy(shapes, settings):
            return
        factors = self.config.degradation.factors
        box: Box | None = Box.whole([n * factor for n, factor in zip(shapes[0], factors, strict=True)])
        if settings.crop and operator is None:
            box = least_box(
                [torch.from_numpy(scan.values)[None, None] for scan in reading.scans], self.config
            )
        size = shapes[0] if box is None else box.size
        found = self._room.footprint(shapes, size, settings, operator=operator is not None)
        own = first.own_factors
        self._room.check(first.name, found, settings, done=("read",), sample=box is not None, own_order=own)

    def _check_grids(self, scans: Sequence[Scan], max_voxels: int) -> None:
        factors = self.config.degradation.factors
        self._check_size(scans[0].name, scans[0].shape, max_voxels)
        for other in scans[1:]:
            on_output = max(factors) > 1 and other.values.shape != scans[0].values.shape
            check_same_grid(scans[0], other, factors if on_output else 1)


def _name(image: Image) -> str:
    """What to call an image in messages."""
    return str(image) if isinstance(image, str | os.PathLike) else str(getattr(image, "name", "") or "image")


def _ready(model: ScoreFusion, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a model can be used as it is."""
    networks = [*model.slice_networks.parameters()]
    networks += [*model.fusion.parameters()] if model.fusion is not None else []
    cast = all(parameter.dtype == dtype for parameter in networks)
    rest = all(parameter.dtype == torch.float32 for parameter in model.features.parameters())
    return cast and rest and not model.training and all(p.device == device for p in model.parameters())
