"""Threads beside the compute that do not take its cores for themselves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def side_threads(count: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of threads whose operations in PyTorch run on one core each.

    So they do not wait at the barriers of the sampling's threads, and what they compute is the same however
    many cores there are. PyTorch keeps a number of threads for each thread that runs, and one for those to
    come; the latter is put back.

    Args:
        count: how many.
        name: of the threads.
    """
    usual = torch.get_num_threads()
    started = threading.Barrier(count + 1)

    def begin() -> None:
        torch.get_num_threads()  # takes the number for new threads, which would otherwise be taken later
        torch.set_num_threads(1)
        started.wait()

    with ThreadPoolExecutor(count, name) as pool:
        for _ in range(count):
            pool.submit(begin)
        started.wait()
        torch.set_num_threads(usual)
        yield pool
