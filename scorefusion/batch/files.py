"""Files of a batch: names, content hashes, reproducible writing, and leftovers of killed runs."""

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from scorefusion.batch.items import Item, Problem, shown
from scorefusion.errors import BadInput, one_line
from scorefusion.io.atomic import written_beside
from scorefusion.io.formats import companions, format_of
from scorefusion.io.nifti import sidecar_of
from scorefusion.io.placeholders import check_fetched
from scorefusion.models.folder import CONFIG, WEIGHTS, find_folder
from scorefusion.pipeline import side_path

STATE = ".scorefusion"
"""The folder inside OUT where a batch keeps its queue; folders that have it hold outputs, never inputs."""

VOLUME = "volume"
DICOM = "dicom"
SIDECAR = "sidecar"
SIDES = ("sd", "planes", DICOM, SIDECAR)
"""What may be beside a translation: deviation over samples, disagreement of planes, a series, a sidecar."""

RESULTS = 2
"""Counts the changes of scorefusion that change results' bits; a batch made before one is made again."""

LONGEST = 255 - len(".01234567.") - len("_planes")
"""Bytes a file's name may have, so that the names derived from it fit into what file systems take."""

Stamp = tuple[int, int, int]
"""(bytes, modification time in ns, inode): while it stays, so do a file's bytes."""

KnownHash = Callable[[Path, Stamp], str | None]

_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.I)
_TEMPORARY = re.compile(r"\.[0-9a-f]{8}\.(.+)")


def name_problem(name: str, ending: str) -> Problem | None:
    """Return why a name from a table, without ending and folder, cannot name a file; None if it can."""
    if not name or name.startswith("."):
        why = "is no name for a file: it is empty or begins with '.'"
    elif any(character in '/\\:*?"<>|' or ord(character) < 32 for character in name):
        why = "is no name for a file: it holds a separator or a special character"
    elif name.endswith((" ", ".")) or _RESERVED.fullmatch(name):
        why = "is a name that some systems reserve"
    else:
        return length_problem(name + ending)
    text = shown(name).encode("unicode_escape").decode("ascii")
    return Problem(f"'{text}' {why}", "Use letters, digits, '-', '_' and '.'.")


def length_problem(name: str) -> Problem | None:
    """Return why a file's name is too long; None if it is not."""
    length = len(os.fsencode(name))
    if length <= LONGEST:
        return None
    return Problem(f"its output's name would have {length} bytes, at most {LONGEST} fit", "Shorten it.")


@dataclass(frozen=True)
class Identity:
    """What tells an item's files, and with them its translation, from others."""

    stamps: tuple[Stamp, ...]  #: of the files, from before they were read
    hashes: tuple[str, ...]
    work: str  #: hash of all that decides bits
    seconds: float  #: that hashing took


def identify(item: Item, recipe: Mapping[str, Any], known: KnownHash | None = None) -> Identity:
    """Hash an item's files, those but for which ``known`` has a hash, and the recipe of its translation.

    Where a sidecar is written, those of the inputs count as well: they say how thick slices are.
    """
    start = time.perf_counter()
    stamps = tuple(input_stamp(file) for file in item.files)
    pairs = zip(item.files, stamps, strict=True)
    hashes = tuple((known and known(file, stamp)) or hash_file(file) for file, stamp in pairs)
    parts = [hashes, dict(recipe), RESULTS]
    if SIDECAR in recipe.get("sides", ()) and not item.series:
        parts.append([sidecar_of(file) for file in item.files])
    work = _combine(parts)
    return Identity(stamps, hashes, work, time.perf_counter() - start)


def input_stamp(file: Path) -> Stamp:
    """Return the stamp of an input file."""
    check_fetched(file)
    with _reading(file):
        return stamp_of(file)


