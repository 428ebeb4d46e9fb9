"""Translate a folder once undisturbed, then in processes that are killed at random moments.

    python tests/support/killed_batches.py KILLS SEED MODEL IN WHOLE KILLED

The last two are folders. Each process is forked from this one, which has everything imported, so that
starting one takes no time; it prints its events into a file. It kills itself, after some events and some of
its own processor time, so that it comes as far on a busy machine. What was seen is printed as JSON.
"""

from __future__ import annotations

import io
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

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
        event, count = ("item-done", moments.randint(5, 15)) if number > 1 else ("started", 1 - number)
        doom = (event, count, moments.uniform(0.001, 0.05)) if number < kills else None
        child = start(model, scans, killed, log, doom)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status) != (number < kills):
            sys.exit(f"run {number} ended with status {status}: {events(log)[-3:]}")
        logs.append(events(log))
        half += [name for name, data in outputs(Path(killed)).items() if data != reference.get(name)]
    print(json.dumps({"memory": memory, "logs": logs, "half": half}))


class Doomed(io.TextIOWrapper):
    """Standard output that ends its process, some seconds of processor time after the `count`-th such event.

    By a timer whose signal nobody handles.
    """

    def __init__(self, event: str, count: int, seconds: float):
        super().__init__(open(1, "wb", closefd=False))
        self.sign, self.count, self.seconds = f'"event": "{event}"', count, seconds
        if not count:
            signal.setitimer(signal.ITIMER_PROF, seconds)

    def write(self, text: str) -> int:
        if self.sign in text:
            self.count -= 1
            if not self.count:
                signal.setitimer(signal.ITIMER_PROF, self.seconds)
        return super().write(text)


def start(model: str, scans: str, out: str, log: Path, doom: tuple[str, int, float] | None = None) -> int:
    """A process that does what ``scorefusion translate IN -o OUT --json`` does."""
    child = os.fork()
    if child:
        return child
    from scorefusion.cli import app

    status = 70
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        sys.stdout = Doomed(*doom) if doom else open(1, "w", closefd=False)
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
