"""The tables and files of an evaluation: figures by subject as CSV, all as JSON, and one HTML page."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scorefusion._version import __version__
from scorefusion.evaluate.cases import Where
from scorefusion.evaluate.denoise_error import SIGMAS
from scorefusion.evaluate.methods import Contender
from scorefusion.evaluate.output import Store, grid, write_csv, write_text
from scorefusion.evaluate.run import Results, Settings, figure_names
from scorefusion.evaluate.sets import CUBE, STEP, FeatureNetwork
from scorefusion.evaluate.shared_start import first_rows, plane_row
from scorefusion.evaluate.statistics import Comparison, Estimate
from scorefusion.evaluate.summary import Line, Summary
from scorefusion.io.figures import side_by_side, try_to_write
from scorefusion.io.pages import data_url, render
from scorefusion.metrics import METRICS, Metric, shown
from scorefusion.models.strategies import ALTERNATE, AVERAGE
from scorefusion.optional import need

FILES = ("subjects.csv", "summary.json", "table.md", "report.html")
CACHE = "cache"
NEEDED = ("matplotlib", "scipy.stats", "skimage.metrics")  #: optional packages that measure and draw
SHOWN = 7  #: most columns of a side-by-side picture
REALISM, DENOISING = "How much like true volumes, and at what cost", "Denoising error by noise level"
_COLOURS = {"baseline": "#8c8c8c", "sample": "#1f77b4", "one-step": "#d95f02"}

SECONDS = Metric(
    "seconds", "seconds", lambda pair: None, digits=2, table="cost", places=frozenset({"terminal"})
)


@dataclass(frozen=True, eq=False)
class About:
    """What was evaluated, and how."""

    main: Contender  #: the model that was evaluated
    others: Sequence[Contender]  #: those beside it
    networks: Sequence[FeatureNetwork]  #: of FID and MMD
    data: Path  #: where the subjects are
    synthetic: bool  #: whether they are made up
    count: int  #: of subjects
    settings: Settings  #: how everything was sampled
    where: Where  #: which part of each volume

    @property
    def head(self) -> str:
        """What stands in the corner of every table: ``synthetic, 12 subjects``."""
        return f"{'synthetic' if self.synthetic else 'real'}, {self.count} subject{'s' * (self.count != 1)}"

    def notes(self, results: Results) -> list[str]:
        """What the figures were measured on, and how, in sentences."""
        main, config, settings, where = self.main, self.main.config, self.settings, self.where
        sizes = dict.fromkeys("×".join(str(n) for n in case["size"]) for case in results.cases)
        coarser = f", averaged over {where.coarsen}³ voxels first" if where.coarsen > 1 else ""
        slab = f" within slices {where.slab[0]}:{where.slab[1]}" if where.slab else ""
        return [
            f"Data: {self.data}{coarser}; boxes of {', '.join(sizes)} voxels (z, y, x){slab}.",
            f"Task: {', '.join(config.conditions)} to {config.target}, degradation "
            f"{config.degradation.kind}. Intensities are normalised as the model's configuration says "
            f"({config.intensity}), truth and results alike; PSNR and SSIM take white less black from the "
            "whole true volume.",
            f"{config.name}: {_sampler(main)}, seed {settings.seed}, {settings.samples} "
            f"sample{'s' * (settings.samples != 1)}; one-step is one evaluation from pure noise, the "
            "posterior mean; single is the mean of its planes.",
            *(f"{o.name}: {o.config.name}, {o.strategies[0]}, {_sampler(o)}." for o in self.others),
            *(
                f"FID and MMD, {n.name}: {n.description} Means over cubes of {CUBE} voxels, {STEP} apart."
                for n in self.networks
            ),
            "Intervals are 95%: bootstrap over subjects, for FID and MMD the jackknife; p is Wilcoxon's, "
            f"with Holm's correction. scorefusion {__version__}; docs/evaluation.md defines every figure.",
        ]

    def facts(self) -> dict[str, Any]:
        """The same for programs."""
        models = {
            each.name or each.config.name: {
                "sha256": each.digest,
                "strategies": each.strategies,
                "sampling": each.sampling.model_dump(mode="json"),
            }
            for each in (self.main, *self.others)
        }
        return {
            "scorefusion": __version__,
            "data": str(self.data),
            "synthetic": self.synthetic,
            "model": self.main.config.name,
            "models": models,
            "seed": self.settings.seed,
            "samples": self.settings.samples,
            "features": {network.name: network.description for network in self.networks},
        }


def write_report(
    folder: Path,
    about: About,
    summary: Summary,
    results: Results,
    store: Store,
    segmentation: Table | None = None,
) -> str | None:
    """Write all files, last the page; why that could not be made, or None. ``BadInput`` for another file."""
    title, notes = f"{about.main.config.name} on {about.data.name}", about.notes(results)
    made = tables(summary, about.head, segmentation)
    blocks = [f"### {heading}\n\n{grid(titles, rows)}" for heading, titles, rows in made]
    write_text(folder / "table.md", "\n\n".join([f"## {title}", *blocks, *notes]) + "\n")
    lines = [
        (case["name"], case["person"], name, *(record[key] for key in figure_names()))
        for case, records in zip(results.cases, results.records, strict=True)
        for name, record in records.items()
    ]
    write_csv(folder / "subjects.csv", [("subject", "person", "row", *figure_names()), *lines])
    content = _finite(_record(summary, results, about.facts()))
    write_text(folder / "summary.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    page, texts = folder / "report.html", {"title": title, "head": about.head, "notes": notes}
    return try_to_write(page, lambda: write_text(page, report_page(summary, results, store, made, texts)))


def _record(summary: Summary, results: Results, facts: dict[str, Any]) -> dict[str, Any]:
    return {
        **facts,
        "persons": summary.people,
        "main": summary.main,
        "subjects": results.cases,
        "rows": [
            {
                "name": line.name,
                "kind": line.kind,
                "flop": line.flop,
                "figures": {key: asdict(value) for key, value in line.figures.items()},
                "sets": {key: asdict(value) for key, value in line.sets.items()},
                "by_person": summary.values[line.name],
                "frequency": summary.bands[line.name][0].tolist(),
                "log10_power_ratio": summary.bands[line.name][1].round(5).tolist(),
                "fourier_shell_correlation": summary.bands[line.name][2].round(5).tolist(),
            }
            for line in summary.lines
        ],
        "order": {key: [asdict(each) for each in value] for key, value in summary.order.items()},
        "against_main": {key: [asdict(each) for each in value] for key, value in summary.against.items()},
        "denoising": summary.denoising,
        "denoising_by_subject": results.denoising,
    }


def _finite(value: Any) -> Any:
    """JSON has no NaN, as the ends of an undefined interval are: they become null."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _sampler(contender: Contender) -> str:
    sampling = contender.sampling
    levels = f", sigma {sampling.sigma_max:g} to {sampling.sigma_min:g}" * (sampling.schedule == "karras")
    return f"{sampling.solver}, {len(contender.table())} evaluations{levels}"