def stamp_of(path: str | os.PathLike[str]) -> Stamp:
    """Return the stamp of a file with its companions, such as the .img of a .hdr, or of a folder's files.

    For several files: their total bytes, the latest change, and the inode of the first or of the folder.
    """
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        files = [os.stat(file) for file in _files_in(path)]
    else:
        files = [status, *(os.stat(file) for file in companions(Path(path)))]
    latest = max((file.st_mtime_ns for file in files), default=status.st_mtime_ns)
    return sum(file.st_size for file in files), latest, status.st_ino


def hash_file(path: str | os.PathLike[str]) -> str:
    """Return the sha256 of a file; of a folder or a .hdr and its .img, over the hashes of all files."""
    if os.path.isdir(path):
        return _combine([[file.relative_to(path).as_posix(), hash_file(file)] for file in _files_in(path)])
    if further := companions(Path(path)):
        return _combine([_hash(path), *(_hash(file) for file in further)])
    return _hash(path)


def model_hash(model: str | os.PathLike[str]) -> str:
    """Return the sha256 over a model's configuration and weights."""
    folder = find_folder(model)
    config = json.dumps(json.loads(Path(folder / CONFIG).read_text(encoding="utf-8")), sort_keys=True)
    check_fetched(folder / WEIGHTS)
    return _combine([config, hash_file(folder / WEIGHTS)])


def _combine(parts: Any) -> str:
    """Return the sha256 of anything that JSON takes; the order of mappings does not count."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@contextmanager
def _reading(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        problem = "does not exist" if missing else f"cannot be read ({one_line(error)})"
        raise BadInput(path, problem, "Check its name and permissions.") from error


def _hash(path: str | os.PathLike[str]) -> str:
    digest = hashlib.sha256()
    with _reading(path), open(path, "rb", buffering=0) as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _files_in(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the regular files of a folder at any depth, sorted; no broken links, no pipes."""
    return sorted(path for path in Path(folder).rglob("*") if path.is_file())


def store_image(image: Any, path: Path, level: int = 1) -> tuple[int, str]:
    """Write a nibabel image beside ``path`` and rename it; return the file's size in bytes and its sha256.

    The ending chooses the format, ``level`` from 0 to 9 the compression. No time and no name goes into it.
    """
    with written_beside(path) as beside:
        if not path.name.lower().endswith(".nii.gz"):
            format_of(path).write(image, beside, level)
            return beside.stat().st_size, hash_file(beside)
        with beside.open("wb") as file:
            sink = _Hashed(file)
            with gzip.GzipFile("", "wb", level, sink, mtime=0) as stream:
                image.to_stream(stream)
        return sink.count, sink.digest.hexdigest()


class _Hashed(io.RawIOBase):
    """Counts and hashes what is written to a file, so that it need not be read back."""

    def __init__(self, file: BinaryIO):
        self.file, self.count, self.digest = file, 0, hashlib.sha256()

    def writable(self) -> bool:
        """Whether it can be written to: always."""
        return True

    def write(self, data: Any) -> int:
        """Pass on bytes and return how many there were."""
        view = memoryview(data).cast("B")
        self.file.write(view)
        self.digest.update(view)
        self.count += view.nbytes
        return view.nbytes


def remove_leftovers(outputs: Iterable[Path]) -> None:
    """Remove the hidden files of a killed run that outputs, or volumes beside them, were written to.

    Only for outputs of the shard that is locked: other processes may be writing theirs.
    """
    places: dict[Path, set[str]] = {}
    for output in outputs:
        names = places.setdefault(output.parent, set())
        for path in (output, *(side_path(output, side) for side in SIDES)):
            name = shown(path.name)
            names |= {name, f"new.{name}", f"old.{name}"}  # the last two are folders
            if path.is_symlink():  # written through
                places.setdefault(Path(os.path.realpath(path)).parent, set()).add(name)
    for folder, names in places.items():
        for file in sorted(folder.iterdir()) if folder.is_dir() else ():
            match = _TEMPORARY.fullmatch(shown(file.name))
            if match and match[1] in names:
                if file.is_dir() and not file.is_symlink():
                    shutil.rmtree(file)
                else:
                    file.unlink(missing_ok=True)
