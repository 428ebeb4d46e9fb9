"""File formats of volumes: a class with three methods each, and one registry of them by a file's ending.

To add a format, write a subclass of :class:`~scorefusion.io.header.Format` and list it in ``FORMATS``.
"""

import os
from pathlib import Path
from typing import Any

from scorefusion.errors import BadInput, ScoreFusionError
from scorefusion.io.atomic import check_output
from scorefusion.io.header import DAMAGED, MAX_VOXELS, Format, zstd
from scorefusion.io.nifti_format import Nifti, Pair
from scorefusion.io.other_formats import MetaImage, Mgh, Nrrd
from scorefusion.io.placeholders import check_fetched

FORMATS: tuple[Format, ...] = (Nifti(), Pair(), Mgh(), Nrrd(), MetaImage())
"""What is read and written; files without a known ending are read by the first."""

WRITABLE = tuple(ending for format in FORMATS for ending in format.endings)
READABLE = WRITABLE + tuple(ending for format in FORMATS for ending in format.detached)
LISTED = tuple(ending for ending in READABLE if ending not in (".img", ".img.gz"))
"""Endings of outputs, of inputs, and of the files of a folder that are one volume each."""


def format_of(path: str | os.PathLike[str]) -> Format:
    """Return the format of a file by its name; NIfTI where the ending says nothing."""
    name = Path(path).name.lower()
    return next((f for f in FORMATS if name.endswith(f.endings + f.detached)), FORMATS[0])


def volume_stem(name: str) -> str:
    """Return a file's name without the ending of a volume."""
    endings = sorted((ending for ending in READABLE if name.lower().endswith(ending)), key=len)
    return name[: -len(endings[-1])] if endings else name


def read_header(path: Path, max_voxels: int = MAX_VOXELS) -> Any:
    """Read a volume's header, as NIfTI's; BadInput for a file that is not one 3D volume, or too large."""
    return _checked_format(path).read_header(path, max_voxels)


def read_image(path: Path, max_voxels: int = MAX_VOXELS) -> Any:
    """Read a volume as a nibabel NIfTI image."""
    return _checked_format(path).read(path, max_voxels)


def companions(path: Path) -> tuple[Path, ...]:
    """Return the further files of a volume, such as the .img of a .hdr; none where it is damaged."""
    try:
        return format_of(path).companions(path)
    except (ScoreFusionError, OSError):
        return ()


def check_volume_output(path: Path, inputs: Any = ()) -> Path:
    """Check before any work is done that a volume can be written, as :func:`scorefusion.io.check_output`.

    Raises BadInput also for a format that is only read, and as :func:`check_ending`.
    """
    form = format_of(path)
    if path.name.lower().endswith(form.detached):
        problem = f"cannot be written: {form.name} with its voxels in a second file is read alone"
        raise BadInput(path, problem, f"End its name in {form.single}.")
    final = check_output(path, WRITABLE, inputs)
    check_ending(final.name)
    return final


def check_ending(ending: str) -> None:
    """Raise a ScoreFusionError that names an extra if the module that writes such files is missing."""
    if ending.lower().endswith(".zst"):
        zstd()


def _checked_format(path: Path) -> Format:
    check_fetched(path)
    if not path.exists():
        if not path.name.lower().endswith((".img", ".img.gz")):  # its header may exist
            raise BadInput(path, "does not exist", "Check the name.")
    elif not path.is_file():
        raise BadInput(path, "is not a file", "Give a volume, such as a NIfTI file (.nii or .nii.gz).")
    elif not path.stat().st_size:
        raise BadInput(path, "is empty (0 bytes)", DAMAGED)
    return format_of(path)
