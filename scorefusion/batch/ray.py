"""A batch computed by Ray workers on one machine or a cluster; the queue stays in the process that asks."""

import os
import secrets
import socket
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import scorefusion
from scorefusion.batch.files import Identity, identify
from scorefusion.batch.items import Item, Outcome, Problem, StopFlag, Stopped, failure
from scorefusion.batch.queue import Entry
from scorefusion.batch.run import Journal
from scorefusion.batch.worker import Work, Worker
from scorefusion.engine.planning.memory import keep_freed_memory
from scorefusion.errors import BadInput, ScoreFusionError, one_line
from scorefusion.optional import need

AHEAD = 2
"""Items sent to a worker: the one it works on, and the next."""
LOSSES = 3
"""Workers an item may have cost before it counts as failed."""
GRACE = 30.0
"""Seconds for workers to finish what they write when a run is stopped."""
_PATIENCE = 60.0
_OBJECTS = 80 * 2**20
"""Bytes of Ray's object store: only items and outcomes pass through it. Ray asks for 75 MiB at least."""


class RayWorker:
    """The actor. ``ready`` comes first; ``stop`` may come while ``translate`` runs, from another thread.

    The recipe and the version of scorefusion are those of the machine where the batch was started.
    """

    def __init__(self, work: Work, out: Path, recipe: dict[str, Any], version: str):
        self.work, self.out, self.recipe, self.version = work, out, recipe, version
        self._stop = StopFlag()
        self._worker: Worker | None = None

    def ready(self) -> int:
        """Load the model; return this process's id."""
        here = socket.gethostname()
        if self.version != scorefusion.__version__:
            raise ScoreFusionError(f"{here} has scorefusion {scorefusion.__version__}, not {self.version}")
        if not self.out.is_dir():
            raise BadInput(self.out, f"is not there on {here}", "Use a folder that all machines share.")
        if self.work.recipe() != self.recipe:
            raise ScoreFusionError(f"{here} has another model under the name {self.work.model}")
        if self.work.max_memory is None:
            keep_freed_memory()
        self._worker = Worker(self.work, self.out, self.recipe)
        return os.getpid()

    def translate(self, item: Item) -> tuple[Outcome, Identity | None]:
        """Read, sample and write one item; return what became of it, and what its files are."""
        assert self._worker is not None
        self._stop.check()
        try:
            identity = identify(item, self.recipe)
        except ScoreFusionError as error:
            return failure(item, error), None
        return self._worker.translate(item, self._stop.check, identity), identity

    def stop(self) -> None:
        """End what is being sampled, and whatever comes after it."""
        self._stop.set(Stopped("the batch was stopped"))


@dataclass(frozen=True)
class Cluster:
    """Ray, connected, and what each worker gets of it."""

    workers: int  #: at most this many
    cpus: int  #: cores of each
    gpus: int  #: GPUs of each: 0 or 1
    elsewhere: bool  #: whether it may have other machines than this one

    @property
    def device(self) -> str:
        """What the workers compute on: ``cpu`` or ``cuda``; which GPU, Ray decides."""
        return "cuda" if self.gpus else "cpu"

    def work(self, work: Work) -> Work:
        """Return the work as it is sent: with this device, and without relative paths."""
        model, engines = (
            str(Path(path).absolute()) if path is not None and Path(path).is_dir() else path
            for path in (work.model, work.engines)
        )
        return replace(work, device=self.device, model=model or work.model, engines=engines)

    def recipe(self, work: Work) -> dict[str, Any]:
        """Return ``work.recipe()`` as it is on a machine with the workers' device."""
        if not self.elsewhere:
            return work.recipe()
        ray = need("ray", "--ray")
        task = ray.remote(Work.recipe).options(num_cpus=self.cpus, num_gpus=self.gpus)
        try:
            return ray.get(task.remote(work))
        except ray.exceptions.RayTaskError as error:
            raise ScoreFusionError(f"a machine of the Ray cluster cannot do it ({error.cause})") from error


