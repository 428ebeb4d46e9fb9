"""The persistent queue of a batch in SQLite, and the lock that one process holds on it."""

import errno
import json
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from scorefusion.batch.files import Stamp
from scorefusion.batch.items import Item, Outcome, shown
from scorefusion.errors import BadInput

_SCHEMA = """
CREATE TABLE IF NOT EXISTS items (
    name TEXT PRIMARY KEY, position INTEGER, listed INTEGER, state TEXT NOT NULL, work TEXT, inputs TEXT,
    output TEXT, outputs TEXT, error TEXT, fix TEXT, seconds TEXT, residual REAL, warnings TEXT, numbers TEXT,
    before BLOB, after BLOB, changed REAL
);
CREATE TABLE IF NOT EXISTS files (
    path BLOB PRIMARY KEY, size INTEGER, mtime INTEGER, inode INTEGER, sha256 TEXT
);
CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, value TEXT);
"""
_JSON = ("outputs", "seconds", "warnings", "numbers", "inputs")


@dataclass(frozen=True)
class Entry(Outcome):
    """An item as the queue has it: its outcome, which is empty while it waits, and its state."""

    state: str = "waiting"  #: waiting, running, done or failed
    inputs: tuple[str, ...] = ()  #: the files, as text
    output: str = ""  #: the file, relative to the folder of the outputs, as text
    changed: float = 0.0  #: when, in seconds since 1970


class Queue:
    """One shard's items. Safe to use from several threads, by one process at a time (:class:`FolderLock`).

    The database at ``path`` is made if missing; a damaged one is renamed, and a new one begun. Raises
    ``OSError`` or ``sqlite3.Error`` where it cannot be written.
    """

    def __init__(self, path: Path):
        self.path = path
        self.note: str | None = None
        self._lock = threading.Lock()
        try:
            self._db = _open(path)
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
            aside = path.with_name(f"{path.name}.damaged-{int(time.time())}")
            path.rename(aside)
            for ending in ("-wal", "-shm"):
                path.with_name(path.name + ending).unlink(missing_ok=True)
            self.note = f"the queue was damaged ({error}) and is begun anew; the old one is {aside.name}"
            self._db = _open(path)

    def close(self) -> None:
        """Close the database; what is in it stays."""
        with self._lock:
            self._db.close()

    def begin(self, items: Sequence[Item], out: Path) -> None:
        """Take a listing: items that are no longer in it drop out of the report, new ones wait.

        What was running when the last run ended waits again.
        """
        rows = [
            (item.name, place, json.dumps(item.inputs), shown(item.output, out))
            for place, item in enumerate(items)
        ]
        listing = (
            "INSERT INTO items (name, position, listed, state, inputs, output) "
            "VALUES (?, ?, 1, 'waiting', ?, ?) ON CONFLICT (name) DO UPDATE SET listed = 1, "
            "position = excluded.position, inputs = excluded.inputs, output = excluded.output"
        )
        again = "UPDATE items SET state = 'waiting' WHERE state = 'running'"
        self._write(("UPDATE items SET listed = 0", [()]), (again, [()]), (listing, rows))

    def adopt(self, other: Path) -> None:
        """Take over what another queue of the folder has done: a run in shards goes on where one did not."""
        columns = "state, work, outputs, seconds, residual, warnings, numbers, before, after, changed"
        with self._lock:
            self._db.execute("ATTACH ? AS other", (str(other),))
            try:
                with self._db:
                    self._db.execute(
                        f"UPDATE items SET ({columns}, error, fix) = (SELECT {columns}, NULL, NULL "
                        "FROM other.items AS found WHERE found.name = items.name) WHERE state <> 'done' "
                        "AND name IN (SELECT name FROM other.items WHERE state = 'done')"
                    )
                    self._db.execute("INSERT OR IGNORE INTO files SELECT * FROM other.files")
            finally:
                self._db.execute("DETACH other")

    def mark(self, name: str, state: str) -> None:
        """Record that an item is waiting or running."""
        change = "UPDATE items SET state = ?, changed = ? WHERE name = ?"
        self._write((change, [(state, time.time(), name)]))

    def record(self, outcome: Outcome) -> None:
        """Record what became of an item; returns when it is on its way to the disk."""
        values = {field.name: getattr(outcome, field.name) for field in fields(Outcome)}
        values |= {name: json.dumps(values[name]) for name in _JSON if name in values}
        values |= {"state": "failed" if outcome.error else "done", "changed": time.time()}
        assignments = ", ".join(f"{column} = ?" for column in values)
        change = f"UPDATE items SET {assignments} WHERE name = ?"
        self._write((change, [(*values.values(), outcome.name)]))

    def entries(self, *, pictures: bool = False) -> list[Entry]:
        """Return the listed items, in order; the small pictures are most of the database."""
        columns = ", ".join(field.name for field in fields(Entry))
        if not pictures:
            columns = columns.replace("before, after", "NULL, NULL")
        rows = self._read(f"SELECT {columns} FROM items WHERE listed = 1 ORDER BY position")
        return [_entry(row) for row in rows]

    def outputs(self) -> list[str]:
        """Return every output that was ever listed, relative to the folder of the outputs."""
        return [row[0] for row in self._read("SELECT output FROM items WHERE output IS NOT NULL")]

    def known_hash(self, path: Path, stamp: Stamp) -> str | None:
        """Return the hash of a file that had this stamp when it was read; None if it was not."""
        known = "SELECT sha256 FROM files WHERE path = ? AND size = ? AND mtime = ? AND inode = ?"
        rows = self._read(known, _bytes(path), *stamp)
        return rows[0][0] if rows else None

    def keep_hashes(self, files: Iterable[tuple[Path, Stamp, str]]) -> None:
        """Record hashes of files, each with its stamp from before it was read."""
        rows = [(_bytes(path), *stamp, sha256) for path, stamp, sha256 in files]
        self._write(("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", rows))

    def set_facts(self, facts: dict[str, str]) -> None:
        """Record facts about the batch for the report."""
        self._write(("INSERT OR REPLACE INTO facts VALUES (?, ?)", list(facts.items())))

    def facts(self) -> dict[str, str]:
        """Return the facts that were set."""
        return dict(self._read("SELECT key, value FROM facts"))

    def _read(self, query: str, *values: Any) -> list[Any]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

    def _write(self, *changes: tuple[str, Sequence[Sequence[Any]]]) -> None:
        """Make changes, each with its rows of values, in one transaction."""
        with self._lock, self._db:
            for change, rows in changes:
                self._db.executemany(change, rows)


