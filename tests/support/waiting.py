"""Wait for what another process or thread does, however busy the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")
PATIENCE = 600.0
"""Seconds after which what is waited for is taken to hang."""


def until(condition: Callable[[], Value], pause: float = 0.01) -> Value:
    """Return the first true value of a condition, asked every `pause` seconds."""
    end = time.monotonic() + PATIENCE
    while not (value := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"still {value!r} after {PATIENCE:.0f} s")
        time.sleep(pause)
    return value
