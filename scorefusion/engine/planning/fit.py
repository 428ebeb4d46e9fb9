"""Make a step fit into so much memory: smaller slabs first, sums in 16 bits, weights unpacked, tiles last."""

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from scorefusion.engine.planning.forecast import Forecast, forecast
from scorefusion.engine.planning.plan import Buffer, Plan, plan
from scorefusion.engine.planning.tiles import Tiling, tiling
from scorefusion.errors import ScoreFusionError
from scorefusion.models.strategies import simpler

SHORTEST = 32  #: voxels of a tile's edge, at least.
TRIES = 6  #: tilings that are walked before the smallest is taken.


@dataclass(frozen=True)
class Fit:
    """A plan that fits, or the one that comes nearest."""

    plan: Plan  #: with a buffer ``maps`` for the 3D network's output where it runs on tiles
    tiling: Tiling | None  #: of the 3D network, or None
    forecast: Forecast  #: what the plan takes
    first: Forecast  #: what the plan took as it was asked for
    changes: tuple[str, ...]  #: what was done to make it fit, in words
    advice: tuple[str, ...]  #: what else would have to change; empty if it fits

    @property
    def fits(self) -> bool:
        """Whether the forecast is within the limit."""
        return not self.advice

    @property
    def costs(self) -> bool:
        """Whether more was changed than the slabs: 16-bit sums, convolutions not packed, or tiles."""
        before, after = self.first, self.forecast
        sums = before.plan.accumulators != after.plan.accumulators
        return sums or bool(before.packed) != bool(after.packed) or after.tiling is not None


def parse_memory(text: str | int) -> int:
    """Bytes: ``9GB`` is 9·10⁹, ``9GiB`` 9·2³⁰, ``900MB``, ``1.5 GiB``; a plain number is bytes.

    Raises:
        ScoreFusionError: for anything else.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", str(text), re.IGNORECASE)
    if not match or (match[3] and not match[2]):
        raise ScoreFusionError(f"{text!r} is no amount of memory; write 9GB, 9GiB or 900MB")
    found = int(float(match[1]) * (1024 if match[3] else 1000) ** " kmgt".index(match[2].lower() or " "))
    if found < 1:
        raise ScoreFusionError(f"an amount of memory is at least one byte; got {text!r}")
    return found


def fit(layout: Plan, max_memory: str | int | None, *, device: str = "cpu") -> Fit:
    """Change a plan as little as makes it fit.

    In this order: smaller slabs, which cost nothing to speak of; the feature layers' sums in bfloat16; on a
    CPU convolutions as they are instead of packed, which takes longer; tiles of the 3D network, which repeat
    arithmetic and, where its norms see a whole volume, change its result.

    Args:
        layout: as :func:`.plan.plan` made it.
        max_memory: the most that may be resident, as :func:`parse_memory` reads it; no limit when None.
        device: "cpu" or "cuda".
    """
    first = forecast(layout, device=device)
    if max_memory is None:
        return Fit(layout, None, first, first, (), ())
    limit = parse_memory(max_memory)
    best = _with_slabs(first, limit)
    if best.peak_bytes > limit and layout.scales and layout.accumulators.itemsize > 2:
        layout = _changed(layout, accumulators=torch.bfloat16)
        best = _with_slabs(forecast(layout, device=device), limit)
    if best.peak_bytes > limit and best.packed:
        best = _with_slabs(forecast(layout, device=device, packed=False), limit)
    if best.peak_bytes > limit and layout.fuses:
        for cut in _cuts(best, limit):
            tiled = _with_slabs(forecast(_with_maps(layout), cut, device=device, packed=False), limit)
            best = min(best, tiled, key=lambda found: found.peak_bytes)
            if best.peak_bytes <= limit:
                break
    advice = _advice(best, limit) if best.peak_bytes > limit else ()
    return Fit(best.plan, best.tiling, best, first, _changes(first, best), advice)


def _with_slabs(found: Forecast, limit: int) -> Forecast:
    """With the largest slabs, of those halved again and again, that fit or that no longer matter."""
    unit = found.plan.config.block
    while found.peak_bytes > limit and max(found.slabs.values(), default=0) > found.volume:
        rows = max(found.plan.rows.values())
        if rows <= unit:
            break
        smaller = _changed(found.plan, slab=rows // 2)
        if smaller.rows == found.plan.rows:
            break
        found = forecast(smaller, found.tiling, device=found.device, packed=bool(found.packed))
    return found


def _changed(layout: Plan, **change: Any) -> Plan:
    """The same plan with other arguments for :func:`.plan.plan`."""
    names = ("size", "batch", "strategy", "planes", "dtype", "accumulators")
    given = {name: getattr(layout, name) for name in names} | change
    changed = plan(layout.config, **{"slab": max(layout.rows.values(), default=None), **given})
    tiled = changed.fuses and any(buffer.name == "maps" for buffer in layout.buffers)
    return _with_maps(changed) if tiled else changed


def _with_maps(layout: Plan) -> Plan:
    """With a buffer that tiles write the 3D network's output into."""
    shape = (layout.batch, len(layout.config.branches), *layout.grid)
    maps = Buffer("maps", shape, layout.dtype, "the 3D network's output, tile by tile")
    return replace(layout, buffers=(*layout.buffers, maps))


