"""Write label maps cropped to the head and packed, to train from on a machine that files are sent to.

    python tools/small_labels.py maps/ -o small/

A run draws the same images of these as of the maps: `scorefusion train ... --labels small/`. The numbers of
structures on the right become those on the left, as training reads them. About 0.5 MB a head.
"""

from __future__ import annotations

import argparse
import gzip
import sys
from pathlib import Path

import nibabel as nib
import numpy as np

from scorefusion.data.synth import label_files, read_label_map
from scorefusion.errors import ScoreFusionError
from scorefusion.io.atomic import written_beside


def main() -> int:
    """Pack what the command line asks for; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of FreeSurfer-numbered maps")
    parser.add_argument("-o", "--out", type=Path, required=True, help="another folder")
    given = parser.parse_args()
    try:
        files = label_files(given.folder)
        given.out.mkdir(parents=True, exist_ok=True)
        if given.out.resolve() == given.folder.resolve():
            raise ScoreFusionError(f"{given.out} holds the maps; name another folder")
        total = sum(pack(file, given.out) for file in files)
    except ScoreFusionError as error:
        print(f"small_labels: {error}", file=sys.stderr)
        return 2
    print(f"{len(files)} maps, {total / 1e6:.1f} MB in {given.out}")
    return 0


def pack(file: Path, out: Path) -> int:
    """Write one map, the smallest that gzip makes it; its bytes."""
    labels = read_label_map(file)
    numbers = np.array(labels.numbers, np.int16)[labels.values]
    image = nib.Nifti1Image(numbers.transpose(2, 1, 0), np.diag([*labels.spacing[::-1], 1.0]))
    content = gzip.compress(image.to_bytes(), 9, mtime=0)
    name = file.name.removesuffix(".gz").removesuffix(".nii").removesuffix(".mgz")
    with written_beside(out / f"{name}.nii.gz") as beside:
        beside.write_bytes(content)
    return len(content)


if __name__ == "__main__":
    sys.exit(main())
