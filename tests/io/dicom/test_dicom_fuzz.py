"""Damaged DICOM files by the hundred: each is read or refused, by nothing but this package's errors."""

from __future__ import annotations

import random
import shutil
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from scorefusion.errors import ScoreFusionError
from scorefusion.io.dicom import DicomScan, read_dicom_series, save_dicom_series
from scorefusion.pipeline import Translation
from tests.support.dicom_series import CT, enhanced_of, save, slice_of, texture

ODD = [b"\0", b"\xff", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\xfe\xff\x00\xe0", b"1e999",
       b"nan", b"-", b"\\", b"SQ", b"UN", b"UI", b"DS", b"99999999", b"\x1b$B"]  # fmt: skip


def mutated(data: bytes, generator: random.Random, end: int) -> bytes:
    """A few bytes changed, put in or taken out behind the mark, mostly in the header."""
    changed = bytearray(data)
    for _ in range(generator.randint(1, 4)):
        place = generator.randrange(132, end)
        kind = generator.randrange(5)
        if kind == 0:
            changed[place] = generator.randrange(256)
        elif kind == 1:
            changed[place] ^= 1 << generator.randrange(8)
        elif kind == 2:
            odd = generator.choice(ODD)
            changed[place : place + len(odd)] = odd
        elif kind == 3:
            changed[place:place] = generator.randbytes(generator.randint(1, 8))
        else:
            del changed[place : place + generator.randint(1, 8)]
        end = min(end, len(changed))
    return bytes(changed)


def copied(scan: DicomScan) -> Translation:
    """A translation that changed nothing."""
    return Translation(
        volume=scan.to_own_order(scan.values),
        affine=scan.affine,
        timings={},
        consistency_residual=None,
        spread=None,
        seed=0,
        samples=1,
        strategy="none",
        solver="none",
        evaluations=0,
        dtype="float32",
        source=scan,
        factor=(1, 1, 1),
        output_dtype="float32",
    )


def attempt(folder: Path, outcomes: Counter[str]) -> None:
    try:
        scan = read_dicom_series(folder, max_voxels=2**22)
        outcomes["read"] += 1
        save_dicom_series(copied(scan), folder.parent / f"out{outcomes['read']}")
    except ScoreFusionError as error:
        outcomes["refused"] += 1
        assert "\n" not in str(error)


def written(folder: Path, kind: str) -> Path:
    """Two slices, of which the one returned will be damaged; or one object."""
    syntaxes: dict[str, Any] = {
        "implicit": ImplicitVRLittleEndian,
        "deflated": DeflatedExplicitVRLittleEndian,
    }
    if kind == "enhanced":
        return save(enhanced_of(texture((3, 4, 4))), folder / "b")
    for k, name in ((1, "a"), (0, "b")):
        image = slice_of(texture((2, 4, 4))[k], k, kind=CT)
        if kind == "RLE":
            save(image, folder / "plain", ExplicitVRLittleEndian)
            (folder / "plain").unlink()
            image.compress(RLELossless, generate_instance_uid=False)
            path = save(image, folder / name, RLELossless)
        else:
            path = save(image, folder / name, syntaxes.get(kind, ExplicitVRLittleEndian))
    return path


@pytest.mark.parametrize("kind", ["explicit", "implicit", "enhanced", "RLE", "deflated"])
def test_mutations_are_read_or_refused(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path / "in", kind)
    data, generator, outcomes = path.read_bytes(), random.Random(kind), Counter[str]()
    attempt(tmp_path / "in", outcomes)
    assert outcomes == {"read": 1}
    for number in range(110):
        path.write_bytes(mutated(data, generator, len(data) - 32))
        if number == 90:
            tracemalloc.start()
        attempt(tmp_path / "in", outcomes)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    assert outcomes["read"] > 1 and outcomes["refused"] > 50


def test_random_bytes_behind_the_mark(tmp_path: Path) -> None:
    generator, outcomes = random.Random(0), Counter[str]()
    (tmp_path / "in").mkdir()
    for _ in range(50):
        (tmp_path / "in/x").write_bytes(bytes(128) + b"DICM" + generator.randbytes(generator.randint(0, 400)))
        attempt(tmp_path / "in", outcomes)
    assert outcomes == {"refused": 50}


@pytest.mark.parametrize("kind", ["explicit", "enhanced", "deflated"])
def test_no_truncated_file_passes_for_a_whole_one(tmp_path: Path, kind: str) -> None:
    """Not one of two slices, nor an end slice of three left out in silence."""
    path = written(tmp_path, kind)
    if kind != "enhanced":
        third = slice_of(texture((3, 4, 4))[2], 2, kind=CT)
        shutil.copy(save(third, tmp_path / "c", ExplicitVRLittleEndian), tmp_path / "d")
        (tmp_path / "d").unlink()
    data = path.read_bytes()
    for cut in range(132, len(data) - 1, 11):
        path.write_bytes(data[:cut])
        with pytest.raises(ScoreFusionError):
            read_dicom_series(tmp_path)
