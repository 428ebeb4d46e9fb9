"""Video clips as volumes: the luma of every frame, stacked in time; read and written through ffmpeg."""

import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import nibabel
import numpy as np

from scorefusion.errors import BadInput, ScoreFusionError
from scorefusion.io.atomic import written_beside
from scorefusion.io.header import bad_input
from scorefusion.optional import need

CLIP_ENDINGS = (".mp4", ".gif")
LUMA = (0.299, 0.587, 0.114)  #: weights of red, green and blue (ITU-R BT.601)


@dataclass(frozen=True, eq=False)
class Clip:
    """A clip in grey."""

    frames: np.ndarray  # float32 ``[T, H, W]``, luma from 0 to 255, row 0 at the top
    rate: float  # frames per second


def read_clip(
    path: str | os.PathLike[str], *, frames: tuple[int, int | None] = (0, None), pool: int = 1
) -> Clip:
    """Read a video file that ffmpeg can decode.

    ``frames`` are the (first, stop) of those to keep, None for all that follow; ``pool`` averages so many
    pixels along rows and columns into one and cuts off the remainder.

    Raises BadInput for a file that ffmpeg cannot read, or without a frame in that range; ScoreFusionError
    without imageio-ffmpeg.
    """
    file, (first, stop) = Path(path), frames
    if pool < 1 or first < 0 or (stop is not None and stop <= first):
        raise ScoreFusionError(f"'pool' is at least 1 and frames go from 0 on; got {pool} and {frames}")
    if not file.is_file():
        raise BadInput(file, "does not exist", "Give a video file.")
    ffmpeg = need("imageio_ffmpeg", "reading a clip")
    reader, kept = ffmpeg.read_frames(file), []
    with closing(reader), bad_input(file, "cannot be read as a video", "Convert it with ffmpeg first."):
        properties = next(reader)
        (width, height), rate = properties["size"], float(properties["fps"])
        for image in islice(reader, first, stop):
            luma = np.frombuffer(image, np.uint8).reshape(height, width, 3) @ np.array(LUMA, np.float32)
            rows, columns = height // pool, width // pool
            cut = luma[: rows * pool, : columns * pool].astype(np.float32)
            kept.append(cut.reshape(rows, pool, columns, pool).mean(axis=(1, 3)))
    if not kept or not kept[0].size:
        raise BadInput(file, f"has no frame of {pool} pixels from frame {first} on", "Choose other frames.")
    return Clip(np.stack(kept), rate)


def write_clip(path: str | os.PathLike[str], frames: Sequence[np.ndarray] | np.ndarray, rate: float) -> Path:
    """Write grey or RGB frames as .mp4 (H.264) or .gif; the file appears whole or not at all.

    Frames are ``[H, W]`` or ``[H, W, 3]``, 0 to 255; rounded, and for .mp4 padded to even sizes. A .gif keeps
    their rate per second to the nearest hundredth of a second.

    Raises BadInput for another ending, or if it cannot be written; ScoreFusionError without imageio-ffmpeg.
    """
    final = Path(path)
    if not final.name.lower().endswith(CLIP_ENDINGS):
        fix = f"End its name in {' or '.join(CLIP_ENDINGS)}."
        raise BadInput(final, "has the wrong ending for a clip", fix)
    images = np.stack([np.rint(np.clip(frame, 0, 255)).astype(np.uint8) for frame in frames])
    with written_beside(final) as beside:
        if final.suffix.lower() == ".gif":
            from PIL import Image

            pictures = [Image.fromarray(image) for image in images]
            pictures[0].save(beside, save_all=True, append_images=pictures[1:], duration=1000 / rate, loop=0)
            return final
        ffmpeg = need("imageio_ffmpeg", "writing an .mp4")
        even = [(0, length % 2) for length in images.shape[1:3]]
        images = np.pad(images, [(0, 0), *even, *[(0, 0)] * (images.ndim - 3)], mode="edge")
        form = "gray" if images.ndim == 3 else "rgb24"
        options = {"fps": rate, "pix_fmt_in": form, "quality": 8, "macro_block_size": 2}
        writer = ffmpeg.write_frames(beside, images.shape[2:0:-1], **options)
        writer.send(None)
        for image in images:
            writer.send(np.ascontiguousarray(image))
        writer.close()
    return final


def clip_image(frames: np.ndarray, *, rate: float = 25.0) -> nibabel.Nifti1Image:
    """Return a clip as a NIfTI image: axis i along a row, j down the rows, k from frame to frame, 1 each.

    Frames are ``[T, H, W]``, float32 or uint8; their rate per second is written into the description.
    """
    image = nibabel.Nifti1Image(np.ascontiguousarray(frames.transpose(2, 1, 0)), np.eye(4))
    image.header["descrip"] = f"clip, {rate:g} frames a second".encode()
    return image


def clip_frames(volume: np.ndarray) -> np.ndarray:
    """Return the frames ``[T, H, W]`` of the voxels ``[i, j, k]`` of :func:`clip_image`."""
    return np.ascontiguousarray(volume.transpose(2, 1, 0))
