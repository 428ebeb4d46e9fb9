"""``scorefusion phantom``: synthetic subjects with several aligned contrasts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from scorefusion.cli.options import Quiet, opt


@dataclass
class Made:
    """What is made."""

    count: int = opt("How many.", 1, "--count", "-n")
    contrasts: str = opt("Of t1, t1ir, t2, pd, flair: with commas, or one after the other.", "t1,t2,flair")
    lesions: bool = opt("With lesions in the white matter.", False)
    seed: int = opt("Of the set; subject K depends on it and on K alone.", 0)
    first: int = opt("Number of the first subject.", 0)
    spacing: float = opt("Voxel size in mm.", 1.0)
    snr: float = opt("Mean signal of the brain over the noise; 0 for none.", 40.0)
    maps: Path = opt("Folder of the tissue maps.", Path("data"))
    labels: Path | None = opt("Paint whole heads of the label maps in this folder instead.")


def phantom(
    out: Annotated[Path, Option("--out", "-o", help="Folder for the subjects.")],
    made: Made,
    more: Annotated[list[str] | None, Argument(metavar="", hidden=True)] = None,
    quiet: Quiet = False,
) -> None:
    """Make synthetic subjects: deformed tissue maps, seen by named MRI sequences.

    Writes OUT/sub-XXX/sub-XXX_CONTRAST.nii.gz and sub-XXX_labels.nii.gz, all on one grid, and
    OUT/phantom.json. Subjects that are there already are kept; the same command goes on where it was stopped.
    Labels: 0 background, 1 fluid, 2 grey matter, 3 white matter, 4 other tissues of the head, 5 lesion.
    The maps come from `python tools/fetch_data.py phantom`.

    With --labels heads of any contrast are painted of FreeSurfer-numbered maps: sub-XXX_image.nii.gz and
    sub-XXX_labels.nii.gz; of the other options --count, --first, --seed and --spacing count.

    \b
    Examples:
      scorefusion phantom -n 20 -o data/phantoms/train --contrasts t1 t2 flair --lesions
      scorefusion phantom -n 14 --first 1000 -o data/phantoms/test --contrasts t1 t2 flair --lesions
      scorefusion phantom -o one --contrasts t1ir --spacing 2
      scorefusion phantom -n 12 -o painted --labels maps/
    """
    from scorefusion.cli.console import progress
    from scorefusion.data.synth import Settings, label_files, read_maps, write_painted, write_subjects

    where: dict[str, Any] = {"count": made.count, "first": made.first, "seed": made.seed}
    if made.labels is not None:
        files = label_files(made.labels)
        with progress("painted heads", quiet=quiet) as report:
            folders = write_painted(files, out, spacing=made.spacing, progress=report, **where)
        print(f"{len(folders)} painted heads in {out}, {folders[0].name} to {folders[-1].name}")
        return
    # The words after `--contrasts t1` that belong to no option are contrasts too.
    names = [name for text in [made.contrasts, *(more or [])] for name in text.split(",") if name]
    settings = Settings(spacing=made.spacing, lesions=made.lesions, snr=made.snr)
    with progress("synthetic subjects", quiet=quiet) as report:
        folders = write_subjects(
            read_maps(made.maps), out, contrasts=names, settings=settings, progress=report, **where
        )
    print(f"{len(folders)} synthetic subjects in {out}, {folders[0].name} to {folders[-1].name}")
