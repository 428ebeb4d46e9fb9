"""A pipeline that loads its model when it is first used, once in each process."""

import os
import threading
from typing import Any

import torch

from scorefusion.pipeline import Pipeline


class LazyPipeline:
    """The arguments of a :class:`~scorefusion.Pipeline`; can be pickled, copied, and carried over a fork.

    A process loads the pipeline at the first call, and all copies in the process share it: each worker of a
    data loader holds one model, and is sent its name, not its weights. A forked process computes with one
    thread (docs/embed.md).

    Args:
        model: a bundled model's name, or a model folder.
        options: of :class:`~scorefusion.Pipeline`, such as ``device``.
    """

    _loaded: dict[Any, Pipeline] = {}
    _lock = threading.Lock()

    def __init__(self, model: str | os.PathLike[str], **options: Any) -> None:
        self.model = os.fspath(model)
        self.options = {
            name: str(value) if isinstance(value, torch.device | os.PathLike) else value
            for name, value in options.items()
        }

    def __call__(self) -> Pipeline:
        """The pipeline of this process.

        Raises:
            ScoreFusionError: as for :class:`~scorefusion.Pipeline`.
        """
        key = (os.getpid(), self.model, *sorted(self.options.items()))
        with self._lock:
            if key not in self._loaded:
                self._loaded[key] = Pipeline(self.model, **self.options)
            return self._loaded[key]


def _renew_lock() -> None:
    """A child must not inherit a lock that another thread of its parent held."""
    LazyPipeline._lock = threading.Lock()
    LazyPipeline._loaded = {}


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
