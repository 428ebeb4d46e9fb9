"""Derived DICOM series: valid, the same again, pointing at their source, never in its way."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest

from scorefusion.errors import BadInput, ScoreFusionError
from scorefusion.io.dicom import find_series, read_dicom_series, save_dicom_series
from scorefusion.io.dicom.write import choose_rescaling
from scorefusion.pipeline import Pipeline, Translation
from tests.support.dicom_series import CT, MR, enhanced_of, save, slice_of, texture, uid, write_series
from tests.support.tiny import same_grid_config, tiny_image, tiny_model

REAL = Path(pydicom.__file__).parent / "data/test_files"


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    """A model whose output is twice as fine."""
    return Pipeline(tiny_model(), device="cpu", dtype="float32")


def translated(pipeline: Pipeline, folder: Path, **options: Any) -> Translation:
    write_series(folder / "in", **options)
    return pipeline(read_dicom_series(folder / "in"))


def images(folder: Path) -> list[Any]:
    return [pydicom.dcmread(path) for path in sorted(folder.iterdir())]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def check_valid(folder: Path) -> None:
    """No line of dciodvfy's begins with Error, for any file."""
    if not shutil.which("dciodvfy"):
        pytest.skip("dciodvfy (Debian's dicom3tools) is not installed")
    for path in sorted(folder.iterdir()):
        run = subprocess.run(["dciodvfy", str(path)], capture_output=True, check=False)
        said = (run.stdout + run.stderr).decode("utf-8", "replace")
        assert "MRImage" in said or "CTImage" in said, said
        assert not [line for line in said.splitlines() if line.startswith("Error")], said


@pytest.mark.parametrize("deidentify", [False, True], ids=["named", "de-identified"])
@pytest.mark.parametrize("kind", ["MR", "CT", "enhanced", "other contrast"])
def test_dciodvfy_finds_no_error(tmp_path: Path, kind: str, deidentify: bool, pipeline: Pipeline) -> None:
    if kind == "enhanced":
        save(enhanced_of(texture()), tmp_path / "in/object")
    else:
        write_series(tmp_path / "in", kind=CT if kind == "CT" else MR)
    result = pipeline(read_dicom_series(tmp_path / "in"))
    if kind == "other contrast":
        result = dataclasses.replace(result, target="t2", conditions=("t1",))
    save_dicom_series(result, tmp_path / "out", deidentify=deidentify)
    assert len(images(tmp_path / "out")) == 10
    check_valid(tmp_path / "out")


@pytest.mark.parametrize("name", ["MR_small", "CT_small"])
@pytest.mark.parametrize("deidentify", [False, True], ids=["named", "de-identified"])
def test_what_is_derived_of_real_slices_is_valid(
    tmp_path: Path, name: str, deidentify: bool, pipeline: Pipeline
) -> None:
    for k in range(2):
        image = pydicom.dcmread(REAL / f"{name}.dcm")
        image.PixelData = np.ascontiguousarray(image.pixel_array[30:38, 30:36]).tobytes()
        image.Rows, image.Columns = 8, 6
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{k}"
        image.ImagePositionPatient = [*image.ImagePositionPatient[:2], 5.0 * k]
        (tmp_path / "in").mkdir(exist_ok=True)
        image.save_as(tmp_path / "in" / str(k))
    save_dicom_series(pipeline(read_dicom_series(tmp_path / "in")), tmp_path / "out", deidentify=deidentify)
    check_valid(tmp_path / "out")


