"""Known heads, sliced thickly along each axis, and interpolations of the slices."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from nibabel.affines import from_matvec

from scorefusion.degradations import LinearOperator, SliceStack, base_volume
from scorefusion.errors import BadInput
from scorefusion.io import read_scan
from scorefusion.optional import need

AXES = "zyx"


@dataclass(frozen=True, eq=False)
class Head:
    """An isotropic volume of one person."""

    name: str  #: of its file
    values: np.ndarray  #: float32 ``[D, H, W]`` in RAS+ order, from 0 up
    voxel: float  #: mean edge of a voxel in mm

    @cached_property
    def inside(self) -> np.ndarray:
        """bool ``[D, H, W]``: the head, its holes filled slice by slice."""
        ndimage = need("scipy.ndimage", "the mask of a head")
        bright = self.values > 0.12 * np.percentile(self.values, 99)
        bright = ndimage.binary_closing(ndimage.binary_opening(bright, iterations=2), iterations=3)
        parts, count = ndimage.label(bright)
        if count > 1:
            bright = parts == 1 + int(np.argmax(ndimage.sum(bright, parts, range(1, count + 1))))
        return np.stack([ndimage.binary_fill_holes(each) for each in bright])

    @cached_property
    def brain(self) -> np.ndarray:
        """bool ``[D, H, W]``: about the brain of a T1: what is bright and deep, its largest piece, grown."""
        ndimage = need("scipy.ndimage", "the mask of a brain")
        depth = ndimage.distance_transform_edt(self.inside) * self.voxel
        deep = self.values[depth > 30]
        if not deep.size:
            return self.inside
        erode, grow, close = (max(1, round(mm / self.voxel)) for mm in (2, 4, 6))
        core = (self.values > np.percentile(deep, 20)) & (depth > 12)
        parts, count = ndimage.label(ndimage.binary_erosion(core, iterations=erode))
        if not count:
            return self.inside
        core = parts == 1 + int(np.argmax(ndimage.sum(parts > 0, parts, range(1, count + 1))))
        grown = ndimage.binary_closing(ndimage.binary_dilation(core, iterations=grow), iterations=close)
        return np.asarray(ndimage.binary_fill_holes(grown) & self.inside)

    @property
    def peak(self) -> float:
        """Percentile 99.9 of the head: the range that PSNR and SSIM are of."""
        return float(np.percentile(self.values[self.inside], 99.9))


def read_head(path: Path) -> Head:
    """Read an isotropic volume.

    Raises:
        BadInput: if its voxels differ by more than 15% in size.
    """
    scan = read_scan(path)
    edges = np.linalg.norm(scan.ras_affine[:3, :3], axis=0)
    if edges.max() > 1.15 * edges.min():
        sizes = " × ".join(f"{edge:.3g}" for edge in edges)
        raise BadInput(path, f"has voxels of {sizes} mm", "Give a volume that is isotropic.")
    values = scan.values - min(0.0, float(scan.values.min()))
    return Head(path.name, values.astype(np.float32), float(edges.mean()))


@dataclass(frozen=True)
class Case:
    """How a head is sliced."""

    step: int  #: voxels from one slice to the next
    width: float  #: thickness in steps
    axis: int  #: of z, y and x, 0 to 2

    def __str__(self) -> str:
        return f"{AXES[self.axis]}, step {self.step}, thickness {self.width:g}"


@dataclass(frozen=True, eq=False)
class Sliced:
    """A head's truth and its slices, the slices' axis first."""

    truth: np.ndarray  #: float32 ``[n · step, H, W]``
    inside: np.ndarray  #: bool, the same shape: the head, which figures are of
    brain: np.ndarray  #: bool, the same shape: about the brain
    slices: np.ndarray  #: float32 ``[n, H, W]``
    image: nib.Nifti1Image  #: the slices as a scan, in the head's own orientation
    measurement: SliceStack
    order: tuple[int, int, int]  #: axes of z, y and x, the slices' first

    @property
    def operator(self) -> LinearOperator:
        """What was measured."""
        found = self.measurement.operator(self.truth.shape)
        assert found is not None
        return found

    def turned(self, volume: np.ndarray) -> np.ndarray:
        """Return ``[i, j, k]`` in the image's own order with the slices' axis first."""
        return np.ascontiguousarray(volume.transpose(2, 1, 0).transpose(self.order))


def sliced(head: Head, case: Case, values: np.ndarray | None = None) -> Sliced:
    """Slice a head, or other ``values`` on its grid; voxels beyond the last whole step are left out."""
    first, second, third = case.axis, *(axis for axis in range(3) if axis != case.axis)
    order = (first, second, third)
    truth = np.ascontiguousarray((head.values if values is None else values).transpose(order))
    truth = truth[: len(truth) // case.step * case.step]
    inside, brain = (mask.transpose(order)[: len(truth)] for mask in (head.inside, head.brain))
    measurement = SliceStack(step=case.step, width=case.width)
    operator = measurement.operator(truth.shape)
    assert operator is not None
    slices = operator.A(torch.from_numpy(truth)[None, None])[0, 0].numpy()
    edges = np.full(3, head.voxel)
    edges[case.axis] *= case.step
    image = slices.transpose(np.argsort(order)).transpose(2, 1, 0)
    affine = from_matvec(np.diag(edges[::-1]), [0, 0, 0])
    return Sliced(truth, inside, brain, slices, nib.Nifti1Image(image, affine), measurement, order)


def interpolations(given: Sliced) -> dict[str, np.ndarray]:
    """Linear, cubic B-spline, and linear made consistent, each ``[n · step, H, W]``."""
    zoom = need("scipy.ndimage", "cubic interpolation").zoom
    y = torch.from_numpy(given.slices)[None, None]
    factors, operator = given.measurement.factors, given.operator
    linear, consistent = (
        base_volume(y, kind, factors, operator)[0, 0].numpy()
        for kind in ("trilinear", "trilinear+consistency")
    )
    cubic = zoom(given.slices.astype(np.float64), factors, order=3, mode="nearest", grid_mode=True)
    return {"linear": linear, "cubic": cubic.astype(np.float32), "linear+consistency": consistent}
