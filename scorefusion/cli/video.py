"""``scorefusion video``: a clip in, a sharper one out; or a clip pooled, restored and measured."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from scorefusion.models.strategies import names_text

_OWN = "the model's own"


def video(
    clip: Annotated[Path, typer.Argument(metavar="CLIP", help="A video file.", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where to write: .mp4, .gif, .nii.gz.", show_default=False)
    ],
    model: Annotated[str, typer.Option(help="A bundled model's name, or a model folder.")] = "video-sr",
    test: Annotated[
        bool,
        typer.Option("--test", help="Take the clip for the truth: pool it, restore it, say how close."),
    ] = False,
    convert: Annotated[
        bool, typer.Option("--convert", help="No model: cut, pool and write the clip, to train on.")
    ] = False,
    frames: Annotated[
        str, typer.Option(help="FIRST:STOP, the frames to keep; either may be left out.")
    ] = ":",
    pool: Annotated[int, typer.Option(help="Average N x N pixels of the clip into one first.")] = 1,
    strategy: Annotated[
        str | None,
        typer.Option(help=f"{names_text()}.", show_default=_OWN),
    ] = None,
    solver: Annotated[str | None, typer.Option(help="As in `translate`.", show_default=_OWN)] = None,
    steps: Annotated[int | None, typer.Option(help="Noise levels.", show_default=_OWN)] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same clip.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="auto (what is fast here), float32, bfloat16, float16.")
    ] = "auto",
    figure: Annotated[
        Path | None,
        typer.Option(help="Also draw a frame, a zoom and a time slice: .png.", show_default=False),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
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
    if convert and (test or figure):
        raise ScoreFusionError("--convert runs no model, so --test and --figure do not go with it")
    if figure is not None:
        from scorefusion.pipeline.figures import FIGURE_ENDINGS

        check_output(figure, FIGURE_ENDINGS, [clip])
    given = read_clip(clip, frames=parse_frames(frames), pool=pool)
    if convert:
        shown = given.frames
        if not output.name.lower().endswith(CLIP_ENDINGS):
            save_image(clip_image(shown.round().astype("uint8"), rate=given.rate), output)
        else:
            write_clip(output, shown, given.rate)
        print(f"{output}: {_size(shown)} at {given.rate:g} a second")
        return

    import numpy as np

    from scorefusion.cli.bars import progress
    from scorefusion.pipeline.figures import save_figure
    from scorefusion.pipeline.pipeline import Pipeline
    from scorefusion.pipeline.video import (
        SCORES,
        bicubic,
        clip_figure,
        degraded,
        restored,
        scores,
        side_by_side,
    )

    pipeline = Pipeline(model, device=device, dtype=dtype)
    low, truth = degraded(given.frames, pipeline.config) if test else (given.frames, None)
    with progress("restoring", quiet=quiet) as report:
        fine, warnings = restored(
            pipeline, low, strategy=strategy, solver=solver, steps=steps, seed=seed, callback=report
        )
    name = strategy or pipeline.config.sampling.strategy
    edges = pipeline.config.degradation.factors
    blocks = low
    for axis, edge in enumerate(edges):
        blocks = np.repeat(blocks, edge, axis=axis)
    clips = {"input": blocks, "bicubic": bicubic(low, fine.shape), name: fine}
    rows = {}
    if truth is not None:
        rows = {each: scores(clips[each], truth) for each in ("bicubic", name)}
        clips["truth"] = truth
    captions = {each: f"{row[0]:.2f} dB, SSIM {row[1]:.3f}" for each, row in rows.items()}
    rate = given.rate
    if not output.name.lower().endswith(CLIP_ENDINGS):
        save_image(clip_image(fine, rate=rate), output)
    else:
        write_clip(output, fine if truth is None else side_by_side(clips), rate)
    if not quiet:
        for warning in warnings:
            print(f"warning: {warning}", file=sys.stderr)
    print(f"{output}: {_size(fine)} at {rate:g} a second, {name}, seed {seed}")
    if rows:
        print(f"{'':14}" + "".join(f"{title:>10}" for title in SCORES))
        for each, row in rows.items():
            print(f"{each:14}{row[0]:10.2f}{row[1]:10.4f}{row[2]:10.2f}")
    if figure is not None:
        save_figure(clip_figure(clips, captions), figure)


def parse_frames(text: str) -> tuple[int, int | None]:
    """Read ``FIRST:STOP``.

    Raises:
        ScoreFusionError: for anything else.
    """
    from scorefusion.errors import ScoreFusionError

    first, colon, stop = text.partition(":")
    if not colon or not all(part == "" or part.isdecimal() for part in (first, stop)):
        raise ScoreFusionError(f"--frames needs FIRST:STOP, such as 0:64; got '{text}'")
    return int(first or 0), int(stop) if stop else None


def _size(frames: object) -> str:
    t, h, w = frames.shape  # type: ignore[attr-defined]
    return f"{t} frames of {w} × {h}"
