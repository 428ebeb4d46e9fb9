"""A CSV or TSV: a line for each subject, a column for each contrast.

``subject`` is needed; ``group`` (the person) and ``split`` may be there; every other column whose cells are
NIfTI files is a contrast. Relative paths start at the table's folder.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from scorefusion.data.layouts.folder import person
from scorefusion.data.listing import SPLITS, Listing, Subject, Volume, is_volume
from scorefusion.errors import BadInput, unknown_name
from scorefusion.io.atomic import written_beside
from scorefusion.io.placeholders import check_fetched
from scorefusion.models.contrast import canonical, in_order

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


_RESERVED = ("subject", "group", "split")


def list_table(table: Path, contrasts: Sequence[str]) -> Listing:
    """The subjects of a table."""
    rows = read_rows(table, ("subject",))
    columns = contrast_columns(table, rows, contrasts)
    volumes: list[Volume] = []
    problems: list[tuple[str, BadInput]] = []
    splits: dict[str, str] = {}
    lines: dict[str, int] = {}
    for number, row in rows:
        subject = row["subject"]
        if not subject:
            raise BadInput(table, f"line {number} has no subject", "Give every line a name.")
        if subject in lines:
            problem = f"names subject '{subject}' in lines {lines[subject]} and {number}"
            raise BadInput(
                table, problem, "Give each line its own name, and a column 'group' for the person."
            )
        lines[subject] = number
        group = row.get("group") or person(subject)
        split = row.get("split", "").lower()
        if split:
            if split not in SPLITS:
                raise BadInput(table, f"line {number}: {unknown_name('split', split, SPLITS)}")
            if splits.setdefault(group, split) != split:
                problem = f"line {number}: person '{group}' is in split {split} and in {splits[group]}"
                raise BadInput(table, problem, "Keep all of a person in one split.")
        files = [
            Volume(subject, group, contrast, table.parent / row[column])
            for column, contrast in columns.items()
            if row[column]
        ]
        volumes += files
        if not files:
            problems.append((subject, BadInput(table, f"line {number} names no file", "Fill it in.")))
    return Listing(tuple(volumes), tuple(problems), splits)


def contrast_columns(
    table: Path, rows: Sequence[tuple[int, dict[str, str]]], contrasts: Sequence[str]
) -> dict[str, str]:
    """Which columns of a table name files, and of which contrast.

    Raises:
        BadInput: if two are of one contrast.
    """
    names = [name for name in (rows[0][1] if rows else ()) if name not in _RESERVED]
    columns = {
        name: canonical(name)
        for name in names
        if canonical(name) in contrasts or any(is_volume(row[name]) for _, row in rows)
    }
    for name, contrast in columns.items():
        other = next(key for key, value in columns.items() if value == contrast)
        if other != name:
            raise BadInput(table, f"columns '{other}' and '{name}' both hold {contrast}", "Remove one.")
    return columns


def write_table(path: Path, subjects: Sequence[Subject], splits: Mapping[str, str]) -> None:
    """Write subjects as a table that :func:`list_table` reads; whole or not at all.

    Args:
        path: the CSV; paths in it are relative where they lie below its folder, else absolute.
        subjects: who.
        splits: the split of each person.

    Raises:
        BadInput: if it cannot be written.
    """
    contrasts = in_order({contrast for subject in subjects for contrast in subject.files})
    folder = path.absolute().parent
    with written_beside(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*_RESERVED, *contrasts])
        for subject in subjects:
            files = (subject.files.get(contrast) for contrast in contrasts)
            cells = ["" if name is None else _relative(name.absolute(), folder) for name in files]
            writer.writerow([subject.name, subject.group, splits[subject.group], *cells])


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
