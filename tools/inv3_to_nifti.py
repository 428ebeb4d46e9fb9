"""Make a NIfTI file of an InVesalius project: what the head CT of `fetch_data.py ct` comes as.

    python tools/inv3_to_nifti.py data/cranium.inv3 data/cranium.nii.gz

A project is a tar archive of a property list, main.plist, and the volume it names: raw little-endian numbers
in the order z, y, x. Rows of an axial slice are taken to run from posterior to anterior, slices from inferior
to superior, as the head lies in this one; columns from right to left is what InVesalius' readers make of an
axial series, and nothing in the file says so.
"""

from __future__ import annotations

import plistlib
import sys
import tarfile
from pathlib import Path

import nibabel
import numpy as np

from scorefusion.errors import BadInput, ScoreFusionError
from scorefusion.io import save_image


def main() -> int:
    """Convert the file that the command line names; returns the exit status."""
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        image = read_project(Path(sys.argv[1]))
        save_image(image, sys.argv[2])
    except ScoreFusionError as error:
        print(f"inv3_to_nifti: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"{sys.argv[2]}: {' x '.join(str(n) for n in image.shape)} voxels")
    return 0


def read_project(path: Path) -> nibabel.Nifti1Image:
    """The volume of a project, in its own units (Hounsfield for CT), with a scanner affine in mm.

    Raises:
        BadInput: for anything but an archive with main.plist and the volume that it describes.
    """
    try:
        with tarfile.open(path) as archive:
            files = {Path(member.name).name: member for member in archive.getmembers() if member.isfile()}
            told = plistlib.loads(_content(archive, files["main.plist"]))
            raw = _content(archive, files[told["matrix"]["filename"]])
        dtype = np.dtype(told["matrix"]["dtype"]).newbyteorder("<")
        values = np.frombuffer(raw, dtype).reshape(told["matrix"]["shape"])
        dx, dy, dz = (float(length) for length in told["spacing"])
    except (
        OSError,
        tarfile.TarError,
        plistlib.InvalidFileException,
        KeyError,
        TypeError,
        ValueError,
    ) as error:
        problem = f"is not an InVesalius project ({type(error).__name__}: {error})"
        raise BadInput(path, problem, "Fetch it again with tools/fetch_data.py ct.") from None
    depth, height, width = values.shape
    affine = np.diag([-dx, dy, dz, 1.0])
    affine[:3, 3] = -affine[:3, :3] @ (np.array([width, height, depth]) - 1) / 2
    image = nibabel.Nifti1Image(values.transpose(2, 1, 0).astype(dtype.newbyteorder("=")), affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    image.header.set_xyzt_units("mm")
    return image


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None  # a regular file
    return file.read()


if __name__ == "__main__":
    sys.exit(main())
