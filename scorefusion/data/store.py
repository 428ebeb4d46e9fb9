"""Preprocessed training volumes, made once and kept as memory-mapped arrays.

The store is addressed by content: the sources' bytes and the settings name a file, so a finished array is
never made again, and an interrupted run leaves whole arrays only. Any number of processes may fill and read
one at once: each subject's arrays are made by one of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from scorefusion.data.dataset import DatasetConfig, Progress, Refusal, Refused, read_subject
from scorefusion.data.intensity import Intensity, Outliers
from scorefusion.data.layouts import Subject
from scorefusion.errors import BadInput, ScoreFusionError, out_of_memory
from scorefusion.io.atomic import written_beside

AGAIN = "Remove it; it will be made again."
MULTIPLE = 8  #: stored sizes are cut to multiples of this
#: what of a dataset's description decides which numbers are read
READING = ("on_misaligned", "tolerance", "interpolation", "nan", "assume_affine")

Vary = Callable[[np.ndarray, np.random.Generator], np.ndarray]
Extra = Callable[[np.ndarray], np.ndarray]
Region = tuple[tuple[int, int] | None, tuple[int, int] | None, tuple[int, int] | None]


@dataclass(frozen=True)
class Source:
    """One subject to be stored."""

    subject: Subject  #: its files
    contrasts: tuple[str, ...]  #: which are stored, in this order; the first one's grid counts
    #: how they are read and brought onto one grid; with ``skip_broken``, a subject that cannot be read is
    #: left out, and its share goes to the others of the same dataset
    reading: DatasetConfig
    variants: int = 0  #: how many varied copies are made beside it
    share: float = 1.0  #: of the crops that come from it and its variants together
    region: Region = (None, None, None)  #: (start, stop) along z, y, x of what may be seen; None for all


@dataclass(frozen=True)
class StoreSettings:
    """Settings that all arrays of a store share."""

    seed: int  #: of the run
    intensity: str  #: the model's intensity normalisation
    #: (z, y, x) by how much each contrast's input will be coarser, as many as contrasts: the normalisation is
    #: read off the pooled volume
    factors: tuple[tuple[int, int, int], ...]
    variation: str = ""  #: names how variants differ; part of the address
    extra: str = ""  #: names the extra channel, if there is one; part of the address
    multiple: int = MULTIPLE


def build_store(
    sources: Sequence[Source],
    folder: Path,
    settings: StoreSettings,
    *,
    vary: Vary | None = None,
    extra: Extra | None = None,
    progress: Progress | None = None,
    refused: Refused | None = None,
) -> list[tuple[np.ndarray, float]]:
    """Make or find every array in a folder.

    Args:
        vary: makes a variant ``[C, D, H, W]`` of a volume ``[C, D, H, W]`` in image units.
        extra: makes one more channel ``[D, H, W]`` of a normalised array ``[C, D, H, W]``: what a crop alone
            could not give, such as the image of an operator that sees the whole volume.
        progress: called with (done, total).
        refused: called with each subject that is left out.

    Returns:
        Memory-mapped float16 arrays ``[C, D, H, W]`` (RAS+, intensities near [-1, 1]) with the share of each.

    Raises BadInput for a file that cannot be read, volumes on different grids, or a damaged array. A source
    with ``skip_broken`` is left out instead, unless none remains.
    """
    folder.mkdir(parents=True, exist_ok=True)
    digests = Digests(folder / "sources.json")
    found: dict[int, list[Path]] = {}
    broken: dict[int, BadInput] = {}
    total, done = sum(1 + source.variants for source in sources), 0
    for wait in (False, True):  # first what nobody else is making
        for place, source in enumerate(sources):
            if place in found or place in broken:
                continue
            try:
                keys = _keys(source, settings, digests)
                paths = [folder / f"{key}.npy" for key in keys]
                with locked(folder, keys[0], wait=wait) as held:
                    if not held:
                        continue
                    _make(source, paths, settings, vary, extra)
                found[place] = paths
            except BadInput as error:
                if not source.reading.skip_broken:
                    raise
                broken[place] = error
                if refused:
                    refused(Refusal.of(source.subject.name, error))
            done += 1 + source.variants
            if progress:
                progress(done, total)
        digests.save()
    if broken and not found:
        raise next(iter(broken.values()))
    shares = _shares(sources, found)
    places = [(path, place) for place in sorted(found) for path in found[place]]
    return [(open_array(path), shares[place] / len(found[place])) for path, place in places]


def _keys(source: Source, settings: StoreSettings, digests: Digests) -> list[str]:
    name = "+".join(digests.of(source.subject.files[contrast]) for contrast in source.contrasts)
    reading = [getattr(source.reading, option) for option in READING]
    volume: tuple[object, ...] = (name, source.contrasts, reading, source.region)
    volume += (settings.intensity, settings.factors, settings.multiple, settings.extra)
    variant = (settings.variation, settings.seed)
    texts = [repr([*volume, *(variant if n else ()), n]) for n in range(1 + source.variants)]
    return [hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts]


def _make(
    source: Source, paths: Sequence[Path], settings: StoreSettings, vary: Vary | None, extra: Extra | None
) -> None:
    """Write the arrays that are missing. A variant's random numbers follow from its address."""
    volume: np.ndarray | None = None
    for number, path in enumerate(paths):
        if path.exists():
            continue
        for name in (path.name, path.with_suffix(".crc").name):
            for left in path.parent.glob(f".*.{name}"):  # by writers that were killed: the name is held
                left.unlink(missing_ok=True)
        if volume is None:  # [C, D, H, W] in image units, within the source's region
            scans = read_subject(source.subject, source.contrasts, source.reading)
            volume = np.stack([scans[contrast].values for contrast in source.contrasts])
            box = (slice(None), *(slice(*(ends or (None, None))) for ends in source.region))
            volume = volume[box]
        random = np.random.Generator(np.random.Philox(key=[settings.seed, int(path.stem, 16)]))
        array = volume if number == 0 or vary is None else vary(volume, random)
        try:
            array = _normalised(array, settings)
        except ScoreFusionError as error:
            file = source.subject.files[source.contrasts[0]]
            fix = "Leave it out, or widen its region."
            raise BadInput(file, f"cannot be stored ({error})", fix) from None
        if extra is not None:
            array = np.concatenate([array, extra(array)[None]])
        write_array(path, array.astype(np.float16))


