"""One process for a folder of outputs, or for a shard of one."""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from scorefusion.errors import BadInput

_UNSUPPORTED = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL}


class FolderLock:
    """Held from :meth:`take` to :meth:`release`, or until the process ends, however it ends.

    Where the file system knows ``flock``, the system keeps it. Elsewhere a file made with ``O_EXCL`` does,
    and one whose process is gone from this machine is taken over.

    Args:
        path: the lock's file; its folder exists.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file: int | None = None
        self._exclusive: Path | None = None

    def take(self, *, flock: bool = True, shared: bool = False) -> str | None:
        """Take the lock.

        Args:
            flock: False to do as if the file system did not know it.
            shared: together with others that share it.

        Returns:
            A note about a run that ended without giving it back, or None.

        Raises:
            BadInput: if another process has it, saying which.
            OSError: if the file cannot be written.
        """
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            locked = flock and _flock(self._file, shared)
        except BlockingIOError:
            holder = self._holder()
            self._close()
            raise self._refusal(holder) from None
        if not locked and not shared:
            try:
                self._take_exclusively()
            except BaseException:
                self._close()
                raise
        if shared:
            return None
        left = self._holder()
        mine = {"pid": os.getpid(), "host": socket.gethostname(), "started": time.time()}
        os.ftruncate(self._file, 0)
        os.lseek(self._file, 0, os.SEEK_SET)
        os.write(self._file, json.dumps(mine).encode())
        if not left:
            return None
        return f"the last run here ({_who(left)}) ended without saying so; going on where it stopped"

    def release(self) -> None:
        """Give the lock back."""
        if self._file is None:
            return
        try:
            os.ftruncate(self._file, 0)
        except OSError:
            pass  # A full or vanished disk: the next run notes that this one ended without saying so.
        if self._exclusive is not None:
            self._exclusive.unlink(missing_ok=True)
            self._exclusive = None
        self._close()

    def _take_exclusively(self) -> None:
        """Make a file that must not exist; one left by a dead process of this machine is removed first."""
        beside = self.path.with_name(self.path.name + ".held")
        for attempt in range(2):
            try:
                os.close(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
                self._exclusive = beside
                return
            except FileExistsError:
                holder = self._holder()
                here = holder.get("host") == socket.gethostname()
                if attempt or not here or _alive(int(holder.get("pid", 0))):
                    raise self._refusal(holder, beside) from None
                beside.unlink(missing_ok=True)

    def _holder(self) -> dict[str, Any]:
        assert self._file is not None
        os.lseek(self._file, 0, os.SEEK_SET)
        try:
            found = json.loads(os.read(self._file, 4096) or b"{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _refusal(self, holder: dict[str, Any], beside: Path | None = None) -> BadInput:
        fix = "Wait for it, or choose another folder."
        if beside is not None:
            fix = f"If that process is gone, remove {beside}."
        return BadInput(self.path.parent.parent, f"is being written to by another run ({_who(holder)})", fix)

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _flock(file: int, shared: bool) -> bool:
    """Lock with the system's help; False where it has none.

    Raises:
        BlockingIOError: if another process has it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        return False
    return True


def _who(holder: dict[str, Any]) -> str:
    if not holder:
        return "process unknown"
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(holder.get("started", 0))))
    return f"process {holder.get('pid')} on {holder.get('host')}, since {started}"


def _alive(pid: int) -> bool:
    if pid <= 0:
        return False
    if os.name == "nt":  # where a signal of 0 is not a question
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
