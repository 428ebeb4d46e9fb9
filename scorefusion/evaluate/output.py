"""Output folders, text tables and stored results of evaluate, tune, demo and denoise-error."""

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scorefusion.errors import BadInput
from scorefusion.io.atomic import check_output, written_beside
from scorefusion.optional import need


def check_folder(
    folder: str | os.PathLike[str], files: Sequence[str], modules: Sequence[str], purpose: str
) -> Path:
    """Make a folder; find out before any work is done whether files can be written and modules are there."""
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


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write rows, the first of titles, as :func:`write_text` writes."""
    lines = io.StringIO()
    csv.writer(lines).writerows(rows)
    write_text(path, lines.getvalue())


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


STORE_VERSION = 1  #: goes up when sampling changes, which makes stored results void


class Store:
    """A folder of finished JSON records and float16 ``.npy`` volumes, by which an evaluation goes on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def key(self, label: str, **parts: Any) -> str:
        """A file name, after a readable label, that changes with any of the parts a result depends on."""
        text = json.dumps({"version": STORE_VERSION, "label": label, **parts}, sort_keys=True, default=str)
        readable = re.sub(r"[^a-zA-Z0-9]+", "-", label).strip("-").lower()[:48]
        return f"{readable}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def record(self, key: str) -> dict[str, Any] | None:
        """What was stored, or None. A record that cannot be read counts as none."""
        try:
            found = json.loads((self.folder / f"{key}.json").read_text(encoding="utf-8"))
            return found if isinstance(found, dict) else None
        except (OSError, ValueError):
            return None

    def volume(self, key: str) -> np.ndarray:
        """A stored volume, as float32."""
        return np.load(self.folder / f"{key}.npy", allow_pickle=False).astype(np.float32)

    def array(self, key: str) -> np.ndarray | None:
        """A stored array, or None."""
        try:
            return np.asarray(np.load(self.folder / f"{key}.npy", allow_pickle=False))
        except (OSError, ValueError):
            return None

    def put_array(self, key: str, array: np.ndarray) -> None:
        """Store an array as it is."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with written_beside(self.folder / f"{key}.npy") as beside:
            np.save(beside, array, allow_pickle=False)

    def put(self, key: str, record: dict[str, Any], volume: np.ndarray | None = None) -> None:
        """Store a record and its volume; the record last, so that it vouches for the volume."""
        if volume is not None:
            self.put_array(key, volume.astype(np.float16))
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / f"{key}.json", json.dumps(record))
