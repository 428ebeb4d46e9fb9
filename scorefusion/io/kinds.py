"""Kinds of images that callers hold: NIfTI files, DICOM series, nibabel, NumPy, PyTorch, SimpleITK, MONAI.

Each becomes a nibabel image on the way in, and a result becomes the same kind on the way out. Arrays and
tensors are ``[i, j, k]`` as in nibabel, with an affine to RAS+ millimetres. SimpleITK and MONAI images are
recognised by the modules of their types, which are not imported for it.
"""

import copy
import os
import re
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
from scorefusion.io.dicom.file import is_dicom
from scorefusion.io.dicom.read import read_dicom_series
from scorefusion.io.formats import WRITABLE, read_header
from scorefusion.io.header import LPS, MAX_VOXELS
from scorefusion.io.nifti import Scan, read_scan

Affine = np.ndarray | Tensor | Sequence[Sequence[float]]

_NOT_IN_NIFTI = (np.dtype(np.bool_), np.dtype(np.float16))
"""Types that NIfTI lacks; their values are converted to types that hold them exactly."""

_STALE_META = frozenset(
    "dim pixdim sform_code qform_code slice_code slice_start slice_end slice_duration bitpix datatype "
    "vox_offset scl_slope scl_inter cal_max cal_min quatern_b quatern_c quatern_d qoffset_x qoffset_y "
    "qoffset_z srow_x srow_y srow_z spacing origin direction lastTimestamp".split()
)
"""MONAI's keys that describe the grid or stored type of the file; ``affine`` says where a result lies."""

_STALE_ITK = re.compile(
    r"ITK_|(dim|pixdim)\[|(qoffset|quatern|srow)_|[qs]form_|slice_|scl_|cal_m|bitpix|datatype|vox_offset|aux_file"
    r"|0028\|(0008|0010|0011|0030|010.|1052|1053|1054)|0020\|(000e|0032|0037|1041)|0018\|(0050|0088)"
    r"|0008\|(0018|0016)"
)
"""SimpleITK's metadata of the grid, the stored type or the identity of the file; a result's differ."""


class SimpleITKImage(Protocol):
    """A ``SimpleITK.Image``."""

    def GetDirection(self) -> tuple[float, ...]: ...


Image = str | os.PathLike[str] | SpatialImage | np.ndarray | Tensor | SimpleITKImage | Scan
"""What may be translated. A MONAI ``MetaTensor`` is a ``Tensor``."""


class Kind(Protocol):
    """How a result becomes what the caller handed in."""

    def back(self, image: Any, factors: tuple[int, int, int], own_type: bool) -> Any:
        """Return a nibabel ``image``, ``factors`` finer along (i, j, k), as this kind; else float32."""


@dataclass(frozen=True)
class NibabelKind:
    """A nibabel image of some class, or a NIfTI file; classes that cannot hold the result become NIfTI."""

    own: type[SpatialImage] = nib.Nifti1Image

    def back(self, image: Any, factors: tuple[int, int, int], own_type: bool) -> Any:
        if issubclass(self.own, nib.Nifti1Pair) or not getattr(self.own, "makeable", True):
            return image
        return self.own.from_image(image)


@dataclass(frozen=True)
class ArrayKind:
    """A NumPy array ``[i, j, k]``."""

    dtype: np.dtype

    def back(self, image: Any, factors: tuple[int, int, int], own_type: bool) -> Any:
        dtype = self.dtype.newbyteorder("=") if own_type else np.float32
        return np.asanyarray(image.dataobj).astype(dtype, copy=False)


@dataclass(frozen=True)
class TensorKind:
    """A PyTorch tensor ``[i, j, k]``; results are on its device."""

    dtype: torch.dtype
    device: torch.device

    def back(self, image: Any, factors: tuple[int, int, int], own_type: bool) -> Any:
        values = np.ascontiguousarray(np.asanyarray(image.dataobj))
        return torch.from_numpy(values).to(self.device, self.dtype if own_type else torch.float32)


