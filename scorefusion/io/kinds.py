"""Kinds of images that callers hold: NIfTI files, DICOM series, nibabel, NumPy, PyTorch, SimpleITK, MONAI.

Each becomes a nibabel image on the way in, and a result becomes the same kind on the way out. Arrays and
tensors are ``[i, j, k]`` as in nibabel, with an affine to RAS+ millimetres. SimpleITK and MONAI are known
by their types' modules and not imported for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

import nibabel as nib
import numpy as np
import torch
from nibabel.spatialimages import SpatialImage
from torch import Tensor

from scorefusion.errors import BadInput, ScoreFusionError
from scorefusion.io import metatensor, simpleitk
from scorefusion.io.dicom.file import is_dicom
from scorefusion.io.dicom.read import read_dicom_series
from scorefusion.io.formats import WRITABLE, read_header
from scorefusion.io.header import MAX_VOXELS
from scorefusion.io.nifti import Scan, read_scan

Affine = np.ndarray | Tensor | Sequence[Sequence[float]]

_NOT_IN_NIFTI = (np.dtype(np.bool_), np.dtype(np.float16))
"""Types that NIfTI has not; their values are read as others that hold them exactly."""


class SimpleITKImage(Protocol):
    """A ``SimpleITK.Image``, by what is asked of it."""

    def GetSpacing(self) -> tuple[float, ...]:
        """Millimetres between voxels."""
        ...

    def GetOrigin(self) -> tuple[float, ...]:
        """Where the first voxel's centre is, in LPS+ millimetres."""
        ...

    def GetDirection(self) -> tuple[float, ...]:
        """Cosines of the axes, row by row."""
        ...


Image = str | os.PathLike[str] | SpatialImage | np.ndarray | Tensor | SimpleITKImage | Scan
"""What may be translated. A MONAI ``MetaTensor`` is a ``Tensor``."""


class Kind(Protocol):
    """How a result becomes what the caller handed in."""

    def back(self, image: Any, factors: tuple[int, int, int], own_type: bool) -> Any:
        """A nibabel image of the result as this kind.

        Args:
            image: the result.
            factors: how much finer it is along (i, j, k).
            own_type: whether its voxels are to be of the input's type.
        """
        ...


@dataclass(frozen=True)
class NibabelKind:
    """A nibabel image of some class, or a NIfTI file; classes that cannot hold the result become NIfTI."""

    own: type[SpatialImage] = nib.Nifti1Image

    def back(self, image: Any, factors: tuple[int, int, int], own_type: bool) -> Any:
        """A nibabel image."""
        if issubclass(self.own, nib.Nifti1Pair) or not getattr(self.own, "makeable", True):
            return image
        return self.own.from_image(image)


@dataclass(frozen=True)
class ArrayKind:
    """A NumPy array ``[i, j, k]``."""

    dtype: np.dtype

    def back(self, image: Any, factors: tuple[int, int, int], own_type: bool) -> Any:
        """``[i, j, k]``: float32, or the input's own type where that is what is to be stored."""
        return np.asanyarray(image.dataobj).astype(
            self.dtype.newbyteorder("=") if own_type else np.float32, copy=False
        )


@dataclass(frozen=True)
class TensorKind:
    """A PyTorch tensor ``[i, j, k]``."""

    dtype: torch.dtype
    device: torch.device

    def back(self, image: Any, factors: tuple[int, int, int], own_type: bool) -> Any:
        """``[i, j, k]`` on the input's device: float32, or the input's own type."""
        values = np.asanyarray(image.dataobj)
        wanted = self.dtype if own_type else torch.float32
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device, wanted)


def listed(images: Image | Sequence[Image]) -> list[Image]:
    """One image, or several, as a list."""
    single = isinstance(images, str | os.PathLike | SpatialImage | np.ndarray | Tensor | Scan)
    if single or simpleitk.is_image(images):
        return [cast(Image, images)]
    return list(cast("Iterable[Image]", images))


def affines_for(affine: Affine | Sequence[Affine] | None, count: int) -> list[np.ndarray | None]:
    """The affine of each of several images: None, one for all, or one each.

    Raises:
        BadInput: for anything that is not finite, regular and ``[4, 4]``, or ``[count, 4, 4]``.
    """
    if affine is None:
        return [None] * count
    try:
        found = np.asarray(affine, dtype=np.float64)
    except (TypeError, ValueError):
        found = np.zeros(0)
    if found.shape not in ((4, 4), (count, 4, 4)) or not np.isfinite(found).all():
        problem = f"is not 4 × 4 finite numbers, or one such an image; got shape {list(found.shape)}"
        raise BadInput("affine", problem, "Give (i, j, k, 1) to RAS+ millimetres, as nibabel has it.")
    singular = np.linalg.matrix_rank(found[..., :3, :3]) < 3
    if np.any(singular):
        problem = "is singular: it places voxels in a plane or nowhere"
        raise BadInput("affine", problem, "Give one whose columns are three directions.")
    return [*np.broadcast_to(found, (count, 4, 4))]


