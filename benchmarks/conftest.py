"""Timing on request: `pytest benchmarks --benchmark`; without the flag each body runs once, as a smoke test.

A case marked by `reference=True` is what the others of its group are compared with. `--benchmark-json=FILE`
keeps it all, and `python -m benchmarks.report FILE` draws it. The main cases come first, baselines under
`torch.compile` last; what `--minutes` has no time for, and what the processor has no instructions for, is
listed as not timed.
"""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

from benchmarks.budget import COMPILE_SECONDS, Budget
from benchmarks.ceilings import CONVOLUTION, COPY, PRODUCT, ceiling
from benchmarks.report import result_line
from scorefusion.ops.device import NO_BFLOAT16, cpu_instructions, has_bfloat16, probe_cpu

REPLAYS = 20
"""Of a body's graph in a round on a GPU, which is waited for at its end."""

MOST = 50
"""Most rounds of a case."""

BUDGET = pytest.StashKey[Budget]()
NO_CUDA = "not run: no CUDA device"
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_CUDA)
Function = TypeVar("Function", bound=Callable[..., Any])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--benchmark", action="store_true", help="time, instead of running each body once")
    parser.addoption(
        "--minutes", type=float, default=9.0, help="time for all cases with --benchmark, 9 unless given"
    )


def pytest_configure(config: pytest.Config) -> None:
    for line in (
        "compiled(seconds): a baseline under torch.compile, and how long it may take; timed last",
        "main_case(parameters): parameters of the cases that -m quick selects",
        "quick: the main cases of each operation, for a run of about a minute",
    ):
        config.addinivalue_line("markers", line)
    if not config.getoption("--benchmark"):
        config.option.benchmark_disable = True
        return
    if getattr(config.option, "numprocesses", None):
        raise pytest.UsageError("--benchmark times one case after the other; leave out -n")
    if not config.getoption("--minutes") > 0:
        raise pytest.UsageError("--minutes takes a number above 0")
    config.stash[BUDGET] = Budget(60 * config.getoption("--minutes"))


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """Mark the main cases before any is deselected; then plan what is left."""
    for item in items:
        main = item.get_closest_marker("main_case")
        if main and main.kwargs.items() <= _parameters(item).items() and _compiles(item) is None:
            item.add_marker("quick")
    yield
    if (budget := config.stash.get(BUDGET, None)) is None:
        return
    items.sort(key=lambda item: (_compiles(item) or 0.0, item.get_closest_marker("quick") is None))
    expected = {}
    for item in items:
        reason = _cannot_time(item)
        if reason is None:
            expected[item.nodeid] = _compiles(item)
        else:
            item.add_marker(pytest.mark.skip(reason=reason))
    budget.plan(expected)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[object]:
    """Skip what there is no time for; show the progress."""
    if (budget := item.config.stash.get(BUDGET, None)) is None:
        return (yield)
    if (line := budget.progress()) is not None:
        item.config.get_terminal_writer().line(f" {line}")
    if (reason := budget.begin(item.nodeid)) is not None:
        item.add_marker(pytest.mark.skip(reason=reason))
    result = yield
    budget.end(item.nodeid, ran=reason is None)
    return result


def _parameters(item: pytest.Item) -> dict[str, Any]:
    return item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}


def _compiles(item: pytest.Item) -> float | None:
    """Return the seconds that a compiled baseline is expected to take, None for other cases."""
    marker = item.get_closest_marker("compiled")
    return None if marker is None else marker.kwargs.get("seconds", COMPILE_SECONDS)


def _cannot_time(item: pytest.Item) -> str | None:
    """Return why a case is not timed on this machine, or None."""
    if isinstance(item, pytest.Function) and "measure" not in item.fixturenames:
        return f"not timed: python -m {item.module.__name__.replace('test_', '')} measures it"
    parameters = _parameters(item)
    if parameters.get("device", "cpu") == "cuda":
        return None if torch.cuda.is_available() else NO_CUDA
    if parameters.get("dtype") in ("bfloat16", torch.bfloat16) and not has_bfloat16(cpu_instructions()):
        return f"not timed: {NO_BFLOAT16}"
    return None


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Say in the JSON file what this processor is fast at, beside pytest-benchmark's own account of it."""
    machine_info["instructions"] = list(probe_cpu().instructions)
    machine_info["threads"] = torch.get_num_threads()
    machine_info["torch"] = torch.__version__
    if torch.cuda.is_available():
        machine_info["gpu"] = torch.cuda.get_device_name()


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """Add what was not timed, and why."""
    reporter = config.pluginmanager.getplugin("terminalreporter")
    output_json["not_timed"] = [{"name": name, "reason": reason} for name, reason in _not_timed(reporter)]


def _not_timed(reporter: Any) -> Iterator[tuple[str, str]]:
    """Return (name, reason) of the cases that this machine or its time left out."""
    for report in reporter.stats.get("skipped", []):
        reason = report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else ""
        if reason.startswith("not "):
            yield report.nodeid.split("::")[-1], reason


@pytest.fixture(scope="session")
def timed(request: pytest.FixtureRequest) -> bool:
    """Whether to time, on sizes worth timing."""
    return bool(request.config.getoption("--benchmark"))


@pytest.fixture
def measure(benchmark: Any, timed: bool, request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Run a body, timed if asked: up to 50 times within what the case may take, at least once.

    The case has run it before, to check the result, so nothing is warmed up here.

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
        result = benchmark.pedantic(body, rounds=1, iterations=repeats)
        if timed:
            allowance = request.config.stash[BUDGET].allowance()
            _repeat(benchmark, body, repeats, allowance)
            if len(benchmark.stats.stats.data) == 1:
                benchmark.extra_info["once"] = f"one run; a case has {allowance:.1f} s"
        return result

    return run


def _repeat(benchmark: Any, body: Callable[[], Any], repeats: int, allowance: float) -> None:
    """Time a body again, which was timed once, until it has taken so many seconds in all.

    Only the list of times is read: pytest-benchmark keeps what it once computed from it.
    """
    stats, clock = benchmark.stats, benchmark._timer
    times = stats.stats.data
    start = time.perf_counter() - times[0] * repeats
    while len(times) < MOST and time.perf_counter() - start < allowance:
        before = clock()
        for _ in range(repeats):
            body()
        stats.update(clock() - before)


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
            pytest.skip(f"not timed: torch.compile: {reason}")
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
        raise pytest.skip.Exception(f"not timed: torch.compile is wrong here: {reason}") from error


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
    if left_out := list(_not_timed(terminalreporter)):
        terminalreporter.section("not timed" if config.getoption("--benchmark") else "not run")
    for name, reason in left_out:
        terminalreporter.write_line(f"{name}: {reason}")