@dataclass(frozen=True)
class MetaTensorKind(TensorKind):
    """A MONAI MetaTensor ``[1, i, j, k]`` or ``[i, j, k]``.

    Recorded transforms are kept where the grid is the input's own; on another they could not be undone.
    """

    channel: bool  # whether it has a channel axis
    lps: bool  # whether its affine leads to LPS+ instead of RAS+ millimetres
    meta: dict[str, Any]  # its dictionary
    applied: list[Any]  # the transforms that MONAI recorded

    def back(self, image: Any, factors: tuple[int, int, int], own_type: bool) -> Any:
        from monai.data import MetaTensor

        voxels = super().back(image, factors, own_type)
        affine = np.asarray(LPS @ image.affine if self.lps else image.affine)
        meta = {key: copy.deepcopy(value) for key, value in self.meta.items() if key != "affine"}
        if max(factors) > 1:
            meta = {key: value for key, value in meta.items() if key not in _STALE_META}
            meta |= {"original_affine": affine.copy(), "spatial_shape": np.array(voxels.shape)}
        voxels = voxels[None] if self.channel else voxels
        applied = copy.deepcopy(self.applied) if max(factors) == 1 else None
        return MetaTensor(voxels, affine=torch.from_numpy(affine), meta=meta, applied_operations=applied)


@dataclass(frozen=True)
class SimpleITKKind:
    """A SimpleITK image; metadata of the grid, of the stored type or of the file itself are left out."""

    origin: tuple[float, ...]  # of the first voxel's centre, LPS+ millimetres
    spacing: tuple[float, ...]  # millimetres along (i, j, k)
    direction: tuple[float, ...]  # cosines of the axes, row by row
    dtype: np.dtype  # of its voxels
    metadata: dict[str, str]  # its dictionary

    def back(self, image: Any, factors: tuple[int, int, int], own_type: bool) -> Any:
        import SimpleITK as itk

        stored = ArrayKind(self.dtype).back(image, factors, own_type)
        result = itk.GetImageFromArray(np.ascontiguousarray(stored.transpose(2, 1, 0)))
        fine = np.array(self.spacing) / factors
        # The first fine voxel's centre is (1/factor - 1)/2 of a coarse voxel before the coarse one's.
        shift = np.array(self.direction).reshape(3, 3) @ ((fine - self.spacing) / 2)
        result.SetDirection(self.direction)
        result.SetSpacing(fine.tolist())
        result.SetOrigin((np.array(self.origin) + shift).tolist())
        for key, value in self.metadata.items():
            if not _STALE_ITK.match(key):
                result.SetMetaData(key, value)
        return result


def listed(images: Image | Sequence[Image]) -> list[Image]:
    """Return one image, or several, as a list."""
    single = isinstance(images, str | os.PathLike | SpatialImage | np.ndarray | Tensor | Scan)
    if single or _is_a(images, "SimpleITK", "Image"):
        return [cast(Image, images)]
    return list(cast("Iterable[Image]", images))


def affines_for(affine: Affine | Sequence[Affine] | None, count: int) -> list[np.ndarray | None]:
    """Return the affine of each of several images, from None, one for all, or one for each.

    Raises BadInput for anything that is not finite, regular and ``[4, 4]``, or ``[count, 4, 4]``.
    """
    if affine is None:
        return [None] * count
    try:
        affines = np.asarray(affine, dtype=np.float64)
    except (TypeError, ValueError):
        affines = np.zeros(0)
    if affines.shape not in ((4, 4), (count, 4, 4)) or not np.isfinite(affines).all():
        problem = f"is not 4 × 4 finite numbers, or one such an image; got shape {list(affines.shape)}"
        raise BadInput("affine", problem, "Give (i, j, k, 1) to RAS+ millimetres, as nibabel has it.")
    if np.any(np.linalg.matrix_rank(affines[..., :3, :3]) < 3):
        problem = "is singular: it places voxels in a plane or nowhere"
        raise BadInput("affine", problem, "Give one whose columns are three directions.")
    return [*np.broadcast_to(affines, (count, 4, 4))]


