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
def ceilings(timed: bool) -> dict[tuple[str, str], float]:
    """What each device reached a moment ago: bytes a second copied, float32 FLOP a second multiplied."""
    found = {}
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        if timed:
            source = torch.ones(2**25, device=device)
            target = torch.empty_like(source)
            square = torch.ones(1024, 1024, device=device)
            found[device, "bytes"] = 2 * 4 * source.numel() / _best(_finished(target.copy_, source))
            found[device, "FLOP"] = 2 * 1024**3 / _best(_finished(torch.matmul, square, square))
    return found


def _finished(function: Callable[..., Any], *arguments: torch.Tensor) -> Callable[[], None]:
    def run() -> None:
        function(*arguments)
        if arguments[0].device.type == "cuda":
            torch.cuda.synchronize()

    return run


def _best(run: Callable[[], None], times: int = 7) -> float:
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


@pytest.fixture
def measure(benchmark: Any, ceilings: dict[tuple[str, str], float]) -> Callable[..., Any]:
    """Run a body, timed if asked.

    `measure(body, group=..., device=..., reference=True, bytes=...)`: the group to compare within, where it
    runs, whether it is the group's reference, and the bytes it must move or the FLOP it must do.
    """

    def run(
        body: Callable[[], Any], *, group: str, device: str = "cpu", reference: bool = False, **work: float
    ) -> Any:
        benchmark.group = group
        benchmark.extra_info["reference"] = reference
        for unit, amount in work.items():
            benchmark.extra_info[unit] = amount
            benchmark.extra_info["ceiling"] = ceilings.get((device, unit), 0.0)
        return benchmark.pedantic(body, rounds=5, warmup_rounds=1)

    return run


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    groups: dict[str, list[Any]] = defaultdict(list)
    for bench in config._benchmarksession.benchmarks:  # type: ignore[attr-defined]
        groups[bench.group].append(bench)
    if groups:
        terminalreporter.section("ratios to the reference, by the best of the runs")
    ceiling = {"bytes": "copying", "FLOP": "a float32 matrix product"}
    for group, benches in groups.items():
        terminalreporter.write_line(group)
        base = next(bench for bench in benches if bench.extra_info["reference"]).stats.min
        for bench in benches:
            best, info = bench.stats.min, bench.extra_info
            line = f"  {bench.name:<58} {best * 1e3:10.2f} ms  {base / best:6.2f}×"
            for unit in ceiling.keys() & info.keys():
                rate = info[unit] / best
                share = f"{rate / info['ceiling']:.0%} of {ceiling[unit]}"
                line += f"  {rate / 1e9:7.1f} G{unit}/s, {share}"
            terminalreporter.write_line(line)
    for report in terminalreporter.stats.get("skipped", []):
        if isinstance(report.longrepr, tuple) and NO_CUDA in report.longrepr[2]:
            terminalreporter.write_line(f"{report.nodeid}: {NO_CUDA}")
