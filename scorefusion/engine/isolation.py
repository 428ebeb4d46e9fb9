"""Computing whatever a caller has set for its own PyTorch code, and in forked processes."""

import contextlib
import os
import threading
import weakref
from collections.abc import Iterator
from typing import Protocol

import torch

from scorefusion.errors import ScoreFusionError


class _HasLock(Protocol):
    _lock: threading.Lock


#: in a forked process, the thread that it began with: the threads of its OpenMP team stayed in the parent.
_forked: int | None = None
_locked: weakref.WeakSet[_HasLock] = weakref.WeakSet()


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Compute as if the caller had set nothing: keep its autocast, inference mode and default device out.

    All three belong to the calling thread and are as before when the block ends. Of a caller that set none
    nothing is touched. Autocast would compute in another dtype than was asked for, buffers made in inference
    mode could not be written outside it, and a default device would put new tensors elsewhere.
    """
    if _forked == threading.get_ident() and torch.get_num_threads() > 1:
        torch.set_num_threads(1)  # for good: PyTorch would wait for a second that the fork did not copy
    with contextlib.ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


def renew_lock_after_fork(owner: _HasLock) -> None:
    """Give an object a new ``_lock`` in every forked process: another thread may hold it at that moment."""
    _locked.add(owner)


def require_device_after_fork(device: torch.device) -> None:
    """Refuse CUDA in a process that was forked after its parent had used CUDA."""
    if device.type == "cuda" and getattr(torch.cuda, "_is_in_bad_fork", bool)():
        raise ScoreFusionError(
            "this process was forked from one that had used CUDA, which cannot be used again in it; start "
            "workers with 'spawn' (multiprocessing_context='spawn'), or compute with device='cpu'"
        )


def _after_fork() -> None:
    global _forked
    _forked = threading.get_ident()
    for owner in list(_locked):
        owner._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
