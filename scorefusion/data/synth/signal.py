"""What a scanner shows of a tissue: relaxation times, sequences and their signal equations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from scorefusion.errors import ScoreFusionError, unknown_name


@dataclass(frozen=True)
class Tissue:
    """Relaxation of a tissue at 3 T.

    Attributes:
        t1: longitudinal relaxation time in ms.
        t2: transverse relaxation time in ms.
        pd: proton density, water 1.
        spread: standard deviation between people of each of the three, relative.
    """

    t1: float
    t2: float
    pd: float
    spread: float = 0.03


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
    """A pulse sequence; times in ms.

    Attributes:
        kind: which signal equation.
        tr: repetition time.
        te: echo time.
        ti: inversion time, of an inversion recovery.
        flip: flip angle in degrees, of a spoiled gradient echo.
    """

    kind: Literal["spin-echo", "inversion-recovery", "gradient-echo"]
    tr: float
    te: float
    ti: float = 0.0
    flip: float = 90.0

    def signal(self, t1: np.ndarray | float, t2: np.ndarray | float, pd: np.ndarray | float) -> np.ndarray:
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
"""The sequences by name."""


def sequences_named(names: tuple[str, ...]) -> dict[str, Sequence]:
    """Look sequences up.

    Raises:
        ScoreFusionError: for an unknown name, a name given twice, or no name.
    """
    for name in names:
        if name not in SEQUENCES:
            raise unknown_name("contrast", name, SEQUENCES)
    if not names or len(set(names)) < len(names):
        raise ScoreFusionError(f"name each contrast once, at least one; got {list(names)}")
    return {name: SEQUENCES[name] for name in names}


def spin_echo(
    t1: np.ndarray | float, t2: np.ndarray | float, pd: np.ndarray | float, *, tr: float, te: float
) -> np.ndarray:
    """PD (1 - exp(-TR/T1)) exp(-TE/T2), for TE much shorter than TR; times in ms."""
    return pd * (1 - np.exp(-tr / t1)) * np.exp(-te / t2)


def inversion_recovery(
    t1: np.ndarray | float, t2: np.ndarray | float, pd: np.ndarray | float, *, tr: float, te: float, ti: float
) -> np.ndarray:
    """PD abs(1 - 2 exp(-TI/T1) + exp(-TR/T1)) exp(-TE/T2), a magnitude image; times in ms."""
    return pd * np.abs(1 - 2 * np.exp(-ti / t1) + np.exp(-tr / t1)) * np.exp(-te / t2)


def gradient_echo(
    t1: np.ndarray | float,
    t2: np.ndarray | float,
    pd: np.ndarray | float,
    *,
    tr: float,
    te: float,
    flip: float,
) -> np.ndarray:
    """PD sin(a) (1 - E) / (1 - cos(a) E) exp(-TE/T2) with E = exp(-TR/T1), spoiled; T2 stands for T2*."""
    angle, recovered = np.deg2rad(flip), np.exp(-tr / t1)
    return pd * np.sin(angle) * (1 - recovered) / (1 - np.cos(angle) * recovered) * np.exp(-te / t2)
