"""Show a forecast as text and as a picture: buffers, workspace, arithmetic, and what would have to change."""

from collections.abc import Sequence
from typing import Any

from scorefusion.engine.planning.fit import Fit, short
from scorefusion.engine.planning.forecast import Forecast
from scorefusion.engine.planning.plan import Buffer
from scorefusion.optional import need


def report(found: Fit, limit: int | None = None) -> str:
    """Lines of aligned text, sizes in decimal megabytes; ``limit`` is what was allowed, in bytes."""
    forecast, plan = found.forecast, found.plan
    padded = "" if plan.grid == plan.size else f", padded to {_by(plan.grid)}"
    title = (
        f"{plan.config.name}: {_by(plan.size)} voxels{padded}, batch {plan.batch}, {plan.strategy}, "
        f"{short(plan.dtype)} on {'a GPU' if forecast.device == 'cuda' else 'a CPU'}"
    )
    peak = f"predicted peak {forecast.peak_bytes / 1e9:.2f} GB ({forecast.peak_bytes / 2**30:.2f} GiB)"
    if limit is not None:
        peak += f": {'fits' if found.fits else 'does not fit'} {limit / 1e9:.2f} GB"
    parts = [title, "", *_memory(forecast), "", *_arithmetic(forecast), "", peak]
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
        rows.append(("packed", _megabytes(forecast.packed), "convolutions once more, packed for this CPU"))
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
    each = "a step, of the plane that takes most" if len(plan.cycle) > 1 else "a step"
    return _aligned([*rows, ("in all", _tera(forecast.flop), each)])


def _aligned(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    first, second = (max(len(row[place]) for row in rows) for place in (0, 1))
    return [f"{name:<{first}}  {size:>{second}}  {text}".rstrip() for name, size, text in rows]


def _by(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f}"


def _tera(flop: int) -> str:
    return f"{flop / 1e12:,.3f}"


_BUFFER, _WORK, _EDGE = "#eaf2fb", "#fdf1e3", "#4a4a4a"
_WIDTH, _LINE = 3.1, 0.27


def step_figure(found: Forecast) -> Any:
    """A ``matplotlib.figure.Figure`` of a step: buffers (blue), operations (orange), from left to right."""
    plan = found.plan
    buffers = {buffer.name: buffer for buffer in plan.buffers}
    figure = need("matplotlib.figure", "a figure").Figure(figsize=(17, 6.8), layout="constrained")
    axis = figure.add_subplot()
    axis.set_axis_off()
    size = " × ".join(map(str, plan.size))
    title = f"One step of {plan.config.name}, {size} voxels, {plan.strategy}, {short(plan.dtype)}"
    peak = f"buffers {_bytes(plan.bytes)}, peak {_bytes(found.peak_bytes)}"
    axis.set_title(f"{title}: {found.flop / 1e12:.3g} TFLOP, {peak}")
    volumes = [n for n in ("x", "x0", "seen", "condition", "common", "measured") if n in buffers]
    left = _box(axis, 0, 3.2, "volumes", [_line(buffers[n]) for n in volumes], _BUFFER)
    slabs = [
        f"{plane}: {plan.slice_count(plane)} slices, {rows} at once" for plane, rows in plan.rows.items()
    ]
    last = left
    if "cut" in buffers:
        gather = _box(axis, 4.2, 5.4, "gather_slices", slabs, _WORK)
        cut = _box(axis, 4.2, 2.6, "slab", [_line(buffers["cut"])], _BUFFER)
        flop = [f"{plane}: {each / 1e12:.3g} TFLOP" for plane, each in found.slice_flop.items()]
        space = f"workspace {_bytes(max(found.slabs.values()))}"
        network = _box(axis, 8.4, 4.0, "2D networks, slab by slab", [*flop, space], _WORK)
        names = [name for name in buffers if name.startswith("scores")]
        scores = _box(axis, 12.6, 5.6, "scores", [_line(buffers[n]) for n in names], _BUFFER)
        for source, target in ((left, gather), (gather, cut), (cut, network), (network, scores)):
            _arrow(axis, source, target)
        last = scores
        if plan.scales:
            totals = [_line(buffers[f"total.{scale}"]) for scale in plan.scales]
            total = _box(axis, 12.6, 1.9, "features, as they come", totals, _BUFFER)
            _arrow(axis, network, total)
    if plan.fuses:
        tiles = [] if found.tiling is None else [f"tiles of {found.tiling.largest(plan.grid)}"]
        space = f"workspace {_bytes(found.volume)}"
        flop = [f"{found.volume_flop / 1e12:.3g} TFLOP"]
        stacked = _box(axis, 17.0, 5.6, "3D network's input", [_line(buffers["stacked"])], _BUFFER)
        fusion = _box(axis, 17.0, 3.0, "3D network", [*flop, space, *tiles], _WORK)
        _arrow(axis, last, stacked)
        _arrow(axis, stacked, fusion)
        if plan.scales:
            _arrow(axis, total, fusion)
        last = fusion
    parts = ["fused score, solver row, clamp,", "block means, noise"]
    parts += [_line(buffers[n]) for n in ("x.next", "x0.next")]
    update = _box(axis, 17.0 if plan.fuses else 12.6, 0.2, "fuse_step", parts, _WORK)
    _arrow(axis, last, update)
    axis.annotate(
        "x and x0 of the next step", (left[0] + _WIDTH / 2, left[1]), (update[0], update[1] + 0.5),
        arrowprops={"arrowstyle": "->", "color": _EDGE, "connectionstyle": "arc3,rad=-0.12"}, fontsize=9,
        ha="right", va="top",
    )  # fmt: skip
    axis.set_xlim(-0.3, 20.6)
    axis.set_ylim(-1.0, 7.6)
    return figure


Place = tuple[float, float, float, float]


def _box(axis: Any, x: float, y: float, title: str, lines: list[str], colour: str) -> Place:
    """Draw a box with a title and lines; return its x, y, width and height."""
    patches = need("matplotlib.patches", "a figure")
    height = _LINE * (len(lines) + 1) + 0.35
    style = "round,pad=0.05,rounding_size=0.12"
    axis.add_patch(
        patches.FancyBboxPatch((x, y), _WIDTH, height, boxstyle=style, facecolor=colour, edgecolor=_EDGE)
    )
    axis.text(x + 0.1, y + height - 0.12, title, fontsize=10, fontweight="bold", va="top")
    axis.text(
        x + 0.1, y + height - 0.12 - _LINE * 1.4, "\n".join(lines), fontsize=8, va="top", linespacing=1.45
    )
    return x, y, _WIDTH, height


def _arrow(axis: Any, source: Place, target: Place) -> None:
    """From one box to another: side to side, or straight down."""
    if abs(source[0] - target[0]) < 1e-6:
        below = target[1] < source[1]
        start = (source[0] + source[2] / 2, source[1] if below else source[1] + source[3])
        end = (target[0] + target[2] / 2, target[1] + target[3] if below else target[1])
    else:
        start = (source[0] + source[2], source[1] + source[3] / 2)
        end = (target[0], target[1] + target[3] / 2)
    axis.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": _EDGE, "linewidth": 1.4})


def _line(buffer: Buffer) -> str:
    return f"{buffer.name}  {_bytes(buffer.bytes)}  {short(buffer.dtype)}"


def _bytes(count: int) -> str:
    """Decimal, three figures."""
    value, unit = float(count), "B"
    for larger in ("KB", "MB", "GB"):
        if value < 1000.0:
            break
        value, unit = value / 1000.0, larger
    return f"{value:.3g} {unit}"