def report_page(
    summary: Summary, results: Results, store: Store, tables: Sequence[Table], texts: dict[str, Any]
) -> str:
    """Return one HTML page that refers to nothing outside itself; texts are its title, head and notes."""
    rows = _columns_of([line.name for line in summary.lines], summary.main)
    images = {REALISM: _figures_by_row, DENOISING: _denoising_curves}
    sections: list[dict[str, Any]] = []
    for heading, titles, lines in tables:
        sections.append({"title": heading, "table": (titles, lines)})
        if heading in images:
            sections[-1]["image"] = _image(images[heading](summary))
    sections.append({"title": "By spatial frequency", "image": _image(_spectra(summary, rows))})
    for label, number in chosen_subjects(summary, results):
        keys, case, record = results.keys[number], results.cases[number], results.records[number]
        names, psnr = [name for name in rows if name in record], METRICS["psnr"]
        volumes = {name: store.volume(keys[name]) for name in (*names, "truth")}
        scores = {name: f"{psnr.format(record[name]['psnr'])} {psnr.unit}" for name in names}
        z, y, x = case["spacing"]
        image = _image(side_by_side(volumes, (z, y, x), case["data_range"], scores))
        text = f"{case['file']}, box at {case['start']}"
        sections.append({"title": f"{label}: {case['name']}", "text": text, "image": image})
    return render("evaluate.html", sections=sections, **texts)


