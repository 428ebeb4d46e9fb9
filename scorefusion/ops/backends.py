"""The one place where an operation's backend is chosen.

    torch    the PyTorch reference; any device
    cpp      the C++ extension scorefusion._C; CPU tensors
    triton   the Triton kernels scorefusion.kernels; CUDA tensors, or CPU ones with TRITON_INTERPRET=1
    cuda     the CUDA extension scorefusion._cuda, for CUDA without Triton; CUDA tensors

Who decides, in order: the call's own `backend=`, the innermost `use_backend(...)`, the environment variable
SCOREFUSION_BACKEND, and otherwise the device: triton, then cuda, on CUDA and cpp on the CPU where they can
run, else torch. A backend that was asked for and cannot run is an error that says why; it is never silently
replaced.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
from collections.abc import Iterable, Iterator
from contextvars import ContextVar

import torch

from scorefusion.errors import ScoreFusionError, unknown_name

BACKENDS = ("torch", "cpp", "triton", "cuda")
VARIABLE = "SCOREFUSION_BACKEND"

_AUTOMATIC = {"cuda": ("triton", "cuda"), "cpu": ("cpp",)}
_DEVICES = {"cpp": ("cpu",), "triton": ("cuda",), "cuda": ("cuda",)}
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_asked: ContextVar[str | None] = ContextVar("scorefusion_backend", default=None)


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Use one backend inside a `with` block, in this thread or task.

    Raises:
        ScoreFusionError: for an unknown backend; whether it can run is checked at each call.
    """
    token = _asked.set(_known(name))
    try:
        yield
    finally:
        _asked.reset(token)


def missing(name: str) -> str | None:
    """Return why a backend is not on this machine, or None if it is.

    Whether it takes a given tensor is another matter: see `choose`.
    """
    return _missing(_known(name))


def outdated() -> str | None:
    """Return why the C++ extension lacks an operation, or None; an editable install keeps what it built."""
    if missing("cpp") or hasattr(importlib.import_module("scorefusion._C"), "pointwise"):
        return None
    return "the C++ extension was built from older sources; install scorefusion again"


def choose(
    op: str,
    device: torch.device,
    backend: str | None,
    implemented: tuple[str, ...],
    dtypes: Iterable[torch.dtype] = (),
) -> str:
    """Return the backend to run an operation with.

    Args:
        op: the operation's name, for messages.
        device: where its tensors are.
        backend: what the call asked for; None leaves it to the context, the environment or the device.
        implemented: the backends that have this operation.
        dtypes: of its tensors; only PyTorch computes in others than float32, bfloat16 and float16.

    Raises:
        ScoreFusionError: if the backend asked for cannot run, saying why and who asked.
    """
    for name, asker in (
        (backend, "the call"),
        (_asked.get(), "use_backend"),
        (os.environ.get(VARIABLE) or None, VARIABLE),
    ):
        if name is not None:
            reason = _obstacle(op, _known(name), device, implemented, dtypes)
            if reason is not None:
                raise ScoreFusionError(f"{asker} asks for backend '{name}', but {reason}")
            return name
    for name in _AUTOMATIC.get(device.type, ()):
        if _obstacle(op, name, device, implemented, dtypes) is None:
            return name
    return "torch"


def interpreting() -> bool:
    """Return whether Triton kernels run in its interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def _known(name: str) -> str:
    """Return the name if there is such a backend, else raise with the nearest."""
    if name not in BACKENDS:
        raise unknown_name("backend", name, BACKENDS)
    return name


def _obstacle(
    op: str, name: str, device: torch.device, implemented: tuple[str, ...], dtypes: Iterable[torch.dtype]
) -> str | None:
    """Return why an operation cannot run there, or None."""
    if name not in implemented:
        return f"{op} has no {name} implementation; it has {', '.join(implemented)}"
    reason = _missing(name)
    if reason is not None:
        return reason
    if name == "cpp" and op == "pointwise" and outdated():
        return outdated()
    devices = ("cuda", "cpu") if name == "triton" and interpreting() else _DEVICES.get(name, (device.type,))
    if device.type not in devices:
        hint = " (or set TRITON_INTERPRET=1 before starting, for tests)" if name == "triton" else ""
        return f"it needs tensors on {' or '.join(devices)}, and these are on {device.type}{hint}"
    odd = [str(dtype) for dtype in dtypes if dtype not in _DTYPES] if name != "torch" else []
    return f"it has no {odd[0].removeprefix('torch.')} form; torch has" if odd else None


@functools.cache
def _missing(name: str) -> str | None:
    """Return why a backend is not installed, or None; looked up once."""
    if name == "cpp":
        try:
            importlib.import_module("scorefusion._C")
        except ImportError as error:
            return f"the C++ extension is not built ({error}); install scorefusion where there is a compiler"
    if name == "cuda":
        try:
            importlib.import_module("scorefusion._cuda")
        except ImportError as error:
            return f"the CUDA extension is not built ({error}); install scorefusion where there is nvcc"
    if name == "triton":
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed; pip install 'scorefusion[triton]'"
        if importlib.util.find_spec("scorefusion.kernels") is None:
            return "scorefusion.kernels is not installed; pip install scorefusion, do not run it in place"
    return None