def scan_of(
    source: Image, *, affine: np.ndarray | None = None, assume_affine: bool = False, **options: Any
) -> Scan:
    """Read an image of any kind; ``options`` are those of :func:`~scorefusion.io.read_scan`.

    An array or a plain tensor has the ``affine`` ``[4, 4]``, or with ``assume_affine`` the identity; other
    kinds have their own. Raises BadInput for an image that cannot be used.
    """
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if path.is_dir() or (not path.name.lower().endswith(WRITABLE) and is_dicom(path)):
            source = read_dicom_series(path, max_voxels=options.get("max_voxels", MAX_VOXELS))
    image: Any = source
    kind: Kind | None = None
    if isinstance(source, np.ndarray):
        image, kind = _nifti("array", source, affine, assume_affine), ArrayKind(source.dtype)
    elif isinstance(source, Tensor) and _is_a(source, "monai", "MetaTensor"):
        image, kind = _of_metatensor(source)
    elif isinstance(source, Tensor):
        image = _nifti("tensor", _array(source), affine, assume_affine)
        kind = TensorKind(source.dtype, source.device)
    elif _is_a(source, "SimpleITK", "Image"):
        image, kind = _of_simpleitk(source)
    elif isinstance(source, SpatialImage):
        kind = NibabelKind(type(source))
    elif isinstance(source, str | os.PathLike):
        kind = NibabelKind()
    elif not isinstance(source, Scan):
        fix = "Give a path, a nibabel or SimpleITK image, a MetaTensor, or an array or tensor with affine=."
        raise BadInput("image", f"is of a kind that is not known, {type(source).__name__}", fix)
    scan = read_scan(image, assume_affine=assume_affine, **options)
    return scan if kind is None else replace(scan, kind=kind)


def shape_of(source: Image, max_voxels: int = MAX_VOXELS) -> tuple[int, int, int] | None:
    """Return the size of an image of any kind in its own order, from its header; None where that is bad."""
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


def _of_metatensor(tensor: Any) -> tuple[Any, Kind]:
    channel = tensor.ndim == 4
    if tensor.ndim not in (3, 4) or (channel and tensor.shape[0] != 1):
        problem = f"has shape {list(tensor.shape)}, where [1, i, j, k] is expected"
        raise BadInput("MetaTensor", problem, "Give one channel of one image; several conditions are a list.")
    plain: Tensor = tensor.as_tensor().detach()
    values = _array(plain)
    lps = str(getattr(tensor.meta.get("space"), "value", tensor.meta.get("space"))) == "LPS"
    affine = np.asarray(tensor.affine.detach().cpu(), dtype=np.float64)
    meta, applied = dict(tensor.meta), list(tensor.applied_operations)
    kind = MetaTensorKind(plain.dtype, plain.device, channel, lps, meta, applied)
    return _nifti("MetaTensor", values[0] if channel else values, LPS @ affine if lps else affine), kind


def _of_simpleitk(image: Any) -> tuple[Any, Kind]:
    import SimpleITK as itk

    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        components = image.GetNumberOfComponentsPerPixel()
        problem = f"has {image.GetDimension()} dimensions and {components} components a voxel"
        raise BadInput("SimpleITK image", problem, "Give a 3D image of one component.")
    values = itk.GetArrayViewFromImage(image).transpose(2, 1, 0)
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    metadata = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    kind = SimpleITKKind(image.GetOrigin(), image.GetSpacing(), image.GetDirection(), values.dtype, metadata)
    return _nifti("SimpleITK image", values, LPS @ affine), kind


def _is_a(source: object, package: str, name: str) -> bool:
    """Return whether an object's class or one of its bases is ``name`` of ``package``."""
    kinds = type(source).__mro__
    return any(kind.__name__ == name and kind.__module__.split(".")[0] == package for kind in kinds)


def _array(tensor: Tensor) -> np.ndarray:
    """Return a tensor's values on the host; bfloat16, which NumPy lacks, becomes float32."""
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy(force=True)


def _nifti(name: str, values: np.ndarray, affine: np.ndarray | None, assume: bool = False) -> Any:
    if affine is None and not assume:
        fix = "Pass affine=, [4, 4] to RAS+ millimetres, or assume_affine=True for the identity."
        raise BadInput(name, "has no affine", fix)
    if values.ndim == 4 and values.shape[0] == 1:
        problem = f"has a channel axis, shape {list(values.shape)}"
        raise BadInput(name, problem, "Pass x[0], which is [i, j, k].")
    if values.dtype.kind not in "biuf":
        raise BadInput(name, f"holds {values.dtype} voxels, not real numbers", "Convert it to floats first.")
    if values.dtype.newbyteorder("=") in _NOT_IN_NIFTI:
        values = values.astype(np.uint8 if values.dtype.kind == "b" else np.float32)
    kind = nib.Nifti2Image if max(values.shape, default=0) > 32767 else nib.Nifti1Image
    return kind(values, np.eye(4) if affine is None else affine, dtype=values.dtype)
