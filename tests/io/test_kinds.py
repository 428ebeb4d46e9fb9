"""Images of every kind in, and results of the same kind out: geometry, types, metadata, refusals."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from scorefusion.errors import BadInput
from scorefusion.io import affines_for, scan_of
from scorefusion.pipeline import Pipeline
from tests.support.tiny import AFFINE, same_grid_config, tiny_config, tiny_image, tiny_model

FACTOR = 2
ARRAY = np.asarray(tiny_image().dataobj)
FLIPPED = AFFINE @ np.array([[-1.0, 0, 0, 6], [0, 0, 1, 0], [0, -1, 0, 5], [0, 0, 0, 1]])
# A rotation, mirrored, with a voxel of another size along every axis: what SimpleITK can hold, too.
_COSINES = np.linalg.qr(np.array([[1.0, 0.2, 0.1], [-0.3, 1.0, 0.2], [0.1, -0.1, 1.0]]))[0] * [1, -1, 1]
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3], OBLIQUE[:3, 3] = _COSINES * [0.9, 1.2, 2.5], (-70.25, 31.5, 12.125)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(tiny_model(), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def same_grid() -> Pipeline:
    return Pipeline(tiny_model(same_grid_config()), device="cpu", dtype="float32")


def expected_affine(affine: np.ndarray) -> np.ndarray:
    """Coarse voxel c holds fine ones 2c and 2c + 1, so the fine index f is at (f - 0.5) / 2."""
    return affine @ np.array([[0.5, 0, 0, -0.25], [0, 0.5, 0, -0.25], [0, 0, 0.5, -0.25], [0, 0, 0, 1]])


@pytest.mark.parametrize("affine", [AFFINE, FLIPPED, OBLIQUE], ids=["sheared", "flipped", "oblique"])
def test_every_kind_gives_the_same_voxels(pipeline: Pipeline, affine: np.ndarray) -> None:
    image = nib.Nifti1Image(ARRAY, affine)
    plain = pipeline(image)
    np.testing.assert_allclose(plain.affine, expected_affine(affine), atol=1e-12)
    for source in (ARRAY, ARRAY.astype(np.float64), np.asfortranarray(ARRAY), torch.from_numpy(ARRAY)):
        result = pipeline(source, affine=affine)
        np.testing.assert_array_equal(result.volume, plain.volume)
        np.testing.assert_array_equal(result.affine, plain.affine)
        back = result.native()
        assert type(back) is type(source) and tuple(back.shape) == (14, 12, 10)
        assert str(back.dtype).removeprefix("torch.") == "float32"
        np.testing.assert_array_equal(np.asarray(back), plain.volume)


def test_types_of_arrays_and_tensors(pipeline: Pipeline) -> None:
    plain = pipeline(ARRAY, affine=AFFINE).volume
    for dtype in (np.uint16, np.int64, np.float16, np.float64, ">i2"):
        back = pipeline(ARRAY.astype(dtype), affine=AFFINE, output_dtype="input").native()
        assert back.dtype == np.dtype(dtype).newbyteorder("=")
        least = 0 if dtype is np.uint16 else -np.inf
        np.testing.assert_allclose(back, plain.clip(least), atol=0.51, rtol=1e-3)
    tensor = torch.from_numpy(ARRAY).to(torch.bfloat16).requires_grad_()
    assert pipeline(tensor, affine=AFFINE, output_dtype="input").native().dtype == torch.bfloat16
    assert pipeline(tensor, affine=torch.eye(4)).native().requires_grad is False
    spread = pipeline(torch.from_numpy(ARRAY), affine=AFFINE, samples=2)
    assert torch.equal(spread.native(spread=True), torch.from_numpy(spread.spread))


def test_an_affine_is_given_or_asked_for(pipeline: Pipeline) -> None:
    for source, name in ((ARRAY, "array"), (torch.from_numpy(ARRAY), "tensor")):
        with pytest.raises(BadInput, match=rf"{name}: has no affine. Pass affine=.*assume_affine=True"):
            pipeline(source)
        np.testing.assert_array_equal(pipeline(source, assume_affine=True).affine, expected_affine(np.eye(4)))
    for wrong in (np.eye(3), np.full((4, 4), np.nan), "RAS", np.zeros((2, 4, 4))):
        with pytest.raises(BadInput, match="affine: is not 4 × 4 finite numbers"):
            pipeline(ARRAY, affine=wrong)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="affine: is singular"):
        pipeline(ARRAY, affine=np.diag([1, 1, 0, 1]))


def test_shapes_and_kinds_that_are_refused(pipeline: Pipeline) -> None:
    with pytest.raises(BadInput, match=r"has a channel axis, shape \[1, 7, 6, 5\]. Pass x\[0\]"):
        pipeline(ARRAY[None], affine=AFFINE)
    with pytest.raises(BadInput, match="holds complex128 voxels"):
        pipeline(ARRAY.astype(complex), affine=AFFINE)
    with pytest.raises(BadInput, match="not three-dimensional"):
        pipeline(ARRAY[0], affine=AFFINE)
    with pytest.raises(BadInput, match="of a kind that is not known, dict"):
        pipeline([{"image": 1}])  # type: ignore[list-item]
    with pytest.raises(BadInput, match="NaN or infinite"):
        pipeline(np.where(ARRAY > 0, ARRAY, np.nan), affine=AFFINE)


def test_several_conditions_of_several_kinds(same_grid: Pipeline) -> None:
    other = np.ascontiguousarray(ARRAY[::-1])
    plain = same_grid([nib.Nifti1Image(ARRAY, AFFINE), nib.Nifti1Image(other, AFFINE)])
    mixed = same_grid([torch.from_numpy(ARRAY), nib.Nifti1Image(other, AFFINE)], affine=AFFINE)
    each = same_grid([ARRAY, other], affine=[AFFINE, AFFINE])
    np.testing.assert_array_equal(mixed.volume, plain.volume)
    np.testing.assert_array_equal(each.volume, plain.volume)
    assert isinstance(mixed.native(), torch.Tensor) and isinstance(each.native(), np.ndarray)
    with pytest.raises(BadInput, match="lies elsewhere"):
        same_grid([ARRAY, other], affine=[AFFINE, OBLIQUE])
    assert [a is None for a in affines_for(None, 2)] == [True, True]


def test_a_mask_may_be_an_array() -> None:
    config = same_grid_config(
        conditions=("t1",),
        branches=tiny_config().branches,
        target="t1",
        residual=tiny_config().residual.model_copy(update={"base": "pseudo-inverse"}),
        degradation={"kind": "inpaint"},
    )
    pipeline = Pipeline(tiny_model(config), device="cpu", dtype="float32")
    holes = np.zeros(ARRAY.shape, bool)
    holes[3:5, 2:4, 2:3] = True
    one = pipeline(ARRAY, affine=AFFINE, mask=holes)
    other = pipeline(tiny_image(), mask=nib.Nifti1Image(holes.astype(np.uint8), AFFINE))
    np.testing.assert_array_equal(one.volume, other.volume)
    np.testing.assert_allclose(one.volume[~holes], ARRAY[~holes], atol=0.01)
    assert not np.allclose(one.volume[holes], ARRAY[holes])


def test_nibabel_images_and_files(pipeline: Pipeline, tmp_path: Path) -> None:
    image = nib.Nifti2Image(ARRAY, OBLIQUE)
    image.header["descrip"] = b"a ball"
    back = pipeline(image).native()
    assert isinstance(back, nib.Nifti2Image) and back.header["descrip"] == b"a ball"
    nib.save(image, tmp_path / "in.nii")
    np.testing.assert_array_equal(
        pipeline(tmp_path / "in.nii").native().dataobj, pipeline(str(tmp_path / "in.nii")).volume
    )
    mgh = nib.MGHImage(ARRAY.astype(np.float32), OBLIQUE)
    back = pipeline(mgh).native()
    assert isinstance(back, nib.MGHImage)
    np.testing.assert_allclose(back.affine, expected_affine(OBLIQUE), atol=1e-5)


def test_simpleitk(pipeline: Pipeline) -> None:
    itk = pytest.importorskip("SimpleITK")
    image = itk.GetImageFromArray(np.ascontiguousarray(ARRAY.transpose(2, 1, 0)))
    lps = np.diag([-1, -1, 1])
    image.SetDirection((lps @ _COSINES).ravel().tolist())
    image.SetSpacing((0.9, 1.2, 2.5))
    image.SetOrigin((lps @ OBLIQUE[:3, 3]).tolist())
    for key in ("0008|103e", "0028|0030", "pixdim[1]", "descrip"):
        image.SetMetaData(key, "7")
    plain = pipeline(nib.Nifti1Image(ARRAY, OBLIQUE))
    result = pipeline(image)
    np.testing.assert_array_equal(result.volume, plain.volume)
    np.testing.assert_allclose(result.affine, plain.affine, atol=1e-12)
    back = result.native()
    assert isinstance(back, itk.Image) and back.GetPixelID() == itk.sitkFloat32
    assert back.GetDirection() == image.GetDirection()
    np.testing.assert_array_equal(itk.GetArrayFromImage(back).transpose(2, 1, 0), plain.volume)
    for fine in ((0, 0, 0), (13, 11, 9), (3, 8, 1)):
        coarse = [(n - 0.5) / FACTOR for n in fine]
        wanted = image.TransformContinuousIndexToPhysicalPoint(coarse)
        np.testing.assert_allclose(back.TransformIndexToPhysicalPoint(fine), wanted, atol=1e-9)
        np.testing.assert_allclose(lps @ (plain.affine @ [*fine, 1])[:3], wanted, atol=1e-9)
    assert set(back.GetMetaDataKeys()) == {"0008|103e", "descrip"}
    assert pipeline(image, output_dtype="input").native().GetPixelID() == itk.sitkInt16
    with pytest.raises(BadInput, match="has 2 dimensions and 1 components"):
        pipeline(image[:, :, 2])


def test_what_simpleitk_writes_is_what_nibabel_reads(pipeline: Pipeline, tmp_path: Path) -> None:
    itk = pytest.importorskip("SimpleITK")
    nib.save(nib.Nifti1Image(ARRAY, OBLIQUE), tmp_path / "in.nii.gz")
    result = pipeline(itk.ReadImage(str(tmp_path / "in.nii.gz")))
    itk.WriteImage(result.native(), str(tmp_path / "out.nii.gz"))
    written = nib.load(tmp_path / "out.nii.gz")
    plain = pipeline(tmp_path / "in.nii.gz")
    np.testing.assert_allclose(written.affine, plain.affine, atol=1e-4)
    np.testing.assert_array_equal(written.get_fdata(dtype=np.float32), result.volume)


def test_metatensor(pipeline: Pipeline, tmp_path: Path) -> None:
    data = pytest.importorskip("monai.data")
    transforms = pytest.importorskip("monai.transforms")
    nib.save(nib.Nifti1Image(ARRAY, FLIPPED), tmp_path / "in.nii.gz")
    load = transforms.Compose([transforms.LoadImage(image_only=True, ensure_channel_first=True)])
    tensor = load(tmp_path / "in.nii.gz")
    plain, result = pipeline(tmp_path / "in.nii.gz"), pipeline(tensor)
    np.testing.assert_array_equal(result.volume, plain.volume)
    back = result.native()
    assert isinstance(back, data.MetaTensor) and tuple(back.shape) == (1, 14, 12, 10)
    np.testing.assert_allclose(back.affine, plain.affine, atol=1e-12)
    np.testing.assert_array_equal(back.as_tensor()[0], plain.volume)
    assert back.meta["filename_or_obj"] == tensor.meta["filename_or_obj"] and "pixdim" not in back.meta
    assert back.applied_operations == []
    save = transforms.SaveImage(tmp_path, output_postfix="fine", separate_folder=False, print_log=False)
    save(back)
    written = nib.load(tmp_path / "in_fine.nii.gz")
    np.testing.assert_array_equal(written.get_fdata(dtype=np.float32), plain.volume)
    np.testing.assert_allclose(written.affine, plain.affine, atol=1e-5)


def test_a_metatensor_in_lps_and_without_a_channel(pipeline: Pipeline) -> None:
    data = pytest.importorskip("monai.data")
    turn = np.diag([-1.0, -1, 1, 1])
    tensor = data.MetaTensor(torch.from_numpy(ARRAY), affine=turn @ OBLIQUE, meta={"space": "LPS"})
    result = pipeline(tensor)
    np.testing.assert_allclose(result.affine, expected_affine(OBLIQUE), atol=1e-12)
    back = result.native()
    assert tuple(back.shape) == (14, 12, 10)
    np.testing.assert_allclose(back.affine, turn @ result.affine, atol=1e-12)
    with pytest.raises(BadInput, match="where"):
        pipeline(data.MetaTensor(torch.zeros(2, 4, 4, 4)))


def test_a_metatensor_on_its_own_grid_can_be_undone(same_grid: Pipeline) -> None:
    data = pytest.importorskip("monai.data")
    transforms = pytest.importorskip("monai.transforms")
    tensor = data.MetaTensor(torch.from_numpy(ARRAY)[None].float(), affine=FLIPPED)
    turn = transforms.Orientation("RAS", labels=(("L", "R"), ("P", "A"), ("I", "S")))
    turned = turn(tensor)
    back = turn.inverse(same_grid([turned, turned]).native())
    np.testing.assert_allclose(back.affine, FLIPPED, atol=1e-9)
    np.testing.assert_array_equal(back[0], same_grid([ARRAY, ARRAY], affine=FLIPPED).volume)


def test_results_can_be_pickled(pipeline: Pipeline) -> None:
    result: Any = pickle.loads(pickle.dumps(pipeline(torch.from_numpy(ARRAY), affine=AFFINE)))
    assert torch.equal(result.native(), pipeline(torch.from_numpy(ARRAY), affine=AFFINE).native())


def test_a_scan_that_was_read_keeps_its_kind() -> None:
    scan = scan_of(torch.from_numpy(ARRAY), affine=AFFINE)
    assert scan_of(torch.from_numpy(ARRAY), affine=AFFINE).kind == scan.kind
    assert scan.shape == (7, 6, 5) and scan.affine_assumed is False
