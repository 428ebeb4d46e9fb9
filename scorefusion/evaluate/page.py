"""The HTML page of an evaluation, with its pictures inside."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from scorefusion.evaluate import pictures
from scorefusion.evaluate.run import Results
from scorefusion.evaluate.shared_start import plane_row
from scorefusion.evaluate.store import Store
from scorefusion.evaluate.summary import Summary
from scorefusion.evaluate.table import Table
from scorefusion.io.figures import side_by_side
from scorefusion.io.pages import data_url, render
from scorefusion.metrics import METRICS


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
