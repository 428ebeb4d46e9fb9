"""SimpleITK images in, and results back as SimpleITK images: LPS+ millimetres, voxels in the same order."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from scorefusion.errors import BadInput

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])

_STALE = re.compile(
    r"ITK_|(dim|pixdim)\[|(qoffset|quatern|srow)_|[qs]form_|slice_|scl_|cal_m|bitpix|datatype|vox_offset|aux_file"
    r"|0028\|(0008|0010|0011|0030|010.|1052|1053|1054)|0020\|(000e|0032|0037|1041)|0018\|(0050|0088)"
    r"|0008\|(0018|0016)"
)
"""Metadata of the grid, the stored type or the identity of the file that was read; a result's differ."""


@dataclass(frozen=True)
class SimpleITKKind:
    """What a SimpleITK image had beside its voxels.

    Attributes:
        origin: of the first voxel's centre, LPS+ millimetres.
        spacing: millimetres along (i, j, k).
        direction: cosines of the axes, row by row.
        dtype: of its voxels.
        metadata: its dictionary.
    """

    origin: tuple[float, ...]
    spacing: tuple[float, ...]
    direction: tuple[float, ...]
    dtype: np.dtype
    metadata: dict[str, str]

    def back(self, image: Any, factors: tuple[int, int, int], own_type: bool) -> Any:
        """A SimpleITK image: the same direction, the spacing divided, the origin moved to the first voxel.

        Of the metadata, what speaks of the grid, of the stored type or of the file itself is left out.
        """
        import SimpleITK as itk

        values = np.asanyarray(image.dataobj)
        stored = values.astype(self.dtype if own_type else np.float32, copy=False)
        result = itk.GetImageFromArray(np.ascontiguousarray(stored.transpose(2, 1, 0)))
        fine = np.array(self.spacing) / factors
        # The first fine voxel's centre is (1/factor - 1)/2 of a coarse voxel before the coarse one's.
        shift = np.array(self.direction).reshape(3, 3) @ ((fine - self.spacing) / 2)
        result.SetDirection(self.direction)
        result.SetSpacing(fine.tolist())
        result.SetOrigin((np.array(self.origin) + shift).tolist())
        for key, value in self.metadata.items():
            if not _STALE.match(key):
                result.SetMetaData(key, value)
        return result


def is_image(source: object) -> bool:
    """Whether an object is a ``SimpleITK.Image``."""
    return any(
        kind.__name__ == "Image" and kind.__module__.split(".")[0] == "SimpleITK"
        for kind in type(source).__mro__
    )


def taken(image: Any) -> tuple[np.ndarray, np.ndarray, SimpleITKKind]:
    """Voxels ``[i, j, k]``, the affine to RAS+ millimetres, and the rest.

    Raises:
        BadInput: for another number of dimensions than three, or several components a voxel.
    """
    import SimpleITK as itk

    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        components = image.GetNumberOfComponentsPerPixel()
        problem = f"has {image.GetDimension()} dimensions and {components} components a voxel"
        raise BadInput("SimpleITK image", problem, "Give a 3D image of one component.")
    values = itk.GetArrayViewFromImage(image).transpose(2, 1, 0)
    own = np.eye(4)
    own[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    own[:3, 3] = image.GetOrigin()
    metadata = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    kind = SimpleITKKind(image.GetOrigin(), image.GetSpacing(), image.GetDirection(), values.dtype, metadata)
    return values, _LPS @ own, kind
