"""What a killed run leaves under hidden names, removed when the next one starts."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from scorefusion.batch.item import shown
from scorefusion.batch.listing import SIDES, side_path

_BESIDE = re.compile(r"\.[0-9a-f]{8}\.(.+)")


def remove_leftovers(outputs: Iterable[Path]) -> int:
    """Remove the hidden files that outputs were being written to, and those of the volumes beside them.

    Args:
        outputs: of the shard that is locked; others may be writing theirs.

    Returns:
        How many were removed.

    Raises:
        OSError: if a folder cannot be read, or a file not removed.
    """
    places: dict[Path, set[str]] = {}
    for output in outputs:
        names = places.setdefault(output.parent, set())
        for path in (output, *(side_path(output, side) for side in SIDES)):
            name = shown(path.name)
            names |= {name, f"new.{name}", f"old.{name}"}  # the last two are folders
            if path.is_symlink():  # written through
                places.setdefault(Path(os.path.realpath(path)).parent, set()).add(name)
    count = 0
    for folder, names in places.items():
        for file in sorted(folder.iterdir()) if folder.is_dir() else ():
            match = _BESIDE.fullmatch(shown(file.name))
            if match and match[1] in names:
                if file.is_dir() and not file.is_symlink():
                    shutil.rmtree(file)
                else:
                    file.unlink(missing_ok=True)
                count += 1
    return count
