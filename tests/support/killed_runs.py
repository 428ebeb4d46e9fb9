"""Train by the command line: once undisturbed, then in processes that are killed at random moments.

    python tests/support/killed_runs.py KILLS SEED CONFIG WHOLE KILLED

The last two are folders. Each process is forked from this one, which has everything imported, so that
starting one takes no time. It kills itself: halfway through a checkpoint, or after one and some of its own
processor time, so that it comes as far on a busy machine. What was killed when is printed as JSON.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any


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
        after = moments.randint(1, 2) if number else 0
        writing = number % 3 == 1
        child = start(config, killed, doom, after, writing, moments.uniform(0.001, 0.05 if number else 0.3))
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            sys.exit(f"run {number} ended with status {status} before it could be killed: {seen}")
        seen.append(state(Path(killed), after))
    finish(start(config, killed))
    print(json.dumps(seen))


def finish(child: int) -> None:
    _, status = os.waitpid(child, 0)
    if status:
        sys.exit(f"a run ended with status {status}")


def start(config: str, folder: str, prepare: Any = None, *arguments: Any) -> int:
    """A process that does what ``python -m scorefusion train`` does."""
    child = os.fork()
    if child:
        return child
    if prepare is not None:
        prepare(*arguments)
    from scorefusion.cli import app

    status = 1
    try:
        status = app(["train", config, "-o", folder], standalone_mode=False) or 0
    finally:
        os._exit(status)


def doom(after: int, writing: bool, seconds: float) -> None:
    """Kill this process in the middle of a checkpoint, the `after`-th, or by a timer that starts after it.

    The timer counts seconds of processor time; its signal, which nobody handles, ends the process at once.
    """
    import torch

    save, count = torch.save, itertools.count(1)

    def last(content: Any, file: Any) -> None:
        number = next(count)
        if number == after and writing:
            whole = io.BytesIO()
            save(content, whole)
            file.write(whole.getvalue()[: whole.tell() // 2])
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        save(content, file)
        if number == after:
            signal.setitimer(signal.ITIMER_PROF, seconds)

    torch.save = last
    if after == 0:
        signal.setitimer(signal.ITIMER_PROF, seconds)


def state(folder: Path, after: int) -> str:
    """What a kill left."""
    beside, log = folder / "checkpoint.tmp", folder / "log.jsonl"
    rows = len(log.read_text().splitlines()) if log.exists() else 0
    return f"{after} checkpoints on, {rows} rows" + (", one being written" if beside.exists() else "")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
