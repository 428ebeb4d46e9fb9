"""A kernel at work on a size that matters: what is compiled, what is counted, and what it is held to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scorefusion.kernels.launch import Config


@dataclass(frozen=True)
class Work:
    """What one kernel of a case must do.

    Args:
        read: compulsory bytes read, each input element once.
        written: compulsory bytes written, each output element once.
        flop: floating-point operations, a multiply-add being two.
        unfused: bytes that the same computation moves as separate PyTorch operations.
        limit: the bytes moved may be at most this many times the compulsory ones.
        dot: whether its products belong on tensor cores.
    """

    read: int
    written: int
    flop: int
    unfused: int
    limit: float = 1.05
    dot: bool = False

    @property
    def compulsory(self) -> int:
        """Bytes that must be moved, read and written."""
        return self.read + self.written


@dataclass(frozen=True)
class Case:
    """One call of an operation's launcher.

    Args:
        stem: the operation.
        name: plane, dtype, width: what sets the case apart.
        configs: every configuration that this call can be launched with.
        run: launches with one of them, on tensors of the device that `cases` was asked for: meta tensors of
            the paper's size to be recorded and compiled, CPU tensors to be counted in the interpreter.
        work: by the kernel's function name.
        fast: whether it belongs to the slice that continuous integration compiles.
    """

    stem: str
    name: str
    configs: tuple[Config, ...]
    run: Callable[[Config], None]
    work: Mapping[str, Work]
    fast: bool = False
