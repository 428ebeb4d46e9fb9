"""What a streaming multiprocessor of each architecture holds, and how full a kernel keeps it.

Figures: CUDA C++ Programming Guide 13.0, appendix "Compute Capabilities", table "Technical Specifications
per Compute Capability" (registers, warps, blocks, shared memory); tensor memory: PTX ISA 9.0, "Tensor
Memory". L2: NVIDIA's architecture papers for A100 (40 MB), H100 (50 MB) and B200 (126 MB); 48 MB for compute
capability 12.0, as on GeForce RTX 5070, the larger cards having more.
"""

from __future__ import annotations

from dataclasses import dataclass

REGISTERS = 65536
"""32-bit registers of a multiprocessor, in four partitions; a warp is given them in units of 256."""

RESERVED = 1024
"""Bytes of shared memory that the system takes of each block."""


@dataclass(frozen=True)
class Architecture:
    """One target.

    Args:
        capability: 10 times the compute capability.
        shared_block: bytes of shared memory a block may ask for.
        shared: bytes of shared memory of a multiprocessor.
        warps: resident warps of a multiprocessor.
        blocks: resident blocks of a multiprocessor.
        l2: bytes of level-2 cache.
        tensor_columns: columns of tensor memory of a multiprocessor; 0 where there is none.
    """

    capability: int
    shared_block: int
    shared: int
    warps: int
    blocks: int
    l2: int
    tensor_columns: int = 0

    @property
    def name(self) -> str:
        """The compiler's name, such as sm_90."""
        return f"sm_{self.capability}"

    @property
    def usable_l2(self) -> int:
        """Half of the level-2 cache, in bytes: what a re-read is counted on to find there.

        The other half is left to what the model leaves out: concurrent blocks run in no fixed order, and the
        cache is hashed, shared between two halves of the chip and not strictly least recently used.
        """
        return self.l2 // 2

    def occupancy(self, registers: int, shared: int, warps: int, tensor_columns: int = 0) -> float:
        """Estimate resident warps as a fraction of the most there can be.

        Args:
            registers: of each thread.
            shared: bytes of shared memory of each block.
            warps: of each block.
            tensor_columns: of tensor memory of each block.

        Returns:
            Within 0 (the block does not fit) and 1.
        """
        unit = -(-max(registers, 1) * 32 // 256) * 256
        limits = [self.blocks, self.warps // warps, REGISTERS // 4 // unit * 4 // warps]
        limits.append(self.shared // (-(-shared // 128) * 128 + RESERVED))
        if tensor_columns:
            limits.append(self.tensor_columns // tensor_columns)
        return min(limits) * warps / self.warps


ARCHITECTURES = {
    each.capability: each
    for each in (
        Architecture(80, 163 << 10, 164 << 10, 64, 32, 40 * 10**6),
        Architecture(90, 227 << 10, 228 << 10, 64, 32, 50 * 10**6),
        Architecture(100, 227 << 10, 228 << 10, 64, 32, 126 * 10**6, 512),
        Architecture(120, 99 << 10, 100 << 10, 48, 24, 48 * 10**6),
    )
}
