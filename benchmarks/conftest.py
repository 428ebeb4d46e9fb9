"""Timing on request: `pytest benchmarks --benchmark`; without the flag each body runs once, as a smoke test.

The first case of a group, marked by `reference=True`, is what the others are compared with.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch

NO_CUDA = "not run: no CUDA device"
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_CUDA)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--benchmark", action="store_true", help="time, instead of running each body once")


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--benchmark"):
        config.option.benchmark_disable = True


@pytest.fixture(scope="session")
def timed(request: pytest.FixtureRequest) -> bool:
    """Whether to time, on sizes worth timing."""
    return bool(request.config.getoption("--benchmark"))


@pytest.fixture(scope="session")
def ceilings(timed: bool) -> dict[str, float]:
    """What this machine reached a moment ago: bytes a second copied, FLOP a second multiplied."""
    if not timed:
        return {}
    source = torch.ones(2**25)
    target = torch.empty_like(source)
    square = torch.ones(1024, 1024)
    return {
        "bytes": 2 * 4 * source.numel() / _best(lambda: target.copy_(source)),
        "FLOP": 2 * 1024**3 / _best(lambda: square @ square),
    }


def _best(run: Callable[[], Any], times: int = 7) -> float:
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


@pytest.fixture
def measure(benchmark: Any, ceilings: dict[str, float]) -> Callable[..., Any]:
    """Run a body, timed if asked.

    `measure(body, group=..., reference=True, bytes=...)`: the group to compare within, whether this is its
    reference, and the bytes it must move or the FLOP it must do. Returns what the body returned.
    """

    def run(body: Callable[[], Any], *, group: str, reference: bool = False, **work: float) -> Any:
        benchmark.group = group
        benchmark.extra_info["reference"] = reference
        for unit, amount in work.items():
            benchmark.extra_info[unit] = amount
            benchmark.extra_info["ceiling"] = ceilings.get(unit, 0.0)
        return benchmark.pedantic(body, rounds=5, warmup_rounds=1)

    return run


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    groups: dict[str, list[Any]] = defaultdict(list)
    for bench in config._benchmarksession.benchmarks:
        groups[bench.group].append(bench)
    if groups:
        terminalreporter.section("ratios to the reference, by the best of the runs")
    for group, benches in groups.items():
        terminalreporter.write_line(group)
        base = next(bench for bench in benches if bench.extra_info["reference"]).stats.min
        for bench in benches:
            best, info = bench.stats.min, bench.extra_info
            line = f"  {bench.name:<58} {best * 1e3:10.2f} ms  {base / best:6.2f}×"
            for unit in ("bytes", "FLOP"):
                if unit in info:
                    rate = info[unit] / best
                    line += f"  {rate / 1e9:7.1f} G{unit}/s, {rate / info['ceiling']:.0%} of the ceiling"
            terminalreporter.write_line(line)
    for report in terminalreporter.stats.get("skipped", []):
        if isinstance(report.longrepr, tuple) and NO_CUDA in report.longrepr[2]:
            terminalreporter.write_line(f"{report.nodeid}: {NO_CUDA}")
