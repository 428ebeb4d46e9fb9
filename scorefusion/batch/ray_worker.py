"""What runs in a process of Ray: a loaded model that translates the items it is sent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import scorefusion
from scorefusion.batch.faults import StopFlag, Stopped
from scorefusion.batch.item import Item
from scorefusion.batch.outcome import Outcome
from scorefusion.batch.work import Work
from scorefusion.batch.worker import Identity, Worker, failure
from scorefusion.engine.planning.memory import keep_freed_memory
from scorefusion.errors import BadInput, ScoreFusionError


@dataclass(frozen=True)
class Answer:
    """What a worker says of an item.

    Attributes:
        outcome: what came of it; None if the worker had to stop.
        identity: which bytes it was made of, if that was found out.
        stopped: (reason, fix) where all must stop.
    """

    outcome: Outcome | None
    identity: Identity | None = None
    stopped: tuple[str, str] | None = None


class RayWorker:
    """The actor. ``ready`` comes first; ``stop`` may come while ``translate`` runs, from another thread.

    Args:
        work: how; its dtype is not ``auto``.
        out: the folder of the outputs, the same on all machines.
        recipe: what decides the outputs' bits where the batch was started.
        version: of scorefusion there.
    """

    def __init__(self, work: Work, out: Path, recipe: dict[str, Any], version: str):
        self.work, self.out, self.recipe, self.version = work, out, recipe, version
        self._stop = StopFlag()
        self._worker: Worker | None = None

    def ready(self) -> int:
        """Load the model.

        Returns:
            This process's id.

        Raises:
            ScoreFusionError: where this machine would write something else than the one that asks.
        """
        import os
        import socket

        here = socket.gethostname()
        if self.version != scorefusion.__version__:
            raise ScoreFusionError(f"{here} has scorefusion {scorefusion.__version__}, not {self.version}")
        if not self.out.is_dir():
            raise BadInput(self.out, f"is not there on {here}", "Use a folder that all machines share.")
        if self.work.recipe() != self.recipe:
            raise ScoreFusionError(f"{here} has another model under the name {self.work.model}")
        if self.work.max_memory is None:
            keep_freed_memory()
        self._worker = Worker(self.work, self.out, self.recipe)
        return os.getpid()

    def translate(self, item: Item) -> Answer:
        """Read, draw and write one item."""
        assert self._worker is not None
        identity = None
        try:
            self._stop.check()
            identity = self._worker.identify(item)
            return Answer(self._worker.translate(item, self._stop.check, identity), identity)
        except Stopped as stop:
            return Answer(None, identity, (stop.reason, stop.fix))
        except ScoreFusionError as error:
            return Answer(failure(item, error), identity)

    def stop(self) -> None:
        """End what is being drawn, and whatever comes after it."""
        self._stop.set(Stopped("the batch was stopped"))
