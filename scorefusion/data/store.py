"""Preprocessed training volumes, made once and kept as memory-mapped arrays.

The store is addressed by content: the sources' bytes and the settings name a file, so a finished array is
never made again, and an interrupted run leaves whole arrays only. Every array carries a checksum, which is
compared when it is opened; any number of processes may read one.
"""

from __future__ import annotations

import hashlib
import io
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import BadInput
from ..io.nifti import Scan, check_same_grid, read_scan
from ..preprocess import Intensity

MULTIPLE = 8
"""Stored sizes are cut to multiples of this."""

Vary = Callable[[np.ndarray, np.random.Generator], np.ndarray]
Extra = Callable[[np.ndarray], np.ndarray]
Region = tuple[tuple[int, int] | None, tuple[int, int] | None, tuple[int, int] | None]


@dataclass(frozen=True)
class Source:
    """One subject to be stored.

    Attributes:
        files: a NIfTI file for each contrast, all on one grid.
        variants: how many varied copies are made beside it.
        share: of the crops that come from it and its variants together.
        region: (start, stop) along z, y and x (RAS+ order) of what may be seen; None for all of an axis.
    """

    files: tuple[Path, ...]
    variants: int = 0
    share: float = 1.0
    region: Region = (None, None, None)


@dataclass(frozen=True)
class StoreSettings:
    """What is the same for every array of a store.

    Attributes:
        seed: of the run.
        intensity: the model's intensity normalisation.
        factors: (z, y, x) by how much each contrast's input will be coarser, as many as contrasts: the
            normalisation is read off the pooled volume.
        variation: names how variants differ; part of the address.
        extra: names the extra channel, if there is one; part of the address.
    """

    seed: int
    intensity: str
    factors: tuple[tuple[int, int, int], ...]
    variation: str = ""
    extra: str = ""
    multiple: int = field(default=MULTIPLE)


def build_store(
    sources: Sequence[Source],
    folder: Path,
    settings: StoreSettings,
    *,
    vary: Vary | None = None,
    extra: Extra | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[tuple[np.ndarray, float]]:
    """Make or find every array.

    Args:
        sources: the subjects.
        folder: where the arrays are kept.
        settings: how they are made.
        vary: makes a variant ``[C, D, H, W]`` of a volume ``[C, D, H, W]`` in image units.
        extra: makes one more channel ``[D, H, W]`` of a normalised array ``[C, D, H, W]``: what a crop alone
            could not give, such as the image of an operator that sees the whole volume.
        progress: called with (done, total).

    Returns:
        Memory-mapped float16 arrays ``[C, D, H, W]`` (RAS+, intensities near [-1, 1]) with the share of each.

    Raises:
        BadInput: for a file that cannot be read, volumes on different grids, or a damaged array.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: list[tuple[np.ndarray, float]] = []
    total = sum(1 + source.variants for source in sources)
    for place, source in enumerate(sources):
        name = _digest(source.files)
        volume: np.ndarray | None = None
        for number in range(1 + source.variants):
            key = f"{name}|{source.region}|{settings.variation if number else ''}|{settings.seed}"
            key += f"|{place if number else ''}|{number}|{settings.intensity}|{settings.factors}"
            key += f"|{settings.multiple}|{settings.extra}"
            path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
            if not path.exists():
                if volume is None:
                    volume = _read(source)
                random = np.random.Generator(np.random.Philox(key=[settings.seed, 1000 * place + number]))
                array = volume if number == 0 or vary is None else vary(volume, random)
                array = _normalised(array, settings)
                if extra is not None:
                    array = np.concatenate([array, extra(array)[None]])
                _write(path, array.astype(np.float16))
            found.append((open_array(path), source.share / (1 + source.variants)))
            if progress:
                progress(len(found), total)
    return found


def open_array(path: Path) -> np.ndarray:
    """Map an array of the store and compare its checksum.

    Raises:
        BadInput: if it is not what was written.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        told = int(path.with_suffix(".crc").read_text(), 16)
    except (OSError, ValueError) as error:
        raise BadInput(path, f"cannot be used ({error})", "Remove it; it will be made again.") from None
    if _checksum(array) != told:
        raise BadInput(path, "is damaged: its checksum differs", "Remove it; it will be made again.")
    return array


def _digest(files: Iterable[Path]) -> str:
    """The SHA-256 of the files' bytes, one after another."""
    parts = []
    for file in files:
        try:
            parts.append(hashlib.sha256(file.read_bytes()).hexdigest())
        except OSError as error:
            problem = f"cannot be read ({error.strerror})"
            raise BadInput(file, problem, "Name an existing training volume.") from None
    return "+".join(parts)


def _read(source: Source) -> np.ndarray:
    """The subject's volumes ``[C, D, H, W]`` in image units, within its region."""
    scans: list[Scan] = [read_scan(file) for file in source.files]
    for other in scans[1:]:
        check_same_grid(scans[0], other, 1)
    volume = np.stack([scan.values for scan in scans])
    box = tuple(slice(*(ends or (None, None))) for ends in source.region)
    return volume[:, box[0], box[1], box[2]]


def _normalised(array: np.ndarray, settings: StoreSettings) -> np.ndarray:
    """Cut to whole blocks and normalise as inputs of the model would be: by their pooled intensities."""
    d, h, w = (length // settings.multiple * settings.multiple for length in array.shape[1:])
    array = array[:, :d, :h, :w]
    channels = []
    for volume, (z, y, x) in zip(array, settings.factors, strict=True):
        d, h, w = (length // edge for length, edge in zip(volume.shape, (z, y, x), strict=True))
        pooled = volume[: d * z, : h * y, : w * x].reshape(d, z, h, y, w, x).mean(axis=(1, 3, 5))
        channels.append(Intensity.of(pooled, settings.intensity).normalise(volume))
    return np.stack(channels)


def _write(path: Path, array: np.ndarray) -> None:
    """Write the array and its checksum, each whole or not at all; the array last, as it is looked for."""
    content = io.BytesIO()
    np.save(content, array)
    checksum = f"{_checksum(array):08x}".encode()
    for target, data in ((path.with_suffix(".crc"), checksum), (path, content.getbuffer())):
        beside = target.with_name(f"{target.name}.{os.getpid()}.tmp")
        beside.write_bytes(data)
        os.replace(beside, target)


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data)
