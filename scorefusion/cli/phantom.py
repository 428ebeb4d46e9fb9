"""``scorefusion phantom``: synthetic subjects with several aligned contrasts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def phantom(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the subjects.")],
    count: Annotated[int, typer.Option("--count", "-n", help="How many.")] = 1,
    contrasts: Annotated[
        str, typer.Option(help="Of t1, t1ir, t2, pd, flair: with commas, or one after the other.")
    ] = "t1,t2,flair",
    more: Annotated[list[str] | None, typer.Argument(metavar="", hidden=True)] = None,
    lesions: Annotated[bool, typer.Option("--lesions", help="With lesions in the white matter.")] = False,
    seed: Annotated[int, typer.Option(help="Of the set; subject K depends on it and on K alone.")] = 0,
    first: Annotated[int, typer.Option(help="Number of the first subject.")] = 0,
    spacing: Annotated[float, typer.Option(help="Voxel size in mm.")] = 1.0,
    snr: Annotated[float, typer.Option(help="Mean signal of the brain over the noise; 0 for none.")] = 40.0,
    maps: Annotated[Path, typer.Option(help="Folder of the tissue maps.")] = Path("data"),
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Make synthetic subjects: deformed tissue maps, seen by named MRI sequences.

    Writes OUT/sub-XXX/sub-XXX_CONTRAST.nii.gz and sub-XXX_labels.nii.gz, all on one grid, and
    OUT/phantom.json. Subjects that are there already are kept; the same command goes on where it was stopped.
    Labels: 0 background, 1 fluid, 2 grey matter, 3 white matter, 4 other tissues of the head, 5 lesion.
    The maps come from `python tools/fetch_data.py phantom`.

    \b
    Examples:
      scorefusion phantom -n 20 -o data/phantoms/train --contrasts t1 t2 flair --lesions
      scorefusion phantom -n 14 --first 1000 -o data/phantoms/test --contrasts t1 t2 flair --lesions
      scorefusion phantom -o one --contrasts t1ir --spacing 2
    """
    from scorefusion.cli.bars import progress
    from scorefusion.data.synth import Settings, read_maps, write_subjects

    # The words after `--contrasts t1` that belong to no option are contrasts too.
    names = [name for text in [contrasts, *(more or [])] for name in text.split(",") if name]
    settings = Settings(spacing=spacing, lesions=lesions, snr=snr)
    with progress("synthetic subjects", quiet=quiet) as report:
        folders = write_subjects(
            read_maps(maps),
            out,
            count=count,
            first=first,
            seed=seed,
            contrasts=names,
            settings=settings,
            progress=report,
        )
    print(f"{len(folders)} synthetic subjects in {out}, {folders[0].name} to {folders[-1].name}")
