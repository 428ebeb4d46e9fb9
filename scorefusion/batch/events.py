"""What a batch tells while it runs: dictionaries that JSON takes, one at a time."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from scorefusion.batch.faults import Stopped
from scorefusion.errors import Cancelled, one_line

Event = dict[str, Any]
Listener = Callable[[Event], None]


class Teller:
    """Passes events on to a listener, from any thread, one at a time, with the time.

    A listener that raises gets no further events, and the batch goes on; :class:`Stopped` and
    :class:`Cancelled` end the batch as they are meant to.

    Args:
        listener: gets dictionaries with ``event`` (started, item-started, item-done, item-failed, item-kept,
            note, finished), ``time`` (seconds since 1970) and what docs/batch.md lists.

    Attributes:
        counts: events so far by name.
        unreported: what could not be reported, and why; a sentence each.
    """

    def __init__(self, listener: Listener | None = None):
        self._listener, self._lock = listener, threading.Lock()
        self.counts: Counter[str] = Counter()
        self.unreported: list[str] = []

    def __call__(self, event: str, **fields: Any) -> None:
        """Pass one event on."""
        with self._lock:
            self.counts[event] += 1
            if self._listener is None:
                return
            try:
                self._listener({"event": event, "time": round(time.time(), 3), **fields})
            except (Stopped, Cancelled):
                raise
            except Exception as error:
                self._listener = None
                self.unreported.append(f"no event after '{event}' was passed on ({one_line(error)})")
