"""Engines of one model, made when they are first needed and used again for volumes of the same shape."""

import copy
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypedDict

from typing_extensions import NotRequired, Unpack

from scorefusion.degradations import Measurement
from scorefusion.engine.engine import Engine
from scorefusion.engine.isolation import renew_lock_after_fork
from scorefusion.engine.planning.available import (
    Available,
    available_on,
    give_back_freed_memory,
    resident_bytes,
)
from scorefusion.engine.planning.fit import Fit, fit, parse_memory
from scorefusion.engine.planning.forecast import PROGRAM, Forecast, most_workspace
from scorefusion.engine.planning.memory import return_freed_memory
from scorefusion.engine.planning.plan import Plan, plan, slab_pixels, without_projection
from scorefusion.engine.prepack import packed_bytes, packed_model
from scorefusion.engine.runners import choose_runner, make_runners
from scorefusion.errors import Cancelled, OutOfMemory
from scorefusion.models.config import Plane
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.models.strategies import Strategy


class Sampling(TypedDict):
    """How an engine samples; as for :meth:`EnginePool.borrow`."""

    strategy: str | Strategy
    planes: NotRequired[Sequence[Plane] | None]
    consistent: NotRequired[bool]


Key = tuple[tuple[int, ...], int, str | Strategy, tuple[Plane, ...] | None, bool, Measurement]

#: what a step took on a GPU, in forecasts: 0.178 GiB measured on an H200 where 0.136 were forecast.
GPU_SHARE = 1.35


@dataclass(frozen=True)
class Around:
    """Bytes on the device that a translation takes besides its engine while it samples."""

    held: int = 0  #: allocated before the engine is made
    more: int = 0  #: allocated after it, and kept until it has drawn
    passing: int = 0  #: taken and given back between steps, when the engine's workspace is free

    def total(self, found: Forecast) -> int:
        """The peak, engine included."""
        return found.peak_bytes + max(0, self.passing - found.workspace) + self.held + self.more


@dataclass(frozen=True)
class Limit:
    """The most that a process may hold on a device, program and weights included, and why."""

    bytes: int  #: how much
    source: str  #: what limits it, in words
    asked: bool = False  #: whether the caller set it
    own: int = 0  #: what of it the process holds already and its forecasts count
    share: float = 1.0  #: bytes on the device in one byte of a forecast

    def shown(self, need: int, least: int | None = None) -> str:
        """What is needed, or at least, and what there is, in words, without what is held already."""
        sizes = (need, need if least is None else least, self.bytes)
        more, saved, left = (f"{(size - self.own) * self.share / 1e9:.2f} GB" for size in sizes)
        either = "" if saved == more else f" ({saved} with all that saves memory)"
        return f"{more} of memory{either}, and {left} are {self.source}"


