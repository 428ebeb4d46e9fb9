"""Unattended batch translation: list, lock, compare with the queue, translate what is missing, report."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import scorefusion
from scorefusion.batch.files import STATE, identify, remove_leftovers
from scorefusion.batch.items import Item, Shard, StopFlag, Stopped, failure, shown, stop_for
from scorefusion.batch.queue import Entry, FolderLock, Queue, known_facts, queue_files, queue_name
from scorefusion.batch.report import Reporter
from scorefusion.batch.run import Events, Journal, Limits, Listener, Run, is_current
from scorefusion.batch.sources import Query, Source, below, describe_bids, find_items
from scorefusion.batch.worker import Work, Worker
from scorefusion.errors import BadInput, ScoreFusionError
from scorefusion.models.contrast import canonical
from scorefusion.ops.device import choose_device

if TYPE_CHECKING:
    from scorefusion.batch.ray import Cluster, RayRun


@dataclass(frozen=True)
class Batch:
    """What is translated, how, and where to."""

    inputs: tuple[Path, ...]  #: a folder, a table, or NIfTI files
    out: Path  #: the folder of the outputs; made if missing
    work: Work = field(default_factory=Work)  #: how each item is translated
    ending: str = ".nii.gz"  #: of the outputs: ``.nii.gz`` or ``.nii``
    layout: str = "auto"  #: of a folder; see :class:`.sources.Query`, as for the next two
    choose: tuple[str, ...] = ()  #: parts of the path of the right file, where a subject has several
    series: str | None = None  #: the DICOM series to translate
    shard: Shard | None = None  #: only this part of the items
    limits: Limits = field(default_factory=Limits)  #: what may be under way at once
    verify: bool = False  #: hash inputs and outputs again, whatever their times say
    keep_failed: bool = False  #: do not try again what failed

    @property
    def state(self) -> Path:
        """The folder of the queues and locks."""
        return self.out / STATE

    @property
    def key(self) -> str:
        """The shard as part of a file's name."""
        return "" if self.shard is None else f"-{self.shard.number}-of-{self.shard.count}"


@dataclass(frozen=True)
class Summary:
    """How a batch, or a shard of it, stands at the end of a run."""

    done: int  #: translated by this run
    kept: int  #: there already
    failed: int  #: items that failed, now or, where those are kept, before
    left: int  #: items that were not reached
    seconds: float  #: that the run took
    stopped: Stopped | None = None  #: why it ended early, if it did
    #: what could not be reported, events or the page, and why; one sentence each
    unreported: tuple[str, ...] = ()


def translate_batch(
    batch: Batch,
    *,
    listener: Listener | None = None,
    stop: StopFlag | None = None,
    cluster: Cluster | None = None,
) -> Summary:
    """Translate what is not translated yet.

    Args:
        batch: what, how and where to.
        listener: gets events, as docs/batch.md lists them, from any thread, one at a time; one that raises
            gets no further events.
        stop: set it, from a signal's handler or another thread, to end the run.
        cluster: Ray workers that compute, from :func:`.ray.connected`; else this process does.

    Raises:
        ScoreFusionError: where nothing could be started: a model, a source, a folder, another run in it.
    """
    start, stop, events = time.monotonic(), stop or StopFlag(), Events(listener)
    if cluster is not None:
        batch = replace(batch, work=cluster.work(batch.work))
    session = _Session(batch, events, stop, cluster)
    try:
        batch.state.mkdir(parents=True, exist_ok=True)
        locks = _take_locks(batch, events)
    except OSError as error:
        reason = error.strerror or error
        raise BadInput(batch.out, f"cannot be written to ({reason})", "Choose another folder.") from None
    stopped: Stopped | None = None
    try:
        try:
            queue = Queue(batch.state / queue_name(batch.shard))
        except (OSError, sqlite3.Error) as error:
            problem = f"its queue cannot be written ({error})"
            raise BadInput(batch.out, problem, "Free some space, or choose another folder.") from None
        try:
            session.go(queue)
        except (Stopped, BadInput, OSError, sqlite3.Error) as error:
            stopped = error if isinstance(error, Stopped) else stop_for(error, shown(batch.out))
            if stopped is None:
                raise
        finally:
            queue.close()
    finally:
        for lock in reversed(locks):
            lock.release()
    done, kept, failed = (events.counts[event] for event in ("item-done", "item-kept", "item-failed"))
    left, seconds = len(session.items) - done - kept - failed, time.monotonic() - start
    events.emit(
        "finished",
        state="stopped" if stopped else "complete",
        reason=str(stopped) if stopped else None,
        done=done,
        kept=kept,
        failed=failed,
        left=left,
        seconds=round(seconds, 3),
        unreported=list(events.unreported),
    )
    return Summary(done, kept, failed, left, seconds, stopped, tuple(events.unreported))


def _take_locks(batch: Batch, events: Events) -> list[FolderLock]:
    """A run of all items excludes every other; shards exclude only themselves and such a run."""
    whole = FolderLock(batch.state / "lock")
    note = whole.take(shared=batch.shard is not None)
    locks = [whole]
    if batch.shard is not None:
        locks.append(FolderLock(batch.state / f"lock{batch.key}"))
        try:
            note = locks[-1].take()
        except BaseException:
            whole.release()
            raise
    if note:
        events.emit("note", text=note)
    return locks


