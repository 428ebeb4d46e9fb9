"""A forecast as text: what is kept, what comes and goes, what is computed, what would have to change."""

from __future__ import annotations

from collections.abc import Sequence

from scorefusion.engine.planning.fit import Fit, short
from scorefusion.engine.planning.forecast import Forecast


def report(found: Fit, limit: int | None = None) -> str:
    """Lines of aligned text, sizes in decimal megabytes.

    Args:
        found: the plan and its forecast.
        limit: bytes that were allowed, if any.
    """
    forecast, plan = found.forecast, found.plan
    padded = "" if plan.grid == plan.size else f", padded to {_by(plan.grid)}"
    title = (
        f"{plan.config.name}: {_by(plan.size)} voxels{padded}, batch {plan.batch}, {plan.strategy}, "
        f"{short(plan.dtype)} on {'a GPU' if forecast.device == 'cuda' else 'a CPU'}"
    )
    parts = [title, "", *_memory(forecast), "", *_arithmetic(forecast), "", _verdict(found, limit)]
    parts += [f"  changed: {change}" for change in found.changes]
    parts += [f"  to fit: {way}" for way in found.advice]
    return "\n".join(parts)


def _memory(forecast: Forecast) -> list[str]:
    plan = forecast.plan
    rows = [("memory", "MB", "")]
    if forecast.program:
        rows.append(("program", _megabytes(forecast.program), "PyTorch, scorefusion, planning"))
    rows.append(("weights", _megabytes(forecast.weights), "of the whole model"))
    if forecast.packed:
        what = "convolutions once more, packed for this CPU"
        rows.append(("packed", _megabytes(forecast.packed), what))
    rows.append(("buffers", _megabytes(plan.bytes), "allocated once:"))
    for buffer in plan.buffers:
        what = f"{_by(buffer.shape)} {short(buffer.dtype)}: {buffer.purpose}"
        rows.append((f"  {buffer.name}", _megabytes(buffer.bytes), what))
    rows.append(("workspace", _megabytes(forecast.workspace), "comes and goes; the largest of:"))
    for plane, size in forecast.slabs.items():
        what = f"2D network, {plan.rows[plane]} of {plan.slice_count(plane)} slices at once"
        rows.append((f"  {plane}", _megabytes(size), what))
    if plan.fuses:
        cut = forecast.tiling
        whole = "the whole grid" if cut is None else f"a tile of {_by(cut.largest(plan.grid))}"
        rows.append(("  fusion", _megabytes(forecast.volume), f"3D network on {whole}"))
    rows.append(("peak", _megabytes(forecast.peak_bytes), "all of these"))
    return _aligned(rows)


def _arithmetic(forecast: Forecast) -> list[str]:
    plan, cut = forecast.plan, forecast.tiling
    rows = [("arithmetic", "TFLOP", "")]
    for plane, flop in forecast.slice_flop.items():
        rows.append((f"2D, {plane}", _tera(flop), f"{plan.slice_count(plane) * plan.batch} slices"))
    if forecast.feature_flop:
        scales = ", ".join(map(str, plan.scales))
        rows.append(("features", _tera(forecast.feature_flop), f"at scales {scales}"))
    if forecast.volume_flop:
        again = "" if cut is None else f"{cut.extra(plan.grid):.2f} times what the whole grid would take"
        rows.append(("3D", _tera(forecast.volume_flop), again))
    each = "a step, of the plane that takes most" if plan.strategy == "alternate" else "a step"
    return _aligned([*rows, ("in all", _tera(forecast.flop), each)])


def _verdict(found: Fit, limit: int | None) -> str:
    peak = f"{found.forecast.peak_bytes / 1e9:.2f} GB ({found.forecast.peak_bytes / 2**30:.2f} GiB)"
    if limit is None:
        return f"predicted peak {peak}"
    return f"predicted peak {peak}: {'fits' if found.fits else 'does not fit'} {limit / 1e9:.2f} GB"


def _aligned(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    first, second = (max(len(row[place]) for row in rows) for place in (0, 1))
    return [f"{name:<{first}}  {size:>{second}}  {text}".rstrip() for name, size, text in rows]


def _by(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f}"


def _tera(flop: int) -> str:
    return f"{flop / 1e12:,.3f}"
