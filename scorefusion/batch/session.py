"""A batch from beginning to end: list, lock, look into the books, translate what is missing, report."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import scorefusion
from scorefusion.batch.files import STATE, identify, remove_leftovers
from scorefusion.batch.items import Item, Shard, StopFlag, Stopped, failure, shown, stop_for
from scorefusion.batch.queue import Entry, FolderLock, Queue, known_facts, queue_files, queue_name
from scorefusion.batch.report import Reporter
from scorefusion.batch.run import Limits, Listener, Run, Teller, is_current
from scorefusion.batch.sources import Source, Wanted, below, describe_bids, find_items
from scorefusion.batch.worker import Work, Worker
from scorefusion.errors import BadInput, ScoreFusionError
from scorefusion.models.contrast import canonical
from scorefusion.ops.device import choose_device

if TYPE_CHECKING:
    from scorefusion.batch.ray import Cluster, RayRun


@dataclass(frozen=True)
class Batch:
    """What is translated, how, and where to.

    Attributes:
        inputs: a folder, a table, or NIfTI files.
        out: the folder of the outputs; made if missing.
        work: how each item is translated.
        ending: of the outputs: ``.nii.gz`` or ``.nii``.
        layout: of a folder; see :class:`.wanted.Wanted`.
        choose: see :class:`.wanted.Wanted`.
        series: see :class:`.wanted.Wanted`.
        shard: only this part of the items.
        limits: what may be under way at once.
        verify: hash inputs and outputs again, whatever their times say.
        keep_failed: do not try again what failed.
    """

    inputs: tuple[Path, ...]
    out: Path
    work: Work = field(default_factory=Work)
    ending: str = ".nii.gz"
    layout: str = "auto"
    choose: tuple[str, ...] = ()
    series: str | None = None
    shard: Shard | None = None
    limits: Limits = field(default_factory=Limits)
    verify: bool = False
    keep_failed: bool = False

    @property
    def state(self) -> Path:
        """The folder of the books."""
        return self.out / STATE


@dataclass(frozen=True)
class Summary:
    """How a batch, or a shard of it, stands at the end of a run.

    Attributes:
        done: translated by this run.
        kept: there already.
        failed: items that failed, now or, where those are kept, before.
        left: items that were not reached.
        seconds: that the run took.
        stopped: why it ended early, if it did.
        unreported: what could not be reported, events or the page, and why; a sentence each.
    """

    done: int
    kept: int
    failed: int
    left: int
    seconds: float
    stopped: Stopped | None = None
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
        cluster: processes of Ray that compute, from :func:`.ray_cluster.connected`; else this one does.

    Raises:
        ScoreFusionError: where nothing could be started: a model, a source, a folder, another run in it.
    """
    start = time.monotonic()
    stop = stop or StopFlag()
    tell = Teller(listener)
    if cluster is not None:
        batch = replace(batch, work=cluster.work(batch.work))
    device = cluster.device if cluster is not None else choose_device(batch.work.device).type
    batch = _settled(batch, device)
    recipe = batch.work.recipe() if cluster is None else cluster.recipe(batch.work)
    source = _source(batch)
    if batch.work.dicom and source.kind != "dicom":
        fix = "Give a folder of DICOM files, or leave --dicom out."
        raise BadInput(batch.inputs[0], "holds no DICOM series, which a derived series needs", fix)
    if batch.series is not None and not _takes_series(source):
        problem = "holds no DICOM series, which --series chooses from"
        raise BadInput(batch.inputs[0], problem, "Give a folder of DICOM files, or leave --series out.")
    items = [item for item in source.items if batch.shard is None or batch.shard.holds(item.name)]
    try:
        batch.state.mkdir(parents=True, exist_ok=True)
        locks = _take_locks(batch, tell)
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
            _go(batch, source, items, recipe, queue, tell, stop, device, cluster)
        except (Stopped, BadInput, OSError, sqlite3.Error) as error:
            stopped = error if isinstance(error, Stopped) else stop_for(error, shown(batch.out))
            if stopped is None:
                raise
        finally:
            queue.close()
    finally:
        for lock in reversed(locks):
            lock.release()
    done, kept, failed = (tell.counts[event] for event in ("item-done", "item-kept", "item-failed"))
    summary = Summary(
        done, kept, failed, len(items) - done - kept - failed, time.monotonic() - start, stopped
    )
    tell(
        "finished",
        state="stopped" if stopped else "complete",
        reason=str(stopped) if stopped else None,
        done=done,
        kept=kept,
        failed=failed,
        left=summary.left,
        seconds=round(summary.seconds, 3),
        unreported=list(tell.unreported),
    )
    return replace(summary, unreported=tuple(tell.unreported))


def _takes_series(source: Source) -> bool:
    """Whether ``--series`` chooses anything here: in a tree of DICOM files, or of a table's folders."""
    if source.kind == "table":
        return any(item.series or item.problem for item in source.items)
    return source.kind == "dicom"


def _settled(batch: Batch, device: str) -> Batch:
    """The batch with the dtype that ``auto`` was when it began, whatever a measurement says now."""
    if batch.work.dtype != "auto":
        return batch
    facts = known_facts(batch.state)
    if facts.get("device") != device or "dtype" not in facts:
        return batch
    return replace(batch, work=replace(batch.work, dtype=facts["dtype"]))


