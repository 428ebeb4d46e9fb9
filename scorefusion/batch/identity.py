"""What decides an output's bits, as hashes: the inputs' bytes, the model, the settings, how it is stored."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scorefusion.errors import BadInput
from scorefusion.io.formats import companions
from scorefusion.io.placeholders import check_fetched
from scorefusion.models.folder import CONFIG, WEIGHTS, find_folder

RESULTS = 2
"""Counts the changes of scorefusion that change results' bits; a batch made before one is made again."""

Stamp = tuple[int, int, int]
"""(bytes, modification time in ns, inode): while it stays, so do a file's bytes."""


def stamp_of(path: str | os.PathLike[str]) -> Stamp:
    """The stamp of a file, with its companions, such as the .img of a .hdr; of a folder, of the files in it.

    For several files it is the bytes in all, the latest change, and the inode of the first or of the folder.

    Raises:
        OSError: if it is not there.
    """
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        files = [os.stat(file) for file in _files_in(path)]
    else:
        files = [status, *(os.stat(file) for file in companions(Path(path)))]
    latest = max((each.st_mtime_ns for each in files), default=status.st_mtime_ns)
    return sum(each.st_size for each in files), latest, status.st_ino


def hash_file(path: str | os.PathLike[str]) -> str:
    """sha256 of a file's bytes, in hexadecimal; of several, over their hashes: a folder, a .hdr and its .img.

    Raises:
        BadInput: if it cannot be read.
    """
    if os.path.isdir(path):
        return combine([[file.relative_to(path).as_posix(), hash_file(file)] for file in _files_in(path)])
    if further := companions(Path(path)):
        return combine([_hash(path), *(_hash(file) for file in further)])
    return _hash(path)


def _hash(path: str | os.PathLike[str]) -> str:
    digest = hashlib.sha256()
    try:
        with open(path, "rb", buffering=0) as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
    except OSError as error:
        known = "does not exist" if isinstance(error, FileNotFoundError) else None
        problem = known or f"cannot be read ({error.strerror or error})"
        raise BadInput(path, problem, "Check its name and permissions.") from error
    return digest.hexdigest()


def _files_in(folder: str | os.PathLike[str]) -> list[Path]:
    """The regular files of a folder at any depth, sorted; links that lead nowhere and pipes are none."""
    return sorted(path for path in Path(folder).rglob("*") if path.is_file())


def model_hash(model: str | os.PathLike[str]) -> str:
    """sha256 over a model's configuration and weights.

    Raises:
        ScoreFusionError: for a name that is no model's.
        BadInput: for a folder without its files.
    """
    folder = find_folder(model)
    config = json.dumps(json.loads(Path(folder / CONFIG).read_text(encoding="utf-8")), sort_keys=True)
    check_fetched(folder / WEIGHTS)
    return combine([config, hash_file(folder / WEIGHTS)])


def work_hash(inputs: Sequence[str], recipe: Mapping[str, Any]) -> str:
    """sha256 of what decides an output: the inputs' hashes in order, and how they are translated."""
    return combine([list(inputs), dict(recipe), RESULTS])


def combine(parts: Any) -> str:
    """sha256 of anything that JSON takes; mappings in any order are alike."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
