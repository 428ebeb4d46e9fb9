"""Writes a batch's report from its books: at the end, and now and then while it runs."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from scorefusion.batch.folders import STATE
from scorefusion.batch.page import write_report
from scorefusion.batch.queue import Entry, merged_entries
from scorefusion.batch.row import Row
from scorefusion.errors import BadInput, one_line
from scorefusion.io.atomic import replace_file

REPORT = "report.html"
EVERY = 300.0
"""Seconds between reports while a batch runs."""


def report(out: Path, *, key: str = "") -> Path:
    """Write OUT/report.html from the queues of all shards; whole or not at all.

    Args:
        out: the folder of the outputs.
        key: of the file that it is written to first, so that shards do not meet there.

    Raises:
        BadInput: if there is no queue, or the page cannot be written.
    """
    entries, facts = merged_entries(out / STATE)
    told = {**json.loads(facts.get("report", "{}")), "written": time.strftime("%Y-%m-%d %H:%M")}
    title = f"scorefusion: {out.resolve().name}"
    final = out / REPORT
    what = {"title": title, "facts": told, "ignored": json.loads(facts.get("ignored", "[]"))}
    if final.is_symlink():  # perhaps onto another file system, where nothing can be renamed to
        return write_report(final, rows_of(entries), **what)
    beside = write_report(out / STATE / f"report{key}.html", rows_of(entries), **what)
    try:
        replace_file(beside, final)
    except OSError as error:
        fix = "Move what has this name, or free some space."
        raise BadInput(final, f"could not be written ({one_line(error)})", fix) from error
    return final


def rows_of(entries: Iterable[Entry]) -> list[Row]:
    """The report's rows of a queue's entries."""
    return [_row(entry) for entry in entries]


class Reporter:
    """Writes the report in a thread of its own, while a batch goes on.

    Args:
        out: the folder of the outputs.
        key: see :func:`report`.
        every: seconds between reports.
    """

    def __init__(self, out: Path, key: str = "", every: float = EVERY):
        self.out, self.key, self.every = out, key, every
        self._last = time.monotonic()
        self._thread: threading.Thread | None = None

    def now_and_then(self) -> None:
        """Begin a report if the last one is old; one that fails is made up for by the last."""
        if time.monotonic() - self._last < self.every or (self._thread and self._thread.is_alive()):
            return
        self._last = time.monotonic()
        self._thread = threading.Thread(target=self._write, name="scorefusion-report", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # the system has no thread to spare
            self._thread = None

    def finish(self) -> str | None:
        """Write the last one.

        Returns:
            Why it could not be written; None if it was.
        """
        if self._thread is not None:
            self._thread.join()
        return self._write()

    def _write(self) -> str | None:
        try:
            report(self.out, key=self.key)
        except Exception as error:
            return f"the report was not written ({one_line(error)}); --report-only writes it again"
        return None


def _row(entry: Entry) -> Row:
    outcome = entry.outcome
    done = entry.state == "done"
    return Row(
        name=entry.name,
        state="done" if done else "failed" if entry.state == "failed" else "waiting",
        inputs=entry.inputs,
        output=entry.output if done and not Path(entry.output).is_absolute() else None,
        seconds=sum(outcome.seconds.values()) if done else None,
        residual=outcome.residual,
        warnings=outcome.warnings,
        error=outcome.error,
        fix=outcome.fix,
        before=outcome.before,
        after=outcome.after,
        numbers=outcome.numbers,
    )
