"""A timed run of the benchmarks: the time it may take, and what it says of the cases that it leaves out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.budget import CASE_SECONDS, Budget
from benchmarks.report import markdown, read_report

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")

ROOT = Path(__file__).parents[2]


class Clock:
    """A clock that the test advances."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def budget(seconds: float, **expected: float | None) -> tuple[Budget, Clock]:
    clock = Clock()
    made = Budget(seconds, clock=clock)
    made.plan(expected)
    return made, clock


def test_a_case_has_its_share_of_what_is_left() -> None:
    made, clock = budget(10.0, **{str(number): None for number in range(5)})
    assert made.begin("0") is None and made.allowance() == CASE_SECONDS
    clock.now += 8
    assert made.allowance() == pytest.approx(2 / 5)
    made.end("0", ran=True)
    assert made.allowance() == pytest.approx(2 / 4)
    clock.now += 3
    reason = made.begin("1")
    assert reason is not None and reason.startswith("not timed: no time left of 0.166667 minutes (--minutes)")
    assert made.allowance() == 0.0


def test_a_compiled_baseline_starts_only_if_it_can_end() -> None:
    """What the first one took corrects what the others are expected to take."""
    made, clock = budget(100.0, plain=None, first=10.0, second=10.0, third=60.0)
    for name in ("plain", "first"):
        assert made.begin(name) is None
        clock.now += 20
        made.end(name, ran=True)
    assert made.remaining() == 60.0  # twice as long as expected, but never more than is left
    assert made.begin("second") is None
    clock.now += 5
    made.end("second", ran=True)
    reason = made.begin("third")
    assert reason is not None and "for the 120 s that compiling may take" in reason
    made.end("third", ran=False)
    assert made.remaining() == 0.0


def test_cases_that_are_not_planned_take_no_time() -> None:
    made, clock = budget(10.0, one=None)
    assert made.begin("without a GPU") is None
    made.end("without a GPU", ran=True)
    assert made.allowance() == CASE_SECONDS and made.remaining() == 2 * CASE_SECONDS


def test_progress_now_and_then() -> None:
    made, clock = budget(540.0, **{str(number): None for number in range(40)})
    assert made.progress() is None
    for number in range(4):
        made.begin(str(number))
        clock.now += 3
        made.end(str(number), ran=True)
    assert made.progress() == "4 of 40 cases, 0:12 gone, about 1:48 left"
    assert made.progress() is None


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process that does not take itself for one of several, which pytest-benchmark does not time in."""
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    return subprocess.run(
        [sys.executable, "-m", "pytest", *arguments, "--benchmark", "-p", "no:cacheprovider"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**alone, "OMP_NUM_THREADS": "1", **environment},
        check=False,
    )


def test_a_dtype_that_the_processor_does_not_compute_is_not_timed(tmp_path: Path) -> None:
    """A real run, timed, held to AVX2; the cases for a GPU say that they were not run."""
    path = tmp_path / "bench.json"
    found = run(
        "benchmarks/test_noise.py",
        "benchmarks/test_fuse_scores.py",
        "-k",
        "odd or (axial and alone and bfloat16)",
        f"--benchmark-json={path}",
        ONEDNN_MAX_CPU_ISA="AVX2",
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert "ratios to the reference" in found.stdout and "of copying" in found.stdout
    left_out = "test_fuse_scores[torch reference-axial alone-bfloat16]: not timed: no bfloat16 instructions"
    assert found.stdout.count(left_out) == 1
    report = read_report(path)
    (results,) = report.groups.values()
    assert results[0].reference and results[0].ratio == 1.0
    for bench in json.loads(path.read_text())["benchmarks"]:
        times = bench["stats"]["data"]
        assert bench["stats"]["rounds"] == len(times) and bench["stats"]["max"] == max(times)
        assert ("once" in bench["extra_info"]) == (len(times) == 1)
    assert all(0 < share for result in results for _, _, share, _ in result.rates if share is not None)
    assert "threads" in report.machine and "PyTorch" in report.machine
    reasons = report.not_timed
    assert reasons["test_fuse_scores[torch.compile-axial alone-bfloat16]"].startswith(
        "not timed: no bfloat16"
    )
    assert "no bfloat16 instructions" in markdown(report)
    assert len(reasons) == len(json.loads(path.read_text())["not_timed"]) >= 2


def test_what_there_is_no_time_for_is_named() -> None:
    found = run("benchmarks", "-m", "not compiled", "--minutes", "0.0001")
    assert found.returncode == 0, found.stdout + found.stderr
    assert "]: not timed: no time left of 0.0001 minutes (--minutes)" in found.stdout
    assert " passed" not in found.stdout.splitlines()[-1]
    for operation in ("gather_slices", "fuse_step", "norm_act", "sample_step", "convolution"):
        assert f"test_{operation}[" in found.stdout
    assert "test_volume: not timed: python -m benchmarks.engine measures it" in found.stdout
    assert "test_figures: not timed: python -m benchmarks.batch measures it" in found.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("-n", "2"), "leave out -n"), (("--minutes", "0"), "takes a number above 0")],
    ids=["two at once", "no minutes"],
)
def test_refuses(arguments: tuple[str, str], message: str) -> None:
    if arguments[0] == "-n":
        pytest.importorskip("xdist", reason="pytest-xdist is not installed")
    found = run("benchmarks/test_noise.py", *arguments)
    assert found.returncode == pytest.ExitCode.USAGE_ERROR and message in found.stderr
