"""Compressed pixels: decoded by a process apart, whose crash costs one file and not the run."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest

from scorefusion.errors import BadInput
from scorefusion.io.dicom import pixels as dicom_pixels
from scorefusion.io.dicom import read_dicom_series
from scorefusion.io.dicom.pixels import Decoder

gdcm = pytest.importorskip("gdcm")

REAL = Path(pydicom.__file__).parent / "data/test_files/MR_small.dcm"
SYNTAXES = {
    "JPEG Lossless": "JPEGLosslessProcess14_1",
    "JPEG 2000": "JPEG2000Lossless",
    "JPEG-LS": "JPEGLSLossless",
}


@pytest.fixture(scope="module", params=SYNTAXES)
def series(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two slices, compressed by GDCM."""
    folder = tmp_path_factory.mktemp("series")
    for k in range(2):
        image = pydicom.dcmread(REAL)
        image.SeriesInstanceUID, image.SOPInstanceUID = "1.2.3", f"1.2.3.{k}"
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.ImagePositionPatient = [*image.ImagePositionPatient[:2], 3.0 * k]
        image.save_as(folder / "plain")
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
        reader.SetFileName(str(folder / "plain"))
        assert reader.Read()
        syntax = getattr(gdcm.TransferSyntax, SYNTAXES[request.param])
        change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFileName(str(folder / f"{k}.dcm"))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
    (folder / "plain").unlink()
    return folder


def test_what_was_compressed_comes_back(series: Path) -> None:
    scan = read_dicom_series(series)
    values = scan.to_own_order(scan.values).transpose(2, 1, 0)
    for slab in values:
        np.testing.assert_array_equal(slab, pydicom.dcmread(REAL).pixel_array)


def test_damaged_streams_are_refused_or_read(series: Path, tmp_path: Path) -> None:
    """GDCM ends its process on some of these; this one goes on."""
    shutil.copytree(series, tmp_path / "bad")
    path = tmp_path / "bad/1.dcm"
    good, draw = path.read_bytes(), random.Random(0)
    start, refused = max(good.find(sign) for sign in (b"\xff\xd8\xff", b"\xff\x4f\xff\x51")), 0
    for _ in range(10):
        data = bytearray(good)
        for _ in range(draw.randint(1, 6)):
            data[draw.randrange(start, min(len(data), start + 300))] = draw.randrange(256)
        path.write_bytes(bytes(data))
        try:
            assert np.isfinite(read_dicom_series(tmp_path / "bad").values).all()
        except BadInput as error:
            assert error.file == str(path)
            refused += 1
    assert refused


@pytest.mark.parametrize(
    "start",
    [
        "import os; os.abort()",
        "import sys; sys.stdin.buffer.readline(); sys.stdout.write('{\"shape\": [64, 64]')",
        'import sys; sys.stdin.buffer.readline(); print(\'{"shape": [64, 64], "dtype": "<i2"}\')',
    ],
    ids=["at once", "in what it tells", "in the pixels"],
)
def test_a_crash_costs_the_file(series: Path, start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, keywords = series / "0.dcm", ("Rows", "Columns", "PixelData")
    with Decoder() as decoder:
        with monkeypatch.context() as patch:
            patch.setattr(dicom_pixels, "_START", start)
            with pytest.raises(BadInput, match="its decoder crashed") as error:
                list(decoder.decode(path, keywords, 2 * 64 * 64, (64, 64)))
        assert error.value.file == str(path)
        with pytest.raises(BadInput, match="damaged"):  # attributes are lacking, but a decoder is there again
            list(decoder.decode(path, keywords, 2 * 64 * 64, (64, 64)))


def test_another_shape_or_type_is_refused(series: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for told in ('{"shape": [9000, 9000], "dtype": "<i2"}', '{"shape": [64, 64], "dtype": "O"}'):
        monkeypatch.setattr(dicom_pixels, "_START", f"input(); print({told!r})")
        with Decoder() as decoder, pytest.raises(BadInput, match="not to .64, 64. pixels"):
            list(decoder.decode(series / "0.dcm", ("Rows",), 2 * 64 * 64, (64, 64)))


def test_one_process_decodes_all(series: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    real = dicom_pixels._started
    monkeypatch.setattr(dicom_pixels, "_started", lambda: started.append(real()) or started[-1])
    read_dicom_series(series)
    assert len(started) == 1 and started[0].returncode is not None
