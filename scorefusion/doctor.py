"""What is present on this machine, what is missing, and how to get it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from packaging.requirements import Requirement

from scorefusion._version import __version__
from scorefusion.engine.runners import choose_runner
from scorefusion.models.folder import bundled_models
from scorefusion.ops.backends import missing, outdated
from scorefusion.ops.device import choose_dtype, probe_cpu


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        subject: what was looked at.
        state: ``present``, ``missing`` (what needs it does not work), or ``optional`` (all works without it).
        detail: version, figures, or the reason.
        remedy: what to do about it; empty where nothing needs doing.
    """

    subject: str
    state: Literal["present", "missing", "optional"]
    detail: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Look at everything; takes a fraction of a second."""
    return [*_basics(), *_backends(), *_devices(), *_extras()]


def _basics() -> Iterator[Finding]:
    where = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    yield Finding("scorefusion", "present", f"{__version__} in {where}")
    yield Finding("python", "present", f"{platform.python_version()} ({sys.executable})")
    threads = f"{torch.get_num_threads()} threads of {os.cpu_count()} processors"
    yield Finding("torch", "present", f"{torch.__version__}, {threads}")
    yield _waiting()
    probe = probe_cpu()
    instructions = ", ".join(probe.instructions) or "none of those that matter"
    capability = torch.backends.cpu.get_cpu_capability()
    yield Finding("instructions", "present", f"{instructions}; PyTorch uses {capability}")
    chosen = str(choose_dtype("auto", "cpu")).removeprefix("torch.")
    yield Finding("dtype on CPU", "present", f"{chosen}: {probe.reason}")
    for kind, (plain, short) in probe.seconds.items():
        times = f"float32 {plain * 1e3:.2f} ms, bfloat16 {short * 1e3:.2f} ms"
        yield Finding(f"  {kind}", "present", times)
    models = bundled_models()
    if models:
        yield Finding("bundled models", "present", ", ".join(models))
    else:
        yield Finding("bundled models", "missing", "none in the package", "Install scorefusion again.")


def _waiting() -> Finding:
    """How idle threads wait: spinning is ruinous where others use the cores."""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    given = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    if given:
        return Finding("waiting threads", "present", ", ".join(given))
    remedy = "Set OMP_WAIT_POLICY=passive before torch is imported, as the command line does (docs/embed.md)."
    return Finding(
        "waiting threads", "optional", "they spin, which is slow where others use the cores", remedy
    )


def _backends() -> Iterator[Finding]:
    reason = missing("cpp")
    if reason is None and (old := outdated()):
        yield Finding("C++ extension", "optional", old.split(";")[0], "Run pip install again.")
    elif reason is None:
        yield Finding("C++ extension", "present", "scorefusion._C")
    else:
        remedy = "Install a C++17 compiler and run pip install again; PyTorch is used meanwhile."
        yield Finding("C++ extension", "optional", reason, remedy)
    reason = missing("triton")
    if reason is None:
        yield Finding("triton", "present", importlib.metadata.version("triton"))
    else:
        remedy = "pip install 'scorefusion[triton]', for a CUDA device."
        yield Finding("triton", "optional", reason.split(";")[0], remedy)


def _devices() -> Iterator[Finding]:
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            capability = f"compute capability {properties.major}.{properties.minor}"
            memory = f"{properties.total_memory / 2**30:.0f} GiB"
            yield Finding(f"cuda:{index}", "present", f"{properties.name}, {capability}, {memory}")
    elif torch.version.cuda is None:
        remedy = "To use an NVIDIA GPU, install a CUDA build of PyTorch (pytorch.org)."
        yield Finding("CUDA", "optional", "this PyTorch was built without it", remedy)
    else:
        remedy = "If there is a GPU, see whether nvidia-smi lists it."
        yield Finding("CUDA", "optional", f"PyTorch has CUDA {torch.version.cuda}, but no device", remedy)
    found = [name for name in ("tensorrt", "tensorrt_rtx") if importlib.util.find_spec(name)]
    if found:
        yield Finding("TensorRT", "present", ", ".join(found))
    else:
        remedy = "pip install 'scorefusion[tensorrt]', for an NVIDIA GPU."
        yield Finding("TensorRT", "optional", "not installed", remedy)
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        name, reason = choose_runner("auto", torch.device(device))
        yield Finding(f"2D networks on {device}", "present", f"{name}: {reason}")


def _extras() -> Iterator[Finding]:
    """What each optional group of packages lacks, as the installed package lists them."""
    try:
        listed = importlib.metadata.requires("scorefusion") or []
    except importlib.metadata.PackageNotFoundError:
        remedy = "pip install -e . in the source folder."
        yield Finding("extras", "missing", "scorefusion is not installed, only imported", remedy)
        return
    groups: dict[str, list[Requirement]] = {}
    for text in listed:
        requirement = Requirement(text)
        for extra in importlib.metadata.metadata("scorefusion").get_all("Provides-Extra") or []:
            marker = requirement.marker
            wanted = marker is not None and marker.evaluate({"extra": extra})
            if wanted and marker is not None and not marker.evaluate({"extra": ""}):
                groups.setdefault(extra, []).append(requirement)
    for extra, requirements in groups.items():
        names = [requirement.name for requirement in requirements if requirement.name != "scorefusion"]
        absent = [name for name in names if _version(name) is None]
        if not names:
            continue
        if absent:
            lacks = f"not all there: {', '.join(absent)}"
            yield Finding(f"[{extra}]", "optional", lacks, f"pip install 'scorefusion[{extra}]'")
        else:
            yield Finding(f"[{extra}]", "present", ", ".join(f"{name} {_version(name)}" for name in names))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
