"""Timing on request: `pytest benchmarks --benchmark`; without the flag each body runs once, as a smoke test.

A case marked by `reference=True` is what the others of its group are compared with. `--benchmark-json=FILE`
keeps it all, and `scorefusion bench-report FILE` draws it.
"""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

from benchmarks.ceilings import CONVOLUTION, COPY, PRODUCT, ceiling
from scorefusion.bench_report import result_line
from scorefusion.compute import probe_cpu

REPLAYS = 20
"""Of a body's graph in a round on a GPU, which is waited for at its end."""

NO_CUDA = "not run: no CUDA device"
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_CUDA)
Function = TypeVar("Function", bound=Callable[..., Any])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--benchmark", action="store_true", help="time, instead of running each body once")


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--benchmark"):
        config.option.benchmark_disable = True


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Say in the JSON file what this processor is fast at, beside pytest-benchmark's own account of it."""
    machine_info["instructions"] = list(probe_cpu().instructions)
    machine_info["threads"] = torch.get_num_threads()
    machine_info["torch"] = torch.__version__
    if torch.cuda.is_available():
        machine_info["gpu"] = torch.cuda.get_device_name()


@pytest.fixture(scope="session")
def timed(request: pytest.FixtureRequest) -> bool:
    """Whether to time, on sizes worth timing."""
    return bool(request.config.getoption("--benchmark"))


@pytest.fixture
def measure(benchmark: Any, timed: bool) -> Callable[..., Any]:
    """Run a body, timed if asked.

    `measure(body, group=..., device=..., reference=True, dtype=..., bytes=..., FLOP=..., like=...)`: the
    group to compare within, where it runs, whether it is the group's reference, the dtype it computes in, the
    bytes it must move, the FLOP it must do, and whether these are most `like` a matrix product or a
    convolution.
    """

    def run(
        body: Callable[[], Any],
        *,
        group: str,
        device: str = "cpu",
        reference: bool = False,
        dtype: torch.dtype = torch.float32,
        like: str = PRODUCT,
        **work: float,
    ) -> Any:
        if not work.keys() <= {"bytes", "FLOP"} or like not in (PRODUCT, CONVOLUTION):
            raise ValueError(
                f"measure takes bytes, FLOP and like='{PRODUCT}' or '{CONVOLUTION}'; got {work}, {like}"
            )
        name = str(dtype).removeprefix("torch.")
        benchmark.group = group
        benchmark.extra_info |= {"reference": reference, "device": device, "dtype": name, **work}
        benchmark.extra_info["ceilings"] = {}
        for unit in work if timed else ():
            kind, given = (COPY, torch.float32) if unit == "bytes" else (like, dtype)
            rate = ceiling(kind, device, given)
            text = kind if unit == "bytes" else f"a {name} {kind}"
            benchmark.extra_info["ceilings"][unit] = {"rate": rate, "kind": text}
        repeats = 1
        if device == "cuda":
            body, repeats = _on_gpu(body) if timed else (_waited_for(body, 1), 1)
        rounds = _rounds(body, repeats) if timed else 1
        return benchmark.pedantic(body, rounds=rounds, iterations=repeats, warmup_rounds=1)

    return run


def _rounds(body: Callable[[], Any], repeats: int) -> int:
    """Return how often to run: up to 50 times within about two seconds, at least 5 times, if slow 3."""
    start = time.perf_counter()
    for _ in range(repeats):
        body()
    seconds = max(time.perf_counter() - start, 1e-6)
    return int(min(50, max(5 if seconds < 2.0 else 3, 2.0 / seconds)))


def _on_gpu(body: Callable[[], Any]) -> tuple[Callable[[], Any], int]:
    """Return what to time on a GPU and how often a round runs it: replays of a graph, so the kernels alone.

    What cannot be captured, such as a step that copies from the host, is launched each time and waited for.
    """
    for _ in range(3):
        body()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            body()
    except RuntimeError:
        torch.cuda.synchronize()
        return _waited_for(body, 1), 1
    return _waited_for(graph.replay, REPLAYS), REPLAYS


def _waited_for(body: Callable[[], Any], calls: int) -> Callable[[], Any]:
    """Return the body, which waits for the GPU after every so many calls."""
    done = 0

    def run() -> Any:
        nonlocal done
        result, done = body(), done + 1
        if done % calls == 0:
            torch.cuda.synchronize()
        return result

    return run


@pytest.fixture
def compiled(timed: bool) -> Callable[[Function], Function]:
    """`torch.compile`, for a baseline; skips the case, saying why, where it cannot compile.

    Without `--benchmark` it traces and runs what it traced, which is quick.
    """

    def compiled_function(function: Function) -> Function:
        reason = _cannot_compile() if timed else None
        if reason is not None:
            pytest.skip(f"torch.compile: {reason}")
        torch._dynamo.reset()
        return torch.compile(function, dynamic=False, backend="inductor" if timed else "eager")

    return compiled_function


def check(found: Tensor, expected: Tensor, *, baseline: bool = False, rtol: float, atol: float) -> None:
    """Fail if a result is not the definition's; only skip, saying so, if it is `torch.compile`'s.

    A compiler that is wrong on some processor is no fault of what is measured, and its time means nothing.
    """
    try:
        torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)
    except AssertionError as error:
        if not baseline:
            raise
        count = int((~torch.isclose(found, expected, rtol=rtol, atol=atol)).sum())
        reason = f"{count} of {expected.numel()} results are not the definition's"
        raise pytest.skip.Exception(f"torch.compile: not timed, wrong here: {reason}") from error


@functools.cache
def _cannot_compile() -> str | None:
    """Return why PyTorch cannot compile here, or None; tried once."""
    try:
        torch.compile(lambda x: x.sin() + 1, dynamic=False)(torch.ones(64))
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return lines[0] if lines else type(error).__name__
    return None


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    groups: dict[str, list[Any]] = defaultdict(list)
    for bench in config._benchmarksession.benchmarks:  # type: ignore[attr-defined]
        if not bench.has_error and bench.group:
            groups[bench.group].append(bench)
    if groups:
        terminalreporter.section("ratios to the reference, by the best of the runs")
    for group, benches in groups.items():
        terminalreporter.write_line(group)
        base = next((bench.stats.min for bench in benches if bench.extra_info.get("reference")), None)
        for bench in benches:
            terminalreporter.write_line(
                f"  {result_line(bench.name, bench.stats.min, base, bench.extra_info)}"
            )
    for report in terminalreporter.stats.get("skipped", []):
        if isinstance(report.longrepr, tuple) and NO_CUDA in report.longrepr[2]:
            terminalreporter.write_line(f"{report.nodeid}: {NO_CUDA}")
