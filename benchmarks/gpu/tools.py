"""What other tools say of a step: a trace of it, and Nsight Compute and compute-sanitizer if asked for."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys

import torch

from scorefusion.io.atomic import written_beside
from scorefusion.ops.device import choose_dtype

from .correct import small_engine
from .run import NOT_REACHED, Case, Results, Run
from .sections import ROOT

OUTPUT = 100_000
"""Characters of a tool's output that are kept, the last ones."""


def extra(run: Run, results: Results) -> None:
    """Trace a step; run the tools that were asked for."""
    model, size = run.sizes.steps[0]
    step = [
        sys.executable,
        "-m",
        "benchmarks.engine",
        "step",
        "--device",
        str(run.device.place),
        "--model",
        model,
    ]
    step += ["--turns", "1", "--size", *map(str, size)]
    commands = {
        "ncu": ["ncu", "--set", "basic", "--launch-skip", "200", "--launch-count", "200", "--csv", *step],
        "sanitize": ["compute-sanitizer", sys.executable, "-m", "pytest", "tests/engine/test_on_gpu.py"],
    }
    cases: dict[str, Case] = {"trace": functools.partial(trace, run)}
    cases |= {name: functools.partial(tool, run, name, command) for name, command in commands.items()}
    run.cases(results, cases)


def tool(run: Run, name: str, command: list[str]) -> Results | str:
    """Run a tool until the deadline, if it was asked for and exists."""
    if name not in run.tools:
        return f"not asked for (--{name})"
    if shutil.which(command[0]) is None:
        return f"not run: there is no {command[0]}"
    left = max(1.0, run.deadline - run.clock())
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=left)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the program that the tool started too
        process.communicate()
        run.cut = True
        return NOT_REACHED
    return {"status": process.returncode, "output": output[-OUTPUT:]}


def trace(run: Run) -> str:
    """Write a step of the small model, kernel by kernel, for chrome://tracing; return the file's name."""
    from torch.profiler import ProfilerActivity, profile

    engine = small_engine(run, choose_dtype(run.sizes.dtype, run.device.place), run.device.place)
    segments = engine.segments(engine.plan.cycle[0])
    activities = [ProfilerActivity.CPU]
    if run.device.place.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    file = run.out.with_suffix(".trace.json.gz")
    with torch.no_grad(), profile(activities=activities) as found:
        for segment in segments:
            segment.run()
        run.device.synchronize()
    with written_beside(file) as beside:
        found.export_chrome_trace(str(beside))
    return file.name
