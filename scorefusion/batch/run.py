"""Schedule a batch in one process: read ahead, sample, write behind; record and report each item."""

from __future__ import annotations

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

from scorefusion.batch.files import VOLUME, Identity, hash_file, output_path, stamp_of
from scorefusion.batch.items import Item, Outcome, Problem, StopFlag, Stopped, failure, shown, stop_for
from scorefusion.batch.queue import Entry, Queue
from scorefusion.batch.worker import Ready, Sample, Worker
from scorefusion.errors import BadInput, Cancelled, ScoreFusionError, one_line, out_of_memory
from scorefusion.io.formats import read_header

Event = dict[str, Any]
Listener = Callable[[Event], None]


class Teller:
    """Passes events on to a listener, from any thread, one at a time, with the time.

    A listener that raises gets no further events, and the batch goes on; :class:`Stopped` and
    :class:`Cancelled` end the batch as they are meant to.

    Args:
        listener: gets dictionaries with ``event`` (started, item-started, item-done, item-failed, item-kept,
            note, finished), ``time`` (seconds since 1970) and what docs/batch.md lists.

    Attributes:
        counts: events so far by name.
        unreported: what could not be reported, and why; a sentence each.
    """

    def __init__(self, listener: Listener | None = None):
        self._listener, self._lock = listener, threading.Lock()
        self.counts: Counter[str] = Counter()
        self.unreported: list[str] = []

    def __call__(self, event: str, **fields: Any) -> None:
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


