"""Transfer syntaxes: what pydicom and its plugins decode, what is missing by name, and bombs."""

from __future__ import annotations

import tracemalloc
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from scorefusion.errors import BadInput
from scorefusion.io.dicom import DicomScan, find_series, read_dicom_series
from scorefusion.io.dicom.pixels import codestream_size
from tests.support.dicom_series import enhanced_of, save, slice_of, texture, write_series

REAL = Path(pydicom.__file__).parent / "data/test_files"
PLUGINS = {JPEG2000Lossless: "openjpeg", JPEGLSLossless: "jpeg_ls", JPEGLosslessSV1: "libjpeg"}


def own_order(scan: DicomScan) -> np.ndarray:
    return scan.to_own_order(scan.values).transpose(2, 1, 0)


def two_slices(folder: Path, first: str, second: str) -> DicomScan:
    """A volume of two real files, the second a slice further."""
    for k, name in enumerate((first, second)):
        image = pydicom.dcmread(REAL / name)
        image.SeriesInstanceUID, image.SOPInstanceUID = "1.2.3", f"1.2.3.{k}"
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.ImagePositionPatient = [*image.ImagePositionPatient[:2], 3.0 * k]
        image.save_as(folder / f"{k}")
    return read_dicom_series(folder)


@pytest.mark.parametrize(
    "name", ["MR_small_implicit", "MR_small_bigendian", "MR_small_padded", "MR_small_RLE", "MR_small_expb"]
)
def test_a_real_slice_in_every_syntax_is_the_same(tmp_path: Path, name: str) -> None:
    scan = two_slices(tmp_path, "MR_small.dcm", f"{name}.dcm")
    values = own_order(scan)
    np.testing.assert_array_equal(values[0], pydicom.dcmread(REAL / "MR_small.dcm").pixel_array)
    np.testing.assert_array_equal(values[1], values[0])


@pytest.mark.parametrize(
    ("name", "syntax"),
    [("MR_small_jp2klossless", JPEG2000Lossless), ("MR_small_jpeg_ls_lossless", JPEGLSLossless)],
)
def test_jpeg_is_decoded_or_the_package_is_named(tmp_path: Path, name: str, syntax: Any) -> None:
    if get_decoder(syntax).is_available:
        values = own_order(two_slices(tmp_path, "MR_small.dcm", f"{name}.dcm"))
        np.testing.assert_array_equal(values[1], values[0])
        return
    with pytest.raises(BadInput, match=f"is compressed as {syntax.name}.*no decoder is installed") as error:
        two_slices(tmp_path, "MR_small.dcm", f"{name}.dcm")
    assert "pip" in error.value.fix and ("python-gdcm" in error.value.fix or "pylibjpeg" in error.value.fix)


def test_the_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encapsulated(tmp_path, JPEGLosslessSV1, b"\xff\xd8\xff\xd9")
    assert find_series(tmp_path)[0].problem == ""
    lacking = SimpleNamespace(is_available=False, missing_dependencies=["gdcm - requires gdcm>=3.0.10"])
    monkeypatch.setattr("pydicom.pixels.get_decoder", lambda syntax: lacking)
    with pytest.raises(BadInput, match="JPEG Lossless.*no decoder is installed.*python-gdcm"):
        read_dicom_series(tmp_path)


def encapsulated(folder: Path, syntax: Any, stream: bytes) -> None:
    """A series, every slice of which holds one compressed stream."""
    for k, plane in enumerate(texture()):
        image = slice_of(plane, k)
        image.PixelData = encapsulate([stream])
        image["PixelData"].is_undefined_length = True
        save(image, folder / f"{k}", syntax)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless])
def test_a_series_and_an_enhanced_object_in_each(tmp_path: Path, syntax: Any) -> None:
    images = [*(slice_of(plane, k) for k, plane in enumerate(texture())), enhanced_of(texture(), name="e")]
    for number, image in enumerate(images):
        if syntax == RLELossless:
            image.file_meta = FileMetaDataset()
            image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            image.compress(RLELossless, generate_instance_uid=False)
        save(image, tmp_path / str(number), syntax)
    for series in find_series(tmp_path):
        slope, intercept = (2, -5) if len(series.files) == 1 else (1, 0)
        np.testing.assert_array_equal(
            own_order(read_dicom_series(series)), texture() * float(slope) + intercept
        )