def test_what_is_carried_and_what_is_new(tmp_path: Path, pipeline: Pipeline) -> None:
    def change(image: Any, k: int) -> None:
        image.add_new(0x00291010, "OB", b"private")
        image.add_new(0x00290010, "LO", "MAKER")
        image.IconImageSequence = [pydicom.Dataset()]
        image.AcquisitionTime = f"1010{k:02d}"

    result = translated(pipeline, tmp_path, change=change)
    save_dicom_series(result, tmp_path / "out")
    source, out = images(tmp_path / "in")[0], images(tmp_path / "out")
    for keyword in (
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "StudyInstanceUID",
        "StudyDate",
        "EchoTime",
        "FrameOfReferenceUID",
        "AccessionNumber",
        "Manufacturer",
        "Modality",
        "SOPClassUID",
    ):
        assert {str(image[keyword].value) for image in out} == {str(source[keyword].value)}, keyword
    assert str(out[0].PatientName) == "Müller^Ödön"
    assert len({image.SeriesInstanceUID for image in out} | {source.SeriesInstanceUID}) == 2
    assert len({image.SOPInstanceUID for image in out}) == 10
    assert all(image.ImageType[:2] == ["DERIVED", "SECONDARY"] for image in out)
    assert [image.InstanceNumber for image in out] == list(range(1, 11))
    assert [image.AcquisitionTime for image in out] == [f"1010{k // 2:02d}" for k in range(10)]
    assert "model tiny (t1 to t1): 2 x 2 x 2 (z, y, x)" in out[0].DerivationDescription
    assert "rounded to steps of 1. Not for diagnosis." in out[0].DerivationDescription
    assert out[0].SeriesDescription == "scorefusion tiny series a" and out[0].SeriesNumber == 1003
    assert out[0].ContributingEquipmentSequence[0].ManufacturerModelName == "tiny"
    for k, image in enumerate(out):
        assert image.SourceImageSequence[0].ReferencedSOPInstanceUID == uid("a", k // 2)
        (series,) = image.ReferencedSeriesSequence
        assert series.SeriesInstanceUID == uid("series", "a")
        assert series.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == uid("a", k // 2)
        assert not [element for element in image if element.tag.is_private]
        assert "IconImageSequence" not in image and "RescaleSlope" not in image
        assert image.WindowWidth > 1


def test_a_contrast_that_no_scanner_measured(tmp_path: Path, pipeline: Pipeline) -> None:
    result = dataclasses.replace(
        translated(pipeline, tmp_path), target="t2", conditions=("t1",), model="t1-t2"
    )
    save_dicom_series(result, tmp_path / "out")
    image = images(tmp_path / "out")[0]
    assert (image.ScanningSequence, image.SequenceVariant) == ("RM", "NONE")
    assert image.EchoTime is None and image.RepetitionTime is None and "FlipAngle" not in image
    assert image.MagneticFieldStrength == 3 and "model t1-t2 (t1 to t2)" in image.DerivationDescription


@pytest.mark.parametrize("deidentify", [False, True])
def test_the_same_bytes_again_and_other_names_for_another_result(
    tmp_path: Path, deidentify: bool, pipeline: Pipeline
) -> None:
    write_series(tmp_path / "in")
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        save_dicom_series(pipeline(read_dicom_series(tmp_path / "in")), folder, deidentify=deidentify)
    assert contents(folders[0]) == contents(folders[1])
    names = {images(folders[0])[0].SeriesInstanceUID}
    result = pipeline(read_dicom_series(tmp_path / "in"))
    others = [
        (pipeline(read_dicom_series(tmp_path / "in"), seed=1), {}),
        (dataclasses.replace(result, volume=result.volume + 1), {}),
        (result, {"description": "another"}),
        (result, {"deidentify": not deidentify}),
        (result, {"secret": "s"}),
    ]
    for number, (other, options) in enumerate(others):
        out = tmp_path / f"other{number}"
        names.add(save_dicom_series(other, out, **{"deidentify": deidentify, **options}).series_uid)
    assert len(names) == 6


def test_written_over_itself_but_over_nothing_else(tmp_path: Path, pipeline: Pipeline) -> None:
    result = translated(pipeline, tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    first = save_dicom_series(result, out)
    assert save_dicom_series(result, out) == first and first.files == len(images(out)) == 10
    (out / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match=r"holds other files \(notes\.txt\), which would be lost"):
        save_dicom_series(result, out)
    write_series(tmp_path / "elsewhere", name="b")
    with pytest.raises(BadInput, match="holds other files"):
        save_dicom_series(result, tmp_path / "elsewhere")
    with pytest.raises(BadInput, match="is a file"):
        save_dicom_series(result, out / "notes.txt")
    for folder in (tmp_path / "in", tmp_path / "in/out", tmp_path):
        with pytest.raises(BadInput, match="holds the input or lies in its folder"):
            save_dicom_series(result, folder)
    assert (out / "notes.txt").read_text() == "mine" and len(find_series(tmp_path / "in")) == 1


def test_beside_an_enhanced_object(tmp_path: Path, pipeline: Pipeline) -> None:
    """A file that was read by its name does not claim the folder it lies in."""
    path = save(enhanced_of(texture()), tmp_path / "object.dcm")
    save_dicom_series(pipeline(read_dicom_series(path)), tmp_path / "out")
    assert len(images(tmp_path / "out")) == 10
    with pytest.raises(BadInput, match="holds the input"):
        save_dicom_series(pipeline(read_dicom_series(path)), tmp_path)


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("ISO_IR 100", "Buc^Jérôme"),
        ("GB18030", "Wang^XiaoDong=王^小东"),
    ],
)
def test_names_in_other_alphabets(tmp_path: Path, charset: Any, name: str, pipeline: Pipeline) -> None:
    def change(image: Any, k: int) -> None:
        image.SpecificCharacterSet, image.PatientName = charset, name

    save_dicom_series(translated(pipeline, tmp_path, change=change), tmp_path / "out")
    assert {str(image.PatientName) for image in images(tmp_path / "out")} == {name}
    assert name.encode() in (tmp_path / "out/00001.dcm").read_bytes()
    check_valid(tmp_path / "out")


def test_nothing_is_left_of_a_write_that_failed(
    tmp_path: Path, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = translated(pipeline, tmp_path)
    real, done = pydicom.Dataset.save_as, []

    def full(self: Any, *args: Any, **kwargs: Any) -> None:
        done.append(1)
        if len(done) > 3:
            raise OSError(28, "No space left on device")
        real(self, *args, **kwargs)

    monkeypatch.setattr(pydicom.Dataset, "save_as", full)
    with pytest.raises(BadInput, match="No space left"):
        save_dicom_series(result, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_several_conditions(tmp_path: Path) -> None:
    """Each image refers to the slice of both series that lies where it does."""
    model = Pipeline(tiny_model(same_grid_config()), device="cpu", dtype="float32")
    write_series(tmp_path / "t1", name="t1")
    write_series(tmp_path / "t2", texture(seed=1), name="t2")
    scans = [read_dicom_series(tmp_path / name) for name in ("t1", "t2")]
    result = model(scans)
    save_dicom_series(result, tmp_path / "out", scans)
    for k, image in enumerate(images(tmp_path / "out")):
        named = [item.ReferencedSOPInstanceUID for item in image.SourceImageSequence]
        assert named == [uid("t1", k), uid("t2", k)]
        assert [item.SeriesInstanceUID for item in image.ReferencedSeriesSequence] == [
            uid("series", "t1"),
            uid("series", "t2"),
        ]
        assert image.SliceThickness == 2.5
    check_valid(tmp_path / "out")


def test_only_of_a_dicom_series_and_only_ct_and_mr(tmp_path: Path, pipeline: Pipeline) -> None:
    nib.save(tiny_image(), tmp_path / "in.nii")
    with pytest.raises(BadInput, match=r"in\.nii: is no DICOM series.*save a NIfTI file"):
        save_dicom_series(pipeline(tmp_path / "in.nii"), tmp_path / "out")
    result = translated(pipeline, tmp_path)
    for k, plane in enumerate(texture()):
        image = slice_of(plane, k, name="pet")
        image.SOPClassUID, image.Modality = "1.2.840.10008.5.1.4.1.1.128", "PT"
        save(image, tmp_path / f"pet/{k}")
    with pytest.raises(BadInput, match="is a series of PT; derived ones are written of CT and MR"):
        save_dicom_series(pipeline(read_dicom_series(tmp_path / "pet")), tmp_path / "out")
    write_series(tmp_path / "far", name="far", origin=(0.0, 0.0, 0.0))
    with pytest.raises(BadInput, match="has another grid than the translation"):
        save_dicom_series(result, tmp_path / "out", read_dicom_series(tmp_path / "far"))
    with pytest.raises(ScoreFusionError, match="'source' is empty"):
        save_dicom_series(result, tmp_path / "out", [])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("low", "high", "slope", "intercept", "dtype", "expected"),
    [
        (0, 4000, 1.0, 0.0, np.uint16, (1.0, 0.0, np.uint16)),
        (-3, 4000, 1.0, 0.0, np.uint16, (1.0, 0.0, np.int16)),
        (-1200, 3000, 1.0, -1024.0, np.int16, (1.0, -1024.0, np.int16)),
        (0, 65000, 1.0, 0.0, np.int16, (1.0, 0.0, np.uint16)),
        (-3, 65000, 1.0, 0.0, np.uint16, (1.0, -3.0, np.uint16)),
        (0, 1, 1.0, 0.0, np.float32, (1.6e-5, 0.0, np.uint16)),
        (5, 5, 1.0, 0.0, np.float32, (5e-7, 5.0, np.uint16)),
        (0, 0, 1.0, 0.0, np.float32, (1.0, 0.0, np.uint16)),
        (-2e5, 3e5, 1.0, 0.0, np.int32, (7.7, -200007.5, np.uint16)),
    ],
)
def test_rescaling(
    low: float, high: float, slope: float, intercept: float, dtype: Any, expected: Any
) -> None:
    volume = np.random.default_rng(0).uniform(low, high, (5, 6, 7)).astype(np.float32)
    volume.flat[0], volume.flat[1] = low, high
    chosen = choose_rescaling(volume, slope=slope, intercept=intercept, dtype=np.dtype(dtype))
    assert (chosen.slope, chosen.intercept, chosen.dtype) == expected
    assert max(len(repr(chosen.slope)), len(repr(chosen.intercept))) <= 16
    back = chosen.stored(volume) * chosen.slope + chosen.intercept
    assert np.abs(back - volume).max() <= chosen.slope / 2 * 1.001


@pytest.mark.parametrize("seed", range(40))
def test_rescaling_of_any_range_is_exact_in_16_letters(seed: int) -> None:
    generator = np.random.default_rng(seed)
    scale = 10.0 ** generator.integers(-12, 12)
    offset = generator.normal() * 10.0 ** generator.integers(-12, 12)
    volume = (generator.random((4, 5, 6)) * scale + offset).astype(np.float32)
    chosen = choose_rescaling(volume, slope=1.0, intercept=0.0, dtype=np.dtype(np.float32))
    assert max(len(repr(chosen.slope)), len(repr(chosen.intercept))) <= 16
    back = chosen.stored(volume) * chosen.slope + chosen.intercept
    assert np.abs(back - volume).max() <= chosen.slope / 2 * 1.001 + np.abs(volume).max() * 1e-7


def test_not_finite() -> None:
    with pytest.raises(ScoreFusionError, match="NaN"):
        choose_rescaling(np.array([[[np.nan, 1]]]), slope=1, intercept=0, dtype=np.dtype(np.int16))
