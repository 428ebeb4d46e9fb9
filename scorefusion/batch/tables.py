"""Scans named in a CSV or TSV: a line an item, a column a condition, ``subject`` the name of the output."""

from __future__ import annotations

from pathlib import Path

from scorefusion.batch.item import Item, Problem, shown
from scorefusion.batch.listing import Source
from scorefusion.batch.names import name_problem
from scorefusion.batch.wanted import Wanted
from scorefusion.data.rows import read_rows
from scorefusion.data.table import contrast_columns
from scorefusion.errors import BadInput
from scorefusion.io.dicom.find import SeriesDescription, choose_series


def list_table(table: Path, wanted: Wanted) -> Source:
    """The lines of a table; one that cannot be used is an item that fails.

    Raises:
        BadInput: for a table that cannot be read, or that lacks a column.
    """
    rows = read_rows(table, ("subject",))
    columns = {contrast: name for name, contrast in contrast_columns(table, rows, wanted.conditions).items()}
    missing = [condition for condition in wanted.conditions if condition not in columns]
    if missing and rows:
        names = ", ".join(rows[0][1])
        problem = f"has no column of files '{missing[0]}'; its columns are {names}"
        raise BadInput(table, problem, "Name the columns as the model's conditions, in the first line.")
    taken: dict[str, int] = {}
    for _, row in rows:
        taken[row["subject"]] = taken.get(row["subject"], 0) + 1
    items = []
    for number, row in rows:
        subject = row["subject"]
        cells = [row[columns[condition]] for condition in wanted.conditions]
        found = name_problem(subject, wanted.ending)
        alone = found is None and taken[subject] == 1
        name = shown(subject) if alone else f"line {number}: {shown(subject)}"
        if found is None and not all(cells):
            lacking = wanted.conditions[cells.index("")]
            found = Problem(f"line {number} names no file of {lacking}", "Fill it in.")
        masked = wanted.masks and bool(row.get("mask"))
        cells += [row["mask"]] if masked else []
        if found is None and any("\0" in cell for cell in cells):
            found = Problem(f"line {number} names a file with a NUL character", "Correct it.")
        # A refused name never becomes part of a path.
        output = wanted.out / ((subject if found is None else f"line-{number}") + wanted.ending)
        files = () if found is not None else tuple(table.parent / cell for cell in cells)
        series: tuple[SeriesDescription, ...] = ()
        if wanted.series is not None:
            try:
                files, series = _chosen(files, wanted)
            except BadInput as error:
                files, found = (), Problem.of(error)
        items.append(Item(name, files, output, found, series, masked=masked and found is None))
    return Source("table", tuple(items))


def _chosen(
    files: tuple[Path, ...], wanted: Wanted
) -> tuple[tuple[Path, ...], tuple[SeriesDescription, ...]]:
    """A line's files with folders replaced by the files of the series wanted in each, and these series."""
    count = len(wanted.conditions)
    conditions, mask = files[:count], files[count:]
    if not any(file.is_dir() for file in conditions):
        return files, ()
    series = tuple(choose_series(file, wanted.series) for file in conditions)
    return (*(file for each in series for file in each.files), *mask), series
