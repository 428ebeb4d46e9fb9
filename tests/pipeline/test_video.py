"""Clips: read and written, enlarged, measured, restored from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from scorefusion.cli import app
from scorefusion.degradations import BlockMean, Nothing
from scorefusion.errors import BadInput, ScoreFusionError
from scorefusion.io.nifti import read_scan
from scorefusion.io.video import clip_frames, clip_image, read_clip, write_clip
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.pipeline.video import bicubic, clip_figure, degraded, scores, side_by_side
from tests.support.tiny import tiny_config

SIZE = (6, 24, 32)


def moving(size: tuple[int, int, int] = SIZE) -> np.ndarray:
    """A smooth pattern that moves a pixel a frame."""
    t, y, x = np.indices(size, dtype=np.float32)
    return 128 + 60 * np.sin((x - t) / 4) + 50 * np.cos((y + t) / 5)


def write_model(folder: Path, **degradation: Any) -> Path:
    torch.manual_seed(3)
    config = tiny_config(degradation=BlockMean(**degradation))
    model = ScoreFusion(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return model.save_pretrained(folder, card="# tiny")


@pytest.mark.parametrize("ending", [".mp4", ".gif"])
def test_what_is_written_is_read_again(ending: str, tmp_path: Path) -> None:
    truth = moving()
    path = write_clip(tmp_path / f"clip{ending}", truth, 20.0)
    clip = read_clip(path)
    assert clip.frames.shape == SIZE and clip.frames.dtype == np.float32 and clip.rate == 20.0
    assert np.abs(clip.frames - truth).mean() < 3  # both forms lose something: a grey level or two
    part = read_clip(path, frames=(2, 4), pool=2).frames
    assert part.shape == (2, 12, 16)
    np.testing.assert_allclose(part, clip.frames[2:4].reshape(2, 12, 2, 16, 2).mean(axis=(2, 4)), atol=1e-3)
    assert len(read_clip(path, frames=(4, None)).frames) == 2


def test_colours_become_luma_and_odd_sizes_even(tmp_path: Path) -> None:
    frames = np.zeros((3, 15, 17, 3), np.float32)
    frames[:] = (200, 100, 50)
    clip = read_clip(write_clip(tmp_path / "odd.mp4", frames, 10.0))
    assert clip.frames.shape == (3, 16, 18)
    expected = 0.299 * 200 + 0.587 * 100 + 0.114 * 50
    assert np.abs(clip.frames - expected).max() < 4


def test_what_is_no_clip_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    with pytest.raises(BadInput, match="text.mp4.*cannot be read as a video"):
        read_clip(text)
    with pytest.raises(BadInput, match="does not exist"):
        read_clip(tmp_path / "none.mp4")
    path = write_clip(tmp_path / "clip.gif", moving(), 10.0)
    with pytest.raises(BadInput, match="has no frame"):
        read_clip(path, frames=(99, None))
    with pytest.raises(ScoreFusionError, match="at least 1"):
        read_clip(path, pool=0)
    with pytest.raises(BadInput, match="wrong ending"):
        write_clip(tmp_path / "clip.avi", moving(), 10.0)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["clip.gif", "text.mp4"]


def test_a_clip_is_a_volume_with_time_along_z(tmp_path: Path) -> None:
    image = clip_image(moving())
    nibabel.save(image, tmp_path / "clip.nii.gz")
    np.testing.assert_array_equal(read_scan(tmp_path / "clip.nii.gz").values, moving())
    np.testing.assert_array_equal(clip_frames(np.asarray(image.dataobj)), moving())


def test_bicubic_is_pillows() -> None:
    low = moving((2, 9, 13))
    fine = bicubic(low, (2, 36, 52))
    for one, frame in zip(fine, low, strict=True):
        expected = Image.fromarray(frame, mode="F").resize((52, 36), Image.Resampling.BICUBIC)
        np.testing.assert_allclose(one, np.asarray(expected), atol=1e-3)
    longer = bicubic(low, (4, 36, 52))
    np.testing.assert_allclose(longer[1], 0.75 * fine[0] + 0.25 * fine[1], atol=1e-3)


def test_scores_know_noise_from_flicker() -> None:
    truth = moving()
    noise = np.random.default_rng(0).normal(0, 4, SIZE).astype(np.float32)
    close, alike, change = scores(truth + noise, truth)
    assert abs(close - 20 * np.log10(255 / noise.std())) < 0.05 and 0 < alike < 1
    assert (
        abs(change - (close - 10 * np.log10(2))) < 0.2
    )  # differences of independent noise: twice its variance
    still = np.broadcast_to(noise[:1], SIZE)
    assert scores(truth + still, truth)[2] > 100  # the same error in every frame does not flicker


def test_a_model_of_clips_is_given_means_of_pixels() -> None:
    config = tiny_config(degradation=BlockMean(edges=(1, 4, 4)))
    low, truth = degraded(moving((3, 18, 21)), config)
    assert truth.shape == (3, 16, 20) and low.shape == (3, 4, 5)
    np.testing.assert_allclose(low, truth.reshape(3, 4, 4, 5, 4).mean(axis=(2, 4)), atol=1e-4)
    with pytest.raises(ScoreFusionError, match="smaller than a block"):
        degraded(moving((3, 3, 21)), config)
    with pytest.raises(ScoreFusionError, match="does not restore"):
        degraded(truth, tiny_config(degradation=Nothing(), residual={"base": "identity"}))


def test_clips_beside_one_another() -> None:
    clips = {"one": moving(), "other": np.zeros(SIZE)}
    beside = side_by_side(clips)
    assert beside.shape == (6, 36, 64) and beside.dtype == np.uint8
    np.testing.assert_array_equal(beside[:, 12:, :32], np.rint(clips["one"]))
    assert beside[:, :12, :32].max() > 128 and not beside[:, 12:, 32:].any()  # a name is written above
    figure = clip_figure(clips, {"one": "9 dB"})
    assert len(figure.axes) == 6 and figure.axes[0].get_title() == "one\n9 dB"


def test_a_clip_is_restored_and_measured(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", edges=(1, 2, 2))
    write_clip(tmp_path / "clip.gif", moving(), 10.0)
    options = ["--model", str(model), "--dtype", "float32", "--steps", "2", "-q"]

    def run(*arguments: str, status: int = 0) -> str:
        done = CliRunner().invoke(app, ["video", str(tmp_path / "clip.gif"), *arguments])
        assert done.exit_code == status, done.output
        return done.output

    output = run("-o", str(tmp_path / "t.gif"), "--test", "--figure", str(tmp_path / "t.png"), *options)
    assert "bicubic" in output and "PSNR dB" in output and (tmp_path / "t.png").stat().st_size > 1000
    assert read_clip(tmp_path / "t.gif").frames.shape == (6, 24 + 12, 4 * 32)

    run("-o", str(tmp_path / "t.nii.gz"), *options)
    fine = read_scan(tmp_path / "t.nii.gz").values
    given = read_clip(tmp_path / "clip.gif").frames
    assert fine.shape == (6, 48, 64)
    means = fine.reshape(6, 24, 2, 32, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(means, given, atol=0.05)  # what was measured is kept

    run("-o", str(tmp_path / "t.mp4"), "--frames", "1:4", *options)
    assert read_clip(tmp_path / "t.mp4").frames.shape == (3, 48, 64)

    run("-o", str(tmp_path / "c.nii.gz"), "--convert", "--pool", "2", "--frames", ":5")
    assert read_scan(tmp_path / "c.nii.gz").values.shape == (5, 12, 16)
    assert nibabel.load(tmp_path / "c.nii.gz").get_data_dtype() == np.uint8

    assert "FIRST:STOP" in run("-o", str(tmp_path / "x.mp4"), "--frames", "a:b", status=2)
    assert "--convert runs no model" in run("-o", str(tmp_path / "x.gif"), "--convert", "--test", status=2)
    assert "wrong ending" in run("-o", str(tmp_path / "x.avi"), status=2)
