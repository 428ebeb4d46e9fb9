"""Schedule a batch in one process: read ahead, sample, write behind; record and report each item."""

import gc
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scorefusion.batch.files import VOLUME, Identity, hash_file, identify, stamp_of
from scorefusion.batch.items import Item, Outcome, StopFlag, Stopped, failure, shown, stop_for
from scorefusion.batch.queue import Entry, Queue
from scorefusion.batch.worker import Task, Worker, twice
from scorefusion.errors import BadInput, Cancelled, ScoreFusionError, one_line, out_of_memory
from scorefusion.io.formats import read_header
from scorefusion.pipeline import side_path

Event = dict[str, Any]
Listener = Callable[[Event], None]

THREADS = 2
"""Threads that read, and threads that write."""

_RETRIED = Entry("", state="retried")


class Journal:
    """Records in the queue what becomes of the items below ``out``, and passes events to a listener.

    Events are dictionaries with ``event``, ``time`` (seconds since 1970) and what docs/batch.md lists, passed
    from any thread, one at a time. A listener that raises gets no further ones, and the batch goes on;
    :class:`Stopped` and :class:`Cancelled` end it. A queue that cannot be written sets the flag ``stop``.
    ``verify`` hashes every input and output, whatever their stamps say.
    """

    def __init__(
        self,
        queue: Queue,
        out: Path,
        *,
        listener: Listener | None = None,
        stop: StopFlag | None = None,
        verify: bool = False,
    ):
        self.queue, self.out, self.stop, self.verify = queue, out, stop or StopFlag(), verify
        self.between: Callable[[], object] = lambda: None  #: called after each item, and now and then
        self._listener, self._lock = listener, threading.Lock()
        self.counts: Counter[str] = Counter()  #: events so far by name
        self.unreported: list[str] = []  #: what could not be reported, and why; one sentence each

    def emit(self, event: str, **fields: Any) -> None:
        """Pass one event on."""
        with self._lock:
            self.counts[event] += 1
            if self._listener is None:
                return
            try:
                self._listener({"event": event, "time": round(time.time(), 3), **fields})
            except (Stopped, Cancelled):
                raise
            except Exception as error:
                self._listener = None
                self.unreported.append(f"no event after '{event}' was passed on ({one_line(error)})")

    def identify(self, item: Item, recipe: Mapping[str, Any]) -> Identity:
        """Hash an item's files, but for those whose hashes are known, and record the hashes."""
        identity = identify(item, recipe, None if self.verify else self.queue.known_hash)
        self.identified(item, identity)
        return identity

    def keeps(self, item: Item, entry: Entry | None, work: str) -> bool:
        """Return whether an item's outputs are there already, and emit that they are."""
        if entry is None or not is_current(entry, item, work, self.queue, hashing=True, verify=self.verify):
            return False
        self.kept(item)
        return True

    def identified(self, item: Item, identity: Identity) -> None:
        """Record the hashes of an item's files."""
        with self._guard():
            self.queue.keep_hashes(list(zip(item.files, identity.stamps, identity.hashes, strict=True)))

    def note(self, text: str) -> None:
        """Emit a sentence on the batch."""
        self.emit("note", text=text)

    def kept(self, item: Item) -> None:
        """Emit that an item's outputs are there already."""
        self.emit("item-kept", name=item.name, output=shown(item.output))

    def mark(self, item: Item, state: str) -> None:
        """Record that an item is being computed (``running``), or no longer and will be (``waiting``)."""
        with self._guard():
            self.queue.mark(item.name, state)
        if state == "running":
            self.emit("item-started", name=item.name, inputs=item.inputs)

    def ended(self, item: Item, outcome: Outcome) -> None:
        """Record what became of an item; its outputs are on the disk unless it failed."""
        with self._guard():
            if outcome.error is None:
                written = ((side_path(item.output, kind), sha) for kind, (_, sha) in outcome.outputs.items())
                self.queue.keep_hashes([(path, stamp_of(path), sha256) for path, sha256 in written])
            self.queue.record(outcome)
        if outcome.error is not None:
            self.emit("item-failed", name=item.name, error=outcome.error, fix=outcome.fix)
            return
        told = {name: getattr(outcome, name) for name in ("seconds", "residual", "warnings", "numbers")}
        told |= {"sha256": outcome.outputs[VOLUME][1], "warnings": list(outcome.warnings)}
        self.emit("item-done", name=item.name, output=shown(item.output), **told)

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Let a failed change of the queue end the run."""
        try:
            yield
        except Stopped:
            raise
        except Exception as error:
            stop = stop_for(error, shown(self.out))
            if stop is None:
                raise
            self.stop.set(stop)
            raise stop from error


@dataclass(frozen=True)
class Limits:
    """What may be under way at once."""

    prefetch: int = 2  #: volumes read ahead, and volumes waiting to be written
    #: the most that those read ahead may take together, as far as headers tell; one always may
    prefetch_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.prefetch < 1:
            raise ScoreFusionError(f"prefetch must be at least 1, got {self.prefetch}")


class Run:
    """Translates items of one queue in this process.

    The thread that calls :meth:`go` computes. Bits do not depend on the limits, on the order, or on which
    items a run is resumed with. The journal's flag ends it.
    """

    def __init__(self, worker: Worker, journal: Journal, limits: Limits):
        self.worker, self.journal, self.limits = worker, journal, limits
        self.device, self._prefetch = str(worker.pipeline.device), limits.prefetch
        self._writes: set[Future[None]] = set()
        self._again: deque[Item] = deque()

    def go(self, items: Sequence[Item], before: Mapping[str, Entry]) -> None:
        """Translate items, given the queue's entries by name; those that turn out to be done are kept."""
        waiting, stop = deque(items), self.journal.stop
        ahead: dict[Future[Task | None], tuple[Item, int]] = {}
        with (
            _side_threads(THREADS, "read") as readers,
            _side_threads(THREADS, "write") as writers,
        ):
            try:
                while waiting or ahead or self._again:
                    stop.check()
                    if not waiting and not ahead:
                        waiting, self._prefetch = self._again, 1
                        self._again = deque()
                        before = {**before, **{item.name: _RETRIED for item in waiting}}
                    while waiting and self._has_room(waiting[0], ahead):
                        item = waiting.popleft()
                        future = readers.submit(self._read, item, before.get(item.name))
                        ahead[future] = item, self._bytes(item)
                    while not (done := [future for future in ahead if future.done()]):
                        wait(ahead, timeout=0.5, return_when=FIRST_COMPLETED)
                        stop.check()
                    future = done[0]  # the first in order that is ready
                    del ahead[future], done
                    task = future.result()
                    del future
                    if task is not None and self._sample(task):
                        self._drain(max(0, self._prefetch - 1))
                        self._writes.add(writers.submit(self._write, task))
                    del task
                    self.journal.between()
                self._drain(0)
            except BaseException as error:
                if isinstance(error, Stopped):
                    stop.set(error)
                for future in ahead:
                    future.cancel()
                wait(self._writes)
                raise
        stop.check()

    def _has_room(self, item: Item, ahead: Mapping[Future[Task | None], tuple[Item, int]]) -> bool:
        if not ahead or len(ahead) >= self._prefetch:
            return not ahead
        most = self.limits.prefetch_bytes
        return most is None or sum(size for _, size in ahead.values()) + self._bytes(item) <= most

    def _bytes(self, item: Item) -> int:
        """Return what a prepared item takes, by its first header; 0 where that is not needed or not known.

        For each voxel read: conditions, base, outside and result on the fine grid, and the images.
        """
        if self.limits.prefetch_bytes is None or item.problem is not None:
            return 0
        if item.series:
            first, conditions = item.series[0], len(item.series)
            voxels = first.images * first.rows * first.columns
        else:
            try:
                header = read_header(item.files[0], self.worker.settings.max_voxels)
            except ScoreFusionError:
                return 0
            voxels, conditions = math.prod(int(n) for n in header.get_data_shape()), len(item.files)
        factors = math.prod(self.worker.pipeline.config.degradation.factors)
        return 4 * voxels * (factors * (conditions + 3) + conditions)

    def _read(self, item: Item, entry: Entry | None) -> Task | None:
        """In a reader's thread: return an item to sample, or None where nothing is to be sampled."""
        self.journal.stop.check()
        work = None
        try:
            identity = self.journal.identify(item, self.worker.recipe)
            work = identity.work
            return None if self.journal.keeps(item, entry, work) else self.worker.read(item, identity)
        except Stopped:
            raise
        except Exception as error:
            if out_of_memory(error) and entry is not _RETRIED:
                gc.collect()
                self._prefetch = max(1, self._prefetch // 2)
                self._again.append(item)
            else:
                self.journal.ended(item, failure(item, error, work))
            return None

    def _sample(self, task: Task) -> bool:
        """Compute; return False where the item failed."""
        item = task.item
        self.journal.mark(item, "running")

        def relieve() -> None:
            self._drain(0)
            self._prefetch = max(1, self._prefetch // 2)
            self.worker.relieve()
            self.journal.note(f"{item.name}: memory ran out; once more with half as much at once")

        try:
            twice(lambda: self.worker.draw(task, self.journal.stop.check), relieve)
            return True
        except Stopped:
            self.journal.mark(item, "waiting")
            raise
        except Exception as error:
            self.journal.ended(item, failure(item, error, task.identity.work))
            return False

    def _drain(self, most: int) -> None:
        """Wait until at most so many are being written."""
        while True:
            done = {future for future in self._writes if future.done()}
            self._writes -= done
            for future in done:
                future.result()
            self.journal.stop.check()
            if len(self._writes) <= most:
                return
            wait(self._writes, timeout=0.5, return_when=FIRST_COMPLETED)

    def _write(self, task: Task) -> None:
        """In a writer's thread: finish, write, record."""
        item, work = task.item, task.identity.work
        try:
            self.journal.ended(item, twice(lambda: self.worker.write(task), gc.collect))
        except Stopped as stop:
            self.journal.stop.set(stop)
            raise
        except Exception as error:
            self.journal.ended(item, failure(item, error, work))


def is_current(
    entry: Entry, item: Item, work: str, queue: Queue, *, hashing: bool, verify: bool = False
) -> bool:
    """Return whether an item's outputs are there as they were written, and are what would be written now.

    ``work`` is the hash of what decides them now. ``hashing`` reads outputs whose stamps are not known, which
    else count as changed; ``verify`` reads them in any case.
    """
    if entry.state != "done" or entry.work != work or VOLUME not in entry.outputs:
        return False
    for kind, (size, sha256) in entry.outputs.items():
        path = side_path(item.output, kind)
        try:
            stamp = stamp_of(path)
            known = None if verify else queue.known_hash(path, stamp)
            if known is None and hashing and stamp[0] == size:
                known = hash_file(path)
                queue.keep_hashes([(path, stamp, known)])
        except (OSError, BadInput):
            return False
        if stamp[0] != size or known != sha256:
            return False
    return True


@contextmanager
def _side_threads(count: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of threads whose operations in PyTorch run on one core each.

    So they do not wait at the barriers of the sampling's threads, and what they compute is the same however
    many cores there are. PyTorch keeps a number of threads for each thread that runs, and one for those to
    come; the latter is restored.
    """
    usual = torch.get_num_threads()
    started = threading.Barrier(count + 1)

    def begin() -> None:
        torch.get_num_threads()  # takes the number for new threads, which would otherwise be taken later
        torch.set_num_threads(1)
        started.wait()

    with ThreadPoolExecutor(count, name) as pool:
        for _ in range(count):
            pool.submit(begin)
        started.wait()
        torch.set_num_threads(usual)
        yield pool
