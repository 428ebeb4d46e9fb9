"""Answers that take long to find, kept in the user's cache folder until the code they depend on changes."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import secrets
import sys
from pathlib import Path
from typing import Any


def user_cache_folder() -> Path:
    """Return where this user keeps what can be made again: under `XDG_CACHE_HOME` or the system's place."""
    given = os.environ.get("XDG_CACHE_HOME")
    if given and os.path.isabs(given):
        base = Path(given)
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path.home() / ".cache"
    return base / "scorefusion"


@functools.cache
def fingerprint(package: str) -> str:
    """Return a hash of every Python file in an installed package's folder, names included."""
    import importlib.util

    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return ""
    digest = hashlib.sha256()
    for place in spec.submodule_search_locations:
        for file in sorted(Path(place).rglob("*.py")):
            digest.update(f"{file.relative_to(place)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()


class Answers:
    """A folder of JSON files, each named by a hash of everything its answer depends on.

    Args:
        folder: where; None keeps nothing.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder

    def get(self, key: str) -> Any:
        """Return the answer kept under a key, or None."""
        if self.folder is None:
            return None
        try:
            return json.loads(self._file(key).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def put(self, key: str, answer: Any) -> None:
        """Keep an answer; a folder that cannot be written to is no error."""
        if self.folder is None:
            return
        file = self._file(key)
        beside = file.with_name(f".{secrets.token_hex(4)}.{file.name}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps(answer), encoding="utf-8")
            os.replace(beside, file)
        except OSError:
            beside.unlink(missing_ok=True)

    def _file(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()}.json"
