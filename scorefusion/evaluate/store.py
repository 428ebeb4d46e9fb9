"""Finished results on disk, so that an evaluation that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from scorefusion.io.atomic import written_beside

VERSION = 1
"""Goes up when sampling changes, which makes stored results void."""


class Store:
    """A folder of results: JSON records, and volumes as float16 ``.npy``; made when it is first needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def key(self, label: str, **parts: Any) -> str:
        """A file name, after a readable label, that changes with any of the parts a result depends on."""
        text = json.dumps({"version": VERSION, "label": label, **parts}, sort_keys=True, default=str)
        readable = re.sub(r"[^a-zA-Z0-9]+", "-", label).strip("-").lower()[:48]
        return f"{readable}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def record(self, key: str) -> dict[str, Any] | None:
        """What was stored, or None. A record that cannot be read counts as none."""
        try:
            found = json.loads((self.folder / f"{key}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

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
        with written_beside(self.folder / f"{key}.json") as beside:
            beside.write_text(json.dumps(record), encoding="utf-8")
