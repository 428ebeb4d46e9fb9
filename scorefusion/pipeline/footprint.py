"""Forecast a translation's memory, stage by stage, and refuse before work starts what cannot fit.

What sampling takes is forecast by :mod:`.engine.forecast`; here is what is around it: reading, preparation,
the volumes on the output's grid that are kept while sampling, finishing and saving.
"""

import functools
import math
import operator as operators
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from scorefusion.data import Box, Intensity, on_output_grid
from scorefusion.degradations import Measurement
from scorefusion.engine.planning.available import (
    available_on,
    available_on_host,
    give_back_freed_memory,
    resident_bytes,
)
from scorefusion.engine.planning.fit import fit
from scorefusion.engine.planning.forecast import PROGRAM, Forecast
from scorefusion.engine.planning.memory import measure
from scorefusion.engine.planning.plan import Plan
from scorefusion.engine.pool import GPU_SHARE, Around, EnginePool, Limit
from scorefusion.errors import OutOfMemory
from scorefusion.models.config import ModelConfig
from scorefusion.models.folder import bundled_models
from scorefusion.pipeline.settings import Settings

Size = tuple[int, int, int]

READ, SCALED, STORED = 25, 24, 20
"""Bytes per voxel of an image: while it is read (stored, scaled, turned, checked), while its intensities are
measured, and while a result is converted to an input's integer type."""

CLIPPING = 6
"""Volumes that are alive at once while a result is clipped and its block means are restored."""

UNWALKED = 12
"""Volumes held at once by measurements that cannot be traced on the meta device."""

CROPS = 4
"""Crops that are tried before the largest that fits is named."""


class Bytes(NamedTuple):
    """Bytes on the host and on the device; on a CPU they are one memory."""

    host: int
    device: int


@dataclass(frozen=True)
class Footprint:
    """Memory that a translation takes besides the program, the weights and its engine, stage by stage."""

    shapes: tuple[Size, ...]  #: (z, y, x) of each image
    box: Size  #: (z, y, x) of the box that is sampled
    operator: bool  #: whether the caller passed the operator of the measurement
    size: Size  #: (z, y, x) of the box, extended to whole patches
    read: Bytes  #: bytes while the images are read
    scans: Bytes  #: bytes of the images as they were read
    prepare: Bytes  #: bytes while conditions are brought to the output's grid, images included
    held: Bytes  #: bytes of conditions, base and first image, kept until the end
    around: Around  #: bytes on the device, while sampling
    finish: Bytes  #: bytes while the result is made, ``held`` included
    save: Bytes  #: bytes while it is written