class _Session:
    """One run of a batch: what it needs to know, found out before the folder is touched."""

    def __init__(self, batch: Batch, events: Events, stop: StopFlag, cluster: Cluster | None):
        self.events, self.stop, self.cluster = events, stop, cluster
        self.device = cluster.device if cluster is not None else choose_device(batch.work.device).type
        if batch.work.dtype == "auto":  # stays what it was when the batch began, whatever is measured now
            facts = known_facts(batch.state)
            if facts.get("device") == self.device and "dtype" in facts:
                batch = replace(batch, work=replace(batch.work, dtype=facts["dtype"]))
        self.batch = batch
        self.recipe = batch.work.recipe() if cluster is None else cluster.recipe(batch.work)
        self.source = self._find()
        self.items = [item for item in self.source.items if not batch.shard or batch.shard.holds(item.name)]

    def _find(self) -> Source:
        batch, config = self.batch, self.batch.work.config()
        query = Query(
            batch.out,
            tuple(canonical(name) for name in config.conditions),
            canonical(config.target),
            batch.ending,
            batch.layout,
            batch.choose,
            batch.series,
            masks=config.degradation.takes_mask,
        )
        source = find_items(batch.inputs, query, sides=batch.work.sides)
        if batch.work.dicom and source.kind != "dicom":
            fix = "Give a folder of DICOM files, or leave --dicom out."
            raise BadInput(batch.inputs[0], "holds no DICOM series, which a derived series needs", fix)
        of_table = source.kind == "table" and any(item.series or item.problem for item in source.items)
        if batch.series is not None and source.kind != "dicom" and not of_table:
            problem = "holds no DICOM series, which --series chooses from"
            raise BadInput(batch.inputs[0], problem, "Give a folder of DICOM files, or leave --series out.")
        return source

    def go(self, queue: Queue) -> None:
        """Bring the queue up to date with the listing, translate what is missing, and report."""
        batch, source, items = self.batch, self.source, self.items
        if queue.note:
            self.events.emit("note", text=queue.note)
        remove_leftovers([*(batch.out / name for name in queue.outputs()), *(item.output for item in items)])
        queue.begin(items, batch.out)
        for other in queue_files(batch.state):
            if other != queue.path:
                queue.adopt(other)
        ignored = below(batch.inputs[0], source.ignored)
        queue.set_facts({**self._facts(), "ignored": json.dumps(ignored)})
        if source.kind == "bids":
            describe_bids(batch.out, batch.work.model)
        before = {entry.name: entry for entry in queue.entries()}
        todo, kept, failed = self._sort(queue, before)
        journal = Journal(queue, batch.out, self.events, self.stop)
        reporter = Reporter(batch.out, batch.key)
        run = self._run(journal, reporter) if todo else None
        self.events.emit(
            "started",
            version=scorefusion.__version__,
            source=source.kind,
            out=shown(batch.out),
            items=len(items),
            todo=len(todo),
            ignored=len(source.ignored),
            ignored_files=ignored,
            shard=str(batch.shard) if batch.shard else None,
            device=run.device if run else None,
            dtype=self.recipe["dtype"],
        )
        for note in source.notes:
            self.events.emit("note", text=note)
        for item in kept:
            journal.kept(item)
        for item in failed:
            if item.problem is not None:
                journal.ended(item, failure(item, item.problem))
            else:
                entry = before[item.name]
                self.events.emit("item-failed", name=item.name, error=entry.error, fix=entry.fix)
        try:
            if run is not None:
                run.go(todo, before)
        finally:
            problem = reporter.finish()
            if problem is not None:
                self.events.unreported.append(problem)

    def _facts(self) -> dict[str, str]:
        """Return what a later run must know, and what the report says of the whole batch."""
        batch, settings, inputs = self.batch, self.batch.work.settings(), self.batch.inputs
        report = {
            "model": batch.work.model,
            "inputs": ", ".join(shown(path) for path in inputs[:3]) + ", ..." * (len(inputs) > 3),
            "kind": self.source.kind,
            "strategy": settings.strategy,
            "sampler": f"{settings.table.name}, {settings.samples} × {len(settings.table)} evaluations",
            "seed": str(settings.seed),
            "computed": f"on {self.device} in {self.recipe['dtype']}",
            "scorefusion": scorefusion.__version__,
            **({"left out": "; ".join(self.source.notes)} if self.source.notes else {}),
        }
        return {"device": self.device, "dtype": str(self.recipe["dtype"]), "report": json.dumps(report)}

    def _sort(self, queue: Queue, before: Mapping[str, Entry]) -> tuple[list[Item], ...]:
        """Return items to do, items that are there as far as stamps tell, and items that fail unread."""
        todo: list[Item] = []
        kept: list[Item] = []
        failed: list[Item] = []
        for item in self.items:
            entry = before[item.name]
            if item.problem is not None or (self.batch.keep_failed and entry.state == "failed"):
                failed.append(item)
            elif entry.state == "done" and not self.batch.verify and self._is_kept(item, entry, queue):
                kept.append(item)
            else:
                todo.append(item)
        return todo, kept, failed

    def _is_kept(self, item: Item, entry: Entry, queue: Queue) -> bool:
        class Unknown(Exception):
            pass

        def known(path: Path, stamp: tuple[int, int, int]) -> str:
            sha256 = queue.known_hash(path, stamp)
            if sha256 is None:
                raise Unknown
            return sha256

        try:
            work = identify(item, self.recipe, known).work
        except (Unknown, ScoreFusionError):
            return False
        return is_current(entry, item, work, queue, hashing=False)

    def _run(self, journal: Journal, reporter: Reporter) -> Run | RayRun:
        """Return what works the queue off: this process, or Ray workers."""
        batch, between = self.batch, reporter.now_and_then
        if self.cluster is None:
            worker = Worker(batch.work, batch.out, self.recipe)
            return Run(worker, journal, limits=batch.limits, verify=batch.verify, between=between)
        from scorefusion.batch.ray import RayRun

        return RayRun(self.cluster, batch.work, self.recipe, journal, verify=batch.verify, between=between)