class EnginePool:
    """Lends engines; safe to use from several threads, each of which gets an engine of its own.

    One idle engine is kept. Building another takes 10 to 25 ms on a CPU, and a translation over 1.3 s, so
    keeping one for each thread would hold memory for nothing. ``idle`` keeps more, for a caller that takes
    turns with strategies on a GPU, where each captures a graph of its own.

    Args:
        model: in evaluation mode, its networks in the dtype to compute in.
        runner: one of :data:`.runners.RUNNERS`, or ``auto``.
        engines: folder of TensorRT engines that ``scorefusion engine build`` wrote.
        max_memory: the most that may be resident while an engine runs, as :func:`.fit.parse_memory` reads it.
            What the machine has left limits it as well.
        idle: how many idle engines are kept.

    Raises:
        ScoreFusionError: for an unknown runner, or what is no amount of memory.
    """

    def __init__(
        self,
        model: ScoreFusion,
        *,
        runner: str = "auto",
        engines: str | os.PathLike[str] | None = None,
        max_memory: str | int | None = None,
        idle: int = 1,
    ):
        self.model, self.engines, self.idle = model, engines, idle
        self.config = model.config
        self.max_memory = None if max_memory is None else parse_memory(max_memory)
        self.device = next(model.parameters()).device
        self.runner, self.reason = choose_runner(runner, self.device, engines=engines is not None)
        self._lock = threading.Lock()
        renew_lock_after_fork(self)
        self._idle: dict[Key, Engine] = {}
        self._twin: list[ScoreFusion] = []
        self._lent: dict[int, int] = {}
        parameters = [*model.parameters(), *model.buffers()]
        self.weights = sum(parameter.nbytes for parameter in parameters)
        self._packs = self.device.type == "cpu" and self.runner == "eager"
        self.packed = packed_bytes(model) if self._packs else 0

    def measuring(self, measurement: Measurement) -> "EnginePool":
        """The same pool, its weights and engines, for volumes that were measured otherwise."""
        other = copy.copy(self)
        renew_lock_after_fork(other)
        other.config = self.config.model_copy(update={"degradation": measurement})
        return other

    @contextmanager
    def borrow(
        self,
        size: Sequence[int],
        *,
        batch: int = 1,
        strategy: str | Strategy,
        planes: Sequence[Plane] | None = None,
        consistent: bool = True,
        around: Around | None = None,
    ) -> Iterator[Engine]:
        """An engine for volumes of that size: the one last given back if it fits, else a new one.

        It is given back when the block ends well or by :class:`~scorefusion.errors.Cancelled`, which is
        raised between two steps; after another error it is dropped.

        Args:
            size: (z, y, x).
            planes: for ``single`` and ``alternate``.
            consistent: False for an engine without a projection, whatever the configuration says.
            around: what the caller takes besides.

        Raises:
            OutOfMemory: for what fits neither into ``max_memory`` nor into what the machine has left.
            ScoreFusionError: for what the model cannot do, and engines that are not this model's.
        """
        shown = tuple(planes) if planes else None
        key: Key = (tuple(size), batch, strategy, shown, consistent, self.config.degradation)
        with self._lock:
            engine = self._idle.pop(key, None)
            if engine is None and len(self._idle) >= self.idle:  # free before another takes its memory
                del self._idle[next(iter(self._idle))]
        engine = engine or self._make(key, around or Around())
        self._lent[id(engine)] = engine.plan.bytes
        try:
            yield engine
        except Cancelled:
            self._keep(key, engine)
            raise
        finally:
            del self._lent[id(engine)]
        self._keep(key, engine)

    def _keep(self, key: Key, engine: Engine) -> None:
        with self._lock:
            self._idle[key] = engine
            while len(self._idle) > self.idle:
                del self._idle[next(iter(self._idle))]

    def free(self) -> None:
        """Let go of the engine that was last given back, and of its memory."""
        with self._lock:
            self._idle.clear()

    def limit(self, held: int = 0) -> Limit | None:
        """The most that this process may hold on the device: ``max_memory``, or what the machine allows.

        Args:
            held: bytes of the translation at hand that are allocated already.
        """
        asked = None if self.max_memory is None else Limit(self.max_memory, "allowed", asked=True)
        found = self.machine(available_on(self.device), held)
        limits = [limit for limit in (asked, found) if limit is not None]
        return min(limits, key=lambda limit: limit.bytes, default=None)

    def machine(self, found: Available | None, held: int = 0) -> Limit | None:
        """What a machine has left as a limit of the whole process, which holds some of it already."""
        if found is None:
            return None
        own = self.weights + (self.packed if self._twin else 0)
        if self.device.type == "cuda":
            own += held
            return Limit(int(found.bytes / GPU_SHARE) + own, found.source, own=own, share=GPU_SHARE)
        own = min(resident_bytes() or PROGRAM, PROGRAM + own) + held + sum([*self._lent.values()])
        return Limit(found.bytes + own, found.source, own=own)

    def fitted(
        self,
        size: Sequence[int],
        limit: int | None,
        *,
        batch: int = 1,
        around: Around | None = None,
        **options: Unpack[Sampling],
    ) -> Fit:
        """The plan of an engine for volumes of that size, made to fit; options as for :meth:`borrow`."""
        around = around or Around()
        room = None if limit is None else max(1, limit - around.held - around.more)
        return fit(self._layout(size, batch=batch, **options), room, device=self.device.type)

    def batch_that_fits(
        self, size: Sequence[int], batch: int, *, around: Around, **options: Unpack[Sampling]
    ) -> int:
        """How many volumes at once need no help but smaller slabs: ``batch``, or half of it, or less."""
        while batch > 1:
            limit = self._room(self._layout(size, batch=batch, **options), around)
            if limit is None:
                break
            found = self.fitted(size, limit.bytes, batch=batch, around=around, **options)
            if found.fits and not found.costs and around.total(found.forecast) <= limit.bytes:
                break
            batch //= 2
        return batch

    def most(self, size: Sequence[int], *, around: Around, **options: Unpack[Sampling]) -> int:
        """An upper bound of what sampling one volume of that size takes, by arithmetic alone."""
        return self._most(self._layout(size, **options), around)

    def _most(self, layout: Plan, around: Around) -> int:
        program = PROGRAM if self.device.type != "cuda" else 0
        passing = max(most_workspace(layout), around.passing)
        return program + self.weights + self.packed + layout.bytes + around.held + around.more + passing

    def _layout(self, size: Sequence[int], *, batch: int = 1, **options: Unpack[Sampling]) -> Plan:
        consistent = options.get("consistent", True)
        config = self.config if consistent else without_projection(self.config)
        dtype = next(self.model.slice_networks.parameters(), next(self.model.parameters())).dtype
        return plan(
            config, size, batch=batch, strategy=options["strategy"], planes=options.get("planes"),
            dtype=dtype, pixels=slab_pixels(self.device.type, self.runner),
        )  # fmt: skip

    def _room(self, layout: Plan, around: Around) -> Limit | None:
        """The limit that an engine must be made to fit, None where it fits by far; what is idle is freed."""
        most = self._most(layout, around)
        limit = self.limit(around.held)
        if limit is None or most <= limit.bytes:
            return limit if limit is not None and limit.asked else None
        self.free()
        give_back_freed_memory(self.device)
        limit = self.limit(around.held)
        return None if limit is None or most <= limit.bytes and not limit.asked else limit

    def _make(self, key: Key, around: Around) -> Engine:
        size, batch, strategy, planes, consistent, _ = key
        options: Sampling = {"strategy": strategy, "planes": planes, "consistent": consistent}
        layout = self._layout(size, batch=batch, **options)
        tiling, packed, notes = None, self._packs, list[str]()
        limit = self._room(layout, around)
        if limit is not None:
            found = self.fitted(size, limit.bytes, batch=batch, around=around, **options)
            if not found.fits or around.total(found.forecast) > limit.bytes:
                need = limit.shown(around.total(found.forecast))
                raise OutOfMemory(
                    f"a volume of {' × '.join(map(str, size))} voxels",
                    f"needs at least {need}",
                    f"What would help: {'; '.join(found.advice)}." if found.advice else "",
                )
            layout, tiling = found.plan, found.tiling
            packed = packed and found.forecast.packed > 0
            return_freed_memory()
            if found.changes and not limit.asked:
                need = limit.shown(around.total(found.first))
                notes.append(f"memory is short: it needs {need}; going on with {'; '.join(found.changes)}")
        model = self.packed_model if packed else self.model
        runners = make_runners(self.runner, model, layout, engines=self.engines)
        return Engine(model, layout, runners=runners, tiling=tiling, notes=notes)

    @property
    def packed_model(self) -> ScoreFusion:
        """The model as engines run it: its convolutions packed, once for all, where that is faster."""
        if not self._packs:
            return self.model
        with self._lock:
            if not self._twin:
                self._twin.append(packed_model(self.model))
            return self._twin[0]
