"""The folder of a server: scans under names that it made, the queue, and what became of each."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path

from scorefusion.batch.folders import STATE
from scorefusion.batch.item import Item
from scorefusion.batch.leftovers import remove_leftovers
from scorefusion.batch.lock import FolderLock
from scorefusion.batch.outcome import Outcome
from scorefusion.batch.queue import Entry, Queue, queue_name
from scorefusion.errors import BadInput

_ID = re.compile(r"[0-9a-f]{32}")


class Shelf:
    """Scans on the disk. Safe to use from several threads; one process at a time.

    Args:
        folder: made if missing. ``inputs/ID/0.nii.gz`` ... and ``outputs/ID.nii.gz`` lie in it.

    Raises:
        BadInput: if it cannot be written, or another process has it.
    """

    def __init__(self, folder: Path):
        self.folder = folder.absolute()
        self.inputs, self.outputs = self.folder / "inputs", self.folder / "outputs"
        self.uploads = self.folder / STATE / "uploads"
        self.changed = threading.Condition()
        try:
            for each in (self.inputs, self.outputs, self.uploads):
                each.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(self.folder / STATE / "lock")
            self._lock.take()
        except OSError as error:
            problem = f"cannot be written to ({error.strerror or error})"
            raise BadInput(folder, problem, "Choose another folder.") from None
        try:
            self.queue = Queue(self.folder / STATE / queue_name(None))
            items = [self.item(entry.name) for entry in self.queue.entries()]
            self.queue.begin(items, self.outputs)
            self._sweep(items)
        except (OSError, sqlite3.Error) as error:
            self._lock.release()
            raise BadInput(folder, f"its queue cannot be read ({error})", "Choose another folder.") from None

    def close(self) -> None:
        """Let another process have the folder."""
        self.queue.close()
        self._lock.release()

    def item(self, scan: str) -> Item:
        """A scan as an item of the queue."""
        files = sorted(
            (self.inputs / scan).glob("[0-9]*.nii*"), key=lambda file: int(file.name.split(".")[0])
        )
        return Item(scan, tuple(files), self.outputs / f"{scan}.nii.gz")

    def add(self, files: Sequence[Path], name: str) -> str:
        """Take files, which are moved, as a scan that waits.

        Args:
            files: the conditions, in the model's order, from ``uploads``.
            name: what the client calls it; only ever shown.

        Returns:
            The scan's id.
        """
        scan = secrets.token_hex(16)
        (self.inputs / scan).mkdir()
        for number, file in enumerate(files):
            with file.open("rb") as stream:
                ending = ".nii.gz" if stream.read(2) == b"\x1f\x8b" else ".nii"
            file.rename(self.inputs / scan / f"{number}{ending}")
        self.queue.set_facts({scan: json.dumps(name)})
        self.queue.add(self.item(scan), self.outputs)
        with self.changed:
            self.changed.notify_all()
        return scan

    def remove(self, scan: str) -> None:
        """Forget a scan and remove its files."""
        self.queue.drop(scan)
        shutil.rmtree(self.inputs / scan, ignore_errors=True)
        (self.outputs / f"{scan}.nii.gz").unlink(missing_ok=True)

    def entry(self, scan: str) -> Entry | None:
        """What the queue has on a scan; None for an id that is none of the server's."""
        if not _ID.fullmatch(scan):
            return None
        return next((entry for entry in self.queue.entries() if entry.name == scan), None)

    def entries(self) -> list[Entry]:
        """All scans, in the order they came."""
        return self.queue.entries()

    def names(self) -> dict[str, str]:
        """What clients call their scans, by id."""
        return {scan: json.loads(text) for scan, text in self.queue.facts().items() if _ID.fullmatch(scan)}

    def next(self) -> str | None:
        """The scan that waits longest, marked as running; or one that was left in the middle."""
        for entry in self.queue.entries():
            if entry.state in ("waiting", "running"):
                self.queue.mark(entry.name, "running")
                return entry.name
        return None

    def record(self, outcome: Outcome) -> None:
        """Put down what came of a scan."""
        self.queue.record(outcome)

    def _sweep(self, items: Sequence[Item]) -> None:
        """Remove what a process that was killed left: uploads, and files of scans that are not known."""
        known = {item.name for item in items}
        for folder in self.uploads.iterdir():
            shutil.rmtree(folder, ignore_errors=True)
        remove_leftovers(item.output for item in items)
        for folder in self.inputs.iterdir():
            if _ID.fullmatch(folder.name) and folder.name not in known:
                shutil.rmtree(folder, ignore_errors=True)
        for file in self.outputs.glob("*.nii.gz"):
            scan = file.name.removesuffix(".nii.gz")
            if _ID.fullmatch(scan) and scan not in known:
                file.unlink()