def footprint(
    config: ModelConfig,
    shapes: Sequence[Size],
    box: Size,
    settings: Settings,
    *,
    one_memory: bool = True,
    operator: bool = False,
    walk: bool = True,
) -> Footprint:
    """Forecast the memory of one translation around its sampling, by the sizes (z, y, x) of images and box.

    Args:
        one_memory: whether the device computes in the host's memory, as a CPU does.
        operator: whether the caller passed the operator of the measurement.
        walk: measure the preparation by tracing it on the meta device, which takes a second the first time in
            a process; else an upper bound.
    """
    grid = config.degradation.grid(shapes[0])
    images = [math.prod(shape) for shape in shapes]
    fine, kept = 4 * math.prod(grid), len(config.conditions) + 1
    scans, largest = 4 * sum(images), max(images)
    prepared, project, outside = _preparation(config, shapes, grid, operator, walk)
    held = (kept + outside) * fine
    foreground = held + (2 * kept - 1) * (fine // 4)

    patched = Box.whole(box)
    beyond = missing_voxels(config, patched)
    size = tuple(n + more for n, more in zip(box, beyond, strict=True))
    inside = 4 * math.prod(size)
    longer = 0
    if any(beyond):
        whole = [max(n, m) for n, m in zip(grid, size, strict=True)]
        longer = (kept + outside) * 4 * math.prod(whole)
    drawn = (3 + min(settings.batch, settings.samples)) * inside
    apart = (len(config.branches) + 8) * inside * min(settings.batch, settings.samples)
    loading = 2 * (len(config.conditions) + config.common_channels) * inside
    passing = max(drawn, loading, project, apart if settings.disagreement else 0)
    sides = int(settings.samples > 1) + int(settings.disagreement)
    fields = (1 + 2 * sides) * inside
    image = fine if settings.output_dtype == "float32" else STORED * (fine // 4)
    result = (1 + sides) * fine
    # Two steps of the inverse map are alive at once, or what clips, or the result and its fields.
    alive = CLIPPING * fine if settings.clip == "input" else (2 + config.degradation.of_each_scan) * fine
    finish, made = held + fields + fine + alive, 4 * images[0] + result
    if one_memory:
        finish, made = 0, 4 * images[0] + held + fields + fine + max(alive, result)
    return Footprint(
        shapes=tuple(shapes),
        box=box,
        operator=operator,
        size=(size[0], size[1], size[2]),
        read=Bytes(scans + READ * largest, 0),
        scans=Bytes(scans, 0),
        prepare=Bytes(scans + SCALED * largest, max(scans + prepared, foreground)),
        held=Bytes(4 * images[0], held),
        around=Around(held + 4 * images[0], 2 * inside + longer, passing),
        finish=Bytes(made, finish),
        save=Bytes(4 * images[0] + result + 3 * image, 0),
    )


def _preparation(
    config: ModelConfig, shapes: Sequence[Size], grid: Sequence[int], operator: bool, walk: bool
) -> tuple[int, int, bool]:
    """Bytes of the preparation, bytes of a step's projection, and whether the base needs a correction."""
    fine, degradation = 4 * math.prod(grid), config.degradation
    if not walk or operator or not degradation.traceable:
        local = not operator and (not degradation.measures or degradation.blocks is not None)
        return (UNWALKED + len(shapes)) * fine, 0 if local else UNWALKED * fine, True
    with torch.device("meta"):
        measured = degradation.operator(grid, device="meta")
        volumes = [torch.empty(1, 1, *shape) for shape in shapes]
        found: list[bool] = []

        def prepare() -> None:
            scaled = [volume + 1.0 for volume in volumes]
            prepared = on_output_grid(scaled, config, Intensity(-1.0, 1.0), measured)
            found.append(prepared.outside is not prepared.base)

        usage = measure(prepare)
        project = 0
        if measured is not None and not measured.blocks:
            x = torch.empty(1, 1, *grid)
            project = measure(lambda: x - measured.A_dagger(measured.A(x))).peak_bytes
    masks = 0 if measured is None or measured.blocks else fine
    return usage.peak_bytes + masks, project, found[0]


def missing_voxels(config: ModelConfig, box: Box) -> list[int]:
    """How many voxels a box lacks along z, y and x to be of whole patches and whole blocks."""
    return [-length % multiple for length, multiple in zip(box.size, config.multiples, strict=True)]


class Room:
    """Compares forecasts with what is left, for one pipeline."""

    def __init__(self, config: ModelConfig, engines: EnginePool):
        self.config, self.engines = config, engines
        self.one_memory = engines.device.type != "cuda"
        self.footprint = functools.partial(footprint, config, one_memory=self.one_memory)
        self._grid = config.degradation.grid

    def measuring(self, measurement: Measurement) -> "Room":
        """The same for a volume that was measured otherwise."""
        engines = self.engines.measuring(measurement)
        return Room(engines.config, engines)

    def check(
        self,
        name: str,
        found: Footprint,
        settings: Settings,
        *,
        done: Sequence[str] = (),
        until: str = "",
        sample: bool = True,
        own_order: Callable[[Size], Size] = lambda size: size,
    ) -> Footprint:
        """Refuse a translation whose memory cannot fit, whatever is done about it.

        Args:
            name: of the first image.
            found: what is around its sampling, at least; where that would not fit it is walked and returned.
            settings: of the translation.
            done: stages that are over, of ``read`` and ``prepare``.
            until: the last stage that counts, where nothing is known of the others.
            sample: whether the footprint's box is one to be sampled, or surely part of it.
            own_order: a size (z, y, x) in the first image's own order.

        Raises:
            OutOfMemory: naming the need, what there is, and what to do.
        """
        if self._shortage(found, settings, done, until, sample=sample) is None:
            return found
        found = self.footprint(found.shapes, found.box, settings, operator=found.operator)
        self.release()
        short = self._shortage(found, settings, done, until, sample=sample)
        if short is None:
            return found
        need, least, limit = short
        partly = "" if sample and not until else "at least "
        problem = f"needs {partly}{limit.shown(need, least)}"
        size = self._largest_crop(found, settings, limit, least)
        crop = "Crop it"
        if size is not None:
            crop += f" to at most {' × '.join(map(str, own_order(size)))} voxels"
        more = "allow more" if limit.asked else "use a machine with more memory"
        if until and self.config.degradation.of_each_scan:  # the output's size depends on its header
            raise OutOfMemory(name, problem, f"{crop}, or {more}.")
        shape = " ".join(str(n) for n in (self._grid(found.shapes[0]) if partly else found.box))
        model = f"--model {self.config.name} " if self.config.name in bundled_models() else ""
        see = f"`scorefusion plan {model}--shape {shape}` says what takes how much"
        raise OutOfMemory(name, problem, f"{crop}, or {more}; {see}.")

    def check_reading(
        self, name: str, shapes: Sequence[tuple[int, int, int] | None], settings: Settings
    ) -> None:
        """Refuse images that cannot be read, by their sizes (x, y, z); None where a header has none."""
        known = [(shape[2], shape[1], shape[0]) for shape in shapes if shape is not None]
        if len(known) < len(shapes) or any(shape not in (known[0], self._grid(known[0])) for shape in known):
            return  # reading them says what is wrong
        least = self.footprint(known, known[0], settings, walk=False)
        self.check(name, least, settings, until="read", own_order=operators.itemgetter(2, 1, 0))

    def roomy(self, shapes: Sequence[Size], settings: Settings) -> bool:
        """Whether images that are read fit by far, even if all of their grid is sampled."""
        found = self.footprint(shapes, self._grid(shapes[0]), settings, walk=False)
        limit = self.engines.limit(self._sum(found.scans))
        most = self.engines.most(found.size, around=found.around, **_how(settings))
        return limit is None or max(most, self.around(found, None)) <= limit.bytes

    def release(self) -> None:
        """Give the system what is idle."""
        self.engines.free()
        give_back_freed_memory(self.engines.device)

    def make_for_finishing(self, found: Footprint) -> None:
        """Free the engine that was kept for the next volume where a result would not fit besides it."""
        limit = self.engines.limit(self._sum(found.held))
        if limit is not None and self._base() + self._sum(found.finish) > limit.bytes:
            self.release()

    def around(self, found: Footprint, engine: Forecast | None) -> int:
        """The most that is resident at any stage, on the device, engine included."""
        stages = (found.read, found.prepare, found.finish, found.save)
        rest = self._base() + max(self._sum(stage) for stage in stages)
        return rest if engine is None else max(rest, found.around.total(engine))

    def _sum(self, stage: Bytes) -> int:
        return stage.host + stage.device if self.one_memory else stage.device

    def _base(self) -> int:
        """The program, the weights and what is packed of them, on the device."""
        pool = self.engines
        return pool.weights + (PROGRAM + pool.packed if self.one_memory else 0)

    def _shortage(
        self, found: Footprint, settings: Settings, done: Sequence[str], until: str, *, sample: bool
    ) -> tuple[int, int, Limit] | None:
        """What is needed, the least that it could be, and the limit; None where it fits."""
        before = found.held if "prepare" in done else found.scans if "read" in done else Bytes(0, 0)
        stages = {"read": found.read, "prepare": found.prepare, "finish": found.finish, "save": found.save}
        ahead = [stage for name, stage in stages.items() if name not in done and until in ("", name)]
        host = None if self.one_memory else available_on_host()
        if host is not None:
            need = max(stage.host for stage in ahead) - before.host
            if need > host.bytes:
                return need, need, Limit(host.bytes, host.source)
        limit = self.engines.limit(self._sum(before))
        if limit is None:
            return None
        rest = self._base() + max(self._sum(stage) for stage in ahead)
        if not sample or until:
            return None if rest <= limit.bytes else (rest, rest, limit)
        around = found.around
        if max(rest, self.engines.most(found.size, around=around, **_how(settings))) <= limit.bytes:
            return None
        engine = self.engines.fitted(found.size, limit.bytes, around=around, **_how(settings))
        least = max(rest, around.total(engine.forecast))
        return None if least <= limit.bytes else (max(rest, around.total(engine.first)), least, limit)

    def _largest_crop(self, found: Footprint, settings: Settings, limit: Limit, need: int) -> Size | None:
        """About the largest crop, of the box's proportions, that fits sampled as a whole."""
        degradation, image, best = self.config.degradation, found.shapes[0], None
        units = [m // factor for m, factor in zip(self.config.multiples, degradation.factors, strict=True)]
        box = [n / factor for n, factor in zip(found.box, degradation.factors, strict=True)]
        base, share = self._base(), 1.0
        for _ in range(CROPS):
            share *= (0.98 * max(1, limit.bytes - base) / max(1, need - base)) ** (1 / 3)
            z, y, x = (
                most if kept else min(most, max(unit, int(n * share) // unit * unit))
                for n, most, unit, kept in zip(box, image, units, degradation.whole, strict=True)
            )
            need = self._crop_needs((z, y, x), found, settings, limit)
            if need <= limit.bytes and math.prod(best or (0,)) < z * y * x:
                best = z, y, x
        return best

    def _crop_needs(self, size: Size, of: Footprint, settings: Settings, limit: Limit) -> int:
        """The least that a crop needs, sampled as a whole."""
        grid = self._grid(size)
        crops = [size if shape == of.shapes[0] else grid for shape in of.shapes]
        found = self.footprint(crops, grid, settings, operator=of.operator)
        engine = self.engines.fitted(found.size, limit.bytes, around=found.around, **_how(settings))
        return self.around(found, engine.forecast)


def compared_with_this_machine(layout: Plan, device: torch.device) -> str:
    """One line: what a translation takes whose output is the planned volume, and whether it fits here."""
    free = available_on(device)
    if free is None:
        return "this machine: what is free is not known here"
    config, one_memory = layout.config, device.type != "cuda"
    edges = zip(layout.size, config.degradation.factors, strict=True)
    z, y, x = (-(-n // factor) for n, factor in edges)
    turns: dict[str, Any] = {"planes": layout.planes} if layout.strategy.takes_planes else {}
    settings = Settings(
        config, strategy=layout.strategy.name, samples=layout.batch, batch=layout.batch, crop=False, **turns
    )
    shapes = [(z, y, x)] * len(config.conditions)
    found = footprint(config, shapes, layout.size, settings, one_memory=one_memory)
    own = min(resident_bytes() or PROGRAM, PROGRAM) if one_memory else 0
    limit = int(free.bytes / (1 if one_memory else GPU_SHARE)) + own
    engine = fit(layout, max(1, limit - found.around.held - found.around.more), device=device.type)
    need = found.around.total(engine.first)
    verdict = "fits"
    if need > limit:
        fits = engine.fits and found.around.total(engine.forecast) <= limit
        least = f"{found.around.total(engine.forecast) / 1e9:.2f} GB with all that saves memory"
        verdict = f"fits with {'; '.join(engine.changes)}" if fits else f"does not fit ({least})"
    return (
        f"this machine: {free.bytes / 1e9:.2f} GB are {free.source}; a translation, with the volumes around "
        f"its steps, takes {need / 1e9:.2f} GB: {verdict}"
    )


def _how(settings: Settings) -> dict[str, Any]:
    return {"strategy": settings.strategy, "planes": settings.planes}