def scan_of(
    source: Image, *, affine: np.ndarray | None = None, assume_affine: bool = False, **how: Any
) -> Scan:
    """Read an image of any kind.

    Args:
        source: the image.
        affine: ``[4, 4]``, of an array or a plain tensor; other kinds have their own.
        assume_affine: take the identity for the affine of an array or tensor without one; see also
            :func:`~scorefusion.io.nifti.read_scan`.
        how: further arguments of :func:`~scorefusion.io.nifti.read_scan`.

    Raises:
        BadInput: for an image that cannot be used.
    """
    if isinstance(source, str | os.PathLike) and _is_series(Path(source)):
        source = read_dicom_series(source, max_voxels=how.get("max_voxels", MAX_VOXELS))
    image, kind = _taken(source, affine, assume_affine)
    scan = read_scan(image, assume_affine=assume_affine, **how)
    return scan if kind is None else replace(scan, kind=kind)


def shape_of(source: Image, max_voxels: int = MAX_VOXELS) -> tuple[int, int, int] | None:
    """The size of an image in its own order, from its header alone; None where that does not say it.

    Args:
        source: the image, of any kind, good or bad.
        max_voxels: as for :func:`~scorefusion.io.nifti.read_scan`.
    """
    if isinstance(source, str | os.PathLike):
        try:
            shape = read_header(Path(source), max_voxels).get_data_shape()
        except ScoreFusionError:  # reading it says what is wrong, or knows the format
            return None
    else:
        size = getattr(source, "GetSize", None)
        shape = getattr(source, "shape", ()) if size is None else size()
    edges = [int(n) for n in shape]
    return (edges[0], edges[1], edges[2]) if len(edges) == 3 else None


def _taken(source: Any, affine: np.ndarray | None, assume: bool) -> tuple[Any, Kind | None]:
    """The image as :func:`read_scan` takes it, and its kind."""
    if isinstance(source, np.ndarray):
        image = _image_of("array", source, _chosen("array", affine, assume))
        return image, ArrayKind(source.dtype)
    if metatensor.is_metatensor(source):
        values, own, meta = metatensor.taken(source)
        return _image_of("MetaTensor", values, own), meta
    if isinstance(source, Tensor):
        image = _image_of("tensor", array_of(source), _chosen("tensor", affine, assume))
        return image, TensorKind(source.dtype, source.device)
    if simpleitk.is_image(source):
        values, own, itk = simpleitk.taken(source)
        return _image_of("SimpleITK image", values, own), itk
    if isinstance(source, SpatialImage):
        return source, NibabelKind(type(source))
    if isinstance(source, Scan):
        return source, None
    if isinstance(source, str | os.PathLike):
        return source, NibabelKind()
    fix = "Give a path, a nibabel or SimpleITK image, a MetaTensor, or an array or tensor with affine=."
    raise BadInput("image", f"is of a kind that is not known, {type(source).__name__}", fix)


def _is_series(path: Path) -> bool:
    """Whether a path is to be read as DICOM: a folder, or a file with the content of one."""
    return path.is_dir() or (not path.name.lower().endswith(WRITABLE) and is_dicom(path))


def array_of(tensor: Tensor) -> np.ndarray:
    """A tensor's values on the host; types that NumPy has not become float32."""
    values = tensor.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def _image_of(name: str, values: np.ndarray, affine: np.ndarray) -> Any:
    if values.ndim == 4 and values.shape[0] == 1:
        raise BadInput(
            name, f"has a channel axis, shape {list(values.shape)}", "Pass x[0], which is [i, j, k]."
        )
    if values.dtype.kind not in "biuf":
        raise BadInput(name, f"holds {values.dtype} voxels, not real numbers", "Convert it to floats first.")
    if values.dtype.newbyteorder("=") in _NOT_IN_NIFTI:
        values = values.astype(np.uint8 if values.dtype.kind == "b" else np.float32)
    kind = nib.Nifti2Image if max(values.shape, default=0) > 32767 else nib.Nifti1Image
    return kind(values, affine, dtype=values.dtype)


def _chosen(name: str, affine: np.ndarray | None, assume: bool) -> np.ndarray:
    if affine is None and not assume:
        fix = "Pass affine=, [4, 4] to RAS+ millimetres, or assume_affine=True for the identity."
        raise BadInput(name, "has no affine", fix)
    return np.eye(4) if affine is None else affine
