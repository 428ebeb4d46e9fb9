"""Video clips restored by a model, compared with bicubic interpolation and the truth."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from scorefusion.errors import ScoreFusionError
from scorefusion.io import clip_frames, clip_image, panels
from scorefusion.metrics import METRICS, psnr, ssim
from scorefusion.models.config import ModelConfig
from scorefusion.pipeline.pipeline import Pipeline

WHITE = 255.0
SCORES = (METRICS["psnr"].head, METRICS["ssim"].head, "change dB")


def degraded(frames: np.ndarray, config: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return what a model of coarser clips gets of a clip ``[T, H, W]``, and that cut to whole blocks."""
    if len(config.conditions) != 1 or not config.degradation.coarse:
        raise ScoreFusionError(f"model {config.name!r} does not restore a coarser clip alone")
    edges = config.degradation.factors
    kept = [length // edge * edge for length, edge in zip(frames.shape, edges, strict=True)]
    if min(kept) == 0:
        raise ScoreFusionError(f"a clip of {list(frames.shape)} (t, y, x) is smaller than a block of {edges}")
    truth = np.ascontiguousarray(frames[: kept[0], : kept[1], : kept[2]])
    low = config.degradation.image(torch.from_numpy(truth)[None, None], seed=0)
    return low[0, 0].numpy(), truth


def restored(pipeline: Pipeline, frames: np.ndarray, **options: Any) -> tuple[np.ndarray, tuple[str, ...]]:
    """Restore coarse frames ``[t, h, w]``; return the model's ``[T, H, W]``, and the call's warnings."""
    result = pipeline(clip_image(frames.astype(np.float32)), **options)
    return clip_frames(result.volume), result.warnings


def bicubic(frames: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Frames ``[T, h, w]`` enlarged to ``size`` (T, H, W), each by itself: cubic convolution, a = -1/2.

    Times between frames, where ``size`` has more, are interpolated linearly.
    """
    volume = torch.from_numpy(np.ascontiguousarray(frames))[:, None].float()
    # With antialias PyTorch uses Keys' coefficient a = -1/2 as Pillow does; enlarging filters nothing.
    fine = F.interpolate(volume, size=size[1:], mode="bicubic", antialias=True)
    if size[0] != len(frames):
        fine = F.interpolate(fine[:, 0][None, None], size=size, mode="trilinear")[0, 0][:, None]
    return fine[:, 0].numpy()


def scores(frames: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    """Compare a clip with the truth, white being 255, in the units of ``SCORES``.

    Returns:
        PSNR over the clip; SSIM, the mean over frames; PSNR of the change from each frame to the next, which
        flicker lowers (infinite for a single frame).
    """
    alike = [ssim(one, other, WHITE) for one, other in zip(frames, truth, strict=True)]
    change = psnr(np.diff(frames, axis=0), np.diff(truth, axis=0), WHITE) if len(truth) > 1 else np.inf
    return psnr(frames, truth, WHITE), float(np.mean(alike)), change


def side_by_side(clips: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return clips of one size side by side, uint8 ``[T, H + 12, n·W]``, each under its name."""
    from PIL import Image, ImageDraw

    parts = []
    for name, frames in clips.items():
        title = Image.new("L", (frames.shape[2], 12))
        ImageDraw.Draw(title).text((2, 0), name, fill=255)
        bar = np.broadcast_to(np.asarray(title), (len(frames), *np.asarray(title).shape))
        parts.append(np.concatenate([bar, np.rint(np.clip(frames, 0, 255)).astype(np.uint8)], axis=1))
    return np.concatenate(parts, axis=2)


def clip_figure(clips: Mapping[str, np.ndarray], captions: Mapping[str, str]) -> Any:
    """Draw the middle frame of each clip, a zoom of it, and one row of pixels in time (downwards).

    Args:
        clips: name to ``[T, H, W]``, all of one size.
        captions: the text below each name.

    Returns:
        A ``matplotlib.figure.Figure``.
    """
    t, h, w = next(iter(clips.values())).shape
    zoom = slice(h // 5, h // 5 + h // 2), slice(w // 4, w // 4 + w // 2)
    size = 2.1 * len(clips), 2.1 * (2 * h / w + t / w) + 0.7
    titles = [f"{name}\n{captions.get(name, '')}" for name in clips]
    figure, axes = panels(size, {"frame": h, "zoom": h, "in time": t}, titles)
    for column, clip in zip(axes.T, clips.values(), strict=True):
        middle = clip[t // 2]
        for axis, image in zip(column, (middle, middle[zoom], clip[:, h // 2]), strict=True):
            axis.imshow(image, cmap="gray", vmin=0, vmax=WHITE, interpolation="nearest", aspect="auto")
    return figure
