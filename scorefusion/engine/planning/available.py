"""How much memory this process can still take: of the machine, its control groups, its limits, a GPU.

Only what the operating system itself says; what is not known does not limit.
"""

import ctypes
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

_NO_LIMIT = 2**60  #: a control group of version 1 without a limit has one near 2^63.


@dataclass(frozen=True, order=True)
class Available:
    """Memory that can still be taken."""

    bytes: int  #: how much
    source: str  #: what limits it, in words


def available_on(device: torch.device) -> Available | None:
    """What can still be taken on a device, PyTorch's unused share included; on the host if it shares that."""
    if device.type != "cuda":
        return available_on_host()
    free, _ = torch.cuda.mem_get_info(device)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return Available(free + kept, f"free on {device}")


def available_on_host(root: Path = Path("/")) -> Available | None:
    """The least of all that limits this process's memory on the host; None where nothing is known."""
    return min([*_machine(root), *_control_groups(root), *_process_limits(root)], default=None)


def resident_bytes(root: Path = Path("/")) -> int:
    """This process's resident memory; 0 where the system does not say."""
    try:
        return int((root / "proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        return 0


def give_back_freed_memory(device: torch.device) -> None:
    """Return to the system what allocators keep of freed memory, so that it counts as available."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        pass


def _machine(root: Path) -> Iterator[Available]:
    found = _numbers(root / "proc/meminfo")
    if "MemAvailable:" in found:
        yield Available(found["MemAvailable:"] * 1024, "free on this machine")
        return
    names = {"SC_AVPHYS_PAGES": "free on this machine", "SC_PHYS_PAGES": "the memory of this machine"}
    for name, source in names.items() if hasattr(os, "sysconf") else ():
        try:
            yield Available(os.sysconf(name) * os.sysconf("SC_PAGE_SIZE"), source)
            return
        except (OSError, ValueError):
            continue
    windows = getattr(ctypes, "windll", None)
    if windows is not None:
        status = _WindowsMemory(ctypes.sizeof(_WindowsMemory))
        if windows.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
            yield Available(int(status.available), "free on this machine")


class _WindowsMemory(ctypes.Structure):
    """``MEMORYSTATUSEX``."""

    _fields_ = [
        ("length", ctypes.c_ulong),
        ("load", ctypes.c_ulong),
        ("total", ctypes.c_ulonglong),
        ("available", ctypes.c_ulonglong),
        ("others", ctypes.c_ulonglong * 5),
    ]


def _control_groups(root: Path) -> Iterator[Available]:
    """What is left in each control group that holds this process: limit, less usage but for file cache."""
    for folder, version in _memory_groups(root):
        names = ("memory.max", "memory.high") if version == 2 else ("memory.limit_in_bytes",)
        usage = _number(folder / ("memory.current" if version == 2 else "memory.usage_in_bytes"))
        prefix = "" if version == 2 else "total_"
        limits = (_number(folder / name) for name in names)
        known = [limit for limit in limits if limit is not None and limit < _NO_LIMIT]
        if not known or usage is None:
            continue
        counts = _numbers(folder / "memory.stat")
        cache = sum(counts.get(f"{prefix}{name}", 0) for name in ("inactive_file", "active_file"))
        cache += counts.get("slab_reclaimable", 0)
        left = min(known) - max(0, usage - cache)
        yield Available(max(0, left), f"left of the {_gigabytes(min(known))} of this control group")


def _memory_groups(root: Path) -> Iterator[tuple[Path, int]]:
    """Folders of the control groups of memory that hold this process, the innermost first, with versions."""
    own: dict[int, str] = {}
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if number == "0" and not controllers:
            own[2] = path
        elif "memory" in controllers.split(","):
            own[1] = path
    for line in _lines(root / "proc/self/mountinfo"):
        fields, _, rest = line.partition(" - ")
        place, (kind, *more) = fields.split(), rest.split() or [""]
        if len(place) < 5:
            continue
        version = {"cgroup2": 2, "cgroup": 1}.get(kind)
        if version not in own or (version == 1 and "memory" not in ",".join(more).split(",")):
            continue
        top = root / place[4].lstrip("/")
        group = Path("/", own[version])
        # In a namespace of its own, the group's path is not one below the mount.
        inside = group.relative_to(place[3] if group.is_relative_to(place[3]) else "/")
        folder = top / inside
        if ".." in inside.parts or not folder.is_dir():
            folder = top
        yield folder, version
        while folder != top:
            folder = folder.parent
            yield folder, version


def _process_limits(root: Path) -> Iterator[Available]:
    try:
        import resource
    except ImportError:
        return
    status = _numbers(root / "proc/self/status")
    for name, field, command in (("RLIMIT_AS", "VmSize:", "-v"), ("RLIMIT_DATA", "VmData:", "-d")):
        limit = getattr(resource, name, None)
        soft = resource.RLIM_INFINITY if limit is None else resource.getrlimit(limit)[0]
        if soft != resource.RLIM_INFINITY:
            left = max(0, soft - status.get(field, 0) * 1024)
            yield Available(left, f"left of the {_gigabytes(soft)} of ulimit {command}")


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _numbers(file: Path) -> dict[str, int]:
    """The first number after each line's first word."""
    lines = (line.split() for line in _lines(file))
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}


def _number(file: Path) -> int | None:
    """A file's only number; None for ``max``, or where there is none."""
    text = (_lines(file) or [""])[0].strip()
    return int(text) if text.isdigit() else None


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
