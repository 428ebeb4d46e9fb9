"""A model of the level-2 cache that tells which accesses of a kernel reach memory.

Memory is a row of 32-byte sectors. A sector stays resident as long as the distinct sectors touched since its
last use are no more than the cache holds: a stack of sectors, least recently used last. What a load finds
resident costs nothing, and so does a store to what was stored since it became resident. All else is moved:

    bytes     of each element loaded or stored, once for each time it has to be
    sectors   the same in whole sectors of 32 bytes, which is what memory moves: a read of every eighth
              float32 costs eight times its bytes

Both are exact for the order the accesses are given in. The capacity is a parameter of the model, so several
caches can be followed at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SECTOR = 32


@dataclass
class Moved:
    """Bytes that reach memory."""

    read: int = 0
    written: int = 0
    read_sectors: int = 0
    written_sectors: int = 0


class Cache:
    """What one capacity holds.

    Args:
        capacity: bytes.
        sectors: sectors of memory in all.
    """

    def __init__(self, capacity: int, sectors: int):
        self.capacity = capacity // SECTOR
        self.moved = Moved()
        self.horizon = 0  # what was last used before this time is no longer resident
        self.held = 0
        self.present = np.zeros((sectors, SECTOR), dtype=bool)
        self.stored = np.zeros((sectors, SECTOR), dtype=bool)
        self.filled = np.zeros(sectors, dtype=bool)
        self.dirty = np.zeros(sectors, dtype=bool)


class Memory:
    """The memory of one launch, seen through caches of several sizes.

    Args:
        size: bytes; addresses are 0 .. size - 1.
        capacities: bytes of each cache.
    """

    def __init__(self, size: int, capacities: Sequence[int]):
        sectors = -(-size // SECTOR)
        self.raw_read = self.raw_written = 0
        self.caches = [Cache(capacity, sectors) for capacity in capacities]
        self._last = np.full(sectors, -1, dtype=np.int64)
        self._mark = np.zeros(sectors, dtype=np.int64)
        self._live = np.zeros(1024, dtype=np.int64)  # sectors last used at each time
        self._time = 0

    def access(self, addresses: NDArray[np.int64], width: int, store: bool) -> None:
        """Count one load or store: the address of each lane that takes part, and an element's bytes."""
        if addresses.size == 0:
            return
        if store:
            self.raw_written += addresses.size * width
        else:
            self.raw_read += addresses.size * width
        touched = addresses // SECTOR
        order = np.arange(touched.size)
        self._mark[touched] = order
        sectors = touched[self._mark[touched] == order]
        before = self._last[sectors]
        for cache in self.caches:
            _forget(cache, sectors[(before >= 0) & (before < cache.horizon)])
            if store:
                _store(cache, addresses, sectors, width)
            else:
                _load(cache, addresses, sectors, width)
        self._use(sectors, before)

    def _use(self, sectors: NDArray[np.int64], before: NDArray[np.int64]) -> None:
        """Make the sectors the most recently used, and let each cache forget what no longer fits."""
        if self._time == self._live.size:
            self._live = np.concatenate([self._live, np.zeros_like(self._live)])
        np.subtract.at(self._live, before[before >= 0], 1)
        self._live[self._time] = sectors.size
        self._last[sectors] = self._time
        for cache in self.caches:
            cache.held += sectors.size - int(np.count_nonzero((before >= 0) & (before >= cache.horizon)))
            while cache.held > cache.capacity:
                cache.held -= int(self._live[cache.horizon])
                cache.horizon += 1
        self._time += 1


def _forget(cache: Cache, sectors: NDArray[np.int64]) -> None:
    if sectors.size:
        cache.present[sectors] = False
        cache.stored[sectors] = False
        cache.filled[sectors] = False
        cache.dirty[sectors] = False


def _load(cache: Cache, addresses: NDArray[np.int64], sectors: NDArray[np.int64], width: int) -> None:
    fresh = _set(cache.present, addresses, sectors)
    cache.moved.read += int(fresh.sum()) * width
    missing = sectors[(fresh > 0) & ~cache.filled[sectors]]
    cache.filled[missing] = True
    cache.moved.read_sectors += missing.size * SECTOR


def _store(cache: Cache, addresses: NDArray[np.int64], sectors: NDArray[np.int64], width: int) -> None:
    fresh = _set(cache.stored, addresses, sectors)
    cache.present.reshape(-1)[addresses] = True
    cache.moved.written += int(fresh.sum()) * width
    clean = sectors[~cache.dirty[sectors]]
    cache.dirty[clean] = True
    cache.moved.written_sectors += clean.size * SECTOR


def _set(
    flags: NDArray[np.bool_], addresses: NDArray[np.int64], sectors: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Set the flag of each element, its first byte's; return how many were new in each sector."""
    before = flags[sectors].sum(axis=1)
    flags.reshape(-1)[addresses] = True
    return flags[sectors].sum(axis=1) - before
