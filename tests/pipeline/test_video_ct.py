"""Clips and thick CT slices from end to end, at toy width: a file, a training run, a restored volume."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from scorefusion import Pipeline
from scorefusion.io.nifti import read_scan
from scorefusion.io.video import clip_image
from scorefusion.models.config import ModelConfig, parse, read_config
from scorefusion.models.presets import preset
from scorefusion.train.config import TrainConfig
from scorefusion.train.loop import train

ROOT = Path(__file__).parents[2]


def toy(name: str) -> ModelConfig:
    values = preset(name).model_dump()
    for network in (*values["slice_networks"].values(), values["fusion"]):
        network["widths"] = [8] * len(network["widths"])
        network["time"] |= {"channels": 8, "hidden": 16}
    return ModelConfig.model_validate(values)


def clip() -> nibabel.Nifti1Image:
    """A pattern that moves to the right, 16 frames of 48 × 40 pixels."""
    t, y, x = np.indices((16, 40, 48), dtype=np.float32)
    return clip_image((128 + 60 * np.sin((x - t) / 3) * np.cos(y / 5)).astype(np.uint8))


def head() -> nibabel.Nifti1Image:
    """A shell of bone about water in air, in Hounsfield units, with the voxels of an ordinary CT."""
    z, y, x = np.mgrid[-1:1:48j, -1:1:40j, -1:1:40j]
    radius = np.sqrt(z**2 + y**2 + x**2)
    values = np.select([radius < 0.6, radius < 0.8], [40 + 20 * np.sin(9 * z), 1200], -1000)
    return nibabel.Nifti1Image(values.transpose(2, 1, 0).astype(np.int16), np.diag([-0.9, 0.9, 1.5, 1]))


@pytest.mark.parametrize(
    ("name", "image", "coarser"),
    [
        ("video-sr", clip(), (1, 4, 4)),
        pytest.param("video-sr-causal", clip(), (1, 4, 4), marks=pytest.mark.slow),
        ("ct-thick", head(), (4, 1, 1)),
    ],
    ids=["video-sr", "video-sr-causal", "ct-thick"],
)
def test_from_end_to_end(
    name: str, image: nibabel.Nifti1Image, coarser: tuple[int, int, int], tmp_path: Path
) -> None:
    model = toy(name)
    nibabel.save(image, tmp_path / "seen.nii.gz")
    kinds = ("slices", "patches", *(["features"] if model.feature_scales else []))
    run = {
        "model": model.model_dump(),
        "volumes": [{"file": str(tmp_path / "seen.nii.gz")}],
        "stages": [{"kind": kind, "steps": 2, "crop": 16, "warmup": 1} for kind in kinds],
        "look_every": 0,
        "precision": "float32",
    }
    trained = train(parse(TrainConfig, run, "test"), tmp_path / "run")
    trained.save_pretrained(tmp_path / "model", card=f"# {name}")

    truth = read_scan(image).values.astype(np.float64)
    z, y, x = coarser
    d, h, w = (length // edge for length, edge in zip(truth.shape, coarser, strict=True))
    low = truth.reshape(d, z, h, y, w, x).mean(axis=(1, 3, 5))
    affine = image.affine @ np.diag([x, y, z, 1])
    affine[:3, 3] += image.affine[:3, :3] @ (np.array([x, y, z]) - 1) / 2
    given = read_order(low, affine)

    result = Pipeline(tmp_path / "model", dtype="float32")(given, steps=3, seed=1)
    np.testing.assert_allclose(result.affine, image.affine, atol=1e-6)
    fine = read_scan(result.image()).values
    assert fine.shape == truth.shape and np.isfinite(fine).all()
    means = fine.astype(np.float64).reshape(d, z, h, y, w, x).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(means, low, atol=1e-3 * np.ptp(low))
    assert result.consistency_residual is not None
    assert result.consistency_residual.max < 1e-3 * np.ptp(low)


def read_order(volume: np.ndarray, affine: np.ndarray) -> nibabel.Nifti1Image:
    """An image whose ``values``, read in RAS+ order, are ``volume``: flipped back where an axis runs down."""
    flips = [axis for axis, step in zip((2, 1, 0), np.diag(affine), strict=False) if step < 0]
    return nibabel.Nifti1Image(np.flip(volume, flips).transpose(2, 1, 0).astype(np.float32), affine)


@pytest.mark.parametrize("name", ["video-sr", "ct-thick"])
def test_no_run_sees_what_is_held_out(name: str) -> None:
    run = read_config(TrainConfig, ROOT / f"configs/{name}.json")
    assert run.model == name
    files = [Path(str(volume.file)).name for volume in run.volumes]
    if name == "video-sr":
        assert sorted(files) == ["bigbuckbunny.nii.gz", "bikes.nii.gz"]
        return
    assert set(files) == {"cranium.nii.gz"}
    slabs = [volume.region[0] for volume in run.volumes]
    assert all(slab is not None and (slab[1] <= 40 or slab[0] >= 76) for slab in slabs)


def test_the_last_frames_are_as_good_as_the_first() -> None:
    """18 frames are no whole number of patches: what is drawn beyond them has noise of its own."""
    low = moving(18).reshape(18, 10, 4, 12, 4).mean(axis=(2, 4))
    pipeline = Pipeline("video-sr", dtype="float32")
    result = pipeline(clip_image(low.astype(np.float32)), steps=1).volume.transpose(2, 1, 0)
    errors = np.sqrt(((result - moving(18)) ** 2).mean(axis=(1, 2)))
    assert errors[-3:].mean() < 1.1 * errors[6:12].mean(), errors


def moving(frames: int) -> np.ndarray:
    """Texture that moves as a whole, so that every frame is as hard as another."""
    t, y, x = np.indices((frames, 40, 48), dtype=np.float64)
    x = x + t
    return 128 + 40 * np.sin(x / 2.5) * np.cos(y / 3) + 30 * np.sin((x + y) / 6) + 20 * np.cos(x / 9 - y / 2)
