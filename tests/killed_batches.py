"""Translate a folder once undisturbed, then in processes that are killed at random moments.

    python tests/killed_batches.py KILLS SEED MODEL IN WHOLE KILLED

The last two are folders. Each process is forked from this one, which has everything imported, so that
starting one takes no time; it prints its events into a file. What was seen is printed as JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

PATIENCE = 100.0
QUICK = ("--steps", "1", "--strategy", "average")


def main(kills: int, seed: int, model: str, scans: str, whole: str, killed: str) -> None:
    import PIL.WebPImagePlugin  # noqa: F401

    import scorefusion.batch.session  # noqa: F401
    import scorefusion.cli.batch_run  # noqa: F401

    log = Path(whole).with_suffix(".log")
    child = start(model, scans, whole, log)
    memory = []
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        memory.append((log.read_bytes().count(b"\n") if log.exists() else 0, resident(child)))
        time.sleep(0.05)
    reference = outputs(Path(whole))
    moments, logs, half = random.Random(seed), [events(log)], []
    for number in range(kills + 1):
        log = Path(killed).with_suffix(f".{number}.log")
        child = start(model, scans, killed, log)
        if number < kills:
            wait(log, moments, number)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status) != (number < kills):
            sys.exit(f"run {number} ended with status {status}: {events(log)[-3:]}")
        logs.append(events(log))
        half += [name for name, data in outputs(Path(killed)).items() if data != reference.get(name)]
    print(json.dumps({"memory": memory, "logs": logs, "half": half}))


def start(model: str, scans: str, out: str, log: Path) -> int:
    """A process that does what ``scorefusion translate IN -o OUT --json`` does."""
    child = os.fork()
    if child:
        return child
    from scorefusion.cli import app

    status = 70
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        sys.stdout = open(1, "w", closefd=False)
        arguments = ["translate", scans, "-o", out, "--model", model, "--device", "cpu", "--dtype", "float32"]
        app([*arguments, *QUICK, "--json"], standalone_mode=False)
        status = 0
    except SystemExit as end:
        status = int(str(end.code or 0))
    except BaseException as error:
        status = getattr(error, "exit_code", 71)
        print(repr(error), file=sys.stderr)
    finally:
        os._exit(status)


def wait(log: Path, moments: random.Random, number: int) -> None:
    """Wait for a few items and some milliseconds; now and then for nothing but the start, or less."""
    end = time.monotonic() + PATIENCE
    wanted = (0, 0, moments.randint(5, 20))[min(number, 2)]
    first = b'"event": "item-done"' if wanted else b'"event": "started"'
    while time.monotonic() < end and number != 1:
        if log.exists() and log.read_bytes().count(first) >= max(1, wanted):
            break
        time.sleep(0.003)
    time.sleep(moments.uniform(0, 0.05))


def events(log: Path) -> list[dict[str, Any]]:
    """What a process has told; a line that a kill cut off is left out."""
    text = log.read_text() if log.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def outputs(folder: Path) -> dict[str, bytes]:
    """The files under final names, but the report."""
    return {path.name: path.read_bytes() for path in folder.glob("[!.]*.nii.gz")}


def resident(process: int) -> float:
    """Megabytes."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGESIZE") / 1e6


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
