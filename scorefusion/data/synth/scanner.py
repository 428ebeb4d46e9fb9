"""An image of a head: each tissue's signal, shaded by the coil, with the noise of a magnitude image."""

from __future__ import annotations

import numpy as np

from scorefusion.data.synth.anatomy import Anatomy
from scorefusion.data.synth.fields import Field
from scorefusion.data.synth.signal import TISSUES, Sequence, Tissue

TOP = 1000.0
"""The brightest voxels of an image, but for one in a thousand, are stored as this."""


class Body:
    """An individual's relaxation times: by tissue, and varying smoothly within each.

    Args:
        anatomy: the head.
        random: the individual's own stream.
    """

    def __init__(self, anatomy: Anatomy, random: np.random.Generator) -> None:
        self.anatomy = anatomy
        self.tissues = {name: _individual(tissue, random) for name, tissue in TISSUES.items()}
        extent = anatomy.grid.extent
        self._fields = [
            [(0.02, Field.draw(random, extent, 30.0)), (0.01, Field.draw(random, extent, 5.0))]
            for _ in range(3)
        ]
        deep = ((anatomy.depth - 12.0) / 12.0).clip(0.0, 1.0)
        self._nuclei = (deep * anatomy.mixed).reshape(-1)

    def signal(self, sequence: Sequence) -> np.ndarray:
        """Noiseless signal of a sequence, float32 ``[D, H, W]``: the sum over the tissues in each voxel."""
        grid = self.anatomy.grid
        varied = [
            1.0 + sum(np.float32(sd) * field.on(grid).reshape(-1) for sd, field in fields)
            for fields in self._fields
        ]
        image = np.zeros(int(np.prod(grid.shape)), np.float32)
        for name, fraction in self.anatomy.fractions.items():
            part = fraction.reshape(-1)
            at = np.flatnonzero(part)
            tissue = self.tissues[name]
            t1, t2, pd = (
                np.float32(value) * field[at]
                for value, field in zip((tissue.t1, tissue.t2, tissue.pd), varied, strict=True)
            )
            if name == "gm":
                # Deep nuclei hold fibres: towards white matter, as far as the template has both there.
                nuclei = self._nuclei[at]
                t1 *= 1 - np.float32(0.35) * nuclei
                t2 *= 1 - np.float32(0.35) * nuclei
                pd *= 1 - np.float32(0.15) * nuclei
            image[at] += part[at] * sequence.signal(t1, t2, pd)
        return image.reshape(grid.shape)


def scan(
    body: Body, sequence: Sequence, random: np.random.Generator, *, snr: float, bias: float
) -> np.ndarray:
    """One image.

    Args:
        body: whose.
        sequence: how.
        random: the contrast's own stream.
        snr: mean signal of the brain over the noise's standard deviation; 0 for none.
        bias: standard deviation of the logarithm of the coil's shading.

    Returns:
        float32 ``[D, H, W]``, scaled to ``TOP``.
    """
    image = body.signal(sequence)
    fractions = body.anatomy.fractions
    brain = fractions["gm"] + fractions["wm"]
    mean = float(np.vdot(brain, image) / max(float(brain.sum()), 1e-6))
    grid = body.anatomy.grid
    image *= np.exp(np.float32(bias) * Field.draw(random, grid.extent, 70.0).on(grid))
    if snr > 0:
        image = rician(image, mean / snr, random)
    return image * np.float32(TOP / max(float(np.quantile(image[::2, ::2, ::2], 0.999)), 1e-9))


def rician(image: np.ndarray, sigma: float, random: np.random.Generator) -> np.ndarray:
    """The magnitude of ``image`` plus complex Gaussian noise of ``sigma`` in each part; float32.

    Gudbjartsson and Patz, Magn. Reson. Med. 34 (1995) 910.
    """
    real = random.standard_normal(image.shape, np.float32) * np.float32(sigma) + image
    imaginary = random.standard_normal(image.shape, np.float32) * np.float32(sigma)
    return np.hypot(real, imaginary)


def _individual(tissue: Tissue, random: np.random.Generator) -> Tissue:
    factors = np.exp(random.normal(0, tissue.spread, 3))
    t1, t2, pd = (
        float(f) * value for f, value in zip(factors, (tissue.t1, tissue.t2, tissue.pd), strict=True)
    )
    return Tissue(t1, t2, pd, 0.0)
