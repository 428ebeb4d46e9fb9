"""Operations with several implementations: one file each, `backends` for the choice, `device` for where.

An operation has one name everywhere: its definition is in `scorefusion.ops.reference`, its C++ in csrc/, its
Triton kernel in kernels/.
"""

from scorefusion.ops.backends import missing, use_backend
from scorefusion.ops.device import DTYPES, choose_device, choose_dtype, probe_cpu
from scorefusion.ops.ensemble_features import ensemble_features
from scorefusion.ops.fuse_scores import Fusion, fuse_scores
from scorefusion.ops.fuse_step import fuse_step
from scorefusion.ops.gather_slices import gather_slices
from scorefusion.ops.noise import noise_keys, normal
from scorefusion.ops.norm_act import decompositions, norm_act
from scorefusion.ops.packed_weight import PackedWeight, multiplies_pairs
from scorefusion.ops.pointwise import pack as pack_pointwise
from scorefusion.ops.pointwise import pointwise
from scorefusion.ops.reference.planes import AXIS
from scorefusion.ops.winograd import pack as pack_winograd
from scorefusion.ops.winograd import winograd

__all__ = [
    "AXIS",
    "DTYPES",
    "Fusion",
    "PackedWeight",
    "choose_device",
    "choose_dtype",
    "decompositions",
    "ensemble_features",
    "fuse_scores",
    "fuse_step",
    "gather_slices",
    "missing",
    "multiplies_pairs",
    "noise_keys",
    "norm_act",
    "normal",
    "pack_pointwise",
    "pack_winograd",
    "pointwise",
    "probe_cpu",
    "use_backend",
    "winograd",
]
