"""``scorefusion video``: a clip in, a sharper one out; or a clip pooled, restored and measured."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from scorefusion.cli.options import Device, Model, Only, Quiet, argument, opt, target
from scorefusion.pipeline import Options


@dataclass
class Clip:
    """What is done with a clip."""

    test: bool = opt("Take the clip for the truth: pool it, restore it, say how close.", False)
    convert: bool = opt("No model: cut, pool and write the clip, to train on.", False)
    frames: str = opt("FIRST:STOP, the frames to keep; either may be left out.", ":")
    pool: int = opt("Average N x N pixels of the clip into one first.", 1)
    figure: Path | None = opt("Also draw a frame, a zoom and a time slice: .png.")


def video(
    clip: Annotated[Path, argument("A video file.", "CLIP")],
    output: Annotated[Path, target("Where to write: .mp4, .gif, .nii.gz.")],
    what: Clip,
    sampling: Annotated[Options, Only("strategy", "solver", "steps", "seed")],
    machine: Device,
    model: Model = "video-sr",
    quiet: Quiet = False,
) -> None:
    """Restore a clip: frames are axial slices, and two kinds of time slices the other planes.

    Clips are taken in grey (luma). With --test the output shows the pooled clip, bicubic interpolation, the
    model's and the truth side by side, and PSNR, SSIM and the PSNR of the change from frame to frame are
    printed; a .nii.gz holds the model's alone.

    \b
    Examples:
      scorefusion video small.mp4 -o fine.mp4
      scorefusion video data/carphone.mp4 --test -o carphone.gif --figure carphone.png
      scorefusion video data/bikes.mp4 --convert --frames :187 -o data/bikes.nii.gz
    """
    from scorefusion.errors import ScoreFusionError
    from scorefusion.io.atomic import check_output
    from scorefusion.io.formats import FORMATS
    from scorefusion.io.nifti import save_image
    from scorefusion.io.video import CLIP_ENDINGS, clip_image, read_clip, write_clip

    check_output(output, (*CLIP_ENDINGS, *FORMATS[0].endings), [clip])
    if what.convert and (what.test or what.figure):
        raise ScoreFusionError("--convert runs no model, so --test and --figure do not go with it")
    if what.figure is not None:
        from scorefusion.io.figures import FIGURE_ENDINGS

        check_output(what.figure, FIGURE_ENDINGS, [clip])
    given = read_clip(clip, frames=parse_frames(what.frames), pool=what.pool)
    if what.convert:
        shown = given.frames
        if not output.name.lower().endswith(CLIP_ENDINGS):
            save_image(clip_image(shown.round().astype("uint8"), rate=given.rate), output)
        else:
            write_clip(output, shown, given.rate)
        print(f"{output}: {_size(shown)} at {given.rate:g} a second")
        return

    import numpy as np

    from scorefusion.cli.console import progress
    from scorefusion.io.figures import save_figure
    from scorefusion.pipeline import Pipeline
    from scorefusion.pipeline import video as restoration

    pipeline = Pipeline(model, **machine)
    low, truth = restoration.degraded(given.frames, pipeline.config) if what.test else (given.frames, None)
    with progress("restoring", quiet=quiet) as report:
        fine, warnings = restoration.restored(pipeline, low, **sampling, callback=report)
    name = sampling["strategy"] or pipeline.config.sampling.strategy
    blocks = low
    for axis, edge in enumerate(pipeline.config.degradation.factors):
        blocks = np.repeat(blocks, edge, axis=axis)
    clips = {"input": blocks, "bicubic": restoration.bicubic(low, fine.shape), name: fine}
    rows = {}
    if truth is not None:
        rows = {each: restoration.scores(clips[each], truth) for each in ("bicubic", name)}
        clips["truth"] = truth
    captions = {each: f"{row[0]:.2f} dB, SSIM {row[1]:.3f}" for each, row in rows.items()}
    if not output.name.lower().endswith(CLIP_ENDINGS):
        save_image(clip_image(fine, rate=given.rate), output)
    else:
        write_clip(output, fine if truth is None else restoration.side_by_side(clips), given.rate)
    if not quiet:
        for warning in warnings:
            print(f"warning: {warning}", file=sys.stderr)
    print(f"{output}: {_size(fine)} at {given.rate:g} a second, {name}, seed {sampling['seed']}")
    if rows:
        print(f"{'':14}" + "".join(f"{title:>10}" for title in restoration.SCORES))
        for each, row in rows.items():
            print(f"{each:14}{row[0]:10.2f}{row[1]:10.4f}{row[2]:10.2f}")
    if what.figure is not None:
        save_figure(restoration.clip_figure(clips, captions), what.figure)


def parse_frames(text: str) -> tuple[int, int | None]:
    """Read ``FIRST:STOP``."""
    from scorefusion.errors import ScoreFusionError

    first, colon, stop = text.partition(":")
    if not colon or not all(part == "" or part.isdecimal() for part in (first, stop)):
        raise ScoreFusionError(f"--frames needs FIRST:STOP, such as 0:64; got '{text}'")
    return int(first or 0), int(stop) if stop else None


def _size(frames: object) -> str:
    t, h, w = frames.shape  # type: ignore[attr-defined]
    return f"{t} frames of {w} × {h}"
