"""The result of a translation."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scorefusion._version import __version__
from scorefusion.data import stem
from scorefusion.errors import ScoreFusionError, memory_named
from scorefusion.io.figures import middle, plane_images, save_figure
from scorefusion.io.nifti import (
    Scan,
    check_sidecar,
    fine_affine,
    make_image,
    ras_order,
    save_image,
    save_sidecar,
    sidecar_of,
    sidecar_path,
)
from scorefusion.models.config import ErrorBarConfig
from scorefusion.optional import need
from scorefusion.pipeline.slices import Slices

PathLike = str | os.PathLike[str]
#: fields of a sidecar that do not hold for other slices
_OF_SLICES = ("SliceThickness", "SpacingBetweenSlices", "SliceTiming", "SliceEncodingDirection")


class Consistency(NamedTuple):
    """How far what is measured of the result is from what was measured, in the input's units.

    For sparse views these are units times voxels, as sums along rays are; in k-space, magnitudes of the
    orthonormal transform's differences.
    """

    max: float
    mean: float


@dataclass(frozen=True, eq=False)
class Translation:
    """A translated volume.

    Attributes:
        volume: float32 ``[i, j, k]`` in the orientation and units of the (first) input.
        affine: float64 ``[4, 4]``, (i, j, k) to millimetres.
        timings: seconds by stage: ``read``, ``prepare``, ``sample``, ``finish`` and ``total``.
        consistency_residual: for a model whose input is a measurement of its target, how far the result is
            from it: for super-resolution, its block means from the input; None for other models.
        spread: float32 ``[i, j, k]``, standard deviation over the samples; None for a single one.
        seed: of the noise; the same seed gives the same volume.
        samples: how many were averaged.
        strategy: how scores were fused.
        solver: name of the solver.
        evaluations: network evaluations per sample.
        dtype: what the networks computed in.
        source: the (first) input.
        factor: how much finer the grid is than the input's along z, y and x (RAS order).
        output_dtype: ``float32`` or ``input``, the type that :meth:`save` stores.
        model: name of the model.
        conditions: the contrasts of the inputs, the source's first; empty where they are unknown.
        target: the contrast of the volume.
        planes_apart: float32 ``[i, j, k]``, standard deviation over the planes of the clean volume that each
            predicts at the last noise level; None if it was not asked for.
        warnings: what of the input or the run may have harmed the result, a sentence each.
        slices: how the input was sliced, and what was assumed, for a model of thick slices; else None.
        calibration: what makes an error bar of the spread, where it was measured for the model; else None.
    """

    volume: np.ndarray
    affine: np.ndarray
    timings: dict[str, float]
    consistency_residual: Consistency | None
    spread: np.ndarray | None
    seed: int
    samples: int
    strategy: str
    solver: str
    evaluations: int
    dtype: str
    source: Scan
    factor: tuple[int, int, int]
    output_dtype: str
    model: str = ""
    conditions: tuple[str, ...] = ()
    target: str = ""
    planes_apart: np.ndarray | None = None
    warnings: tuple[str, ...] = ()
    slices: Slices | None = None
    calibration: ErrorBarConfig | None = None

    @property
    def error_bar(self) -> np.ndarray:
        """float32 ``[i, j, k]``: how far off the volume is at most, in ``calibration.share`` of the voxels.

        The share was measured over all voxels of heads that the model had not seen; of other scans, or in a
        small region, it is another.

        Raises:
            ScoreFusionError: for a single sample, or a model whose spread was not calibrated.
        """
        spread = self._required_spread()
        if self.calibration is None:
            raise ScoreFusionError(
                f"model '{self.model}' has no error bar: what its spread is worth was not measured"
            )
        return spread * np.float32(self.calibration.factor)

    @property
    def header(self) -> Any:
        """The NIfTI header that it is saved with."""
        return self.image().header

    def image(self) -> Any:
        """The volume as a nibabel image."""
        return make_image(self.source, self.volume, factor=self.factor, dtype=self.output_dtype)

    def image_of(self, field: np.ndarray) -> Any:
        """A field on the volume's grid, such as ``spread``, as a float32 nibabel image."""
        return make_image(self.source, field, factor=self.factor)

    def native(self, *, spread: bool = False) -> Any:
        """The volume as what the (first) input was: array, tensor, nibabel or SimpleITK image, MetaTensor.

        It lies on the result's grid; metadata of the input is kept where it still holds. Of a file it is a
        nibabel image.

        Args:
            spread: the standard deviation over the samples instead, float32.

        Raises:
            ScoreFusionError: for the spread of a single sample.
        """
        image = self._spread_image() if spread else self.image()
        kind = self.source.kind
        own_type = self.output_dtype == "input" and not spread
        factors = self.source.own_factors(self.factor)
        return image if kind is None else kind.back(image, factors, own_type)

    def save(self, path: PathLike) -> Path:
        """Write a file, whole or not at all; its ending chooses the format (docs/data.md).

        Of thick slices a BIDS sidecar, of the same name and the ending .json, is written with it.

        Raises:
            BadInput: for another ending, where its sidecar would be the input's, or if it cannot be written.
            OutOfMemory: if memory runs out.
        """
        if self.slices is not None:
            check_sidecar(Path(path), [] if self.source.file is None else [self.source.file])
        with memory_named(path, "writing it"):
            written = save_image(self.image(), path)
        if self.slices is not None:
            save_sidecar(self.sidecar, written)
        return written

    @property
    def sidecar(self) -> dict[str, Any]:
        """What it is and how it was made, as BIDS writes it: the input's own sidecar, up to date."""
        found = {
            name: value for name, value in sidecar_of(self.source.file).items() if name not in _OF_SLICES
        }
        made: dict[str, Any] = {"Name": "scorefusion", "Version": __version__, "Model": self.model}
        made |= {"Strategy": self.strategy, "Solver": self.solver, "Evaluations": self.evaluations}
        made |= {"Samples": self.samples, "Seed": self.seed}
        if self.slices is not None:
            found |= {"SliceThickness": self.slices.spacing, "SpacingBetweenSlices": self.slices.spacing}
            made |= self.slices.recorded()
        file = self.source.file
        source = self.source.name if file is None else file.name or file.resolve().name
        return found | {"Sources": [source], "GeneratedBy": [made]}

    def save_spread(self, path: PathLike) -> Path:
        """Write the standard deviation over the samples, float32.

        Raises:
            ScoreFusionError: if there was only one sample.
            BadInput: as for :meth:`save`.
        """
        with memory_named(path, "writing it"):
            return save_image(self._spread_image(), path)

    def save_error_bar(self, path: PathLike) -> Path:
        """Write :attr:`error_bar`, float32.

        Raises:
            ScoreFusionError: as for :attr:`error_bar`.
            BadInput: as for :meth:`save`.
        """
        with memory_named(path, "writing it"):
            return save_image(self.image_of(self.error_bar), path)

    def figure(self, path: PathLike | None = None) -> Any:
        """Three planes through the middle, before and after, as a matplotlib figure.

        Args:
            path: also write it there, as a .png, .pdf or .svg.

        Raises:
            ScoreFusionError: without matplotlib, naming the extra that brings it.
            BadInput: if it cannot be written.
        """
        figure = _figure(self)
        if path is not None:
            save_figure(figure, path)
        return figure

    def _spread_image(self) -> Any:
        return self.image_of(self._required_spread())

    def _required_spread(self) -> np.ndarray:
        if self.spread is None:
            raise ScoreFusionError("there is no spread of a single sample; ask for samples=2 or more")
        return self.spread


