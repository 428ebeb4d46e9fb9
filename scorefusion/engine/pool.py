"""Engines of one model, made when they are first needed and used again for volumes of the same shape."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..errors import Cancelled, ScoreFusionError
from ..isolation import renew_lock_after_fork
from ..models.config import Plane
from ..models.score_fusion import ScoreFusion
from .engine import Engine
from .fit import fit
from .memory import return_freed_memory
from .plan import plan, slab_pixels
from .prepack import packed_model
from .runners import choose_runner, make_runners

Key = tuple[tuple[int, ...], int, str, tuple[Plane, ...] | None]


class EnginePool:
    """Lends engines; safe to use from several threads, each of which gets an engine of its own.

    One idle engine is kept. To make another takes a CPU 10 to 25 ms, of translations of 1.3 s and more, so
    keeping one for each thread would hold memory for nothing.

    Args:
        model: in evaluation mode, its networks in the dtype to compute in.
        runner: one of :data:`.runners.RUNNERS`, or ``auto``.
        engines: folder of TensorRT engines that ``scorefusion engine build`` wrote.
        max_memory: the most that may be resident while an engine runs, as :func:`.fit.parse_memory` reads it.

    Raises:
        ScoreFusionError: for an unknown runner.
    """

    def __init__(
        self,
        model: ScoreFusion,
        *,
        runner: str = "auto",
        engines: str | os.PathLike[str] | None = None,
        max_memory: str | int | None = None,
    ):
        self.model, self.engines, self.max_memory = model, engines, max_memory
        self.device = next(model.parameters()).device
        self.runner, self.reason = choose_runner(runner, self.device, engines=engines is not None)
        self._lock = threading.Lock()
        renew_lock_after_fork(self)
        self._idle: tuple[Key, Engine] | None = None
        self._twin: ScoreFusion | None = None

    @contextmanager
    def borrow(
        self, size: Sequence[int], *, batch: int = 1, strategy: str, planes: Sequence[Plane] | None = None
    ) -> Iterator[Engine]:
        """An engine for volumes of that size: the one last given back if it fits, else a new one.

        It is given back when the block ends well or by :class:`~scorefusion.errors.Cancelled`, which is
        raised between two steps; after another error it is dropped.

        Args:
            size: (z, y, x).
            batch: volumes at once.
            strategy: how scores are fused.
            planes: for ``single`` and ``alternate``.

        Raises:
            ScoreFusionError: for what the model cannot do, what does not fit into ``max_memory``, and engines
                that are not this model's.
        """
        key: Key = (tuple(size), batch, strategy, tuple(planes) if planes else None)
        with self._lock:
            found, self._idle = self._idle, None
        engine = found[1] if found is not None and found[0] == key else None
        del found  # its memory is free before another engine takes its own
        engine = engine or self._make(key)
        try:
            yield engine
        except Cancelled:
            self._keep(key, engine)
            raise
        self._keep(key, engine)

    def _keep(self, key: Key, engine: Engine) -> None:
        with self._lock:
            self._idle = key, engine

    def free(self) -> None:
        """Let go of the engine that was last given back, and of its memory."""
        with self._lock:
            self._idle = None

    def _make(self, key: Key) -> Engine:
        size, batch, strategy, planes = key
        dtype = next(self.model.slice_networks.parameters()).dtype
        layout = plan(
            self.model.config, size, batch=batch, strategy=strategy, planes=planes, dtype=dtype,
            pixels=slab_pixels(self.device.type, self.runner),
        )  # fmt: skip
        tiling, packed = None, self.device.type == "cpu" and self.runner == "eager"
        if self.max_memory is not None:
            fitted = fit(layout, self.max_memory, device=self.device.type)
            if not fitted.fits:
                raise ScoreFusionError(
                    f"a volume of {' × '.join(map(str, size))} voxels does not fit into {self.max_memory}: "
                    f"{'; '.join(fitted.advice)}"
                )
            layout, tiling = fitted.plan, fitted.tiling
            packed = packed and fitted.forecast.packed > 0
            return_freed_memory()
        model = self._packed() if packed else self.model
        runners = make_runners(self.runner, model, layout, engines=self.engines)
        return Engine(model, layout, runners=runners, tiling=tiling)

    def _packed(self) -> ScoreFusion:
        """The model with its convolutions packed, once for all engines."""
        with self._lock:
            self._twin = self._twin or packed_model(self.model)
            return self._twin