def _source(batch: Batch) -> Source:
    config = batch.work.config()
    wanted = Wanted(
        batch.out,
        tuple(canonical(name) for name in config.conditions),
        canonical(config.target),
        batch.ending,
        batch.layout,
        batch.choose,
        batch.series,
        masks=config.degradation.takes_mask,
    )
    return find_items(batch.inputs, wanted, sides=batch.work.sides)


def _take_locks(batch: Batch, tell: Teller) -> list[FolderLock]:
    """A run of all items excludes every other; shards exclude only themselves and such a run."""
    whole = FolderLock(batch.state / "lock")
    note = whole.take(shared=batch.shard is not None)
    locks = [whole]
    if batch.shard is not None:
        own = FolderLock(batch.state / f"lock-{batch.shard.number}-of-{batch.shard.count}")
        try:
            note = own.take()
        except BaseException:
            whole.release()
            raise
        locks.append(own)
    if note:
        tell("note", text=note)
    return locks


def _go(
    batch: Batch,
    source: Source,
    items: Sequence[Item],
    recipe: dict[str, object],
    queue: Queue,
    tell: Teller,
    stop: StopFlag,
    device: str,
    cluster: Cluster | None,
) -> None:
    if queue.note:
        tell("note", text=queue.note)
    remove_leftovers([*(batch.out / name for name in queue.outputs()), *(item.output for item in items)])
    queue.begin(items, batch.out)
    for other in queue_files(batch.state):
        if other != queue.path:
            queue.adopt(other)
    ignored = below(batch.inputs[0], source.ignored)
    queue.set_facts({**_facts(batch, source, recipe, device), "ignored": json.dumps(ignored)})
    if source.kind == "bids":
        describe_bids(batch.out, batch.work.model)
    before = {entry.name: entry for entry in queue.entries()}
    todo, kept, failed = _sort(batch, items, recipe, queue, before)
    key = "" if batch.shard is None else f"-{batch.shard.number}-of-{batch.shard.count}"
    reporter = Reporter(batch.out, key)
    run = _run(batch, recipe, queue, tell, stop, reporter, cluster) if todo else None
    tell(
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
        dtype=recipe["dtype"],
    )
    for note in source.notes:
        tell("note", text=note)
    for item in kept:
        tell("item-kept", name=item.name, output=shown(item.output))
    for item in failed:
        entry = before.get(item.name)
        if item.problem is not None:
            queue.record(failure(item, item.problem))
            tell("item-failed", name=item.name, error=item.problem.error, fix=item.problem.fix or None)
        elif entry is not None:
            tell("item-failed", name=item.name, error=entry.error, fix=entry.fix)
    try:
        if run is not None:
            run.go(todo, before)
    finally:
        problem = reporter.finish()
        if problem is not None:
            tell.unreported.append(problem)


def _run(
    batch: Batch,
    recipe: dict[str, Any],
    queue: Queue,
    tell: Teller,
    stop: StopFlag,
    reporter: Reporter,
    cluster: Cluster | None,
) -> Run | RayRun:
    """What works the queue off: this process, or those of a cluster."""
    between, verify = reporter.now_and_then, batch.verify
    if cluster is None:
        worker, limits = Worker(batch.work, batch.out, recipe), batch.limits
        return Run(
            worker, queue, batch.out, tell=tell, limits=limits, stop=stop, verify=verify, between=between
        )
    from scorefusion.batch.ray import RayRun

    return RayRun(
        cluster, batch.work, recipe, queue, batch.out, tell=tell, stop=stop, verify=verify, between=between
    )


def _facts(batch: Batch, source: Source, recipe: Mapping[str, object], device: str) -> dict[str, str]:
    """What a later run must know, and what the report says of the whole batch."""
    settings = batch.work.settings()
    told = {
        "model": batch.work.model,
        "inputs": ", ".join(shown(path) for path in batch.inputs[:3]) + ", ..." * (len(batch.inputs) > 3),
        "kind": source.kind,
        "strategy": settings.strategy,
        "sampler": f"{settings.table.name}, {settings.samples} × {len(settings.table)} evaluations",
        "seed": str(settings.seed),
        "computed": f"on {device} in {recipe['dtype']}",
        "scorefusion": scorefusion.__version__,
        **({"left out": "; ".join(source.notes)} if source.notes else {}),
    }
    return {"device": device, "dtype": str(recipe["dtype"]), "report": json.dumps(told)}


def _sort(
    batch: Batch,
    items: Iterable[Item],
    recipe: dict[str, object],
    queue: Queue,
    before: dict[str, Entry],
) -> tuple[list[Item], list[Item], list[Item]]:
    """Items to do, items that are there as far as stamps tell, and items that fail without being read."""
    todo: list[Item] = []
    kept: list[Item] = []
    failed: list[Item] = []
    for item in items:
        entry = before[item.name]
        if item.problem is not None or (batch.keep_failed and entry.state == "failed"):
            failed.append(item)
        elif entry.state == "done" and not batch.verify and _is_kept(item, entry, recipe, queue):
            kept.append(item)
        else:
            todo.append(item)
    return todo, kept, failed


def _is_kept(item: Item, entry: Entry, recipe: dict[str, object], queue: Queue) -> bool:
    class Unknown(Exception):
        pass

    def known(path: Path, stamp: tuple[int, int, int]) -> str:
        found = queue.known_hash(path, stamp)
        if found is None:
            raise Unknown
        return found

    try:
        work = identify(item, recipe, known).work
    except (Unknown, ScoreFusionError):
        return False
    return is_current(entry, item, work, queue, hashing=False)
