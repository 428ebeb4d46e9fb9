"""The files of an evaluation: figures by subject as CSV, all as JSON, tables, and one HTML page."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scorefusion._version import __version__
from scorefusion.evaluate import pictures
from scorefusion.evaluate.cases import Where
from scorefusion.evaluate.methods import Contender
from scorefusion.evaluate.output import write_text
from scorefusion.evaluate.run import Results, Settings, figure_names
from scorefusion.evaluate.sets import CUBE, STEP, FeatureNetwork
from scorefusion.evaluate.shared_start import plane_row
from scorefusion.evaluate.store import Store
from scorefusion.evaluate.summary import Summary
from scorefusion.evaluate.table import Table, markdown, tables
from scorefusion.io.figures import side_by_side, try_to_write
from scorefusion.io.pages import data_url, render
from scorefusion.metrics import METRICS

FILES = ("subjects.csv", "summary.json", "table.md", "report.html")
CACHE = "cache"
NEEDED = ("matplotlib", "scipy.stats", "skimage.metrics")
"""Optional packages that measure and draw."""


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
    """Write all files; each appears under its name whole or not at all.

    Args:
        folder: from :func:`~scorefusion.evaluate.output.check_folder`.
        about: what was evaluated.
        summary: what was found.
        results: by subject.
        store: that holds the volumes.
        segmentation: the table of Dice scores, if there is one.

    Returns:
        Why the page could not be made, which is last; None if it was.

    Raises:
        BadInput: if another file cannot be written.
    """
    head, notes = about.head, about.notes(results)
    title = f"{about.main.config.name} on {about.data.name}"
    made = tables(summary, head, segmentation)
    write_text(folder / "table.md", markdown(title, made, notes))
    lines = io.StringIO()
    writer = csv.writer(lines)
    writer.writerow(("subject", "person", "row", *figure_names()))
    for case, records in zip(results.cases, results.records, strict=True):
        for name, record in records.items():
            writer.writerow([case["name"], case["person"], name, *(record[key] for key in figure_names())])
    write_text(folder / "subjects.csv", lines.getvalue())
    content = _finite(_record(summary, results, about.facts()))
    write_text(folder / "summary.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    page = folder / "report.html"
    return try_to_write(
        page, lambda: write_text(page, report_page(summary, results, store, head, title, notes, made))
    )


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
    levels = ""
    if sampling.schedule == "karras":
        levels = f", sigma {sampling.sigma_max:g} to {sampling.sigma_min:g}"
    return f"{sampling.solver}, {len(contender.table())} evaluations{levels}"


def report_page(
    summary: Summary,
    results: Results,
    store: Store,
    head: str,
    title: str,
    notes: Sequence[str],
    tables: Sequence[Table],
) -> str:
    """Return one HTML page that refers to nothing outside itself; see :func:`.report.write_report`."""
    rows = pictures.columns_of([line.name for line in summary.lines], summary.main)
    images = {
        "How much like true volumes, and at what cost": pictures.figures_by_row,
        "Denoising error by noise level": pictures.denoising_curves,
    }
    sections: list[dict[str, Any]] = []
    for heading, titles, lines in tables:
        sections.append({"title": heading, "table": (titles, lines)})
        if heading in images:
            sections[-1]["image"] = _image(images[heading](summary))
    sections.append({"title": "By spatial frequency", "image": _image(pictures.spectra(summary, rows))})
    for label, number in chosen_subjects(summary, results):
        case, image = results.cases[number], _image(_subject_picture(results, number, store, rows))
        text = f"{case['file']}, box at {case['start']}"
        sections.append({"title": f"{label}: {case['name']}", "text": text, "image": image})
    return render("evaluate.html", title=title, head=head, sections=sections, notes=notes)


def chosen_subjects(summary: Summary, results: Results) -> list[tuple[str, int]]:
    """Best, median and worst subject by the PSNR of the main row, each once, with its number."""
    scores = [
        float(np.mean([record[name]["psnr"] for name in record if _belongs(name, summary.main)]))
        for record in results.records
    ]
    order = sorted(range(len(scores)), key=lambda k: scores[k])
    if len(order) == 1:
        return [("The subject", 0)]
    middle = [("Median subject", order[len(order) // 2])] if len(order) > 2 else []
    return [("Best subject", order[-1]), *middle, ("Worst subject", order[0])]


def _belongs(name: str, main: str) -> bool:
    return name == main or plane_row(name) == main


def _subject_picture(results: Results, number: int, store: Store, rows: Sequence[str]) -> Any:
    keys, case, record = results.keys[number], results.cases[number], results.records[number]
    names, psnr = [name for name in rows if name in record], METRICS["psnr"]
    volumes = {name: store.volume(keys[name]) for name in (*names, "truth")}
    scores = {name: f"{psnr.format(record[name]['psnr'])} {psnr.unit}" for name in names}
    z, y, x = case["spacing"]
    return side_by_side(volumes, (z, y, x), case["data_range"], scores)


def _image(figure: Any) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return data_url("png", buffer.getvalue())
