"""From what the user names to the items of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from scorefusion.batch.folders import list_files, list_folder
from scorefusion.batch.listing import Source, checked
from scorefusion.batch.tables import list_table
from scorefusion.batch.wanted import Wanted
from scorefusion.data.listing import is_volume
from scorefusion.data.rows import TABLES
from scorefusion.errors import BadInput
from scorefusion.io.placeholders import check_fetched


def is_batch(inputs: Sequence[Path], output: str) -> bool:
    """Whether a command line's inputs and output mean many scans.

    They do where the output is not named as a volume, and an input is a folder or a table, or the output is a
    folder, ends in a slash, or has no ending at all.
    """
    if is_volume(output):
        return False
    if any(path.is_dir() or path.suffix.lower() in TABLES for path in inputs):
        return True
    return output.endswith(("/", "\\")) or Path(output).is_dir() or not Path(output).suffix


def find_items(inputs: Sequence[Path], wanted: Wanted, *, sides: Sequence[str] = ()) -> Source:
    """List what is to be translated, sorted by name; no file is opened but a table.

    Args:
        inputs: a folder, a CSV or TSV, or NIfTI files.
        wanted: what for.
        sides: the volumes that will be written beside each translation.

    Raises:
        BadInput: for a source that is not there, cannot be read, or holds no scan.
    """
    first = inputs[0]
    check_fetched(first)
    if len(inputs) > 1 and not all(is_volume(path.name) and not path.is_dir() for path in inputs):
        raise BadInput(first, "is given with others", "Give one folder, one table, or NIfTI files.")
    if first.is_dir():
        if wanted.out.exists() and wanted.out.samefile(first):
            raise BadInput(wanted.out, "is the folder of the inputs", "Choose another for the outputs.")
        source = list_folder(first, wanted)
    elif first.suffix.lower() in TABLES:
        source = list_table(first, wanted)
    elif first.exists() or len(inputs) > 1:
        source = list_files(inputs, wanted)
    else:
        raise BadInput(first, "does not exist", "Give a folder, a CSV, a TSV or NIfTI files.")
    if not source.items:
        others = "".join(f"; {note}" for note in source.notes)
        wanted_text = ", ".join(wanted.conditions)
        raise BadInput(first, f"holds nothing to translate ({wanted_text}){others}", "Check its name.")
    return replace(source, items=checked(source.items, sides))