@contextmanager
def connected(
    address: str = "local", *, device: str = "auto", workers: int | None = None
) -> Iterator[Cluster]:
    """Connect to a Ray cluster, or start Ray on this machine and stop it at the end.

    What is started answers only to those who have its token, which this process makes. ``address`` is as
    ``ray.init`` takes it, or ``local``; a connection that this process has already is used and kept.
    ``workers`` is None for one on each GPU, without GPUs one on each machine.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ScoreFusionError(f"with Ray a device is auto, cpu or cuda; Ray chooses which; got '{device}'")
    if workers is not None and workers < 1:
        raise ScoreFusionError(f"there must be a worker, got {workers}")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    local = address == "local"
    if local:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        os.environ.setdefault("RAY_worker_niceness", "0")  # else 15: whatever else runs would go first
    ray = need("ray", "--ray")
    with ExitStack() as held:
        if not ray.is_initialized():
            folder = None
            if local:
                folder = held.enter_context(TemporaryDirectory(prefix="sf-ray-", ignore_cleanup_errors=True))
            held.callback(ray.shutdown)
            _start(ray, address, folder)
        yield _plan(ray.nodes(), device, workers, elsewhere=not local)


def _start(ray: Any, address: str, folder: str | None) -> None:
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "error"}
    if folder is not None:
        options |= {"include_dashboard": False, "object_store_memory": _OBJECTS, "_temp_dir": folder}
        options["_node_ip_address"] = "127.0.0.1"
    # Ray gives its own processes half a minute to come up, which a busy machine may not keep to.
    for attempt in range(1 if folder is None else 2):
        try:
            ray.init(**options)
            return
        except Exception as error:
            ray.shutdown()
            if attempt or folder is None:
                what = "Ray cannot be started here" if folder else f"no Ray cluster answers at {address}"
                raise ScoreFusionError(f"{what} ({error})") from error


def _plan(nodes: Sequence[dict[str, Any]], device: str, workers: int | None, *, elsewhere: bool) -> Cluster:
    """Choose how many workers of what size fit, from what Ray reports of its machines."""
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    gpus = [int(node.get("GPU", 0)) for node in resources]
    cores = [int(node.get("CPU", 0)) for node in resources]
    if device == "cuda" and not sum(gpus):
        raise ScoreFusionError("no machine of the Ray cluster has a GPU; leave --device out, or give cpu")
    if sum(gpus) and device != "cpu":
        share = min(core // gpu for core, gpu in zip(cores, gpus, strict=True) if gpu)
        return Cluster(min(workers or sum(gpus), sum(gpus)), max(1, share), 1, elsewhere)
    if not sum(cores):
        raise ScoreFusionError("no machine of the Ray cluster has a core to spare")
    count = min(workers or sum(core > 0 for core in cores), sum(cores))
    share = max(n for n in range(1, max(cores) + 1) if sum(core // n for core in cores) >= count)
    return Cluster(count, share, 0, elsewhere)


@dataclass(eq=False)
class _Seat:
    """A worker: its actor, the answer that it is up, until that comes, and what it was sent."""

    actor: Any
    opening: Any
    flights: deque[tuple[Any, Item]] = field(default_factory=deque)


class RayRun:
    """Translates items of one queue by Ray actors, and records what they answer.

    A worker gets items once it is up. Ray starts one that died again, where there is room, and after its
    third death there is a new one; what it was sent goes back to the front of the queue at once. An item at
    which three workers died has failed. Arguments are as for :class:`.run.Run`.
    """

    def __init__(self, cluster: Cluster, work: Work, recipe: dict[str, Any], journal: Journal):
        self.ray = need("ray", "--ray")
        self.cluster, self.recipe, self.journal = cluster, recipe, journal
        self.work = replace(work, dtype=str(recipe["dtype"]))
        self.device = cluster.device
        self._seats: list[_Seat] = []
        self._waiting: deque[Item] = deque()
        self._lost: Counter[str] = Counter()
        self._stillborn = 0

    def go(self, items: Sequence[Item], before: Mapping[str, Entry]) -> None:
        """Translate items; see :meth:`.run.Run.go`."""
        self._waiting, stop = deque(items), self.journal.stop
        start, patient = time.monotonic(), True
        try:
            while self._feed(before):
                stop.check()
                asked = {seat.opening: seat for seat in self._seats if seat.opening is not None}
                asked |= {answer: seat for seat in self._seats for answer, _ in seat.flights}
                answers, _ = self.ray.wait(list(asked), timeout=0.5)
                for answer in answers:
                    self._take(answer, asked[answer])
                if patient and len(asked) == len(self._seats) and time.monotonic() > start + _PATIENCE:
                    patient = False
                    if all(seat.opening is not None for seat in self._seats):
                        self.journal.note("no worker is up yet; the Ray cluster may be full")
                self.journal.between()
        except BaseException as error:
            if isinstance(error, Stopped):
                stop.set(error)
            self._land()
            raise
        finally:
            for seat in self._seats:
                self.ray.kill(seat.actor)
        stop.check()

    def _feed(self, before: Mapping[str, Entry]) -> bool:
        """Send items to workers that are up; start and dismiss workers. Return whether anything is left."""
        for depth in range(1, AHEAD + 1):
            for seat in self._seats:
                if seat.opening is None and len(seat.flights) < depth and (item := self._next(before)):
                    seat.flights.append((seat.actor.translate.remote(_absolute(item)), item))
                    if len(seat.flights) == 1:
                        self.journal.mark(item, "running")
        left = len(self._waiting) + sum(len(seat.flights) for seat in self._seats)
        for seat in [seat for seat in self._seats if not seat.flights]:
            if len(self._seats) > left:
                self._seats.remove(seat)
                self.ray.kill(seat.actor)
        while len(self._seats) < min(self.cluster.workers, left):
            size = {"num_cpus": self.cluster.cpus, "num_gpus": self.cluster.gpus}
            lives = {"max_restarts": LOSSES - 1, "max_task_retries": 0}
            kind = self.ray.remote(**size, **lives, concurrency_groups={"control": 1})(RayWorker)
            actor = kind.remote(self.work, self.journal.out.absolute(), self.recipe, scorefusion.__version__)
            self._seats.append(_Seat(actor, _open(actor)))
        return left > 0

    def _next(self, before: Mapping[str, Entry]) -> Item | None:
        """Return the next item that is not done."""
        while self._waiting:
            self.journal.stop.check()
            item = self._waiting.popleft()
            entry = before.get(item.name)
            if entry is None or entry.state != "done":
                return item
            try:
                work = self.journal.identify(item, self.recipe).work
            except ScoreFusionError:
                return item  # The worker says what is wrong.
            if not self.journal.keeps(item, entry, work):
                return item
        return None

    def _take(self, answer: Any, seat: _Seat) -> None:
        """Record an answer that is there."""
        errors, opening = self.ray.exceptions, answer is seat.opening
        if seat not in self._seats or not (opening or any(answer is flight for flight, _ in seat.flights)):
            return  # Its worker died meanwhile.
        try:
            value = self.ray.get(answer)
        except errors.RayTaskError as error:
            if opening:
                raise Stopped(f"a worker cannot start: {error.cause}") from error
            item = self._landed(answer, seat)
            if isinstance(error.cause, Stopped):
                self.journal.mark(item, "waiting")
                raise error.cause from None
            self.journal.ended(item, failure(item, error.cause or error))
        except errors.RayError as error:
            if not opening:
                self._lose(seat, error)
                return
            self._seats.remove(seat)  # Ray does not start it again; another one may do better.
            self._stillborn += 1
            if self._stillborn == LOSSES:
                raise Stopped(f"workers die when they start: {one_line(error)[:300]}") from error
        else:
            if opening:
                seat.opening, self._stillborn = None, 0
            else:
                self._record(self._landed(answer, seat), *value)

    def _record(self, item: Item, outcome: Outcome, identity: Identity | None) -> None:
        if identity is not None:
            self.journal.identified(item, identity)
        self.journal.ended(item, outcome)

    def _landed(self, answer: Any, seat: _Seat) -> Item:
        """Take an item off its worker's list; the next one begins."""
        place = next(n for n, (flight, _) in enumerate(seat.flights) if flight is answer)
        _, item = seat.flights[place]
        del seat.flights[place]
        if place == 0 and seat.flights:
            self.journal.mark(seat.flights[0][1], "running")
        return item

    def _lose(self, seat: _Seat, error: Exception) -> None:
        """A worker died: what it was sent goes back; the item that it worked on may be why."""
        items = [item for _, item in seat.flights]
        seat.flights.clear()
        seat.opening = _open(seat.actor)
        for item in reversed(items):
            self.journal.mark(item, "waiting")
            self._waiting.appendleft(item)
        if not items:
            return
        first = self._waiting[0]
        self._lost[first.name] += 1
        if self._lost[first.name] < LOSSES:
            self.journal.note(f"a worker died at {first.name}, which is put back")
            return
        self._waiting.popleft()
        problem = f"{LOSSES} workers died at it, the last one: {one_line(error)[:300]}"
        fix = "It may need more memory: use fewer, or --max-memory."
        self.journal.ended(first, failure(first, Problem(problem, fix)))

    def _land(self) -> None:
        """Stop the workers, and record what they still bring to an end."""
        flights = [(answer, item) for seat in self._seats for answer, item in seat.flights]
        for seat in self._seats:
            if seat.opening is None:
                seat.actor.stop.options(concurrency_group="control").remote()
        end = time.monotonic() + GRACE
        for answer, item in flights:
            try:
                self._record(item, *self.ray.get(answer, timeout=max(0.0, end - time.monotonic())))
            except (Stopped, self.ray.exceptions.RayError):
                self.journal.mark(item, "waiting")


def _open(actor: Any) -> Any:
    """Ask a worker whether it is up; the answer outlives its restarts."""
    return actor.ready.options(max_task_retries=-1).remote()


def _absolute(item: Item) -> Item:
    """Return the item for a process with another current folder."""
    series = (replace(one, files=tuple(file.absolute() for file in one.files)) for one in item.series)
    files = tuple(file.absolute() for file in item.files)
    return replace(item, files=files, output=item.output.absolute(), series=tuple(series))
