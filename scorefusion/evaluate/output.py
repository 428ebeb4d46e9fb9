"""Output folders and text tables of evaluate, tune, demo and denoise-error."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from scorefusion.errors import BadInput
from scorefusion.io.atomic import check_output, written_beside
from scorefusion.optional import need


def check_folder(
    folder: str | os.PathLike[str], files: Sequence[str], modules: Sequence[str], purpose: str
) -> Path:
    """Make a folder, and find out before any work is done that the files can be written.

    Raises:
        BadInput: if the folder cannot be made or written.
        ScoreFusionError: without one of the optional modules that serve the purpose.
    """
    for module in modules:
        need(module, purpose)
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(target, f"cannot be made ({error.strerror})", "Choose another folder.") from None
    for name in files:
        check_output(target / name, (Path(name).suffix,))
    return target


def write_text(path: Path, text: str) -> None:
    """Write a file that appears under its name whole or not at all; raise ``BadInput`` if it cannot be."""
    with written_beside(path) as beside:
        beside.write_text(text, encoding="utf-8", newline="")


def grid(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def aligned(rows: Sequence[Sequence[str]], widths: Sequence[int]) -> str:
    """Return rows as lines of padded columns: on the right for a negative width, else on the left."""
    return "\n".join(
        "".join(
            f"{cell:<{-width}}" if width < 0 else f"{cell:>{width}}"
            for cell, width in zip(row, widths, strict=True)
        )
        for row in rows
    )
