"""A thousand damaged headers: each is read, or refused in words; nothing is written anywhere."""

from __future__ import annotations

import gzip
import random
import struct
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scorefusion.errors import BadInput
from scorefusion.io.nifti import read_scan
from tests.support.tiny import AFFINE, tiny_image

COUNT = 1450
WILD = {
    "h": (0, 1, -1, 2, 3, 7, 8, 255, 256, 32767, -32768),
    "i": (0, 1, -1, 348, 540, 2**31 - 1, -(2**31)),
    "q": (0, 1, -1, 2**40, 2**62, -(2**63)),
    "f": (0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"), float("-inf"), 352.0, 353.5),
    "d": (0.0, -1.0, 1e-300, 1e300, float("nan"), float("inf")),
}


def damaged(good: bytes, length: int, random_: random.Random) -> bytes:
    """The file with some bytes, or some whole numbers, of its header changed; sometimes cut."""
    data = bytearray(good)
    for _ in range(random_.randint(1, 6)):
        if random_.random() < 0.4:
            data[random_.randrange(length)] = random_.randrange(256)
        else:
            kind = random_.choice("hifqd" if length > 352 else "hif")
            size = struct.calcsize(kind)
            place = random_.randrange(0, length - size) // size * size
            data[place : place + size] = struct.pack(f"<{kind}", random_.choice(WILD[kind]))
    return bytes(data[: random_.randrange(length)] if random_.random() < 0.03 else data)


def goods() -> list[tuple[bytes, int]]:
    """Small files of both versions and several types, with the length of the header."""
    found = []
    for kind, length in ((nib.Nifti1Image, 352), (nib.Nifti2Image, 544)):
        for dtype in (np.int16, np.float32, np.uint8):
            image = kind(np.asarray(tiny_image().dataobj).astype(dtype), AFFINE)
            found.append((image.to_bytes(), length))
    return found


def test_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    monkeypatch.chdir(folder)
    files, random_, outcomes = goods(), random.Random(0), {"read": 0, "refused": 0}
    for number in range(COUNT):
        data = damaged(*files[number % len(files)], random_)
        path = folder / ("scan.nii.gz" if number % 4 == 0 else "scan.nii")
        path.write_bytes(gzip.compress(data, 1) if number % 4 == 0 else data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                scan = read_scan(path, max_voxels=10**6, assume_affine=number % 3 == 0)
            except BadInput as error:
                outcomes["refused"] += 1
                text = str(error)
                assert str(path) in text and "\n" not in text and len(text) < 600, (number, text)
            else:
                outcomes["read"] += 1
                assert scan.values.ndim == 3 and np.isfinite(scan.values).all(), number
                assert scan.values.min() < scan.values.max() and np.isfinite(scan.affine).all(), number
        path.unlink()
        assert not list(folder.iterdir()), number
    assert list(tmp_path.iterdir()) == [folder]
    assert min(outcomes.values()) > 100, outcomes
