"""An image of a head: signal equations of each tissue, shaded by the coil, with a magnitude image's noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from scorefusion.data.synth.anatomy import Anatomy, Field
from scorefusion.errors import ScoreFusionError, unknown_name

Values = np.ndarray | float
TOP = 1000.0  #: the brightest voxels of an image, but for one in a thousand, are stored as this


@dataclass(frozen=True)
class Tissue:
    """Relaxation of a tissue at 3 T."""

    t1: float  #: longitudinal relaxation time in ms
    t2: float  #: transverse relaxation time in ms
    pd: float  #: proton density, water 1
    spread: float = 0.03  #: standard deviation between people of each of the three, relative


TISSUES = {
    "csf": Tissue(4000.0, 1800.0, 1.0, 0.02),
    "gm": Tissue(1331.0, 110.0, 0.84),
    "wm": Tissue(832.0, 80.0, 0.70),
    "bone": Tissue(220.0, 0.4, 0.2),
    "marrow": Tissue(365.0, 133.0, 0.2, 0.1),
    "fat": Tissue(371.0, 133.0, 0.35, 0.1),
    "muscle": Tissue(1420.0, 32.0, 0.8, 0.05),
    "lesion": Tissue(1450.0, 180.0, 0.88, 0.08),
}
"""Brain: Wansapura et al., J. Magn. Reson. Imaging 9 (1999) 531; marrow, fat, muscle: Gold et al., Am. J.
Roentgenol. 183 (2004) 343. Proton densities, bone, fluid and lesions are round figures of the usual size; fat
and marrow keep the part of theirs that fat suppression leaves."""


@dataclass(frozen=True)
class Sequence:
    """A pulse sequence; times in ms."""

    kind: Literal["spin-echo", "inversion-recovery", "gradient-echo"]  #: which signal equation
    tr: float  #: repetition time
    te: float  #: echo time
    ti: float = 0.0  #: inversion time, of an inversion recovery
    flip: float = 90.0  #: flip angle in degrees, of a spoiled gradient echo

    def signal(self, t1: Values, t2: Values, pd: Values) -> Any:
        """Magnitude for relaxation times in ms and a proton density; any shapes that broadcast."""
        if self.kind == "spin-echo":
            return spin_echo(t1, t2, pd, tr=self.tr, te=self.te)
        if self.kind == "inversion-recovery":
            return inversion_recovery(t1, t2, pd, tr=self.tr, te=self.te, ti=self.ti)
        return gradient_echo(t1, t2, pd, tr=self.tr, te=self.te, flip=self.flip)


SEQUENCES = {
    "t1": Sequence("gradient-echo", tr=18.0, te=5.0, flip=30.0),
    "t1ir": Sequence("inversion-recovery", tr=2500.0, te=10.0, ti=1100.0),
    "t2": Sequence("spin-echo", tr=5000.0, te=100.0),
    "pd": Sequence("spin-echo", tr=5000.0, te=15.0),
    "flair": Sequence("inversion-recovery", tr=9000.0, te=100.0, ti=2500.0),
}


def sequences_named(names: tuple[str, ...]) -> dict[str, Sequence]:
    """Look sequences up."""
    for name in names:
        if name not in SEQUENCES:
            raise unknown_name("contrast", name, SEQUENCES)
    if not names or len(set(names)) < len(names):
        raise ScoreFusionError(f"name each contrast once, at least one; got {list(names)}")
    return {name: SEQUENCES[name] for name in names}


def spin_echo(t1: Values, t2: Values, pd: Values, *, tr: float, te: float) -> Any:
    """PD (1 - exp(-TR/T1)) exp(-TE/T2), for TE much shorter than TR; times in ms."""
    return pd * (1 - np.exp(-tr / t1)) * np.exp(-te / t2)


def inversion_recovery(t1: Values, t2: Values, pd: Values, *, tr: float, te: float, ti: float) -> Any:
    """PD abs(1 - 2 exp(-TI/T1) + exp(-TR/T1)) exp(-TE/T2), a magnitude image; times in ms."""
    return pd * np.abs(1 - 2 * np.exp(-ti / t1) + np.exp(-tr / t1)) * np.exp(-te / t2)


def gradient_echo(t1: Values, t2: Values, pd: Values, *, tr: float, te: float, flip: float) -> Any:
    """PD sin(a) (1 - E) / (1 - cos(a) E) exp(-TE/T2) with E = exp(-TR/T1), spoiled; T2 stands for T2*."""
    angle, recovered = np.deg2rad(flip), np.exp(-tr / t1)
    return pd * np.sin(angle) * (1 - recovered) / (1 - np.cos(angle) * recovered) * np.exp(-te / t2)


class Body:
    """An individual's relaxation times: by tissue, and varying smoothly within each."""

    def __init__(self, anatomy: Anatomy, random: np.random.Generator) -> None:
        self.anatomy = anatomy
        #: T1, T2 and proton density of each
        self.tissues = {
            name: np.exp(random.normal(0, tissue.spread, 3)) * (tissue.t1, tissue.t2, tissue.pd)
            for name, tissue in TISSUES.items()
        }
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
            values = zip(self.tissues[name], varied, strict=True)
            t1, t2, pd = (np.float32(value) * field[at] for value, field in values)
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
    """One image, float32 ``[D, H, W]``, scaled to ``TOP``, from the contrast's own stream."""
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
