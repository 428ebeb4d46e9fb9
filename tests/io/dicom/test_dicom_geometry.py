"""DICOM geometry and values, in and out, against SimpleITK: to 1e-4 mm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from scorefusion.degradations import BlockMean
from scorefusion.io import fine_affine, read_scan
from scorefusion.io.dicom import DicomScan, read_dicom_series, save_dicom_series
from scorefusion.pipeline import Pipeline
from tests.support.dicom_series import CT, MR, ORIENTATIONS, enhanced_of, save, texture, write_series
from tests.support.tiny import tiny_config, tiny_image, tiny_model

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
PLACES = [(name, step) for name in ORIENTATIONS for step in (1, -1)]


def itk_image(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Values ``[k, j, i]`` and the affine in RAS, as SimpleITK reads a series."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image), RAS_TO_LPS @ affine


def own_order(scan: DicomScan) -> np.ndarray:
    """``[k, j, i]``."""
    return scan.to_own_order(scan.values).transpose(2, 1, 0)


@pytest.fixture(scope="module")
def four_times() -> Pipeline:
    """A model whose output is four times finer along every axis."""
    config = tiny_config(degradation=BlockMean(factor=4))
    return Pipeline(tiny_model(config), device="cpu", dtype="float32")


@pytest.mark.parametrize(("name", "step"), PLACES)
@pytest.mark.parametrize("kind", [MR, CT], ids=["MR", "CT"])
def test_a_series_reads_as_simpleitk_reads_it(tmp_path: Path, name: str, step: int, kind: str) -> None:
    write_series(tmp_path, kind=kind, orientation=ORIENTATIONS[name], step=step)
    scan = read_dicom_series(tmp_path)
    values, affine = itk_image(tmp_path)
    np.testing.assert_array_equal(own_order(scan), values)
    np.testing.assert_allclose(scan.affine, affine, atol=1e-4)
    first = own_order(scan)[0 if step == 1 else -1]
    np.testing.assert_array_equal(first, texture()[0] - (1024.0 if kind == CT else 0.0))
    assert (scan.frames[0].number < scan.frames[1].number) == (step == 1)
    assert scan.shape == (6, 7, 5) and scan.dtype == np.uint16


@pytest.mark.parametrize(("name", "step"), PLACES)
def test_a_finer_series_lies_where_simpleitk_sees_it(
    tmp_path: Path, name: str, step: int, four_times: Pipeline
) -> None:
    write_series(tmp_path / "in", orientation=ORIENTATIONS[name], step=step)
    scan = read_dicom_series(tmp_path / "in")
    result = four_times(scan)
    written = save_dicom_series(result, tmp_path / "out")
    values, affine = itk_image(tmp_path / "out")
    _, source = itk_image(tmp_path / "in")
    np.testing.assert_allclose(affine, fine_affine(source, 4), atol=1e-4)
    assert np.abs(values - result.volume.transpose(2, 1, 0)).max() <= written.slope / 2 + 1e-3
    assert written.files == 20 and values.shape == (20, 28, 24)
    # The block means of what was written are the source's values, to the rounding.
    means = values.reshape(5, 4, 7, 4, 6, 4).mean(axis=(1, 3, 5))
    assert np.abs(means - own_order(scan)).max() <= written.slope / 2 + 0.1
    back = read_dicom_series(tmp_path / "out")
    numbers = [frame.number for frame in back.frames]
    assert numbers == sorted(numbers, reverse=step < 0)
    assert {frame.thickness for frame in back.frames} == {2.5 / 4}


def test_the_same_volume_as_nifti_and_as_dicom(tmp_path: Path, four_times: Pipeline) -> None:
    """A series is translated as the NIfTI file of its voxels is, and saves as one, where SimpleITK has it."""
    write_series(tmp_path / "in", orientation=ORIENTATIONS["oblique"])
    scan = read_dicom_series(tmp_path / "in")
    result = four_times(scan)
    result.save(tmp_path / "out.nii.gz")
    save_dicom_series(result, tmp_path / "out")
    image, (_, affine) = nib.load(tmp_path / "out.nii.gz"), itk_image(tmp_path / "out")
    np.testing.assert_allclose(image.affine, affine, atol=1e-4)
    assert int(image.header["sform_code"]) == int(image.header["qform_code"]) == 1
    np.testing.assert_allclose(image.header.get_qform(), affine, atol=1e-4)
    assert image.header.get_xyzt_units()[0] == "mm"
    nib.save(nib.Nifti1Image(scan.to_own_order(scan.values), scan.affine), tmp_path / "in.nii")
    np.testing.assert_array_equal(four_times(tmp_path / "in.nii").volume, result.volume)


def test_the_inputs_own_type(tmp_path: Path, four_times: Pipeline) -> None:
    write_series(tmp_path, kind=CT)
    scan = read_dicom_series(tmp_path)
    assert (scan.slope, scan.intercept) == (1.0, -1024.0)
    image = four_times(scan, output_dtype="input").image()
    assert image.header.get_data_dtype() == np.uint16
    assert image.header.get_slope_inter() == (1.0, -1024.0)


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_an_enhanced_object_is_the_classic_series(tmp_path: Path, name: str) -> None:
    options: dict[str, Any] = {"orientation": ORIENTATIONS[name], "step": -1}
    write_series(tmp_path / "classic", **options)
    save(enhanced_of(texture(), **options), tmp_path / "enhanced/object")
    classic, enhanced = (read_dicom_series(tmp_path / kind) for kind in ("classic", "enhanced"))
    np.testing.assert_allclose(enhanced.affine, classic.affine, atol=1e-9)
    np.testing.assert_array_equal(enhanced.values, classic.values * 2 - 5)
    assert read_dicom_series(tmp_path / "enhanced/object").shape == classic.shape
    image = sitk.ReadImage(str(tmp_path / "enhanced/object"))
    # ITK keeps the file's order of frames, which fall along the normal.
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image)[::-1], own_order(enhanced))


def test_an_enhanced_series_is_written_in_classic_words(tmp_path: Path, four_times: Pipeline) -> None:
    save(enhanced_of(texture()), tmp_path / "in/object")
    written = save_dicom_series(four_times(read_dicom_series(tmp_path / "in")), tmp_path / "out")
    back = read_dicom_series(tmp_path / "out")
    assert (written.slope, written.intercept) == (back.slope, back.intercept) == (2.0, -5.0)
    header = back.frames[0].header
    assert back.frames[0].sop_class == MR
    assert (header.EchoTime, header.RepetitionTime, header.FlipAngle, header.EchoTrainLength) == (
        4.6,
        9.5,
        10,
        1,
    )
    assert (header.ScanningSequence, header.ImagedNucleus) == ("GR", "1H")
    assert (header.AcquisitionDate, header.AcquisitionTime) == ("20200304", "101500.5")


def test_slices_rescaled_one_by_one(tmp_path: Path) -> None:
    def change(image: Any, k: int) -> None:
        image.RescaleSlope, image.RescaleIntercept = 0.25 * (k + 1), -10 * k

    write_series(tmp_path, change=change)
    scan = read_dicom_series(tmp_path)
    expected = np.stack([plane * 0.25 * (k + 1) - 10 * k for k, plane in enumerate(texture())])
    np.testing.assert_allclose(own_order(scan), expected, rtol=1e-6)
    assert scan.dtype == np.float32 and (scan.slope, scan.intercept) == (1.0, 0.0)
    np.testing.assert_allclose(own_order(scan), itk_image(tmp_path)[0], rtol=1e-6)


def test_signed_pixels_and_bits_that_are_not_used(tmp_path: Path) -> None:
    """12 bits stored in two's complement; the four above them hold an overlay."""
    pixels = texture().astype(np.int16) - 2000

    def change(image: Any, k: int) -> None:
        image.PixelRepresentation = 1
        image.PixelData = ((pixels[k].astype(np.uint16) & 0x0FFF) | 0x5000).tobytes()

    write_series(tmp_path, change=change)
    scan = read_dicom_series(tmp_path)
    np.testing.assert_array_equal(own_order(scan), pixels)
    assert scan.dtype == np.int16


def test_a_scan_is_read_as_it_is(tmp_path: Path) -> None:
    write_series(tmp_path)
    scan = read_dicom_series(tmp_path)
    assert read_scan(scan) is scan
    with pytest.raises(ValueError, match="more than 100"):
        read_scan(scan, max_voxels=100)
    assert read_scan(tiny_image()).shape == (7, 6, 5)
