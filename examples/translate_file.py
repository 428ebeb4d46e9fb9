"""A NIfTI file in, its translation out: python translate_file.py IN.nii.gz OUT.nii.gz [steps]."""

from __future__ import annotations

import sys

from scorefusion import Pipeline, ScoreFusionError


def main(source: str, target: str, steps: str = "6") -> None:
    """Translate a file by the bundled model."""
    pipeline = Pipeline("t1-sr4", dtype="float32")
    try:
        result = pipeline(source, steps=int(steps), seed=0)
    except ScoreFusionError as error:  # a bad file, a wrong name: the message says what to do
        sys.exit(str(error))
    result.save(target)
    print(f"{result.volume.shape} voxels in {result.timings['total']:.1f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
