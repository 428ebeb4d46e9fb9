"""The thread that translates what waits, one scan after another."""

from __future__ import annotations

import threading

from scorefusion.batch.faults import StopFlag, Stopped
from scorefusion.batch.work import Work
from scorefusion.batch.worker import translate_item
from scorefusion.serve.shelf import Shelf

PAUSE = 10.0
"""Seconds before it goes on after the disk could not be written."""


class Bench(threading.Thread):
    """Works the shelf off.

    Args:
        shelf: what waits.
        work: how.
    """

    def __init__(self, shelf: Shelf, work: Work):
        super().__init__(name="scorefusion-serve", daemon=True)
        self.shelf, self.work = shelf, work
        self.trouble: str | None = None
        self._stop_flag, self._gone = StopFlag(), threading.Event()
        self._lock = threading.Lock()
        self._running: tuple[str, StopFlag] | None = None
        self._progress = 0.0

    def progress(self, scan: str) -> float:
        """How far a scan is that is being translated, from 0 to 1."""
        with self._lock:
            return self._progress if self._running and self._running[0] == scan else 0.0

    def remove(self, scan: str) -> None:
        """Remove a scan; if it is being translated, that ends."""
        with self._lock:
            if self._running is None or self._running[0] != scan:
                self.shelf.remove(scan)
                return
            self._running[1].set(Stopped("deleted"))

    def close(self) -> None:
        """End what is under way, which waits again, and the thread."""
        self._stop_flag.set(Stopped("the server ends"))
        self._gone.set()
        with self.shelf.changed:
            self.shelf.changed.notify_all()
        if self.is_alive():
            self.join()

    def run(self) -> None:
        """Translate until :meth:`close`."""
        while not self._gone.is_set():
            try:
                self._step()
            except Exception as error:  # the disk, the queue or the model: no scan is to blame
                self.trouble = " ".join(str(error).split())
                self._gone.wait(PAUSE)

    def _step(self) -> None:
        """Translate one scan, or wait for one."""
        flag = StopFlag()
        with self._lock:
            scan = self.shelf.next()
            self._running = None if scan is None else (scan, flag)
            self._progress = 0.0
        if scan is not None:
            try:
                self._translate(scan, flag)
            finally:
                with self._lock:
                    self._running = None
            return
        with self.shelf.changed:
            if not self._gone.is_set():
                self.shelf.changed.wait(timeout=1.0)

    def _translate(self, scan: str, flag: StopFlag) -> None:
        def step(done: int, total: int) -> None:
            self._stop_flag.check()
            flag.check()
            self._progress = done / max(1, total)

        try:
            outcome = translate_item(self.work, self.shelf.item(scan), step)
        except BaseException:
            with self._lock:
                self._running = None
                if flag.reason is not None:
                    self.shelf.remove(scan)
                    return
                self.shelf.queue.mark(scan, "waiting")
            if not self._gone.is_set():
                raise
            return
        with self._lock:
            self._running = None
            if flag.reason is not None:
                self.shelf.remove(scan)
            else:
                self.shelf.record(outcome)
        self.trouble = None
