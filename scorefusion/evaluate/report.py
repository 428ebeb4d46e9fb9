"""What an evaluation leaves behind: figures by subject as CSV, all as JSON, tables, and one HTML page."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scorefusion.errors import BadInput
from scorefusion.evaluate import table
from scorefusion.evaluate.measure import FIGURES
from scorefusion.evaluate.page import report_page
from scorefusion.evaluate.run import Results
from scorefusion.evaluate.store import Store
from scorefusion.evaluate.summary import Summary
from scorefusion.io.atomic import check_output, written_beside
from scorefusion.optional import need
from scorefusion.pipeline.figures import try_to_write

FILES = ("subjects.csv", "summary.json", "table.md", "report.html")
CACHE = "cache"


def check_folder(folder: str | os.PathLike[str]) -> Path:
    """Make the folder, and find out before any work is done that the files can be written.

    Raises:
        BadInput: if the folder cannot be made or written.
        ScoreFusionError: without the packages that measure and draw.
    """
    for module in ("matplotlib", "scipy.stats", "skimage.metrics"):
        need(module, "an evaluation")
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(target, f"cannot be made ({error.strerror})", "Choose another folder.") from None
    for name in FILES:
        check_output(target / name, (Path(name).suffix,))
    return target


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
    segmentation: tuple[list[str], list[list[str]]] | None = None,
) -> str | None:
    """Write all files; each appears under its name whole or not at all.

    Args:
        folder: from :func:`check_folder`.
        summary: what was found.
        results: by subject.
        store: that holds the volumes.
        head: stands in the corner of every table: ``synthetic, 12 subjects``.
        title: of the page.
        notes: what the figures were measured on, and how.
        facts: the same for programs; goes into summary.json.
        segmentation: titles and rows of the table of Dice scores, if there is one.

    Returns:
        Why the page could not be made, which is last; None if it was.

    Raises:
        BadInput: if another file cannot be written.
    """
    text = table.markdown(summary, head, list(notes))
    if segmentation is not None:
        text = f"{text}\n### Dice of a segmenter\n\n{table.grid(*segmentation)}\n"
    with written_beside(folder / "table.md") as beside:
        beside.write_text(f"## {title}\n\n{text}", encoding="utf-8")
    with written_beside(folder / "subjects.csv") as beside:
        _write_csv(beside, results)
    with written_beside(folder / "summary.json") as beside:
        content = _record(summary, results, facts)
        beside.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")

    def write_page() -> None:
        page = report_page(summary, results, store, head, title, notes, segmentation)
        with written_beside(folder / "report.html") as beside:
            beside.write_text(page, encoding="utf-8")

    return try_to_write(folder / "report.html", write_page)


def _write_csv(path: Path, results: Results) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("subject", "person", "row", *FIGURES))
        for case, records in zip(results.cases, results.records, strict=True):
            for name, record in records.items():
                writer.writerow([case["name"], case["person"], name, *(record[key] for key in FIGURES)])


def _record(summary: Summary, results: Results, facts: dict[str, Any]) -> dict[str, Any]:
    """Everything as JSON holds it; NaN, as of the ends of an interval that is not defined, becomes null."""
    frequencies = {name: bands[0] for name, bands in summary.bands.items()}
    record = {
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
                "frequency": frequencies[line.name].tolist(),
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
    finite: dict[str, Any] = _finite(record)
    return finite


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
