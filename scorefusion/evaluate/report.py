"""The files of an evaluation: figures by subject as CSV, all as JSON, tables, and one HTML page."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scorefusion._version import __version__
from scorefusion.evaluate.cases import Where
from scorefusion.evaluate.methods import Contender
from scorefusion.evaluate.output import write_text
from scorefusion.evaluate.page import report_page
from scorefusion.evaluate.run import Results, Settings, figure_names
from scorefusion.evaluate.sets import CUBE, STEP, FeatureNetwork
from scorefusion.evaluate.store import Store
from scorefusion.evaluate.summary import Summary
from scorefusion.evaluate.table import Table, markdown, tables
from scorefusion.io.figures import try_to_write

FILES = ("subjects.csv", "summary.json", "table.md", "report.html")
CACHE = "cache"
NEEDED = ("matplotlib", "scipy.stats", "skimage.metrics")
"""Optional packages that measure and draw."""


def write_report(
    folder: Path,
    summary: Summary,
    results: Results,
    store: Store,
    *,
    head: str,
    title: str,
    notes: Sequence[str],
    facts: dict[str, Any],
    segmentation: Table | None = None,
) -> str | None:
    """Write all files; each appears under its name whole or not at all.

    Args:
        folder: from :func:`~scorefusion.evaluate.output.check_folder`.
        summary: what was found.
        results: by subject.
        store: that holds the volumes.
        head: stands in the corner of every table: ``synthetic, 12 subjects``.
        title: of the page.
        notes: what the figures were measured on, and how.
        facts: the same for programs; goes into summary.json.
        segmentation: the table of Dice scores, if there is one.

    Returns:
        Why the page could not be made, which is last; None if it was.

    Raises:
        BadInput: if another file cannot be written.
    """
    made = tables(summary, head, segmentation)
    write_text(folder / "table.md", markdown(title, made, notes))
    lines = io.StringIO()
    writer = csv.writer(lines)
    writer.writerow(("subject", "person", "row", *figure_names()))
    for case, records in zip(results.cases, results.records, strict=True):
        for name, record in records.items():
            writer.writerow([case["name"], case["person"], name, *(record[key] for key in figure_names())])
    write_text(folder / "subjects.csv", lines.getvalue())
    content = _finite(_record(summary, results, facts))
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


def notes(
    main: Contender,
    others: Sequence[Contender],
    results: Results,
    networks: Sequence[FeatureNetwork],
    *,
    data: str,
    settings: Settings,
    where: Where,
) -> list[str]:
    """What the figures were measured on, and how, in sentences."""
    sizes = dict.fromkeys("×".join(str(n) for n in case["size"]) for case in results.cases)
    coarser = f", averaged over {where.coarsen}³ voxels first" if where.coarsen > 1 else ""
    slab = f" within slices {where.slab[0]}:{where.slab[1]}" if where.slab else ""
    sentences = [
        f"Data: {data}{coarser}; boxes of {', '.join(sizes)} voxels (z, y, x){slab}.",
        f"Task: {', '.join(main.config.conditions)} to {main.config.target}, degradation "
        f"{main.config.degradation.kind}. Intensities are normalised as the model's configuration says "
        f"({main.config.intensity}), truth and results alike; PSNR and SSIM take white less black from the "
        "whole true volume.",
        f"{main.config.name}: {_sampler(main)}, seed {settings.seed}, {settings.samples} "
        f"sample{'s' * (settings.samples != 1)}; one-step is one evaluation from pure noise, the posterior "
        "mean; single is the mean of its planes.",
    ]
    sentences += [
        f"{other.name}: {other.config.name}, {other.strategies[0]}, {_sampler(other)}." for other in others
    ]
    sentences += [
        f"FID and MMD, {network.name}: {network.description} Means over cubes of {CUBE} voxels, {STEP} apart."
        for network in networks
    ]
    sentences.append(
        "Intervals are 95%: bootstrap over subjects, for FID and MMD the jackknife; p is Wilcoxon's, with "
        f"Holm's correction. scorefusion {__version__}; docs/evaluation.md defines every figure."
    )
    return sentences


def facts(
    main: Contender,
    others: Sequence[Contender],
    networks: Sequence[FeatureNetwork],
    *,
    data: str,
    synthetic: bool,
    settings: Settings,
) -> dict[str, Any]:
    """The same for programs."""
    return {
        "scorefusion": __version__,
        "data": data,
        "synthetic": synthetic,
        "model": main.config.name,
        "models": {
            each.name or each.config.name: {
                "sha256": each.digest,
                "strategies": each.strategies,
                "sampling": each.sampling.model_dump(mode="json"),
            }
            for each in (main, *others)
        },
        "seed": settings.seed,
        "samples": settings.samples,
        "features": {network.name: network.description for network in networks},
    }


def _sampler(contender: Contender) -> str:
    sampling = contender.sampling
    levels = ""
    if sampling.schedule == "karras":
        levels = f", sigma {sampling.sigma_max:g} to {sampling.sigma_min:g}"
    return f"{sampling.solver}, {len(contender.table())} evaluations{levels}"
