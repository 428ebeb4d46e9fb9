"""Which TensorRT is here: ``tensorrt`` where it can be imported, else ``tensorrt_rtx``.

TensorRT-RTX compiles without a GPU, for several architectures; TensorRT builds for the GPU it finds.
"""

import importlib
from typing import Any, NamedTuple

import torch

from scorefusion.errors import ScoreFusionError
from scorefusion.models.config import Frozen

NAMES = ("tensorrt", "tensorrt_rtx")
#: compute capabilities that TensorRT-RTX builds for when it is not told any; later ones run too.
AHEAD_OF_TIME = ("8.0", "8.6", "8.9", "12.0")


class Library(NamedTuple):
    """An imported TensorRT: its package's name, its version, the module."""

    name: str
    version: str
    module: Any


class Target(Frozen):
    """What an engine was built for."""

    kind: str  #: ``ahead of time``, or ``gpu``: the one that was there
    capabilities: tuple[str, ...]  #: compute capabilities, such as 8.9
    gpu: str = ""  #: the GPU's name, where the engine is for that alone

    def __str__(self) -> str:
        listed = f"compute capability {', '.join(self.capabilities)}"
        return f"{self.gpu}, {listed}" if self.gpu else f"{self.kind}, {listed} and later"

    def runs_on(self, gpu: str, capability: str) -> bool:
        """Whether an engine for this target runs on a GPU of that name and compute capability."""
        if self.gpu:
            return gpu == self.gpu and capability in self.capabilities
        newest = max(self.capabilities, key=_ordered)
        return capability in self.capabilities or _ordered(capability) > _ordered(newest)


def find_library() -> Library:
    """Import TensorRT.

    Raises:
        ScoreFusionError: if neither package can be imported, with the command that installs one.
    """
    reasons = []
    for name in NAMES:
        found = import_library(name)
        if isinstance(found, Library):
            return found
        reasons.append(f"{name}: {found}")
    raise ScoreFusionError(
        f"TensorRT is not here ({'; '.join(reasons)}); pip install 'scorefusion[tensorrt]', which brings "
        "TensorRT-RTX, or pip install tensorrt"
    )


def import_library(name: str) -> Library | str:
    """Import one of :data:`NAMES`; returns why not where it cannot be."""
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        return str(error)
    return Library(name, str(module.__version__), module)


def build_target(library: Library) -> Target:
    """What an engine built here is for."""
    if library.name == "tensorrt_rtx":
        return Target(kind="ahead of time", capabilities=AHEAD_OF_TIME)
    if not torch.cuda.is_available():
        raise ScoreFusionError(
            "tensorrt builds engines for the GPU that is there, and PyTorch finds none; build where the "
            "engines will run, or pip uninstall tensorrt and pip install tensorrt-rtx to build without one"
        )
    gpu, capability = this_gpu(torch.device("cuda"))
    return Target(kind="gpu", capabilities=(capability,), gpu=gpu)


def this_gpu(device: torch.device) -> tuple[str, str]:
    """Name and compute capability of a CUDA device, such as ("NVIDIA L4", "8.9")."""
    major, minor = torch.cuda.get_device_capability(device)
    return torch.cuda.get_device_name(device), f"{major}.{minor}"


def logger(library: Library) -> tuple[Any, list[str]]:
    """A TensorRT logger and the list in which it keeps the errors it is told."""
    errors: list[str] = []
    severity = library.module.ILogger.Severity

    class Log(library.module.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            library.module.ILogger.__init__(self)

        def log(self, level: Any, message: str) -> None:
            if level in (severity.INTERNAL_ERROR, severity.ERROR):
                errors.append(message)

    return Log(), errors


def _ordered(capability: str) -> tuple[int, int]:
    major, minor = capability.split(".")
    return int(major), int(minor)