def _normalised(array: np.ndarray, settings: StoreSettings) -> np.ndarray:
    """Cut to whole blocks and normalise as inputs of the model would be: by their pooled intensities."""
    d, h, w = (length // settings.multiple * settings.multiple for length in array.shape[1:])
    array = array[:, :d, :h, :w]
    if not array.size:
        raise ScoreFusionError(f"is smaller than {settings.multiple} voxels along an axis")
    channels = []
    for volume, (z, y, x) in zip(array, settings.factors, strict=True):
        d, h, w = (length // edge for length, edge in zip(volume.shape, (z, y, x), strict=True))
        volume = Outliers.of(volume, settings.intensity).limited(volume)
        pooled = volume[: d * z, : h * y, : w * x].reshape(d, z, h, y, w, x).mean(axis=(1, 3, 5))
        channels.append(Intensity.of(pooled, settings.intensity).normalise(volume))
    return np.stack(channels)


def _shares(sources: Sequence[Source], found: Mapping[int, object]) -> dict[int, float]:
    """Each subject's share, with what it inherits from those of its dataset that were left out."""
    whole: dict[DatasetConfig, float] = defaultdict(float)
    kept: dict[DatasetConfig, float] = defaultdict(float)
    for place, source in enumerate(sources):
        whole[source.reading] += source.share
        kept[source.reading] += source.share if place in found else 0.0
    readings = {place: sources[place].reading for place in found}
    return {place: sources[place].share * (whole[of] / kept[of]) for place, of in readings.items()}


def write_array(path: Path, array: np.ndarray) -> None:
    """Write a ``.npy``, and before it a ``.crc`` file with its checksum, size and time of change."""
    with written_beside(path) as beside:
        np.save(beside, array)
        _note(path, _checksum(array), beside.stat())


def open_array(path: Path) -> np.ndarray:
    """Map an array that :func:`write_array` wrote.

    Its checksum is compared only if its size or time of change is not what was noted: after a copy, or when
    something wrote to it. (What a checksum costs is reading all of a store from the disk at every start.)
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        told, *stamp = path.with_suffix(".crc").read_text(encoding="utf-8").split()
        checksum, status = int(told, 16), path.stat()
    except (OSError, EOFError, ValueError) as error:
        if out_of_memory(error):
            raise
        raise BadInput(path, f"cannot be used ({error})", AGAIN) from None
    if stamp != _stamp(status):
        if _checksum(array) != checksum:
            raise BadInput(path, "is damaged: its checksum differs", AGAIN)
        _note(path, checksum, status)
    return array


@contextmanager
def locked(folder: Path, name: str, *, wait: bool) -> Iterator[bool]:
    """Hold a name that one process may hold at a time; yield whether it is: always without file locks."""
    lock, held = FileLock(folder / f"{name}.lock", timeout=-1 if wait else 0), True
    try:
        lock.acquire()
    except Timeout:
        held = False
    except (NotImplementedError, OSError):
        pass
    try:
        yield held
    finally:
        lock.release()


class Digests:
    """SHA-256 of files, each computed once: kept in a file by path, size and time of change."""

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            self.known: dict[str, list[str]] = dict(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            self.known = {}
        self.changed = False

    def of(self, path: Path) -> str:
        """The digest of a file; BadInput if it cannot be read."""
        place = str(path.absolute())
        try:
            stamp = _stamp(path.stat())
            if self.known.get(place, [])[:2] != stamp:
                with path.open("rb") as file:
                    digest = hashlib.sha256()
                    while piece := file.read(1 << 22):
                        digest.update(piece)
                self.known[place] = [*stamp, digest.hexdigest()]
                self.changed = True
        except OSError as error:
            fix = "Name an existing training volume."
            raise BadInput(path, f"cannot be read ({error.strerror})", fix) from None
        return self.known[place][2]

    def save(self) -> None:
        """Write what was computed anew."""
        if self.changed:
            with written_beside(self.file) as beside:
                beside.write_text(json.dumps(self.known), encoding="utf-8")
            self.changed = False


def _note(path: Path, checksum: int, status: os.stat_result) -> None:
    with written_beside(path.with_suffix(".crc")) as beside:
        beside.write_text(" ".join((f"{checksum:08x}", *_stamp(status))), encoding="utf-8")


def _stamp(status: os.stat_result) -> list[str]:
    return [str(status.st_size), str(status.st_mtime_ns)]


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data)
