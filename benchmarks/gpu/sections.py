"""What the machine is, what it can reach, and how long its kernels take to compile."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.step_budget import config_of
from benchmarks.step_walk import Step, walk
from scorefusion.engine.planning.plan import slab_pixels
from scorefusion.ops.device import choose_dtype

from .run import NOT_REACHED, Results, Run
from .timing import Figure, measure, scaled

if TYPE_CHECKING:
    from benchmarks.evidence.machine_code import Source

ROOT = Path(__file__).parents[2]


def machine(run: Run, results: Results) -> None:
    """The device, the libraries, and the code that is measured."""
    results |= {
        "device": run.device.name,
        "dtype": str(choose_dtype(run.sizes.dtype, run.device.place)).removeprefix("torch."),
        "commit": commit(),
        "kernels": fingerprint(),
        "torch": torch.__version__,
        "Triton": version("triton"),
        "Python": platform.python_version(),
        "processors": os.cpu_count(),
        **run.device.about(),
    }


def commit() -> str | None:
    """Return the checkout's commit, with a + if something is changed; None outside of one."""
    found = []
    for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        try:
            answer = subprocess.run(["git", "-C", ROOT, *command], capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.SubprocessError):
            return None
        if answer.returncode:
            return None
        found.append(answer.stdout.strip())
    return found[0] + ("+" if found[1] else "")


def fingerprint() -> str:
    """Return a hash of the kernels' sources, equal for equal ones."""
    digest = hashlib.sha256()
    for folder in ("kernels", "csrc"):
        for file in sorted((ROOT / folder).rglob("*")):
            if file.suffix in (".py", ".cpp", ".cu", ".h"):
                digest.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def version(package: str) -> str | None:
    """Return a package's version; None where it is not installed."""
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def ceilings(run: Run, results: Results) -> None:
    """What the device reaches: copying, products, convolutions, instructions, and a graph's emptiest node."""
    device, sizes = run.device, run.sizes
    dtype = choose_dtype(sizes.dtype, device.place)

    def timed(bodies: list[Callable[[], Any]], work: float, unit: str) -> Figure:
        return scaled(measure(device, bodies, seconds=sizes.seconds), unit, lambda seconds: work / seconds)

    def copying() -> Figure:
        source = torch.randn(sizes.copy // 4, device=device.place)
        target = torch.empty_like(source)
        return timed([lambda: target.copy_(source)], 2 * 4 * source.numel(), "bytes/s")

    def product() -> Figure:
        left, right = (
            torch.randn(sizes.product, sizes.product, device=device.place).to(dtype) for _ in range(2)
        )
        return timed([lambda: left @ right], 2 * sizes.product**3, "FLOP/s")

    def issue() -> Figure:
        from .ffma import ffma

        out = torch.empty(1 << 22, device=device.place)
        flop = ffma(out)
        return timed([lambda: ffma(out)], flop, "FLOP/s")

    def node() -> Figure:
        number = torch.zeros(1, device=device.place)
        return scaled(
            measure(device, [functools.partial(number.add_, 1.0)] * 1000, seconds=sizes.seconds),
            "us",
            lambda seconds: 1e6 * seconds,
        )

    cases = {"copying": copying, f"product, {_name(dtype)}": product, "empty node of a graph": node}
    for dims in (2, 3):
        for channels in (64, 128, 256) if device.place.type == "cuda" else (8,):
            body = functools.partial(_convolution, run, dims, channels, dtype, timed)
            cases[f"convolution {dims}D, {channels} channels, {_name(dtype)}"] = body
    if device.place.type == "cuda":
        cases["multiply-add instructions, float32"] = issue
    run.cases(results, cases)


def _convolution(
    run: Run, dims: int, channels: int, dtype: torch.dtype, timed: Callable[..., Figure]
) -> Figure:
    edge = run.sizes.convolution
    shape = (32, channels, edge, edge) if dims == 2 else (1, channels, edge // 2, edge, edge)
    memory = torch.channels_last if dims == 2 else torch.channels_last_3d
    function: Callable[..., Tensor] = F.conv2d if dims == 2 else F.conv3d

    def made(*lengths: int) -> Tensor:
        return torch.randn(*lengths, device=run.device.place).to(dtype).contiguous(memory_format=memory)

    x, weight = made(*shape), made(channels, channels, *(3,) * dims)
    flop = 2 * x.numel() * weight[0].numel()
    return timed([lambda: function(x, weight, padding=1)], flop, "FLOP/s")


def compilation(run: Run, results: Results) -> None:
    """Every Triton compilation of the traced steps, in several processes; Triton keeps them on disk."""
    sources: dict[str, Source] = {}
    for step in traced(run).values():
        for kernel in step.kernels:
            if kernel.program is not None and kernel.program.source is not None:
                source = kernel.program.source
                if run.device.place.type == "cuda":
                    major, minor = torch.cuda.get_device_capability(run.device.place)
                    source = replace(source, capability=10 * major + minor)
                sources[source.key] = source
    chosen = list(sources.values())[: run.sizes.compile]
    processes = min(run.sizes.processes, os.cpu_count() or 1)
    start = time.perf_counter()
    done = 0
    errors: list[str] = []
    if processes == 1:
        for source in chosen:
            if run.over():
                break
            error = compile_kernel(source)
            done, errors = done + 1, errors + ([error] if error else [])
    else:
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            futures = [pool.submit(compile_kernel, source) for source in chosen]
            ready, late = wait(futures, timeout=max(0.0, run.deadline - run.clock()))
            for future in late:
                future.cancel()
            done = len(ready)
            errors = [error for future in ready if (error := future.result())]
    run.cut = done < len(chosen)
    results |= {
        "compilations of the steps": len(sources),
        "compiled": done,
        NOT_REACHED: len(chosen) - done,
        "seconds": round(time.perf_counter() - start, 3),
        "processes": processes,
        "errors": errors,
    }


def compile_kernel(source: Source) -> str:
    """Compile a kernel into Triton's cache; return what went wrong, or nothing."""
    from benchmarks.evidence.machine_code import compile_source

    return compile_source(source).error


def traced(run: Run) -> dict[str, Step]:
    """Return the walked steps whose operations are compiled, checked and timed; walked once."""
    if not run.steps:
        dtype = choose_dtype(run.sizes.dtype, run.device.place)
        for model, size in run.sizes.traced:
            name = f"{model} {'x'.join(map(str, size))}"
            run.steps[name] = walk(config_of(model), size, dtype=dtype, pixels=slab_pixels("cuda"))
    return run.steps


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