def chosen_subjects(summary: Summary, results: Results) -> list[tuple[str, int]]:
    """Best, median and worst subject by the PSNR of the main row, each once, with its number."""
    scores = [
        np.mean([each["psnr"] for name, each in record.items() if summary.main in (name, plane_row(name))])
        for record in results.records
    ]
    order = np.argsort(scores, kind="stable").tolist()
    if len(order) == 1:
        return [("The subject", 0)]
    middle = [("Median subject", order[len(order) // 2])] if len(order) > 2 else []
    return [("Best subject", order[-1]), *middle, ("Worst subject", order[0])]


def _image(figure: Any) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return data_url("png", buffer.getvalue())


def _columns_of(rows: Sequence[str], main: str) -> list[str]:
    """Which rows a side-by-side picture shows: baselines' ends, a plane, the average, the fused, the main."""
    wanted = ["nearest", "input", "pseudo-inverse", "intensity regression", "trilinear+consistency"]
    wanted += [*first_rows(), main]
    found = list(dict.fromkeys(name for name in wanted if name in rows)) or list(rows[:SHOWN])
    while len(found) >= SHOWN:
        found.pop(next((k for k, name in enumerate(found) if name in ("nearest", ALTERNATE.name)), 1))
    return found


def _figures_by_row(summary: Summary) -> Any:
    """Metrics shown with intervals, PSNR's difference from the main row, bars of the first set distance.

    A dot is a person, the bar reaches from quartile to quartile, the tick is the median.
    """
    sets = next((name for line in summary.lines for name in line.sets), None)
    values = summary.values
    panels = [
        (metric.label, {name: np.array(each[metric.name]) for name, each in values.items()})
        for metric in shown("intervals")
        if all(metric.name in each for each in values.values())
    ]
    close = {name: np.array(each["psnr"]) for name, each in values.items()}
    apart = {name: each - close[summary.main] for name, each in close.items()}
    panels.insert(1, (f"PSNR less {summary.main}'s, dB", apart))
    names = [line.name for line in summary.lines]
    height = 0.9 + 0.24 * len(names)
    figure = need("matplotlib.figure", "a figure").Figure(figsize=(15, height), layout="constrained")
    axes = figure.subplots(1, len(panels) + (sets is not None), sharey=True)
    places = np.arange(len(names))[::-1]
    colours = [_COLOURS[line.kind] for line in summary.lines]
    for axis, (label, numbers) in zip(axes, panels, strict=False):
        for place, name, colour in zip(places, names, colours, strict=True):
            low, middle, high = np.percentile(numbers[name], (25, 50, 75))
            axis.plot([low, high], [place, place], color=colour, linewidth=5, alpha=0.35)
            axis.plot(numbers[name], [place] * len(numbers[name]), ".", color=colour, markersize=3)
            axis.plot(middle, place, "|", color="black", markersize=9, markeredgewidth=1.5)
        axis.set_xlabel(label)
    sampled = [apart[line.name] for line in summary.lines if line.kind != "baseline"]
    if sampled:  # Baselines may lie beyond the edge.
        low, high = float(np.min(sampled)), float(np.max(sampled))
        margin = 0.05 * (high - low) or 0.1
        axes[1].set_xlim(low - margin, high + margin)
    if sets is not None:
        estimates = [line.sets[sets] for line in summary.lines]
        axes[-1].barh(places, [each.mean for each in estimates], color=colours, height=0.6)
        for place, each in zip(places, estimates, strict=True):
            if np.isfinite(each.low):
                ends = [max(each.low, 0.0), each.high]
                axes[-1].plot(ends, [place, place], color="black", linewidth=0.8)
        axes[-1].set_xlabel(sets.replace("fid", "FID,"))
    axes[0].set_yticks(places, labels=names, fontsize=8)
    for axis in axes:
        axis.grid(axis="x", linewidth=0.4, alpha=0.5)
    return figure


def _spectra(summary: Summary, rows: Sequence[str]) -> Any:
    figure, left, right = _two_panels("spatial frequency, cycles per voxel")
    for name in rows:
        frequency, ratio, correlation = summary.bands[name]
        left.plot(frequency, ratio, linewidth=1.3, label=name)
        right.plot(frequency, correlation, linewidth=1.3, label=name)
    left.axhline(0.0, color="black", linewidth=0.6)
    left.set(ylabel="log10(power / true power)")
    right.set(ylabel="Fourier shell correlation", ylim=(-0.05, 1.05))
    right.legend(fontsize=7)
    return figure


def _denoising_curves(summary: Summary) -> Any:
    figure, left, right = _two_panels("noise level sigma")
    names = [name for name in summary.denoising if not plane_row(name)]
    base = summary.denoising.get(AVERAGE.name) or next(iter(summary.denoising.values()))
    for name in names:
        values = summary.denoising[name]
        left.loglog(SIGMAS, values, marker="o", markersize=3, linewidth=1.3, label=name)
        right.semilogx(SIGMAS, np.divide(values, base), marker="o", markersize=3, linewidth=1.3, label=name)
    left.set(ylabel="mean squared error of the residual")
    right.set(ylabel="the same over the average's")
    right.axhline(1.0, color="black", linewidth=0.6)
    right.legend(fontsize=7)
    return figure


def _two_panels(xlabel: str) -> tuple[Any, Any, Any]:
    figure = need("matplotlib.figure", "a figure").Figure(figsize=(12, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axis in (left, right):
        axis.set_xlabel(xlabel)
    return figure, left, right


class Table(NamedTuple):
    """A table under its heading."""

    heading: str  #: above it
    titles: list[str]  #: of the columns; what is evaluated stands in the corner
    rows: list[list[str]]  #: of cells


def tables(summary: Summary, head: str, segmentation: Table | None = None) -> list[Table]:
    """All tables of a report, in order, with ``head`` in the corner of each."""
    realism = (*set_columns(summary), *columns("realism"), *columns("cost"))
    made = [
        measured("How close to the truth", summary, columns("closeness"), head),
        measured(REALISM, summary, realism, head, flop=True),
        *([] if segmentation is None else [segmentation]),
    ]
    if summary.order:
        made.append(tested("The paper's order", summary.order, head))
    if summary.against:
        made.append(tested(f"Every row less {summary.main}", summary.against, head))
    if summary.denoising:
        titles = [f"{head}: sigma", *(f"{sigma:g}" for sigma in SIGMAS)]
        rows = [[name, *(f"{value:.4f}" for value in values)] for name, values in summary.denoising.items()]
        made.append(Table(DENOISING, titles, rows))
    return made


def columns(table: str) -> tuple[Metric, ...]:
    """The metrics of one table, ``closeness``, ``realism`` or ``cost``."""
    return tuple(metric for metric in (*METRICS.values(), SECONDS) if metric.table == table)


def set_columns(summary: Summary) -> tuple[Metric, ...]:
    """A column for each distance of sets that some row has."""
    made = []
    for name in dict.fromkeys(name for line in summary.lines for name in line.sets):
        kind, network = name.split(" ", 1)
        places = frozenset({"intervals"} if kind == "fid" else ())
        title = f"{kind.upper()}, {network}"
        made.append(Metric(name, title, lambda pair: None, digits=None, better="lower", places=places))
    return tuple(made)


def measured(
    heading: str, summary: Summary, several: Sequence[Metric], head: str, *, flop: bool = False
) -> Table:
    """A table of figures with one row per method; columns that no row has are left out."""
    kept = [metric for metric in several if any(_estimate(line, metric) for line in summary.lines)]
    titles = [head, *(metric.label for metric in kept), *(["TFLOP"] if flop else [])]
    rows = []
    for line in summary.lines:
        cells = [line.name]
        for metric in kept:
            if (found := _estimate(line, metric)) is None:
                cells.append("")
            elif "intervals" in metric.places:
                cells.append(interval_text(found, metric))
            else:
                cells.append(metric.format(found.mean))
        if flop:
            cells.append("" if line.flop is None else f"{line.flop / 1e12:.3g}")
        rows.append(cells)
    return Table(heading, titles, rows)


def tested(heading: str, comparisons: dict[str, tuple[Comparison, ...]], head: str) -> Table:
    """A table of differences with their intervals, and p after Holm's correction."""
    kept = [metric for metric in shown("tests") if metric.name in comparisons]
    cells: dict[tuple[str, str], list[str]] = {}
    for number, metric in enumerate(kept):
        for each in comparisons[metric.name]:
            text = interval_text(each.difference, metric, signed=True)
            text += "" if math.isnan(each.adjusted) else f", p {each.adjusted:.2g}"
            cells.setdefault((each.name, each.other), [""] * len(kept))[number] = text
    rows = [[f"{name} − {other}", *row] for (name, other), row in cells.items()]
    return Table(heading, [head, *(metric.label for metric in kept)], rows)


def rich_table(summary: Summary, head: str, title: str) -> Any:
    """The main figures as a ``rich.table.Table``; the best sample's of each column is bold."""
    from rich.markup import escape
    from rich.table import Table as RichTable

    brief = [*shown("terminal"), SECONDS]
    first = next((k for k, metric in enumerate(brief) if metric.table != "closeness"), len(brief))
    brief[first:first] = set_columns(summary)[:1]
    _, titles, rows = measured("", summary, brief, head, flop=True)
    best = []
    for metric in (metric for metric in brief if metric.label in titles):
        means = [(each.mean, line.name) for line in summary.lines if (each := _estimate(line, metric))]
        best.append((max if metric.better == "higher" else min)(means)[1] if metric.better else None)
    table = RichTable(title=escape(title), title_justify="left", caption_justify="left")
    for number, text in enumerate(titles):
        table.add_column(escape(text), justify="left" if number == 0 else "right", no_wrap=number > 0)
    previous = None
    for line, row in zip(summary.lines, rows, strict=True):
        if previous not in (None, line.kind):
            table.add_section()
        previous = line.kind
        bold = [False, *(name == line.name for name in best), False]
        cells = zip(map(escape, row), bold, strict=True)
        table.add_row(*(f"[bold]{cell}[/bold]" if is_best else cell for cell, is_best in cells))
    return table


def interval_text(estimate: Estimate, metric: Metric, *, signed: bool = False) -> str:
    """A mean with its interval, where there is one."""
    ends = (estimate.mean, estimate.low, estimate.high)
    mean, low, high = (metric.format(end, signed=signed) for end in ends)
    return mean if math.isnan(estimate.low) else f"{mean} [{low}, {high}]"


def _estimate(line: Line, metric: Metric) -> Estimate | None:
    return line.figures.get(metric.name) or line.sets.get(metric.name)
