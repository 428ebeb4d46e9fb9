"""What a run puts down and tells about its items, whoever computed them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scorefusion.batch.events import Teller
from scorefusion.batch.faults import StopFlag, Stopped, stop_for
from scorefusion.batch.identity import stamp_of
from scorefusion.batch.item import Item, Problem, shown
from scorefusion.batch.listing import VOLUME, output_path
from scorefusion.batch.outcome import Outcome
from scorefusion.batch.queue import Queue
from scorefusion.batch.worker import Identity, failure


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
