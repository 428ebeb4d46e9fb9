"""What a batch tells while it runs: dictionaries that JSON takes, one at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

Event = dict[str, Any]
Listener = Callable[[Event], None]


class Teller:
    """Passes events on to a listener, from any thread, one at a time, with the time.

    Args:
        listener: gets dictionaries with ``event`` (started, item-started, item-done, item-failed, item-kept,
            note, finished), ``time`` (seconds since 1970) and what docs/batch.md lists.
    """

    def __init__(self, listener: Listener | None = None):
        self._listener, self._lock = listener, threading.Lock()

    def __call__(self, event: str, **fields: Any) -> None:
        """Tell one."""
        if self._listener is None:
            return
        with self._lock:
            self._listener({"event": event, "time": round(time.time(), 3), **fields})