def side_path(output: Path, kind: str) -> Path:
    """Return the path of what a translation writes besides its volume, or of the volume itself.

    ``x_sd.nii.gz``, in BIDS ``..._desc-scorefusionsd_T1w``; a derived series is a folder, ``x_dicom``; the
    sidecar is ``x.json``.
    """
    if kind == "volume":
        return output
    if kind == "sidecar":
        return sidecar_path(output)
    name = stem(output)
    if kind == "dicom":
        return output.with_name(f"{name}_{kind}")
    ending = output.name[len(name) :]
    if "_desc-scorefusion_" in name:
        return output.with_name(name.replace("_desc-scorefusion_", f"_desc-scorefusion{kind}_") + ending)
    return output.with_name(f"{name}_{kind}{ending}")


def _figure(translation: Translation) -> Any:
    """Three planes through the middle of what is bright, before and after, on one grey scale."""
    before = translation.source.values
    after = ras_order(translation.volume, translation.affine)
    lo, hi = (float(value) for value in np.percentile(before, (0.5, 99.8)))
    if not hi > lo:
        lo, hi = float(before.min()), float(before.max())
    where = middle(before, lo + 0.1 * (hi - lo))
    fine = fine_affine(translation.source.ras_affine, translation.factor[::-1])
    figure = need("matplotlib.figure", "a figure").Figure(figsize=(10, 7), layout="constrained")
    axes = figure.subplots(2, 3)
    rows = ((before, translation.source.ras_affine, "input"), (after, fine, translation.strategy))
    for row, (volume, affine, title) in zip(axes, rows, strict=True):
        dx, dy, dz = np.linalg.norm(affine[:3, :3], axis=0)
        for axis, (plane, image, aspect) in zip(row, plane_images(volume, (dz, dy, dx), where), strict=True):
            axis.imshow(
                image, cmap="gray", vmin=lo, vmax=hi, origin="lower", aspect=aspect, interpolation="nearest"
            )
            axis.set_title(f"{title}, {plane}", fontsize=9)
            axis.set_axis_off()
    return figure
