"""Which device and which dtype to compute in, by what this machine is fast at.

bfloat16 on a CPU was 8 times faster than float32 with AMX, and 400 times slower on AVX2 alone. So ``auto``
asks for its instructions, then times the networks' layers in both for a few milliseconds.
"""

import functools
import os
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from scorefusion.errors import ScoreFusionError, unknown_name

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CLEARLY = 1.3  #: how many times faster than float32 bfloat16 has to be before ``auto`` takes it.
KINDS = ("2D convolution", "3D convolution", "matrix product")
NO_BFLOAT16 = "no bfloat16 instructions (AMX, AVX512-BF16 or ARM BF16)"
_BF16_INSTRUCTIONS = frozenset({"amx_bf16", "avx512_bf16", "bf16"})
_LISTED = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")
_REPEATS, _ENOUGH, _PATIENCE = 5, 0.02, 0.15

Timer = Callable[[str, torch.dtype], float]


@dataclass(frozen=True)
class Probe:
    """What the processor is fast at."""

    instructions: tuple[str, ...]  #: of those that matter here, the ones it has
    #: for each kind of layer timed, (float32, bfloat16); empty where bfloat16 was out of question
    seconds: dict[str, tuple[float, float]]
    dtype: torch.dtype  #: the choice
    reason: str  #: one line that says why


def decide(instructions: Iterable[str], timer: Timer) -> Probe:
    """Choose between float32 and bfloat16 for instructions named as in ``/proc/cpuinfo``.

    The timer, (kind of layer, dtype) to seconds, is not called without bfloat16 instructions.
    """
    have = tuple(name for name in _LISTED if name in set(instructions))
    if not has_bfloat16(have):
        return Probe(have, {}, torch.float32, NO_BFLOAT16)
    seconds: dict[str, tuple[float, float]] = {}
    for kind in KINDS:
        plain, short = timer(kind, torch.float32), timer(kind, torch.bfloat16)
        seconds[kind] = (plain, short)
        if plain <= CLEARLY * short:
            reason = f"bfloat16 is {plain / short:.2g} times as fast in a {kind}, not {CLEARLY}"
            return Probe(have, seconds, torch.float32, reason)
    least = min(plain / short for plain, short in seconds.values())
    return Probe(have, seconds, torch.bfloat16, f"bfloat16 is at least {least:.2g} times as fast")


def has_bfloat16(instructions: Iterable[str]) -> bool:
    """Whether a processor with these instructions multiplies bfloat16 itself."""
    return not _BF16_INSTRUCTIONS.isdisjoint(instructions)


@functools.cache
def probe_cpu() -> Probe:
    """Measure this processor, once a process; a few tens of milliseconds."""
    return decide(cpu_instructions(), seconds_of)


def cpu_instructions() -> frozenset[str]:
    """The instructions, named as in ``/proc/cpuinfo``, but for those ``ONEDNN_MAX_CPU_ISA`` forbids."""
    found = set()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith(("flags", "features")):
                found |= set(line.split(":", 1)[1].split())
                break
    except OSError:
        pass
    questions = {
        "avx2": "_is_avx2_supported",
        "avx512f": "_is_avx512_supported",
        "avx512_bf16": "_is_avx512_bf16_supported",
        "amx_bf16": "_is_amx_tile_supported",
    }
    for name, question in questions.items():
        ask = getattr(torch.cpu, question, None)
        if ask is not None and ask():
            found.add(name)
    if platform.machine().lower() in ("arm64", "aarch64"):
        found.add("asimd")
    return frozenset(found - _forbidden(os.environ.get("ONEDNN_MAX_CPU_ISA", "")))


def _forbidden(limit: str) -> set[str]:
    """Return the flags beyond a value of ``ONEDNN_MAX_CPU_ISA``, such as ``AVX2`` or ``AVX512_CORE``."""
    limit = limit.upper()
    if not limit.startswith(("SSE", "AVX")) or "AMX" in limit:
        return set()
    if limit.startswith("AVX10") or limit.endswith(("_BF16", "_FP16")):
        return {"amx_bf16"}
    wide = set() if limit.startswith("AVX512") else {"avx512f"}
    return {"amx_bf16", "avx512_bf16"} | wide


def seconds_of(kind: str, dtype: torch.dtype) -> float:
    """The shortest time one layer takes, after a warm-up: of at least 5 repeats and 20 ms, or of 0.15 s."""
    run = _layer(kind, dtype)
    with torch.no_grad():
        run()
        best, repeats, start = float("inf"), 0, time.perf_counter()
        while True:
            before = time.perf_counter()
            run()
            now = time.perf_counter()
            best, repeats = min(best, now - before), repeats + 1
            if now - start > (_ENOUGH if repeats >= _REPEATS else _PATIENCE):
                return best


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """The device to compute on: ``auto`` is CUDA where there is a device, else the CPU.

    Raises:
        ScoreFusionError: for a name PyTorch does not know, or a device that is not there.
    """
    if isinstance(name, torch.device):
        device = name
    elif name == "auto":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    else:
        try:
            device = torch.device(name)
        except RuntimeError:
            raise unknown_name("device", name, ("auto", "cpu", "cuda", "cuda:0", "mps")) from None
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if device.type not in there:
        raise unknown_name("device", str(device), ("auto", "cpu", "cuda", "cuda:0", "mps"))
    if not there[device.type]:
        count = torch.cuda.device_count() if device.type == "cuda" else 0
        raise ScoreFusionError(
            f"device '{device}' is not available: PyTorch {torch.__version__} finds {count} {device.type} "
            "devices here; use --device cpu, or see `scorefusion doctor`"
        )
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps", 0) if device.type == "mps" else device


def choose_dtype(name: str = "auto", device: torch.device | str = "cpu") -> torch.dtype:
    """The dtype that the networks compute in.

    Args:
        name: ``float32``, ``bfloat16``, ``float16``, or ``auto``: on CUDA bfloat16 from compute capability
            8.0 on; on a CPU what :func:`probe_cpu` found; float32 elsewhere.
        device: where the networks run.

    Raises:
        ScoreFusionError: for an unknown name.
    """
    if name != "auto":
        if name not in DTYPES:
            raise unknown_name("dtype", name, ("auto", *DTYPES))
        return DTYPES[name]
    device = torch.device(device)
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return torch.bfloat16 if major >= 8 else torch.float32
    return probe_cpu().dtype if device.type == "cpu" else torch.float32


def _layer(kind: str, dtype: torch.dtype) -> Callable[[], Tensor]:
    """A layer of about 0.1 GFLOP as the networks have them, ready to run."""
    if kind == "matrix product":
        square = torch.full((384, 384), 0.5).to(dtype)
        return lambda: square @ square
    if kind == "2D convolution":
        slices = torch.full((2, 48, 36, 36), 0.5).to(dtype, memory_format=torch.channels_last)
        weight2 = torch.full((48, 48, 3, 3), 0.5).to(dtype, memory_format=torch.channels_last)
        return lambda: F.conv2d(slices, weight2, padding=1)
    volume = torch.full((2, 32, 10, 10, 10), 0.5).to(dtype, memory_format=torch.channels_last_3d)
    weight3 = torch.full((32, 32, 3, 3, 3), 0.5).to(dtype, memory_format=torch.channels_last_3d)
    return lambda: F.conv3d(volume, weight3, padding=1)
