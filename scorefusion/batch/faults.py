"""Whose fault an error is: the item's, which fails alone, or the machine's, which ends the run."""

from __future__ import annotations

import errno
import sqlite3
import threading

from scorefusion.errors import ScoreFusionError

_ITEMS = {
    errno.EEXIST,
    errno.EFBIG,
    errno.EILSEQ,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.ENOTEMPTY,
}
"""Errors of the system while writing that another output of the batch need not meet."""

_FIXES = {
    errno.ENOSPC: "Free some space",
    errno.EDQUOT: "Free some of your quota",
    errno.EROFS: "Make the file system writable",
    errno.EACCES: "Restore the permission to write",
    errno.EPERM: "Restore the permission to write",
    errno.ENOENT: "Bring the folder back",
    errno.EIO: "Check the disk",
    errno.ESTALE: "Mount the file system again",
}


class Stopped(Exception):
    """The batch must end here, and can be resumed; no item is to blame.

    Args:
        reason: why, in one line.
        fix: what to do before resuming; may be empty.
    """

    def __init__(self, reason: str, fix: str = "") -> None:
        self.reason, self.fix = reason, fix
        super().__init__(f"{reason}. {fix}".rstrip())


class StopFlag:
    """Set by whoever finds that a batch must end; the first reason counts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.reason: Stopped | None = None

    def set(self, reason: Stopped) -> None:
        """End the batch."""
        with self._lock:
            self.reason = self.reason or reason

    def check(self, *_: object) -> None:
        """Raise the reason, if there is one."""
        if self.reason is not None:
            raise self.reason


def stop_for(error: BaseException, place: str) -> Stopped | None:
    """What ends the batch, where an error met while writing is not the item's; else None.

    Args:
        error: as it was raised; a :class:`ScoreFusionError` made from a system's error counts as that one.
        place: what was being written to.
    """
    cause = error.__cause__ if isinstance(error, ScoreFusionError) else error
    if isinstance(cause, sqlite3.Error):
        return Stopped(f"the queue in {place} cannot be written ({cause})", "See that the disk is not full.")
    if not isinstance(cause, OSError) or cause.errno in _ITEMS:
        return None
    reason = cause.strerror or str(cause)
    fix = _FIXES.get(cause.errno or 0, "See what the system says about it")
    return Stopped(f"{place} cannot be written ({reason})", f"{fix}.")
