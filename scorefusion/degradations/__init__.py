"""Linear measurements of a target: their kinds, operators, pseudo-inverses and projections."""

from scorefusion.degradations.inpainting import Inpaint, Inpainting
from scorefusion.degradations.kspace import CompressedSensing, KSpace, LowFrequencies
from scorefusion.degradations.measurement import (
    BASES,
    MEASUREMENTS,
    BlockMean,
    Degraded,
    Factor,
    Measurement,
    Nothing,
    Pooling,
    base_volume,
    block_edges,
    block_mean,
    register,
)
from scorefusion.degradations.operator import Chain, LinearOperator, Operator, Projection, linear_operator
from scorefusion.degradations.slice_stack import SliceProfiles, SliceStack
from scorefusion.degradations.sparse_view import FewViews, SparseView
from scorefusion.degradations.thick_slices import SliceAverages, ThickSlices

__all__ = [
    "BASES",
    "MEASUREMENTS",
    "BlockMean",
    "Chain",
    "CompressedSensing",
    "Degraded",
    "Factor",
    "FewViews",
    "Inpaint",
    "Inpainting",
    "KSpace",
    "LinearOperator",
    "LowFrequencies",
    "Measurement",
    "Nothing",
    "Operator",
    "Pooling",
    "Projection",
    "SliceAverages",
    "SliceProfiles",
    "SliceStack",
    "SparseView",
    "ThickSlices",
    "base_volume",
    "block_edges",
    "block_mean",
    "linear_operator",
    "register",
]
