"""Train by the command line: once undisturbed, then in processes that are killed at random moments.

    python tests/killed_runs.py KILLS SEED CONFIG WHOLE KILLED

The last two are folders. Each process is forked from this one, which has everything imported, so that
starting one takes no time. What was killed when is printed as JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

PATIENCE = 60.0


def main(kills: int, seed: int, config: str, whole: str, killed: str) -> None:
    import matplotlib.figure  # noqa: F401
    import scipy.ndimage  # noqa: F401
    import torch._dynamo  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401
    from accelerate import Accelerator  # noqa: F401

    import scorefusion.train.loop  # noqa: F401

    finish(start(config, whole))
    moments, seen = random.Random(seed), []
    for number in range(kills):
        child = start(config, killed)
        seen.append(wait(Path(killed), moments, number))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            sys.exit(f"run {number} ended with status {status} before it could be killed: {seen}")
    finish(start(config, killed))
    print(json.dumps(seen))


def finish(child: int) -> None:
    _, status = os.waitpid(child, 0)
    if status:
        sys.exit(f"a run ended with status {status}")


def start(config: str, folder: str) -> int:
    """A process that does what ``python -m scorefusion train`` does."""
    child = os.fork()
    if child:
        return child
    from scorefusion.cli import app

    status = 1
    try:
        status = app(["train", config, "-o", folder], standalone_mode=False) or 0
    finally:
        os._exit(status)


def wait(folder: Path, moments: random.Random, number: int) -> str:
    """Wait for a few checkpoints and some milliseconds, or until one is being written; what was seen."""
    checkpoint, beside, log = folder / "checkpoint.pt", folder / "checkpoint.tmp", folder / "log.jsonl"
    before = written(checkpoint)
    end = time.monotonic() + PATIENCE
    wanted = 0 if number == 0 else moments.randint(1, 3)
    count, last = 0, before
    while count < wanted and time.monotonic() < end:
        now = written(checkpoint)
        count, last = count + (now != last), now
        time.sleep(0.0005)
    if number % 3 == 1:
        beside.unlink(missing_ok=True)
        while not beside.exists() and time.monotonic() < end:
            pass
    else:
        time.sleep(moments.uniform(0, 0.05) if number else 0.3)
    rows = len(log.read_text().splitlines()) if log.exists() else 0
    return f"{count} checkpoints on, {rows} rows" + (", one being written" if beside.exists() else "")


def written(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
