"""Compile a recorded launch for a GPU that is not here, and read its machine code.

Triton's compiler and NVIDIA's assembler, `cuobjdump` and `nvdisasm` come with the triton wheel and need no
GPU. What is compiled is what the launch would compile: the signature, the constexprs and the alignment of
each argument are worked out by Triton's own launcher from the recorded arguments.
"""

from __future__ import annotations

import functools
import importlib
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.evidence.architectures import RESERVED

if TYPE_CHECKING:
    from scorefusion.kernels.launch import Launch

_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", re.M)
_TENSOR_CORE = re.compile(r"^(?:[HIDQO]MMA|[HIQB]GMMA|UTC[A-Z]*MMA)$")
_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
_RESERVED = ".nv.shared.reserved"  # a kilobyte of the system's own, beyond what a block may ask for
_BULK = ("UTMALDG", "UTMASTG", "UBLKCP")
_LOADS, _STORES = ("LDG", "LDGSTS"), ("STG",)


@dataclass(frozen=True)
class Source:
    """One compilation, free of tensors, so that it can be sent to another process.

    Args:
        module: that the kernel is in.
        function: the kernel's name there.
        signature: type of each parameter; of a tuple, a tuple.
        constants: constexprs, by the path to the parameter.
        attributes: what is known of arguments, such as divisibility by 16, by path.
        options: of the compiler: warps, stages and the rest.
        capability: 80, 90, 100 or 120.
    """

    module: str
    function: str
    signature: Mapping[str, Any]
    constants: Mapping[tuple[int, ...], Any]
    attributes: Mapping[tuple[int, ...], Any]
    options: Mapping[str, Any]
    capability: int

    @property
    def key(self) -> str:
        """All of it as text; equal for equal compilations."""
        parts = (self.signature, self.constants, self.attributes, self.options)
        listed = [sorted((str(name), str(value)) for name, value in part.items()) for part in parts]
        return repr((self.module, self.function, self.capability, *listed))


@dataclass(frozen=True)
class MachineCode:
    """What one compilation came to.

    Args:
        error: why there is none; empty if it compiled.
        registers: of each thread.
        stack: bytes of stack and local memory of each thread.
        spills: instructions that load from or store to local memory.
        shared: bytes of shared memory of each block, static and dynamic.
        tensor_cores: tensor-core instructions by kind.
        load_bits: widest load from global memory.
        store_bits: widest store to global memory.
        bulk: whether tiles are copied by the tensor memory accelerator.
        warps: of each block.
        tensor_columns: of tensor memory of each block.
    """

    error: str = ""
    registers: int = 0
    stack: int = 0
    spills: int = 0
    shared: int = 0
    tensor_cores: Mapping[str, int] = field(default_factory=dict)
    load_bits: int = 0
    store_bits: int = 0
    bulk: bool = False
    warps: int = 0
    tensor_columns: int = 0


def source_of(launch: Launch, capability: int) -> Source:
    """Work out what launching would compile, as Triton's launcher does."""
    from triton.runtime.jit import create_function_from_signature

    backend = _backend(capability)
    kernel, keywords = launch.kernel, dict(launch.keywords)
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, options = binder(*launch.arguments, debug=False, **keywords)
    options, signature, constants, attributes = kernel._pack_args(
        backend, keywords, bound, specialization, options
    )
    function = kernel.fn
    return Source(
        function.__module__,
        function.__qualname__,
        signature,
        constants,
        attributes,
        dict(options.__dict__),
        capability,
    )


def compile_source(source: Source, fresh: bool = False) -> MachineCode:
    """Compile and read; a failure is part of the answer.

    Args:
        source: what to compile.
        fresh: compile even what Triton has in its cache.
    """
    import triton
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(source.module), source.function)
    triton.knobs.compilation.always_compile = fresh
    try:
        compiled = triton.compile(
            ASTSource(kernel, dict(source.signature), dict(source.constants), dict(source.attributes)),
            target=_backend(source.capability).target,
            options=dict(source.options),
        )
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return MachineCode(error=f"{type(error).__name__}: {lines[-1] if lines else 'no reason given'}"[:300])
    metadata = compiled.metadata
    usage, listing = _disassembled(compiled.asm["cubin"])
    return read(usage, listing, metadata.shared, metadata.num_warps, getattr(metadata, "tmem_size", 0) or 0)


def read(usage: str, listing: str, dynamic: int, warps: int, tensor_columns: int = 0) -> MachineCode:
    """Read what cuobjdump -res-usage and nvdisasm print.

    Args:
        usage: of cuobjdump.
        listing: of nvdisasm.
        dynamic: bytes of shared memory that the launch asks for beside the static ones.
        warps: of each block.
        tensor_columns: of tensor memory of each block.
    """
    found = _RESOURCES.search(usage)
    instructions = _INSTRUCTION.findall(listing)
    if found is None or not any(each.startswith("EXIT") for each in instructions):
        return MachineCode(error="no machine code in the disassembly")
    registers, stack, static, local = map(int, found.groups())
    static -= RESERVED if static and _RESERVED in listing else 0
    names = [each.split(".")[0] for each in instructions]
    return MachineCode(
        registers=registers,
        stack=stack + local,
        spills=sum(name in ("LDL", "STL") for name in names),
        shared=static + dynamic,
        tensor_cores=dict(Counter(name for name in names if _TENSOR_CORE.match(name))),
        load_bits=max((_bits(each) for each in instructions if each.split(".")[0] in _LOADS), default=0),
        store_bits=max((_bits(each) for each in instructions if each.split(".")[0] in _STORES), default=0),
        bulk=any(name in _BULK for name in names),
        warps=warps,
        tensor_columns=tensor_columns,
    )


def _bits(instruction: str) -> int:
    """Width of a global access: LDG.E.128 is 128, LDG.E.U8 is 8, LDG.E is 32."""
    for part in instruction.split(".")[1:]:
        if part in ("256", "128", "64"):
            return int(part)
        if part in ("U8", "S8", "U16", "S16"):
            return int(part[1:])
    return 32


def _disassembled(cubin: bytes) -> tuple[str, str]:
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        answers = [
            subprocess.run([*command, str(file)], capture_output=True, text=True, check=True).stdout
            for command in ([knobs.nvidia.cuobjdump.path, "-res-usage"], [knobs.nvidia.nvdisasm.path])
        ]
    return answers[0], answers[1]


@functools.cache
def _backend(capability: int) -> Any:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend

    return make_backend(GPUTarget("cuda", capability, 32))
