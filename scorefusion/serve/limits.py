"""How much clients may ask of a server."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from scorefusion.errors import ScoreFusionError

_CLIENTS = 10_000


@dataclass(frozen=True)
class Limits:
    """What is refused.

    Attributes:
        upload: bytes of a request's body.
        waiting: scans that wait or are being uploaded.
        kept: scans in all; older ones must be deleted first.
        rate: requests a second of a client, in the long run.
        burst: requests of a client at once.
        upload_time: seconds within which a request's body must have come.
    """

    upload: int = 512 * 2**20
    waiting: int = 32
    kept: int = 1000
    rate: float = 10.0
    burst: int = 40
    upload_time: float = 600.0

    def __post_init__(self) -> None:
        """Refuse a server that refuses everything."""
        if min(vars(self).values()) <= 0:
            raise ScoreFusionError("a server's limits must be above 0")


class Rate:
    """A bucket of tokens for each client: one a request, filled at a steady rate.

    Args:
        rate: tokens a second.
        burst: that a bucket holds.
        clock: seconds.
    """

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic):
        self.rate, self.burst, self.clock = rate, burst, clock
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> float:
        """Take a token.

        Returns:
            0, or the seconds until there is one.
        """
        with self._lock:
            now = self.clock()
            left, then = self._buckets.pop(client, (float(self.burst), now))
            left = min(float(self.burst), left + (now - then) * self.rate)
            wait = 0.0 if left >= 1 else (1 - left) / self.rate
            self._buckets[client] = (left - 1 if left >= 1 else left), now
            if len(self._buckets) > _CLIENTS:
                self._buckets.popitem(last=False)
            return wait
