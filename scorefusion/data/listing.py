"""The files of a dataset's folder, what a layout makes of them, and the subjects they add up to."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scorefusion.errors import BadInput
from scorefusion.io.formats import LISTED, READABLE, volume_stem

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Subject:
    """Volumes of one person taken at one time."""

    name: str  #: unique in its dataset, such as ``sub-001`` or ``sub-001_ses-2``
    group: str  #: the person; sessions of one person share it, and splits go by it
    #: contrast (``t1``, ``t1c``, ``t2``, ``flair``, ``pd``, ``labels``, ...) to NIfTI file
    files: Mapping[str, Path] = field(hash=False)


@dataclass(frozen=True)
class Volume:
    """A file as a layout understands it."""

    subject: str  #: one session of one person; unique in the dataset
    group: str  #: the person
    contrast: str  #: its canonical name
    path: Path  #: the file
    variant: int = 0  #: of several versions of the whole dataset, the one this belongs to; 0 is the best


@dataclass(frozen=True)
class Listing:
    """What a layout found."""

    volumes: tuple[Volume, ...]  #: every file that it understands
    #: subjects that cannot be used, each with the file, the reason and the fix
    problems: tuple[tuple[str, BadInput], ...] = ()
    splits: dict[str, str] = field(default_factory=dict)  #: the split of a person, where the dataset says it
    people_unknown: str = ""  #: why files of one person cannot be told; empty where they can

    @property
    def count(self) -> int:
        """How many files were understood."""
        return len(self.problems) + len({volume.path for volume in self.volumes})


Layout = Callable[[Path, Sequence[Path], Sequence[str]], Listing]


def volume_files(
    root: Path, *, skip: Callable[[Path], bool] | None = None, unreadable: list[BadInput] | None = None
) -> list[Path]:
    """Every volume's file below a folder, sorted by path; of a pair the header.

    Links to folders are followed after all else, and each folder is entered once, so loops end. Hidden files
    and folders are left out, AppleDouble files (``._name``) among them; links that lead nowhere are kept, to
    be reported.

    Args:
        root: the folder.
        skip: says which folders below are not entered.
        unreadable: takes folders that cannot be read, instead of an error.

    Raises:
        BadInput: for a folder that cannot be read.
    """
    found, waiting, links = list[Path](), [root], list[Path]()
    entered: set[tuple[int, int]] = set()
    while waiting or links:
        folder = waiting.pop() if waiting else links.pop(0)
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in entered or (skip and folder != root and skip(folder)):
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                visible = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            fix = "Check its permissions, or move it out of the dataset."
            problem = BadInput(folder, f"cannot be read ({error.strerror or error})", fix)
            if unreadable is None:
                raise problem from None
            unreadable.append(problem)
            continue
        for entry in visible:
            if _is_folder(entry):
                (links if entry.is_symlink() else waiting).append(Path(entry.path))
            elif entry.name.lower().endswith(LISTED):
                found.append(Path(entry.path))
    return sorted(found)


def is_volume(name: str) -> bool:
    """Whether a file's name ends as a volume's does."""
    return name.lower().endswith(READABLE)


def stem(path: Path) -> str:
    """A volume's file name without its ending, such as ``.nii.gz``."""
    return volume_stem(path.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False
