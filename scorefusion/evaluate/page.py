"""The HTML page of an evaluation, with its pictures inside."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from scorefusion.evaluate import pictures, table
from scorefusion.evaluate.run import Results
from scorefusion.evaluate.shared_start import plane_row
from scorefusion.evaluate.store import Store
from scorefusion.evaluate.summary import Summary
from scorefusion.io.pages import data_url, render
from scorefusion.pipeline.figures import side_by_side

Table = tuple[list[str], list[list[str]]]


def report_page(
    summary: Summary,
    results: Results,
    store: Store,
    head: str,
    title: str,
    notes: Sequence[str],
    segmentation: Table | None,
) -> str:
    """Return one HTML page that refers to nothing outside itself; see :func:`.report.write_report`."""
    rows = pictures.columns_of([line.name for line in summary.lines], summary.main)
    columns = (*table.set_columns(summary), *table.REALISM, *table.COST)
    costs, by_row = table.measured(summary, columns, head, flop=True), pictures.figures_by_row(summary)
    sections: list[dict[str, Any]] = [
        {"title": "How close to the truth", "table": table.measured(summary, table.CLOSENESS, head)},
        {"title": "How much like true volumes, and at what cost", "table": costs, "image": _image(by_row)},
    ]
    if segmentation is not None:
        sections.append({"title": "Dice of a segmenter", "table": segmentation})
    if summary.order:
        sections.append({"title": "The paper's order", "table": table.tested(summary.order, head)})
    if summary.against:
        differences = table.tested(summary.against, head)
        sections.append({"title": f"Every row less {summary.main}", "table": differences})
    if summary.denoising:
        curves, errors = _image(pictures.denoising_curves(summary)), table.denoising(summary, head)
        sections.append({"title": "Denoising error by noise level", "table": errors, "image": curves})
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
    names = [name for name in rows if name in record]
    volumes = {name: store.volume(keys[name]) for name in (*names, "truth")}
    scores = {name: f"{record[name]['psnr']:.2f} dB" for name in names}
    z, y, x = case["spacing"]
    return side_by_side(volumes, (z, y, x), case["data_range"], scores)


def _image(figure: Any) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return data_url("png", buffer.getvalue())