def queue_files(state: Path) -> list[Path]:
    """Return the databases of all shards in a state folder."""
    return sorted(path for path in state.glob("queue*.sqlite") if path.is_file())


def known_facts(state: Path) -> dict[str, str]:
    """Return the facts of the readable queues in a state folder, whoever may be writing them."""
    facts: dict[str, str] = {}
    for path in queue_files(state):
        with (
            suppress(sqlite3.Error),
            closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db,
        ):
            facts |= dict(db.execute("SELECT key, value FROM facts").fetchall())
    return facts


def merged_entries(state: Path) -> tuple[list[Entry], dict[str, str]]:
    """Return the latest entry on each item from all queues in a state folder, and the facts."""
    latest: dict[str, Entry] = {}
    facts: dict[str, str] = {}
    if not (paths := queue_files(state)):
        raise BadInput(state, "holds no queue", "Translate something into this folder first.")
    for path in paths:
        try:
            with closing(Queue(path)) as queue:
                facts |= queue.facts()
                for entry in queue.entries(pictures=True):
                    if entry.name not in latest or entry.changed >= latest[entry.name].changed:
                        latest[entry.name] = entry
        except (OSError, sqlite3.Error) as error:
            raise BadInput(path, f"cannot be read ({error})", "Run its shard again.") from error
    return sorted(latest.values(), key=lambda entry: entry.name), facts


