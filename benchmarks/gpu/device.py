"""What is measured on: a CUDA device, or a CPU that stands in for one in tests."""

from __future__ import annotations

import contextlib
import functools
import gc
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch

Body = Callable[[], Any]

QUERY = {
    "clocks.sm": "SM clock, MHz",
    "clocks.mem": "memory clock, MHz",
    "power.draw": "power, W",
    "temperature.gpu": "temperature, °C",
    "utilization.gpu": "utilisation, %",
}
"""What nvidia-smi is asked for, and the names of the answers."""


KEPT = 16 << 30
"""Bytes that PyTorch may hold before what earlier graphs used is given back."""


class Device(Protocol):
    """Times, captures and describes a device; changes none of its settings."""

    place: torch.device
    name: str
    multiprocessors: int
    l2: int
    """Bytes of the last level of cache."""

    def synchronize(self) -> None:
        """Wait for all that was launched."""
        ...

    def seconds(self, body: Body, times: int) -> float:
        """Run a body so many times in a row; return the device's seconds for one."""
        ...

    def graph(self, body: Body) -> tuple[Body, bool]:
        """Return what replays a body, and whether as a captured graph; the body has been run before."""
        ...

    def sample(self) -> dict[str, float] | None:
        """Return clocks, power, temperature and utilisation; None where nothing tells them."""
        ...

    def forget_peak(self) -> None:
        """Begin to watch memory anew; what is cached is given back."""
        ...

    def peak(self) -> dict[str, int | None]:
        """Return the most bytes that were allocated and reserved since."""
        ...

    def about(self) -> dict[str, Any]:
        """Describe the device and its libraries."""
        ...

    def watched(self) -> contextlib.AbstractContextManager[list[float]]:
        """Sample the utilisation within a block; the list is filled when it ends."""
        ...


class Cuda:
    """A CUDA device."""

    def __init__(self, index: int):
        self.place = torch.device("cuda", index)
        torch.cuda.set_device(self.place)
        properties = torch.cuda.get_device_properties(self.place)
        self.name, self.l2 = properties.name, int(properties.L2_cache_size)
        self.multiprocessors = int(properties.multi_processor_count)
        self.stream = torch.cuda.Stream(self.place)

    def synchronize(self) -> None:
        """See :class:`Device`."""
        torch.cuda.synchronize(self.place)

    def seconds(self, body: Body, times: int) -> float:
        """See :class:`Device`."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(times):
            body()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / times

    def graph(self, body: Body) -> tuple[Body, bool]:
        """See :class:`Device`."""
        if torch.cuda.memory_reserved(self.place) > KEPT:
            torch.cuda.empty_cache()
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.place)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            body()  # libraries make their workspaces for the stream
        current.wait_stream(self.stream)
        self.synchronize()
        try:
            with torch.cuda.stream(self.stream), _no_collector():
                graph.capture_begin(capture_error_mode="thread_local")
                try:
                    kept = body()
                finally:
                    graph.capture_end()
        except RuntimeError:
            self.synchronize()
            return body, False

        def replay(kept: Any = kept) -> None:  # what the graph wrote lives as long as what replays it
            graph.replay()

        return replay, True

    def sample(self) -> dict[str, float] | None:
        """See :class:`Device`."""
        answer = self._ask([f"--query-gpu={','.join(QUERY)}"])
        return None if answer is None else read_sample(answer)

    def _ask(self, query: list[str]) -> str | None:
        """Return what nvidia-smi answers; None where it does not."""
        command = self._smi(query)
        if command is None:
            return None
        try:
            return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
        except (OSError, subprocess.SubprocessError):
            return None

    def _smi(self, query: list[str]) -> list[str] | None:
        program = shutil.which("nvidia-smi")
        if program is None:
            return None
        uuid = getattr(torch.cuda.get_device_properties(self.place), "uuid", None)
        which = f"GPU-{uuid}" if uuid is not None else str(self.place.index)
        return [program, "-i", which, *query, "--format=csv,noheader,nounits"]

    def forget_peak(self) -> None:
        """See :class:`Device`."""
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.place)

    def peak(self) -> dict[str, int | None]:
        """See :class:`Device`."""
        return {
            "allocated": torch.cuda.max_memory_allocated(self.place),
            "reserved": torch.cuda.max_memory_reserved(self.place),
        }

    def about(self) -> dict[str, Any]:
        """See :class:`Device`."""
        properties = torch.cuda.get_device_properties(self.place)
        return {
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": self.multiprocessors,
            "memory, bytes": properties.total_memory,
            "L2, bytes": self.l2,
            "CUDA": torch.version.cuda,
            "cuDNN": torch.backends.cudnn.version(),
            "driver": (self._ask(["--query-gpu=driver_version"]) or "").strip() or None,
            "cudnn.allow_tf32": torch.backends.cudnn.allow_tf32,
            "matmul.allow_tf32": torch.backends.cuda.matmul.allow_tf32,
            "cudnn.benchmark": torch.backends.cudnn.benchmark,
        }

    @contextlib.contextmanager
    def watched(self) -> Iterator[list[float]]:
        """See :class:`Device`."""
        found: list[float] = []
        command = self._smi(["--query-gpu=utilization.gpu", "--loop-ms=200"])
        if command is None:
            yield found
            return
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            yield found
        finally:
            process.terminate()
            answer, _ = process.communicate(timeout=10)
            found += [float(line) for line in answer.split() if line.replace(".", "", 1).isdigit()]


@contextlib.contextmanager
def _no_collector() -> Iterator[None]:
    """Keep the collector out of a capture, which a graph that it destroys would invalidate."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Cpu:
    """A CPU in the place of a GPU: a clock instead of events, the body itself instead of a graph."""

    multiprocessors = 1

    def __init__(self, l2: int = 1 << 14):
        self.place, self.name, self.l2 = torch.device("cpu"), "CPU", l2

    def synchronize(self) -> None:
        """See :class:`Device`."""

    def seconds(self, body: Body, times: int) -> float:
        """See :class:`Device`."""
        start = time.perf_counter()
        for _ in range(times):
            body()
        return (time.perf_counter() - start) / times

    def graph(self, body: Body) -> tuple[Body, bool]:
        """See :class:`Device`."""
        body()
        return body, False

    def sample(self) -> dict[str, float] | None:
        """See :class:`Device`."""
        return None

    def forget_peak(self) -> None:
        """See :class:`Device`."""

    def peak(self) -> dict[str, int | None]:
        """Return what the process held at most, since it began."""
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {"allocated": held, "reserved": None}

    def about(self) -> dict[str, Any]:
        """See :class:`Device`."""
        return {"capability": None, "L2, bytes": self.l2, "threads": torch.get_num_threads()}

    @contextlib.contextmanager
    def watched(self) -> Iterator[list[float]]:
        """See :class:`Device`."""
        yield []


def read_sample(answer: str) -> dict[str, float] | None:
    """Read nvidia-smi's line of numbers; what it does not know is left out."""
    lines = answer.strip().splitlines()
    if not lines:
        return None
    found = {}
    for name, text in zip(QUERY.values(), lines[0].split(","), strict=False):
        with contextlib.suppress(ValueError):
            found[name] = float(text)
    return found or None


@functools.cache
def device_named(name: str) -> Device:
    """Return the device: ``cuda``, ``cuda:1`` or ``cpu``.

    Raises:
        ScoreFusionError: where it does not exist.
    """
    from scorefusion.ops.device import choose_device

    place = choose_device(name)
    return Cuda(place.index or 0) if place.type == "cuda" else Cpu()
