"""What is present on this machine, what is missing, and how to get it."""

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
    """One line of the report."""

    subject: str  #: what was looked at
    #: ``present``, ``missing`` (what needs it does not work), or ``optional`` (all works without it)
    state: Literal["present", "missing", "optional"]
    detail: str  #: version, figures, or the reason
    remedy: str = ""  #: what to do about it; empty where nothing needs doing


def examine() -> list[Finding]:
    """Look at everything; takes a fraction of a second."""
    return [*_basics(), *_backends(), *_devices(), *_extras()]


def _optional(subject: str, detail: str, problem: str | None, remedy: str) -> Finding:
    """A finding on what everything works without."""
    if problem is None:
        return Finding(subject, "present", detail)
    return Finding(subject, "optional", problem, remedy)


def _basics() -> Iterator[Finding]:
    where = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    yield Finding("scorefusion", "present", f"{__version__} in {where}")
    yield Finding("python", "present", f"{platform.python_version()} ({sys.executable})")
    threads = f"{torch.get_num_threads()} threads of {os.cpu_count()} processors"
    yield Finding("torch", "present", f"{torch.__version__}, {threads}")
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    given = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    spin = None if given else "they spin, which is slow where others use the cores"
    remedy = "Set OMP_WAIT_POLICY=passive before torch is imported, as the command line does (docs/embed.md)."
    yield _optional("waiting threads", ", ".join(given), spin, remedy)
    probe = probe_cpu()
    instructions = ", ".join(probe.instructions) or "none of those that matter"
    capability = torch.backends.cpu.get_cpu_capability()
    yield Finding("instructions", "present", f"{instructions}; PyTorch uses {capability}")
    chosen = str(choose_dtype("auto", "cpu")).removeprefix("torch.")
    yield Finding("dtype on CPU", "present", f"{chosen}: {probe.reason}")
    for kind, (plain, short) in probe.seconds.items():
        times = f"float32 {plain * 1e3:.2f} ms, bfloat16 {short * 1e3:.2f} ms"
        yield Finding(f"  {kind}", "present", times)
    if models := bundled_models():
        yield Finding("bundled models", "present", ", ".join(models))
    else:
        yield Finding("bundled models", "missing", "none in the package", "Install scorefusion again.")


def _backends() -> Iterator[Finding]:
    reason = missing("cpp")
    remedy = "Install a C++17 compiler and run pip install again; PyTorch is used meanwhile."
    if reason is None and (old := outdated()):
        reason, remedy = old.split(";")[0], "Run pip install again."
    yield _optional("C++ extension", "scorefusion._C", reason, remedy)
    reason = missing("triton")
    version = _version("triton") or ""
    remedy = "pip install 'scorefusion[triton]', for a CUDA device."
    yield _optional("triton", version, reason and reason.split(";")[0], remedy)


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
    engines = [name for name in ("tensorrt", "tensorrt_rtx") if importlib.util.find_spec(name)]
    remedy = "pip install 'scorefusion[tensorrt]', for an NVIDIA GPU."
    yield _optional("TensorRT", ", ".join(engines), None if engines else "not installed", remedy)
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        name, reason = choose_runner("auto", torch.device(device))
        yield Finding(f"2D networks on {device}", "present", f"{name}: {reason}")


def _extras() -> Iterator[Finding]:
    """What each optional group of packages lacks, as the installed package lists them."""
    try:
        requirements = [Requirement(text) for text in importlib.metadata.requires("scorefusion") or []]
    except importlib.metadata.PackageNotFoundError:
        remedy = "pip install -e . in the source folder."
        yield Finding("extras", "missing", "scorefusion is not installed, only imported", remedy)
        return
    for extra in importlib.metadata.metadata("scorefusion").get_all("Provides-Extra") or []:
        versions = {
            each.name: _version(each.name)
            for each in requirements
            if each.marker is not None
            and each.marker.evaluate({"extra": extra})
            and not each.marker.evaluate({"extra": ""})
            and each.name != "scorefusion"
        }
        absent = [name for name, version in versions.items() if version is None]
        problem = f"not all there: {', '.join(absent)}" if absent else None
        detail = ", ".join(f"{name} {version}" for name, version in versions.items())
        if versions:
            yield _optional(f"[{extra}]", detail, problem, f"pip install 'scorefusion[{extra}]'")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
