"""An evaluation as one HTML page, with its pictures inside."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from scorefusion.evaluate import pictures, table
from scorefusion.evaluate.run import Results
from scorefusion.evaluate.shared_start import plane_row
from scorefusion.evaluate.store import Store
from scorefusion.evaluate.summary import Summary
from scorefusion.pipeline.figures import side_by_side

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1150px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: .6em 0 1.6em; font-size: 13px }
th, td { border-bottom: 1px solid #ddd; padding: .25em .7em; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
thead th { border-bottom: 2px solid #888 }
.scroll { overflow-x: auto } img { max-width: 100% } .notes { color: #555; font-size: 13px }
.kind { background: #fff4d6; padding: .3em .7em; border-radius: .3em; display: inline-block }
"""


def report_page(
    summary: Summary,
    results: Results,
    store: Store,
    head: str,
    title: str,
    notes: Sequence[str],
    segmentation: tuple[list[str], list[list[str]]] | None,
) -> str:
    """One HTML page that refers to nothing outside itself; see :func:`.report.write_report`."""
    rows = [line.name for line in summary.lines]
    some = pictures.columns_of(rows, summary.main)
    columns = (*table.set_columns(summary), *table.REALISM, *table.COST)
    parts = [f"<h1>{_text(title)}</h1>", f'<p class="kind">{_text(head)}</p>']
    parts += ["<h2>How close to the truth</h2>", _table(*table.measured(summary, table.CLOSENESS, head))]
    parts += [
        "<h2>How much like true volumes, and at what cost</h2>",
        _table(*table.measured(summary, columns, head, flop=True)),
        _image(pictures.figures_by_row(summary), "figures by row"),
    ]
    if segmentation is not None:
        parts += ["<h2>Dice of a segmenter</h2>", _table(*segmentation)]
    if summary.order:
        parts += ["<h2>The paper's order</h2>", _table(*table.tested(summary.order, head))]
    if summary.against:
        parts += [
            f"<h2>Every row less {_text(summary.main)}</h2>",
            _table(*table.tested(summary.against, head)),
        ]
    if summary.denoising:
        parts += [
            "<h2>Denoising error by noise level</h2>",
            _image(pictures.denoising_curves(summary), "denoising error by noise level"),
            _table(*table.denoising(summary, head)),
        ]
    parts += ["<h2>By spatial frequency</h2>", _image(pictures.spectra(summary, some), "spectra")]
    for label, number in chosen_subjects(summary, results):
        case, record = results.cases[number], results.records[number]
        parts.append(f"<h2>{_text(label)}: {_text(case['name'])}</h2>")
        parts.append(f"<p>{_text(case['file'])}, box at {_text(str(case['start']))}</p>")
        figure = _subject_picture(results, number, store, [name for name in some if name in record])
        parts.append(_image(figure, f"{label} subject"))
    listed = "".join(f"<li>{_text(note)}</li>" for note in notes)
    parts.append(f'<h2>How it was measured</h2><ul class="notes">{listed}</ul>')
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


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


def _subject_picture(results: Results, number: int, store: Store, names: Sequence[str]) -> Any:
    keys, case, record = results.keys[number], results.cases[number], results.records[number]
    volumes = {name: store.volume(keys[name]) for name in (*names, "truth")}
    scores = {name: f"{record[name]['psnr']:.2f} dB" for name in names}
    z, y, x = case["spacing"]
    return side_by_side(volumes, (z, y, x), case["data_range"], scores)


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{_text(title)}</th>" for title in titles)
    lines = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>\n" for row in rows)
    table_text = f"<table><thead><tr>{head}</tr></thead><tbody>\n{lines}</tbody></table>"
    return f'<div class="scroll">{table_text}</div>'


def _image(figure: Any, label: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{_text(label)}" src="data:image/png;base64,{data}">'


def _text(text: str) -> str:
    return html.escape(text, quote=True)
