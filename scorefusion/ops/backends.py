"""The one place where an operation's backend is chosen.

    torch    the PyTorch reference; any device
    cpp      the C++ extension scorefusion._C; CPU tensors
    triton   the Triton kernels scorefusion.kernels; CUDA tensors, or CPU ones with TRITON_INTERPRET=1

Who decides, in order: the call's own `backend=`, the innermost `use_backend(...)`, the environment variable
SCOREFUSION_BACKEND, and otherwise the device: triton on CUDA and cpp on the CPU where they can run, else
torch. A backend that was asked for and cannot run is an error that says why; it is never silently replaced.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
from collections.abc import Iterator
from contextvars import ContextVar

import torch

from scorefusion.errors import ScoreFusionError, unknown_name

BACKENDS = ("torch", "cpp", "triton")
VARIABLE = "SCOREFUSION_BACKEND"

_AUTOMATIC = {"cuda": "triton", "cpu": "cpp"}
_DEVICES = {"cpp": ("cpu",), "triton": ("cuda",)}
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


def choose(op: str, device: torch.device, backend: str | None, implemented: tuple[str, ...]) -> str:
    """Return the backend to run an operation with.

    Args:
        op: the operation's name, for messages.
        device: where its tensors are.
        backend: what the call asked for; None leaves it to the context, the environment or the device.
        implemented: the backends that have this operation.

    Raises:
        ScoreFusionError: if the backend asked for cannot run, saying why and who asked.
    """
    for name, asker in (
        (backend, "the call"),
        (_asked.get(), "use_backend"),
        (os.environ.get(VARIABLE) or None, VARIABLE),
    ):
        if name is not None:
            reason = _obstacle(op, _known(name), device, implemented)
            if reason is not None:
                raise ScoreFusionError(f"{asker} asks for backend '{name}', but {reason}")
            return name
    name = _AUTOMATIC.get(device.type, "torch")
    return name if _obstacle(op, name, device, implemented) is None else "torch"


def interpreting() -> bool:
    """Return whether Triton kernels run in its interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def _known(name: str) -> str:
    """Return the name if there is such a backend, else raise with the nearest."""
    if name not in BACKENDS:
        raise unknown_name("backend", name, BACKENDS)
    return name


def _obstacle(op: str, name: str, device: torch.device, implemented: tuple[str, ...]) -> str | None:
    """Return why an operation cannot run there, or None."""
    if name not in implemented:
        return f"{op} has no {name} implementation; it has {', '.join(implemented)}"
    reason = _missing(name)
    if reason is not None:
        return reason
    devices = ("cuda", "cpu") if name == "triton" and interpreting() else _DEVICES.get(name, (device.type,))
    if device.type not in devices:
        hint = " (or set TRITON_INTERPRET=1 before starting, for tests)" if name == "triton" else ""
        return f"it needs tensors on {' or '.join(devices)}, and these are on {device.type}{hint}"
    return None


@functools.cache
def _missing(name: str) -> str | None:
    """Return why a backend is not installed, or None; looked up once."""
    if name == "cpp":
        try:
            importlib.import_module("scorefusion._C")
        except ImportError as error:
            return f"the C++ extension is not built ({error}); install scorefusion where there is a compiler"
    if name == "triton":
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed; pip install 'scorefusion[triton]'"
        if importlib.util.find_spec("scorefusion.kernels") is None:
            return "scorefusion.kernels is not installed; pip install scorefusion, do not run it in place"
    return None
