"""Unattended batch translation: list, lock, compare with the queue, translate what is missing, report."""

from __future__ import annotations

import json
import sqlite3
import time
from collections import defaultdict
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import scorefusion
from scorefusion.batch.files import STATE, Stamp, identify, remove_leftovers
from scorefusion.batch.items import Item, Shard, StopFlag, Stopped, failure, shown, stop_for
from scorefusion.batch.queue import Entry, FolderLock, Queue, known_facts, queue_files
from scorefusion.batch.report import Reporter
from scorefusion.batch.run import Journal, Limits, Listener, Run, is_current
from scorefusion.batch.sources import Query, Source, describe_bids, find_items
from scorefusion.batch.worker import Work, Worker
from scorefusion.errors import BadInput, ScoreFusionError
from scorefusion.models.domain import canonical
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
    start, note = time.monotonic(), None
    stopped: Stopped | None = None
    if cluster is not None:
        batch = replace(batch, work=cluster.work(batch.work))
    session = _Session(batch, cluster)
    with ExitStack() as held:
        try:
            batch.state.mkdir(parents=True, exist_ok=True)
            # A run of all items excludes every other; shards exclude only themselves and such a run.
            for name in dict.fromkeys(("lock", f"lock{batch.key}")):
                lock = FolderLock(batch.state / name)
                note = lock.take(shared=name != f"lock{batch.key}")
                held.callback(lock.release)
        except OSError as error:
            problem = f"cannot be written to ({error.strerror or error})"
            raise BadInput(batch.out, problem, "Choose another folder.") from None
        try:
            queue = held.enter_context(closing(Queue(batch.state / f"queue{batch.key}.sqlite")))
        except (OSError, sqlite3.Error) as error:
            problem = f"its queue cannot be written ({error})"
            raise BadInput(batch.out, problem, "Free some space, or choose another folder.") from None
        journal = Journal(queue, batch.out, listener=listener, stop=stop, verify=batch.verify)
        try:
            for text in filter(None, (note, queue.note)):
                journal.note(text)
            session.go(journal)
        except (Stopped, BadInput, OSError, sqlite3.Error) as error:
            stopped = error if isinstance(error, Stopped) else stop_for(error, shown(batch.out))
            if stopped is None:
                raise
    counts = {name: journal.counts[f"item-{name}"] for name in ("done", "kept", "failed")}
    counts["left"], seconds = len(session.items) - sum(counts.values()), time.monotonic() - start
    journal.emit(
        "finished",
        state="stopped" if stopped else "complete",
        reason=str(stopped) if stopped else None,
        **counts,
        seconds=round(seconds, 3),
        unreported=list(journal.unreported),
    )
    return Summary(**counts, seconds=seconds, stopped=stopped, unreported=tuple(journal.unreported))


class _Session:
    """One run of a batch: what it needs to know, found out before the folder is touched."""

    def __init__(self, batch: Batch, cluster: Cluster | None):
        self.cluster = cluster
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
        conditions = tuple(canonical(name) for name in config.conditions)
        chosen = (batch.ending, batch.layout, batch.choose, batch.series, config.degradation.takes_mask)
        query = Query(batch.out, conditions, canonical(config.target), *chosen)
        source = find_items(batch.inputs, query, sides=batch.work.sides)
        if batch.work.dicom and source.kind != "dicom":
            fix = "Give a folder of DICOM files, or leave --dicom out."
            raise BadInput(batch.inputs[0], "holds no DICOM series, which a derived series needs", fix)
        of_table = source.kind == "table" and any(item.series or item.problem for item in source.items)
        if batch.series is not None and source.kind != "dicom" and not of_table:
            problem = "holds no DICOM series, which --series chooses from"
            raise BadInput(batch.inputs[0], problem, "Give a folder of DICOM files, or leave --series out.")
        return source

    def go(self, journal: Journal) -> None:
        """Bring the queue up to date with the listing, translate what is missing, and report."""
        batch, source, items, queue = self.batch, self.source, self.items, journal.queue
        remove_leftovers([*(batch.out / name for name in queue.outputs()), *(item.output for item in items)])
        queue.begin(items, batch.out)
        for other in queue_files(batch.state):
            if other != queue.path:
                queue.adopt(other)
        ignored = [shown(file, batch.inputs[0]) for file in source.ignored]
        queue.set_facts({**self._facts(), "ignored": json.dumps(ignored)})
        if source.kind == "bids":
            describe_bids(batch.out, batch.work.model)
        before = {entry.name: entry for entry in queue.entries()}
        lots: dict[str, list[Item]] = defaultdict(list)
        for item in items:
            lots[self._lot(item, before[item.name], queue)].append(item)
        todo = lots["do"]
        reporter = Reporter(batch.out, batch.key)
        journal.between = reporter.now_and_then
        run: Run | RayRun | None = None
        if todo and self.cluster is not None:
            from scorefusion.batch.ray import RayRun

            run = RayRun(self.cluster, batch.work, self.recipe, journal)
        elif todo:
            run = Run(Worker(batch.work, batch.out, self.recipe), journal, limits=batch.limits)
        journal.emit(
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
            journal.note(note)
        for item in lots["kept"]:
            journal.kept(item)
        for item in lots["failed"]:
            if item.problem is not None:
                journal.ended(item, failure(item, item.problem))
            else:
                entry = before[item.name]
                journal.emit("item-failed", name=item.name, error=entry.error, fix=entry.fix)
        try:
            if run is not None:
                run.go(todo, before)
        finally:
            if problem := reporter.finish():
                journal.unreported.append(problem)

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

    def _lot(self, item: Item, entry: Entry, queue: Queue) -> str:
        """Return whether an item is to ``do``, is ``kept`` as far as stamps tell, or ``failed`` unread."""
        if item.problem is not None or (self.batch.keep_failed and entry.state == "failed"):
            return "failed"
        if entry.state != "done" or self.batch.verify:
            return "do"

        def known(path: Path, stamp: Stamp) -> str:
            if sha256 := queue.known_hash(path, stamp):
                return sha256
            raise ScoreFusionError(f"{path} must be read again")

        try:
            work = identify(item, self.recipe, known).work
        except ScoreFusionError:
            return "do"
        return "kept" if is_current(entry, item, work, queue, hashing=False) else "do"
