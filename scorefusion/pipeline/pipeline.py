"""From an image to its translation, in four stages: read, prepare, sample, finish."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence

import torch
from typing_extensions import Unpack

from scorefusion.degradations import Operator
from scorefusion.diffusion.solvers import Table
from scorefusion.engine.isolation import isolated, require_device_after_fork
from scorefusion.engine.pool import EnginePool
from scorefusion.errors import ScoreFusionError, memory_named
from scorefusion.io import Affine, Image
from scorefusion.models.config import ModelConfig
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.models.table import table_for
from scorefusion.ops.device import choose_device, choose_dtype
from scorefusion.pipeline.footprint import Room
from scorefusion.pipeline.job import Job
from scorefusion.pipeline.options import CallOptions, Machine, Options, documented, filled
from scorefusion.pipeline.prepare import prepare
from scorefusion.pipeline.read import read
from scorefusion.pipeline.sample import Progress, sample
from scorefusion.pipeline.settings import Settings
from scorefusion.pipeline.translation import Translation, finish


class Pipeline:
    """Translate images with a model. It prints nothing and changes no global state.

    Several threads may share one, and a callback may call it again: results are the same bits.
    """

    @documented(Machine)
    @isolated()
    def __init__(
        self, model: str | os.PathLike[str] | ScoreFusion = "t1-sr4", **machine: Unpack[Machine]
    ) -> None:
        """Load a model.

        Args:
            model: a bundled model's name, a model folder, or a model. A model that must be moved, cast or put
                in evaluation mode is copied first.
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
        return read(images, settings, self._room, affine=affine, mask=mask)

    @isolated()
    def prepare(self, job: Job, *, operator: Operator | None = None) -> None:
        """Second stage: normalised conditions, the base, and the box to sample, on the device.

        Raises:
            OutOfMemory: where memory ran out, or would before the result is written.
            ScoreFusionError: for a volume that cannot be normalised.
        """
        require_device_after_fork(self.device)
        prepare(job, self._room, operator)

    @isolated()
    def sample(self, job: Job, *, callback: Progress | None = None) -> None:
        """Third stage: sample the residual of the job's box.

        Raises:
            OutOfMemory: where memory ran out, or would.
            ScoreFusionError: if the networks' output is not finite.
        """
        sample(job, self._room, callback)

    @isolated()
    def finish(self, job: Job) -> Translation:
        """Last stage: the volume in the input's units and orientation, and how well it agrees with it.

        Raises:
            OutOfMemory: where memory ran out.
        """
        return finish(job, self._room, self.dtype)

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