def _open(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=30.0, check_same_thread=False)
    try:
        try:
            db.execute("PRAGMA journal_mode=WAL").fetchone()
        except sqlite3.OperationalError:  # a file system without shared memory
            db.execute("PRAGMA journal_mode=DELETE").fetchone()
        db.execute("PRAGMA synchronous=NORMAL")
        db.executescript(_SCHEMA)
        row = db.execute("PRAGMA quick_check").fetchone()
        if row[0] != "ok":
            raise sqlite3.DatabaseError(f"malformed: {row[0]}")
    except BaseException:
        db.close()
        raise
    return db


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    text = str(error).lower()
    return "malformed" in text or "not a database" in text


def _entry(row: Sequence[Any]) -> Entry:
    """Return an entry from its columns in the order of its fields; NULL leaves a field's default."""
    named = {field.name: value for field, value in zip(fields(Entry), row, strict=True) if value is not None}
    values = {name: json.loads(value) if name in _JSON else value for name, value in named.items()}
    return Entry(**values | {name: tuple(values.get(name, ())) for name in ("warnings", "inputs")})


def _bytes(path: Path) -> bytes:
    return str(path.absolute()).encode("utf-8", "surrogateescape")


_UNSUPPORTED = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL}


class FolderLock:
    """Held from :meth:`take` to :meth:`release`, or until the process ends, however it ends.

    The system keeps it where the file system supports ``flock``. Elsewhere a file made with ``O_EXCL`` does,
    and one whose process is gone from this machine is taken over. (filelock has no shared locks, and empties
    the file that names the holder before it knows whether it is free.)
    """

    def __init__(self, path: Path):
        self.path = path
        self._file: int | None = None
        self._exclusive: Path | None = None

    def take(self, *, flock: bool = True, shared: bool = False) -> str | None:
        """Take the lock, ``shared`` with others that share it; note a run that did not release it.

        Without ``flock``: as if the file system did not support it.
        """
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not (flock and _flock(self._file, shared)) and not shared:
                self._take_exclusively()
        except BlockingIOError:
            refusal = self._refusal(self._holder(), "Wait for it, or choose another folder.")
            self._close()
            raise refusal from None
        except BaseException:
            self._close()
            raise
        if shared:
            return None
        left = self._holder()
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "started": time.time()}
        os.ftruncate(self._file, 0)
        os.lseek(self._file, 0, os.SEEK_SET)
        os.write(self._file, json.dumps(holder).encode())
        if not left:
            return None
        return f"the last run here ({_who(left)}) ended without saying so; going on where it stopped"

    def release(self) -> None:
        """Release the lock."""
        if self._file is None:
            return
        with suppress(OSError):  # a full or vanished disk: the next run notes that this one did not say so
            os.ftruncate(self._file, 0)
        if self._exclusive is not None:
            self._exclusive.unlink(missing_ok=True)
            self._exclusive = None
        self._close()

    def _take_exclusively(self) -> None:
        """Make a file that must not exist; one left by a dead process of this machine is removed first."""
        marker = self.path.with_name(self.path.name + ".held")
        for attempt in range(2):
            try:
                os.close(os.open(marker, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
                self._exclusive = marker
                return
            except FileExistsError:
                holder = self._holder()
                here = holder.get("host") == socket.gethostname()
                if attempt or not here or _alive(int(holder.get("pid", 0))):
                    raise self._refusal(holder, f"If that process is gone, remove {marker}.") from None
                marker.unlink(missing_ok=True)

    def _holder(self) -> dict[str, Any]:
        assert self._file is not None
        os.lseek(self._file, 0, os.SEEK_SET)
        holder = None
        with suppress(ValueError):
            holder = json.loads(os.read(self._file, 4096) or b"{}")
        return holder if isinstance(holder, dict) else {}

    def _refusal(self, holder: dict[str, Any], fix: str) -> BadInput:
        return BadInput(self.path.parent.parent, f"is being written to by another run ({_who(holder)})", fix)

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _flock(file: int, shared: bool) -> bool:
    """Lock with the system's help; return False where it has none."""
    try:
        import fcntl

        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except ImportError:  # Windows
        return False
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
    if pid <= 0 or os.name == "nt":  # where signal 0 is not a question
        return pid > 0
    try:
        os.kill(pid, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    return True
