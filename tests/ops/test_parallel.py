"""The threads that C++ kernels share: reused, many callers at once, and a forked child has its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from scorefusion.ops import backends
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.skipif(bool(backends.missing("cpp")), reason=str(backends.missing("cpp")))

START = """
import os, threading
import torch
from scorefusion.ops import normal

def draw(threads=None):
    # As bytes: comparing tensors would start PyTorch's own threads, which do not survive a fork.
    if threads is not None:
        torch.set_num_threads(threads)
    return normal((1, 1, 16, 64, 64), [7], 1, backend="cpp").numpy().tobytes()

def threads_now():
    return len(os.listdir("/proc/self/task"))

expected = draw(1)
"""


def run(program: str) -> None:
    code = START + textwrap.dedent(program)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads in /proc")
def test_threads_are_reused() -> None:
    run("""
        before = threads_now()
        for _ in range(50):
            assert draw(4) == expected
        assert threads_now() == before + 3
    """)


def test_callers_at_once() -> None:
    run("""
        torch.set_num_threads(3)
        wrong = []
        def call():
            for _ in range(30):
                if draw() != expected:
                    wrong.append(1)
        callers = [threading.Thread(target=call) for _ in range(5)]
        for caller in callers: caller.start()
        for caller in callers: caller.join()
        assert not wrong
    """)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_computes() -> None:
    run("""
        assert draw(4) == expected
        child = os.fork()
        if child == 0:
            os._exit(0 if draw() == expected else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert draw(4) == expected
    """)