def _cuts(whole: Forecast, limit: int) -> Iterator[Tiling]:
    """Tilings of the 3D network that may fit, the least repeated arithmetic first; the smallest last."""
    layout = whole.plan
    assert layout.config.fusion is not None
    shortest = max(SHORTEST, 2 * layout.config.fusion.scales[-1])
    most = [max(1, min(8, length // shortest)) for length in layout.grid]
    counts = itertools.product(*(range(1, number + 1) for number in most))
    cuts = {tiling(layout.config.fusion, layout.grid, count) for count in counts if max(count) > 1}
    ranked = sorted(cuts, key=lambda cut: cut.extra(layout.grid))
    room = (limit - (whole.peak_bytes - whole.workspace)) / max(whole.volume, 1) * math.prod(layout.grid)
    yield from [cut for cut in ranked if math.prod(cut.largest(layout.grid)) < room][:TRIES]
    if ranked:
        yield min(ranked, key=lambda cut: math.prod(cut.largest(layout.grid)))


def _changes(first: Forecast, found: Forecast) -> tuple[str, ...]:
    """What is different from the plan that was asked for."""
    changes, before, after = [], first.plan, found.plan
    if after.rows != before.rows:
        pairs = ((plane, before.rows[plane], rows) for plane, rows in after.rows.items())
        sizes = ", ".join(f"{rows} {plane} (not {was})" for plane, was, rows in pairs)
        changes.append(f"slabs of {sizes}: the same result to rounding")
    if after.accumulators != before.accumulators:
        dtypes = f"{short(after.accumulators)}, not {short(before.accumulators)}"
        changes.append(f"sums of features in {dtypes}: another result, by its rounding")
    if first.packed and not found.packed:
        slower = "the same result to rounding, in about twice the time"
        changes.append(f"convolutions not packed for this CPU: {slower}")
    if found.tiling is not None:
        changes.append(describe(found.tiling, after))
    return tuple(changes)


def describe(cut: Tiling, layout: Plan) -> str:
    """A tiling in words: sizes, what it does to the result, what it costs."""
    size = " x ".join(map(str, cut.tile))
    cost = f"{100 * (cut.extra(layout.grid) - 1):.0f} % more arithmetic in the 3D network"
    how = f" with an exact halo of {cut.halo} voxels: the same result, "
    if not cut.exact:
        how = f", blended linearly over {2 * cut.halo} voxels: its group statistics see a tile each, so the "
        how += "result differs; "
    return f"3D network on tiles of {size}{how}{cost}"


def short(dtype: torch.dtype) -> str:
    """A dtype's name without the package's."""
    return str(dtype).removeprefix("torch.")


def _advice(best: Forecast, limit: int) -> tuple[str, ...]:
    """What would bring the rest: each way by itself, with what it would come to."""
    layout, found = best.plan, []

    def tried(what: str, **change: Any) -> None:
        changed = _changed(layout, slab=layout.config.block, **change)
        cut = best.tiling if changed.fuses else None
        other = forecast(changed, cut, device=best.device, packed=False)
        verdict = "fits" if other.peak_bytes <= limit else "still too much"
        found.append(f"{what}: {other.peak_bytes / 1e9:.2f} GB, {verdict}")

    if layout.dtype.itemsize > 2:
        tried("compute in bfloat16", dtype=torch.bfloat16, accumulators=torch.bfloat16)
    if layout.batch > 1:
        tried("one volume at a time", batch=1)
    for strategy in simpler(layout.strategy, layout.config) if layout.fuses else ():
        tried(f"strategy {strategy}", strategy=strategy, planes=None)
    half = tuple(max(layout.config.multiple, length // 2) for length in layout.size)
    tried(f"a box of {' x '.join(map(str, half))}", size=half)
    return tuple(found)
