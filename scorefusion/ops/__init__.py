"""Operations with several implementations: one file each, `backends` for the choice, `device` for where.

An operation has one name everywhere: its definition is in `scorefusion.ops.reference`, its C++ in csrc/, its
Triton kernel in kernels/.
"""

from scorefusion.ops.backends import missing, use_backend
from scorefusion.ops.device import choose_device, choose_dtype
from scorefusion.ops.noise import noise_keys, normal

__all__ = ["choose_device", "choose_dtype", "missing", "noise_keys", "normal", "use_backend"]