class Books:
    """The queue and the listener of a run, kept in step. Safe to use from several threads.

    Args:
        queue: takes what came of each item.
        out: the folder of the outputs.
        tell: gets events.
        stop: set where the queue cannot be written.
    """

    def __init__(self, queue: Queue, out: Path, tell: Teller, stop: StopFlag):
        self.queue, self.out, self.tell, self.stop = queue, out, tell, stop

    def identified(self, item: Item, identity: Identity) -> None:
        """Remember the hashes of an item's files."""
        found = zip(item.files, identity.stamps, identity.hashes, strict=True)
        with self._guard():
            self.queue.keep_hashes(list(found))

    def kept(self, item: Item) -> None:
        """An item's outputs are there already."""
        self.tell("item-kept", name=item.name, output=shown(item.output))

    def started(self, item: Item) -> None:
        """An item is being computed."""
        with self._guard():
            self.queue.mark(item.name, "running")
        self.tell("item-started", name=item.name, inputs=item.inputs)

    def put_back(self, item: Item) -> None:
        """An item is not being computed any more, and will be."""
        with self._guard():
            self.queue.mark(item.name, "waiting")

    def done(self, item: Item, outcome: Outcome) -> None:
        """An item's outputs are on the disk."""
        with self._guard():
            written = [(output_path(item.output, kind), sha) for kind, (_, sha) in outcome.outputs.items()]
            self.queue.keep_hashes([(path, stamp_of(path), sha256) for path, sha256 in written])
            self.queue.record(outcome)
        self.tell(
            "item-done",
            name=item.name,
            output=shown(item.output),
            sha256=outcome.outputs[VOLUME][1],
            seconds=outcome.seconds,
            residual=outcome.residual,
            warnings=list(outcome.warnings),
            numbers=outcome.numbers,
        )

    def failed(self, item: Item, error: BaseException | Problem, work: str | None = None) -> None:
        """An item cannot be translated."""
        self.refused(failure(item, error, work))

    def refused(self, outcome: Outcome) -> None:
        """The same, from an outcome that says why."""
        with self._guard():
            self.queue.record(outcome)
        self.tell("item-failed", name=outcome.name, error=outcome.error, fix=outcome.fix)

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Around changes of the queue: what goes wrong there ends the run."""
        try:
            yield
        except Stopped:
            raise
        except Exception as error:
            found = stop_for(error, shown(self.out))
            if found is None:
                raise
            self.stop.set(found)
            raise found from error


@contextmanager
def side_threads(count: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of threads whose operations in PyTorch run on one core each.

    So they do not wait at the barriers of the sampling's threads, and what they compute is the same however
    many cores there are. PyTorch keeps a number of threads for each thread that runs, and one for those to
    come; the latter is put back.

    Args:
        count: how many.
        name: of the threads.
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


@dataclass(frozen=True)
class Limits:
    """What may be under way at once.

    Attributes:
        prefetch: volumes read ahead, and volumes waiting to be written.
        prefetch_bytes: the most that those read ahead may take together, as far as headers tell; one always
            may.
        readers: threads that read.
        writers: threads that write.
    """

    prefetch: int = 2
    prefetch_bytes: int | None = None
    readers: int = 2
    writers: int = 2

    def __post_init__(self) -> None:
        """Refuse what would stand still."""
        if min(self.prefetch, self.readers, self.writers) < 1:
            raise ScoreFusionError("prefetch, readers and writers must be at least 1")


class Run:
    """Translates items of one queue.

    The compute is done by the thread that calls :meth:`go`. Bits do not depend on the limits, on the order,
    or on which items a run is resumed with.

    Args:
        worker: the model.
        queue: takes what came of each.
        out: the folder of the outputs.
        tell: gets events.
        limits: what may be under way at once.
        stop: ends the run when it is set.
        verify: hash every input and output, whatever their stamps say.
    """

    def __init__(
        self,
        worker: Worker,
        queue: Queue,
        out: Path,
        *,
        tell: Teller | None = None,
        limits: Limits | None = None,
        stop: StopFlag | None = None,
        verify: bool = False,
        between: Callable[[], None] | None = None,
    ):
        self.worker, self.queue = worker, queue
        self.tell, self.limits, self.stop = tell or Teller(), limits or Limits(), stop or StopFlag()
        self.books = Books(queue, out, self.tell, self.stop)
        self.verify, self.between = verify, between
        self._prefetch = self.limits.prefetch
        self._writes: set[Future[None]] = set()
        self._again: deque[Item] = deque()

    @property
    def device(self) -> str:
        """Where the model is."""
        return str(self.worker.pipeline.device)

    def go(self, items: Sequence[Item], before: Mapping[str, Entry]) -> None:
        """Translate items.

        Args:
            items: what; those whose outputs turn out to be there already are kept.
            before: the queue's entries by name.

        Raises:
            Stopped: if the run has to end; what was being written is then on the disk or gone.
        """
        waiting = deque(items)
        ahead: dict[Future[Ready | None], tuple[Item, int]] = {}
        with (
            side_threads(self.limits.readers, "read") as readers,
            side_threads(self.limits.writers, "write") as writers,
        ):
            try:
                while waiting or ahead or self._again:
                    self.stop.check()
                    if not waiting and not ahead:
                        waiting, self._prefetch = self._again, 1
                        self._again = deque()
                        before = {**before, **{item.name: _RETRIED for item in waiting}}
                    while waiting and self._room(waiting[0], ahead):
                        item = waiting.popleft()
                        future = readers.submit(self._read, item, before.get(item.name))
                        ahead[future] = item, self._bytes(item)
                    future = self._next(ahead)
                    item, _ = ahead.pop(future)
                    ready = future.result()
                    del future
                    if ready is not None:
                        sample = self._draw(ready)
                        del ready
                        if sample is not None:
                            self._submit_write(writers, sample)
                        del sample
                    if self.between is not None:
                        self.between()
                self._drain(0)
            except BaseException as error:
                if isinstance(error, Stopped):
                    self.stop.set(error)
                for future in ahead:
                    future.cancel()
                wait(self._writes)
                raise
        self.stop.check()

    def _next(self, ahead: Mapping[Future[Ready | None], object]) -> Future[Ready | None]:
        """The first in order that is ready, or else whichever is ready first."""
        while True:
            done = [future for future in ahead if future.done()]
            if done:
                return done[0]
            wait(ahead, timeout=0.5, return_when=FIRST_COMPLETED)
            self.stop.check()

    def _room(self, item: Item, ahead: Mapping[Future[Ready | None], tuple[Item, int]]) -> bool:
        if not ahead:
            return True
        if len(ahead) >= self._prefetch:
            return False
        if self.limits.prefetch_bytes is None:
            return True
        return sum(size for _, size in ahead.values()) + self._bytes(item) <= self.limits.prefetch_bytes

    def _bytes(self, item: Item) -> int:
        """What a prepared item takes, by its first header; 0 where that is not needed or not known."""
        if self.limits.prefetch_bytes is None or item.problem is not None:
            return 0
        if item.series:
            first = item.series[0]
            return 4 * first.images * first.rows * first.columns * self._fine(len(item.series))
        try:
            header = read_header(item.files[0], self.worker.settings.max_voxels)
        except ScoreFusionError:
            return 0
        voxels = math.prod(int(n) for n in header.get_data_shape())
        return 4 * voxels * self._fine(len(item.files))

    def _fine(self, conditions: int) -> int:
        """Numbers kept for each voxel read: conditions, base, outside and result on the fine grid; images."""
        factors = math.prod(self.worker.pipeline.config.degradation.factors)
        return factors * (conditions + 3) + conditions

    def _read(self, item: Item, entry: Entry | None) -> Ready | None:
        """In a reader's thread: an item to draw, or None where there is nothing to draw."""
        self.stop.check()
        work = None
        try:
            known = None if self.verify else self.queue.known_hash
            identity = self.worker.identify(item, known)
            work = identity.work
            self.books.identified(item, identity)
            if entry is not None and is_current(
                entry, item, identity.work, self.queue, hashing=True, verify=self.verify
            ):
                self.books.kept(item)
                return None
            return self.worker.read(item, identity)
        except Stopped:
            raise
        except Exception as error:
            if out_of_memory(error) and entry is not _RETRIED:
                gc.collect()
                self._prefetch = max(1, self._prefetch // 2)
                self._again.append(item)
                return None
            self.books.failed(item, error, work)
            return None

    def _draw(self, ready: Ready) -> Sample | None:
        """The compute; None where the item failed."""
        item = ready.item
        self.books.started(item)
        for attempt in range(2):
            try:
                return self.worker.draw(ready, self.stop.check)
            except Stopped:
                self.books.put_back(item)
                raise
            except Exception as error:
                if attempt or not out_of_memory(error):
                    self.books.failed(item, error, ready.identity.work)
                    return None
                del error
            self._drain(0)
            self._prefetch = max(1, self._prefetch // 2)
            self.worker.relieve()
            self.tell("note", text=f"{item.name}: memory ran out; once more with half as much at once")
        return None

    def _submit_write(self, writers: ThreadPoolExecutor, sample: Sample) -> None:
        self._drain(max(0, self._prefetch - 1))
        self._writes.add(writers.submit(self._write, sample))

    def _drain(self, most: int) -> None:
        """Wait until at most so many are being written."""
        while True:
            done = {future for future in self._writes if future.done()}
            self._writes -= done
            for future in done:
                future.result()
            self.stop.check()
            if len(self._writes) <= most:
                return
            wait(self._writes, timeout=0.5, return_when=FIRST_COMPLETED)

    def _write(self, sample: Sample) -> None:
        """In a writer's thread: finish, write, put down."""
        item, work = sample.ready.item, sample.ready.identity.work
        try:
            try:
                outcome = self.worker.write(sample)
            except Exception as error:
                if not out_of_memory(error):
                    raise
                gc.collect()
                outcome = self.worker.write(sample)
            self.books.done(item, outcome)
        except Stopped as stop:
            self.stop.set(stop)
            raise
        except Exception as error:
            self.books.failed(item, error, work)


def is_current(
    entry: Entry, item: Item, work: str, queue: Queue, *, hashing: bool, verify: bool = False
) -> bool:
    """Whether an item's outputs are there as they were written, and are what would be written now.

    Args:
        entry: what the queue has on the item.
        item: the item.
        work: hash of what decides the outputs now.
        queue: knows the hashes of files by their stamps.
        hashing: read outputs whose stamps are not known; else they count as changed.
        verify: read outputs in any case.
    """
    if entry.state != "done" or entry.work != work or VOLUME not in entry.outputs:
        return False
    for kind, (size, sha256) in entry.outputs.items():
        path = output_path(item.output, kind)
        try:
            stamp = stamp_of(path)
            if stamp[0] != size:
                return False
            known = None if verify else queue.known_hash(path, stamp)
            if known is None:
                if not hashing or hash_file(path) != sha256:
                    return False
                queue.keep_hashes([(path, stamp, sha256)])
            elif known != sha256:
                return False
        except (OSError, BadInput):
            return False
    return True


_RETRIED = Entry("", state="retried")
