"""From an image to its translation: read, normalise, sample inside the foreground box, put back, check."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Sequence

import numpy as np
import torch
from nibabel.spatialimages import SpatialImage
from torch import Tensor

from scorefusion.compute import choose_device, choose_dtype
from scorefusion.degradations.inpainting import Inpainting
from scorefusion.degradations.make import disagreement
from scorefusion.degradations.operator import Operator
from scorefusion.diffusion.solvers import Table
from scorefusion.draw import Progress, draw_residuals
from scorefusion.engine.pool import EnginePool
from scorefusion.errors import BadInput, ScoreFusionError, unknown_name
from scorefusion.io.header import MAX_VOXELS
from scorefusion.io.nifti import NAN_CHOICES, OUTPUT_DTYPES, Scan, check_same_grid, make_image, read_scan
from scorefusion.models.config import PLANES, ModelConfig, Plane, require_strategy
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.models.table import table_for
from scorefusion.preprocess import Box, Prepared, prepare_conditions, sampling_box
from scorefusion.translation import Consistency, Translation

__all__ = ["Pipeline", "Translation"]

Image = str | os.PathLike[str] | SpatialImage


class Pipeline:
    """Translate images with a model. It prints nothing and changes no global state.

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
            summed in 16 bits, and last of all the 3D network runs on tiles; ``scorefusion plan`` tells.

    Raises:
        ScoreFusionError: for an unknown name, a broken model folder, or a device that is not there.
    """

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
        self.dtype = choose_dtype(dtype, self.device)
        if not isinstance(model, ScoreFusion):
            model = ScoreFusion.from_pretrained(model, device=self.device)
        elif not _ready(model, self.device, self.dtype):
            model = copy.deepcopy(model)
        self.model = model if _ready(model, self.device, self.dtype) else self._placed(model)
        self._engines = EnginePool(self.model, runner=runner, engines=engines, max_memory=max_memory)

    @property
    def config(self) -> ModelConfig:
        """The model's description."""
        return self.model.config

    def __call__(
        self,
        images: Image | Sequence[Image],
        *,
        strategy: str | None = None,
        planes: Sequence[Plane] | None = None,
        solver: str | None = None,
        steps: int | None = None,
        eta: float | None = None,
        start_abar: float | None = None,
        samples: int = 1,
        seed: int = 0,
        batch: int = 1,
        crop: bool = True,
        mask: Image | None = None,
        operator: Operator | None = None,
        nan: str = "error",
        assume_affine: bool = False,
        output_dtype: str = "float32",
        max_voxels: int = MAX_VOXELS,
        callback: Progress | None = None,
    ) -> Translation:
        """Translate one image, or several conditions in the order of ``config.conditions``.

        What is not given comes from the model's ``config.sampling``.

        Args:
            images: NIfTI files or nibabel images. Several lie on one grid; for super-resolution all but the
                first may lie on the output's. Where something else than a coarser image was measured, the
                first is what the pseudo-inverse makes of it: a zero-filled MRI, a reconstructed CT.
            strategy: how scores are fused; one of ``config.strategies``.
            planes: for ``single`` and ``alternate``: axial, coronal, sagittal.
            solver: see ``scorefusion.diffusion.solvers.SOLVERS``.
            steps: number of noise levels.
            eta: how much fresh noise ``ddim`` and ``dpmpp_2m_sde`` add.
            start_abar: start late, at this cumulative alpha.
            samples: draw several and average them; ``spread`` is then their standard deviation.
            seed: of the noise, which depends on it and on the voxel's place in the output alone. The volume
                is the same again on the same machine, and to rounding in another dtype or on another device.
            batch: samples drawn at once; more memory, the same result.
            crop: compute only in a box around the foreground; the result elsewhere is the base.
            mask: for a model that fills in: an image that is not 0 where voxels are missing, on the first
                image's grid; the holes of ``config.degradation`` when None.
            operator: what was measured, instead of what ``config.degradation`` says; with ``A``,
                ``A_adjoint`` and ``A_dagger`` as deepinv's physics have. Everything is computed, as for
                ``crop=False``.
            nan: ``error``, or ``zero`` to count NaN and infinite voxels as 0.
            assume_affine: accept an image without orientation; see :func:`~scorefusion.io.nifti.read_scan`.
            output_dtype: what ``save`` stores: ``float32``, or ``input`` for the input's own type.
            max_voxels: refuse larger inputs and outputs.
            callback: called with (evaluations done, evaluations in all); raise in it to cancel.

        Raises:
            BadInput: for an image that cannot be used.
            ScoreFusionError: for an unknown name or an impossible combination, before any file is read.
        """
        start = time.perf_counter()
        strategy = require_strategy(strategy or self.config.sampling.strategy, self.config)
        table = self.table(solver, steps, eta=eta, start_abar=start_abar)
        _check_numbers(samples, seed, batch)
        _check_choices(strategy, planes, nan, output_dtype)
        given = [images] if isinstance(images, str | os.PathLike | SpatialImage) else list(images)
        self._check_count(given)
        if mask is not None and (operator is not None or self.config.degradation.kind != "inpaint"):
            raise ScoreFusionError(f"a mask is for a model that fills in; '{self.config.name}' does not")

        scans = [
            read_scan(image, nan=nan, assume_affine=assume_affine, max_voxels=max_voxels) for image in given
        ]
        self._check_grids(scans, max_voxels)
        read = time.perf_counter()

        if mask is not None:
            missing = read_scan(mask, assume_affine=assume_affine, max_voxels=max_voxels)
            check_same_grid(scans[0], missing)
            operator = Inpainting(self._tensor(missing)[0, 0] == 0)
        volumes = [self._tensor(scan) for scan in scans]
        prepared = prepare_conditions(volumes, self.config, operator=operator)
        box = Box.whole(prepared.base.shape[2:])
        if crop and (operator is None or mask is not None):
            box = sampling_box(prepared.condition, self.config)
        ready = time.perf_counter()

        mean, deviation = draw_residuals(
            self.model,
            prepared,
            box,
            table,
            strategy=strategy,
            planes=planes,
            samples=samples,
            seed=seed,
            batch=batch,
            callback=callback,
            engines=self._engines,
        )
        drawn = time.perf_counter()

        volume, spread, consistency = self._finish(prepared, box, mean, deviation, scans[0])
        factor = self.config.degradation.factors
        image = make_image(scans[0], volume, factor=factor, dtype=output_dtype)
        end = time.perf_counter()
        return Translation(
            volume=volume,
            affine=np.asarray(image.affine),
            header=image.header,
            timings={
                "read": read - start,
                "prepare": ready - read,
                "sample": drawn - ready,
                "finish": end - drawn,
                "total": end - start,
            },
            consistency_residual=consistency,
            spread=spread,
            seed=seed,
            samples=samples,
            strategy=strategy,
            solver=table.name,
            evaluations=len(table),
            dtype=str(self.dtype).removeprefix("torch."),
            source=scans[0],
            factor=factor,
            output_dtype=output_dtype,
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

    def _finish(
        self, prepared: Prepared, box: Box, mean: Tensor, deviation: Tensor | None, scan: Scan
    ) -> tuple[np.ndarray, np.ndarray | None, Consistency | None]:
        """Volume and spread in the input's units and orientation, and how well the volume agrees with it."""
        scale, intensity = self.config.residual.scale, prepared.intensity
        whole = prepared.outside.clone()
        whole[box.index] = prepared.base[box.index] + scale * mean
        whole = intensity.denormalise(whole)
        volume = scan.to_own_order(whole[0, 0].cpu().numpy())
        spread = None
        if deviation is not None:
            field = torch.zeros_like(prepared.base)
            field[box.index] = deviation * scale * intensity.half_range
            spread = scan.to_own_order(field[0, 0].cpu().numpy())
        consistency = None
        if prepared.operator is not None:
            apart = disagreement(prepared.operator, whole, self._tensor(scan), self.config.degradation)
            consistency = Consistency(*apart)
        return volume, spread, consistency

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
            files = ", ".join(str(image) for image in given if not isinstance(image, SpatialImage))
            raise ScoreFusionError(
                f"model '{self.config.name}' takes {len(names)} image{'s' * (len(names) != 1)} "
                f"({', '.join(names)}), got {len(given)}{': ' + files if files else ''}"
            )

    def _check_grids(self, scans: Sequence[Scan], max_voxels: int) -> None:
        factors = self.config.degradation.factors
        count = math.prod(scans[0].shape) * math.prod(factors)
        if count > max_voxels:
            finer = " × ".join(str(factor) for factor in dict.fromkeys(factors))
            problem = f"would become {count:,} voxels, {finer}× finer; the limit is {max_voxels:,}"
            raise BadInput(scans[0].name, problem, "Crop it first.")
        for other in scans[1:]:
            on_output = max(factors) > 1 and other.values.shape != scans[0].values.shape
            check_same_grid(scans[0], other, factors if on_output else 1)


def _ready(model: ScoreFusion, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a model can be used as it is."""
    networks = [*model.slice_networks.parameters()]
    networks += [*model.fusion.parameters()] if model.fusion is not None else []
    cast = all(parameter.dtype == dtype for parameter in networks)
    rest = all(parameter.dtype == torch.float32 for parameter in model.features.parameters())
    return cast and rest and not model.training and all(p.device == device for p in model.parameters())


def _check_numbers(samples: int, seed: int, batch: int) -> None:
    if samples < 1 or batch < 1:
        raise ScoreFusionError(f"samples and batch must be at least 1, got {samples} and {batch}")
    if not -(2**63) <= seed < 2**64:
        raise ScoreFusionError(f"a seed must be within [-2^63, 2^64), got {seed}")


def _check_choices(strategy: str, planes: Sequence[Plane] | None, nan: str, output_dtype: str) -> None:
    """Refuse what would only be found after reading or sampling."""
    for plane in planes or ():
        if plane not in PLANES:
            raise unknown_name("plane", plane, PLANES)
    if planes and strategy not in ("single", "alternate"):
        raise ScoreFusionError(f"planes are for strategies single and alternate; '{strategy}' uses them all")
    if nan not in NAN_CHOICES:
        raise unknown_name("treatment of NaN", nan, NAN_CHOICES)
    if output_dtype not in OUTPUT_DTYPES:
        raise unknown_name("output dtype", output_dtype, OUTPUT_DTYPES)
