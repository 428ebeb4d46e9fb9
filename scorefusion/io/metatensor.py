"""MONAI MetaTensors in, and results back as MetaTensors ``[1, i, j, k]``."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scorefusion.errors import BadInput

_STALE = frozenset(
    "dim pixdim sform_code qform_code slice_code slice_start slice_end slice_duration bitpix datatype "
    "vox_offset scl_slope scl_inter cal_max cal_min quatern_b quatern_c quatern_d qoffset_x qoffset_y "
    "qoffset_z srow_x srow_y srow_z spacing origin direction lastTimestamp".split()
)
"""Keys of the file's header that speak of its grid or stored type; ``affine`` says where a result lies."""


@dataclass(frozen=True)
class MetaTensorKind:
    """What a MetaTensor had beside its voxels.

    Attributes:
        dtype: of its voxels.
        device: where it was.
        channel: whether it had a channel axis.
        lps: whether its affine leads to LPS+ instead of RAS+ millimetres.
        meta: its dictionary.
        applied: the transforms that MONAI recorded.
    """

    dtype: torch.dtype
    device: torch.device
    channel: bool
    lps: bool
    meta: dict[str, Any]
    applied: list[Any]

    def back(self, image: Any, factors: tuple[int, int, int], own_type: bool) -> Any:
        """A MetaTensor on the same device, its affine and spatial shape the result's.

        Recorded transforms are kept where the grid is the input's own; on another they could not be undone.
        """
        from monai.data import MetaTensor

        values = np.asanyarray(image.dataobj)
        wanted = self.dtype if own_type else torch.float32
        voxels = torch.from_numpy(np.ascontiguousarray(values)).to(self.device, wanted)
        affine = _turned(np.asarray(image.affine), self.lps)
        meta = {key: copy.deepcopy(value) for key, value in self.meta.items() if key != "affine"}
        if max(factors) > 1:
            meta = {key: value for key, value in meta.items() if key not in _STALE}
            meta |= {"original_affine": affine.copy(), "spatial_shape": np.array(values.shape)}
        return MetaTensor(
            voxels[None] if self.channel else voxels,
            affine=torch.from_numpy(affine),
            meta=meta,
            applied_operations=copy.deepcopy(self.applied) if max(factors) == 1 else None,
        )


def is_metatensor(source: object) -> bool:
    """Whether an object is a ``monai.data.MetaTensor``."""
    return any(
        kind.__name__ == "MetaTensor" and kind.__module__.split(".")[0] == "monai"
        for kind in type(source).__mro__
    )


def taken(tensor: Any) -> tuple[np.ndarray, np.ndarray, MetaTensorKind]:
    """Voxels ``[i, j, k]``, the affine to RAS+ millimetres, and the rest.

    Raises:
        BadInput: for several channels, or none and another number of dimensions than three.
    """
    channel = tensor.ndim == 4
    if tensor.ndim not in (3, 4) or (channel and tensor.shape[0] != 1):
        problem = f"has shape {list(tensor.shape)}, where [1, i, j, k] is expected"
        raise BadInput("MetaTensor", problem, "Give one channel of one image; several conditions are a list.")
    plain: Tensor = tensor.as_tensor().detach()
    values = plain.cpu()
    values = values.float() if values.dtype == torch.bfloat16 else values
    lps = str(getattr(tensor.meta.get("space"), "value", tensor.meta.get("space"))) == "LPS"
    own = np.asarray(tensor.affine.detach().cpu(), dtype=np.float64)
    kind = MetaTensorKind(
        plain.dtype, plain.device, channel, lps, dict(tensor.meta), list(tensor.applied_operations)
    )
    return values[0].numpy() if channel else values.numpy(), _turned(own, lps), kind


def _turned(affine: np.ndarray, lps: bool) -> np.ndarray:
    """RAS+ to LPS+ or back, where an affine leads to the latter."""
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine if lps else affine
