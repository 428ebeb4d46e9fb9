"""SimpleITK: origin, spacing and direction are taken as they are, and the result has its own."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from scorefusion import Pipeline


def main() -> None:
    """Translate a SimpleITK image, and look at where its voxels lie."""
    voxels = np.random.default_rng(0).uniform(200, 900, (6, 8, 8)).astype(np.float32)  # [k, j, i]
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing((3.0, 3.0, 4.0))
    image.SetOrigin((-12.0, 20.0, 5.0))
    image.SetDirection((0, 1, 0, 1, 0, 0, 0, 0, -1))

    fine = Pipeline("t1-sr4", dtype="float32")(image, steps=1).native()
    print(type(fine).__name__, fine.GetSize(), "spacing", fine.GetSpacing(), "origin", fine.GetOrigin())
    # The centre of a block of 4 × 4 × 4 fine voxels is the centre of the coarse voxel that it fills.
    here = fine.TransformContinuousIndexToPhysicalPoint((1.5, 1.5, 1.5))
    print(np.allclose(here, image.TransformIndexToPhysicalPoint((0, 0, 0))))


if __name__ == "__main__":
    main()
