"""Arrays and tensors: [i, j, k] and an affine to RAS+ millimetres, as nibabel has them."""

from __future__ import annotations

import numpy as np
import torch

from scorefusion import Pipeline


def main() -> None:
    """Translate an array, and the same voxels as a tensor."""
    ball = np.linalg.norm(np.indices((8, 8, 8)) - 3.5, axis=0) < 3
    array = ball * np.random.default_rng(0).uniform(200, 900, ball.shape)
    affine = np.diag([4.0, 4.0, 4.0, 1.0])  # 4 mm voxels along R, A and S
    pipeline = Pipeline("t1-sr4", dtype="float32")

    result = pipeline(array, affine=affine, steps=1)
    fine = result.native()  # what came in comes out: here an array
    print(type(fine).__name__, fine.shape, "voxels of", result.affine[0, 0], "mm")

    same = pipeline(torch.from_numpy(array), affine=affine, steps=1).native()
    print(type(same).__name__, "with the same bits:", bool((same.numpy() == fine).all()))


if __name__ == "__main__":
    main()
