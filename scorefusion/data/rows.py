"""Tables with a header line: CSV with commas or semicolons, or TSV."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from scorefusion.errors import BadInput
from scorefusion.io.placeholders import check_fetched

TABLES = (".csv", ".tsv")


def read_rows(path: Path, needed: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Read a table; column names come in lower case, everything without blanks around it.

    Args:
        path: ends in ``.tsv`` for tabs between cells; else the header tells commas from semicolons.
        needed: columns that must be there.

    Returns:
        Each row with the number of its line; empty rows are left out.

    Raises:
        BadInput: if it cannot be read, lacks a column, names one twice, or has a row too long.
    """
    check_fetched(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            head = file.readline()
            file.seek(0)
            comma = "\t" if path.suffix.lower() == ".tsv" else ";" if ";" in head and "," not in head else ","
            reader = csv.reader(file, delimiter=comma, strict=True)
            names = [name.strip().lower() for name in next(reader, [])]
            cells = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(path, f"cannot be read as a table ({error})", "Save it as UTF-8 CSV.") from None
    for name in needed:
        if name not in names:
            problem = f"has no column '{name}'; its columns are {', '.join(names) or 'none'}"
            raise BadInput(path, problem, "Name the columns in its first line.")
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise BadInput(path, f"names the column '{twice[0]}' twice", "Remove one.")
    rows = []
    for number, row in cells:
        if len(row) > len(names):
            problem = f"line {number} has {len(row)} cells, the header {len(names)}"
            raise BadInput(path, problem, "Quote cells that contain commas.")
        if any(row):
            rows.append((number, dict(zip(names, row + [""] * (len(names) - len(row)), strict=True))))
    return rows
