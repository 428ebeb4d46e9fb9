"""``scorefusion data``: what is in a dataset's folder, and what of it can be used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument

from scorefusion.cli.options import SHARES, Only, Quiet, numbers, opt
from scorefusion.pipeline import Options

if TYPE_CHECKING:
    from scorefusion.data import DatasetConfig, Found


@dataclass
class Who:
    """The subjects to list."""

    layout: str = opt("auto, folder, csv, brats, hcp, ixi, fastmri, bids (docs/data.md).", "auto")
    contrasts: str = opt("What each subject must have, with commas between; else what it has.", "")
    choose: list[str] | None = opt(
        "Of several files of a contrast take those with this in their path; repeat it."
    )
    split: str = opt("all, train, validation, test.", "all")
    fractions: str = opt("Of train, validation and test.", "0.8,0.1,0.1")
    seed: int = opt("Of the splits.", 0)
    resample: bool = opt("Volumes on other grids are to be resampled, not refused.", False)
    tolerance: float = opt("How far corners of one grid may be apart, in mm.", 0.01)
    read: bool = opt("Read every voxel, not the headers only.", False)
    write: Path | None = opt("Write the subjects, with their splits, as a CSV to train on.")


def data(
    root: Annotated[Path, Argument(help="A folder, a CSV or TSV of subjects, or a NIfTI file.")],
    who: Who,
    reading: Annotated[Options, Only("nan", "assume_affine")],
    quiet: Quiet = False,
) -> None:
    """List who is in a dataset: contrasts, grid and split of each, and who is refused, why, and the fix.

    \b
    Examples:
      scorefusion data BraTS2023-GLI-Training --contrasts t1,t2,flair
      scorefusion data IXI --contrasts t1,t2 --resample --read
      scorefusion data my_bids --contrasts t1 --choose run-1 --write subjects.csv
    """
    from scorefusion.cli.console import progress, require_stdout
    from scorefusion.data import DatasetConfig, find_subjects, write_table
    from scorefusion.errors import BadInput
    from scorefusion.io import check_output
    from scorefusion.models.config import parse

    values = {name: getattr(who, name) for name in ("layout", "split", "seed", "tolerance")} | {
        "root": str(root),
        "contrasts": [name.strip() for name in who.contrasts.split(",") if name.strip()],
        "choose": who.choose or [],
        "fractions": numbers("--fractions", who.fractions, signed=True, kind=SHARES),
        "on_misaligned": "resample" if who.resample else "refuse",
        **reading,
    }
    config = parse(DatasetConfig, values, root)
    if who.write is not None:
        check_output(who.write, (".csv",), [root])
    with progress("reading" if who.read else "checking", quiet=quiet) as report:
        found = find_subjects(config, voxels=who.read, progress=report)
    print(_text(found, config))
    if who.write is not None:
        if found.people_unknown:
            file, _, problem = found.people_unknown.partition(": ")
            raise BadInput(file, problem, "A table to train on needs them.")
        write_table(who.write, found.subjects, found.splits)
    require_stdout()


def _text(found: Found, config: DatasetConfig) -> str:
    from scorefusion.io import read_grid
    from scorefusion.models.domain import in_order

    root = Path(config.root).expanduser()
    rows = [("subject", "person", "split", "contrasts", "voxels (x, y, z)", "mm")]
    for subject in found.subjects:
        names = [*config.contrasts, *in_order(subject.files.keys() - set(config.contrasts))]
        grid = read_grid(subject.files[names[0]], assume_affine=config.assume_affine)
        shape = " × ".join(str(n) for n in grid.shape)
        voxel = " × ".join(f"{size:.4g}" for size in grid.voxel)
        split = "unknown" if found.people_unknown else found.splits[subject.group]
        rows.append((subject.name, subject.group, split, " ".join(names), shape, voxel))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    people = len({subject.group for subject in found.subjects})
    who = "people unknown" if found.people_unknown else f"of {people} {'person' if people == 1 else 'people'}"
    lines = [f"layout {found.layout}: {len(found.subjects)} subjects {who}, {len(found.refused)} refused", ""]
    for row in rows:
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if found.refused:
        lines += ["", "refused:", *(f"  {refusal}" for refusal in found.refused)]
    if found.people_unknown:
        lines += ["", found.people_unknown]
    if found.ignored:
        named = [str(file.relative_to(root) if file.is_relative_to(root) else file) for file in found.ignored]
        more = [f"  and {len(named) - 20} more"] if len(named) > 20 else []
        count = "1 other file is" if len(named) == 1 else f"{len(named)} other files are"
        lines += ["", f"{count} left out, by name:", *(f"  {name}" for name in named[:20]), *more]
    return "\n".join(lines)