def test_big_endian(tmp_path: Path) -> None:
    for k, plane in enumerate(texture()):
        image = slice_of(plane, k)
        image.PixelData = plane.astype(">u2").tobytes()
        save(image, tmp_path / str(k), ExplicitVRBigEndian)
    np.testing.assert_array_equal(own_order(read_dicom_series(tmp_path)), texture())


def deflate_again(path: Path, extra: bytes) -> None:
    """Put more behind a deflated file's dataset."""
    data = path.read_bytes()
    start = 132 + 12 + int.from_bytes(data[140:144], "little")
    plain = zlib.decompress(data[start:], -zlib.MAX_WBITS)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    path.write_bytes(data[:start] + packer.compress(plain + extra) + packer.flush())


@pytest.mark.parametrize("where", ["behind the pixels", "before them"])
def test_a_deflated_bomb(tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 MiB of zeros in 64 KiB: refused before they are there."""
    monkeypatch.setattr("scorefusion.io.dicom.file.MAX_HEADER", 2**20)
    paths = [
        save(slice_of(plane, k), tmp_path / str(k), DeflatedExplicitVRLittleEndian)
        for k, plane in enumerate(texture())
    ]
    if where == "behind the pixels":
        deflate_again(paths[1], b"\xfc\xff\xfc\xffOB\0\0" + (2**26).to_bytes(4, "little") + bytes(2**26))
    else:
        image = slice_of(texture()[1], 1)
        image.add_new(0x00091010, "OB", bytes(2**26))
        image.add_new(0x00090010, "LO", "MAKER")
        save(image, paths[1], DeflatedExplicitVRLittleEndian)
    assert paths[1].stat().st_size < 2**17
    tracemalloc.start()
    with pytest.raises(BadInput) as error:
        read_dicom_series(tmp_path)
    assert error.value.file == str(paths[1])
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


def test_a_deflated_file_that_ends_early(tmp_path: Path) -> None:
    for k, plane in enumerate(texture()):
        path = save(slice_of(plane, k), tmp_path / str(k), DeflatedExplicitVRLittleEndian)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(BadInput, match="4: is a damaged DICOM file"):
        read_dicom_series(tmp_path)


def test_streams_of_another_size_are_not_decoded(tmp_path: Path) -> None:
    """A JPEG 2000 header that asks for 60,000 × 60,000 pixels behind a DICOM header that says 6 × 7."""
    size = b"".join(n.to_bytes(4, "big") for n in (60_000, 60_000, 0, 0, 60_000, 60_000, 0, 0))
    stream = b"\xff\x4f\xff\x51\x00\x29\0\0" + size + b"\0\1\x0b\1\1" + b"\xff\xd9"
    assert codestream_size(stream) == (60_000, 60_000)
    encapsulated(tmp_path, JPEG2000Lossless, stream)
    if not get_decoder(JPEG2000Lossless).is_available:
        pytest.skip("no decoder of JPEG 2000 here")
    with pytest.raises(BadInput, match="compressed image of 60000 × 60000 pixels, its header says 6 × 7"):
        read_dicom_series(tmp_path)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("MR_small_jp2klossless", (64, 64)),
        ("MR_small_jpeg_ls_lossless", (64, 64)),
        ("JPEG2000", (1024, 256)),
        ("JPGExtended", (1024, 256)),
        ("SC_rgb_jpeg_gdcm", (100, 100)),
        ("MR_small_RLE", None),
    ],
)
def test_sizes_of_real_streams(name: str, size: tuple[int, int] | None) -> None:
    image = pydicom.dcmread(REAL / f"{name}.dcm")
    (stream,) = pydicom.encaps.generate_frames(image.PixelData, number_of_frames=1)
    assert codestream_size(stream) == size
    assert size is None or size == (image.Rows, image.Columns)
    for cut in range(0, 40):
        codestream_size(stream[:cut])


@pytest.mark.parametrize(
    "stream", [b"\0\0", bytes(64), b"\1" + bytes(63) + b"\xff" * 8], ids=["no header", "no runs", "short"]
)
def test_broken_runs(tmp_path: Path, stream: bytes) -> None:
    encapsulated(tmp_path, RLELossless, stream)
    with pytest.raises(BadInput, match=str(tmp_path)):
        read_dicom_series(tmp_path)


def test_an_unknown_syntax(tmp_path: Path) -> None:
    files = write_series(tmp_path)
    old = b"1.2.840.10008.1.2.1\0"
    files[2].write_bytes(files[2].read_bytes().replace(old, b"1.2.840.99999.1.2.1\0"))
    with pytest.raises(BadInput, match="transfer syntax that is not DICOM's own"):
        find_series(tmp_path)
