"""Files of a batch: names, content hashes, reproducible writing, and leftovers of killed runs."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from scorefusion.batch.items import Item, Problem, shown
from scorefusion.data import stem
from scorefusion.errors import BadInput
from scorefusion.io.atomic import written_beside
from scorefusion.io.formats import companions, format_of
from scorefusion.io.placeholders import check_fetched
from scorefusion.models.folder import CONFIG, WEIGHTS, find_folder

STATE = ".scorefusion"
"""The folder inside OUT where a batch keeps its books; folders that have it hold outputs, never inputs."""


VOLUME = "volume"
DICOM = "dicom"
SIDES = ("sd", "planes", DICOM)
"""What may lie beside a translation: deviation over samples, disagreement of the planes, a derived series."""

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


LONGEST = 255 - len(".01234567.") - len("_planes")
"""Bytes a file's name may have, so that the names made of it fit into what file systems take."""

_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.I)


def name_problem(name: str, ending: str) -> Problem | None:
    """Why a name from a table cannot become a file's name; None if it can.

    Args:
        name: without ending and folder.
        ending: what will be added.
    """
    fix = "Use letters, digits, '-', '_' and '.'."
    text = shown(name).encode("unicode_escape").decode("ascii")
    if not name or name.startswith("."):
        return Problem(f"'{text}' is no name for a file: it is empty or begins with '.'", fix)
    if any(character in '/\\:*?"<>|' or ord(character) < 32 for character in name):
        return Problem(f"'{text}' is no name for a file: it holds a separator or a special character", fix)
    if name.endswith((" ", ".")) or _RESERVED.fullmatch(name):
        return Problem(f"'{text}' is a name that some systems reserve", fix)
    return length_problem(name + ending)


def length_problem(name: str) -> Problem | None:
    """Why a file's name is too long; None if it is not."""
    length = len(os.fsencode(name))
    if length <= LONGEST:
        return None
    return Problem(f"its output's name would have {length} bytes, at most {LONGEST} fit", "Shorten it.")


def store_image(image: Any, path: Path, level: int = 1) -> tuple[int, str]:
    """Write an image beside ``path`` and rename it. No time and no name goes into the file.

    Args:
        image: a nibabel image.
        path: its ending chooses the format.
        level: of compression, 0 to 9.

    Returns:
        The file's bytes, and their sha256.

    Raises:
        BadInput: if it cannot be written, from the system's error.
    """
    if not path.name.lower().endswith(".nii.gz"):
        return _store_other(image, path, level)
    with written_beside(path) as beside, beside.open("wb") as file:
        sink = _Hashed(file)
        with gzip.GzipFile("", "wb", level, sink, mtime=0) as stream:
            image.to_stream(stream)
        result = sink.count, sink.digest.hexdigest()
    return result


def _store_other(image: Any, path: Path, level: int) -> tuple[int, str]:
    with written_beside(path) as beside:
        format_of(path).write(image, beside, level)
        result = beside.stat().st_size, hash_file(beside)
    return result


class _Hashed(io.RawIOBase):
    """Passes on what is written, counted and hashed."""

    def __init__(self, file: BinaryIO):
        self.file, self.count, self.digest = file, 0, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self.file.write(view)
        self.digest.update(view)
        self.count += view.nbytes
        return view.nbytes


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


def output_path(output: Path, kind: str) -> Path:
    """Where a file of :attr:`.Outcome.outputs` lies: the volume at the item's output, others beside it."""
    return output if kind == VOLUME else side_path(output, kind)


def side_path(output: Path, side: str) -> Path:
    """Where what is beside a translation goes: ``x_sd.nii.gz``, in BIDS ``..._desc-scorefusionsd_T1w``.

    A derived series is a folder: ``x_dicom``.
    """
    name = stem(output)
    if side == DICOM:
        return output.with_name(f"{name}_{side}")
    ending = output.name[len(name) :]
    if "_desc-scorefusion_" in name:
        return output.with_name(name.replace("_desc-scorefusion_", f"_desc-scorefusion{side}_") + ending)
    return output.with_name(f"{name}_{side}{ending}")


KnownHash = Callable[[Path, Stamp], str | None]


@dataclass(frozen=True)
class Identity:
    """Which bytes an item is made of.

    Attributes:
        stamps: of its files, from before they were read.
        hashes: sha256 of each.
        work: hash of all that decides its outputs.
        seconds: that it took.
    """

    stamps: tuple[Stamp, ...]
    hashes: tuple[str, ...]
    work: str
    seconds: float


def identify(item: Item, recipe: dict[str, Any], known: KnownHash | None = None) -> Identity:
    """Hash an item's files; see :meth:`Worker.identify`."""
    start = time.perf_counter()
    stamps, hashes = [], []
    for file in item.files:
        stamp = checked_stamp(file)
        stamps.append(stamp)
        hashes.append((known and known(file, stamp)) or hash_file(file))
    return Identity(tuple(stamps), tuple(hashes), work_hash(hashes, recipe), time.perf_counter() - start)


def checked_stamp(file: Path) -> Stamp:
    """Return the stamp of an input, with errors that name it."""
    check_fetched(file)
    try:
        return stamp_of(file)
    except FileNotFoundError:
        raise BadInput(file, "does not exist", "Check its name.") from None
    except (OSError, ValueError) as error:
        raise BadInput(file, f"cannot be read ({error})", "Check its name and permissions.") from None
