"""How bright structures are: in one image of any contrast, or in several contrasts of one body."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from scorefusion.data.synth import make
from scorefusion.data.synth.make import TISSUES
from scorefusion.data.synth.structures import DEEP, OUTSIDE, tissue
from scorefusion.errors import unknown_name

Random = np.random.Generator
BRAIN = ("wm", "gm", "csf")


def _t1_gradient_echo(random: Random) -> make.Sequence:
    tr, te, flip = random.uniform(10, 30), random.uniform(2, 8), random.uniform(18, 35)
    return make.Sequence("gradient-echo", tr=tr, te=te, flip=flip)


def _t1_inversion_recovery(random: Random) -> make.Sequence:
    tr, te, ti = random.uniform(2000, 3000), random.uniform(3, 12), random.uniform(800, 1200)
    return make.Sequence("inversion-recovery", tr=tr, te=te, ti=ti)


def _t2(random: Random) -> make.Sequence:
    return make.Sequence("spin-echo", tr=random.uniform(3000, 7000), te=random.uniform(75, 130))


def _short_echo(random: Random) -> make.Sequence:
    return make.Sequence("spin-echo", tr=random.uniform(400, 5000), te=random.uniform(8, 25))


def _flair(random: Random) -> make.Sequence:
    tr, te, ti = random.uniform(7000, 11000), random.uniform(80, 150), random.uniform(2100, 2700)
    return make.Sequence("inversion-recovery", tr=tr, te=te, ti=ti)


def _usual_t2(random: Random) -> make.Sequence:
    return make.Sequence("spin-echo", tr=random.uniform(2500, 5000), te=random.uniform(75, 105))


def _usual_inversion_recovery(random: Random) -> make.Sequence:
    """With grey matter brighter than fluid, whose sign a magnitude image does not show."""
    tr, te, ti = random.uniform(2000, 3000), random.uniform(3, 12), random.uniform(1000, 1250)
    return make.Sequence("inversion-recovery", tr=tr, te=te, ti=ti)


def _pd(random: Random) -> make.Sequence:
    return make.Sequence("spin-echo", tr=random.uniform(2000, 5000), te=random.uniform(8, 25))


def _usual_flair(random: Random) -> make.Sequence:
    """With the inversion time that leaves least of fluid."""
    tr, te, fluid = random.uniform(7000, 11000), random.uniform(80, 150), TISSUES["csf"].t1
    ti = fluid * np.log(2 / (1 + np.exp(-tr / fluid))) * random.uniform(0.96, 1.04)
    return make.Sequence("inversion-recovery", tr=tr, te=te, ti=float(ti))


Draw = Callable[[Random], make.Sequence]
ANY: tuple[Draw, ...] = (_t1_gradient_echo, _t1_inversion_recovery, _t2, _short_echo, _flair)
#: sequences by the contrast that a model names
FAMILIES: dict[str, tuple[Draw, ...]] = {
    "t1": (_t1_gradient_echo, _usual_inversion_recovery),
    "t2": (_usual_t2,),
    "pd": (_pd,),
    "flair": (_usual_flair,),
}


def require_known(contrasts: Sequence[str]) -> None:
    """Raise ScoreFusionError for a contrast that no sequence is known for."""
    for name in contrasts:
        if name not in FAMILIES:
            raise unknown_name("contrast of label maps", name, FAMILIES)


class Look(Protocol):
    """Draws the brightness of what an image shows; C contrasts, each relative to its brightest structure."""

    def brightness(self, numbers: Sequence[int], random: Random) -> np.ndarray:
        """Of each structure, float32 ``[C, n]`` from 0 to about 1; the first is the background."""

    def part(self, kind: str, random: Random) -> np.ndarray:
        """Of a part of a tissue, relative to the rest of it, ``[C]``."""

    def texture(self) -> np.ndarray:
        """Relative change with a unit of texture, ``[C]``."""

    def lesion(self, random: Random) -> np.ndarray:
        """Of a lesion, ``[C]``."""

    def vessel(self, random: Random) -> np.ndarray:
        """Of vessels, ``[C]``."""


@dataclass(frozen=True)
class AnyContrast:
    """One image: structures as bright as they come, or, with probability ``sequence``, as in a sequence."""

    sequence: float

    def brightness(self, numbers: Sequence[int], random: Random) -> np.ndarray:
        """Of each structure, float32 ``[1, n]``."""
        return brightness(numbers, random, self.sequence)[None]

    def part(self, kind: str, random: Random) -> np.ndarray:
        """Of a part of a tissue, ``[1]``."""
        return np.array([np.exp(random.normal(0, 0.15))])

    def texture(self) -> np.ndarray:
        """The texture itself."""
        return np.ones(1)

    def lesion(self, random: Random) -> np.ndarray:
        """Anything from black to brighter than all else, ``[1]``."""
        return np.array([random.uniform(0.0, 1.2)])

    def vessel(self, random: Random) -> np.ndarray:
        """Very bright or very dark, ``[1]``."""
        return np.array([random.choice([random.uniform(0.8, 1.3), random.uniform(0, 0.2)])])


def brightness(numbers: Sequence[int], random: Random, sequence: float) -> np.ndarray:
    """Draw a brightness for each structure, float32 ``[n]`` from 0 to about 1."""
    means = random.uniform(0.05, 1.0, len(numbers))
    means[0] = 0.0 if random.random() < 0.8 else random.uniform(0, 0.15)
    if random.random() < sequence:
        drawn = ANY[int(random.integers(len(ANY)))](random)
        for place, number in enumerate(numbers[1:], start=1):
            kind = _kind(number, random)
            values = [drawn.signal(t.t1, t.t2, t.pd) for t in (TISSUES[k] for k in ("gm", "wm", kind))]
            white = _white(number, random)
            value = values[2] if not white else (1 - white) * values[0] + white * values[1]
            means[place] = value * np.exp(random.normal(0, 0.06 if kind in BRAIN else 0.3))
        means[1:] = 0.02 + 0.98 * means[1:] / max(means[1:].max(), 1e-6)
    return means.astype(np.float32)


def _kind(number: int, random: Random) -> str:
    """The tissue of a structure; one that is drawn, outside the brain."""
    kind = tissue(number)
    return OUTSIDE[int(random.integers(len(OUTSIDE)))] if kind == "outside" else kind


def _white(number: int, random: Random) -> float:
    """The share of white matter in a deep nucleus."""
    return DEEP.get(number, 0.0) + (random.uniform(0, 0.3) if number in DEEP else 0.0)


class Body:
    """Several contrasts of one body: relaxation times of each structure, a sequence of each contrast's kind.

    Every change of a tissue (from head to head, structure to structure, within a structure) is mostly one of
    its water, which makes T1 and T2 longer together: what is darker in T1 is brighter in T2.

    Args:
        contrasts: names of :data:`FAMILIES`.
        random: what is drawn for the whole head.

    Raises:
        ScoreFusionError: for a contrast that no sequence is known for.
    """

    def __init__(self, contrasts: Sequence[str], random: Random) -> None:
        require_known(contrasts)
        self.contrasts, self.count = tuple(contrasts), len(contrasts)
        kinds = [FAMILIES[name] for name in contrasts]
        self.sequences = [family[int(random.integers(len(family)))](random) for family in kinds]
        #: T1, T2 and proton density of each tissue
        self.tissues = {
            name: np.array([each.t1, each.t2, each.pd]) * _changed(0.05, random)
            for name, each in TISSUES.items()
        }
        for name in ("fat", "marrow"):  # suppressed in part
            self.tissues[name][2] *= random.uniform(1.0, 2.0)
        self._top = np.ones(self.count)

    def signals(self, times: np.ndarray) -> np.ndarray:
        """Signal ``[C]`` of T1, T2 and proton density ``[3]``."""
        return np.array([sequence.signal(*times) for sequence in self.sequences])

    def brightness(self, numbers: Sequence[int], random: Random) -> np.ndarray:
        """Of each structure, float32 ``[C, n]``."""
        means = np.zeros((self.count, len(numbers)))
        for place, number in enumerate(numbers[1:], start=1):
            kind = _kind(number, random)
            if number in DEEP:
                white = _white(number, random)
                mixed = [self.signals(self.tissues[name] * _changed(0.06, random)) for name in ("gm", "wm")]
                iron = self.signals(self.tissues["gm"] * (1, random.uniform(0.7, 1.0), 1))
                iron /= self.signals(self.tissues["gm"])
                means[:, place] = ((1 - white) * mixed[0] + white * mixed[1]) * iron
            else:
                change = _changed({"csf": 0.03, "gm": 0.06, "wm": 0.06}.get(kind, 0.2), random)
                means[:, place] = self.signals(self.tissues[kind] * change)
        # Heads are normalised by a percentile, and fat, of which there is little, may be brighter than it.
        brain = [place for place, number in enumerate(numbers) if tissue(number) in BRAIN]
        top, most = means.max(axis=1), means[:, brain].max(axis=1, initial=0.0) * random.uniform(1.1, 1.8)
        self._top = np.maximum(np.minimum(top, most) if brain else top, 1e-6)
        means[:, 1:] = 0.02 + 0.98 * np.minimum(means[:, 1:] / self._top[:, None], 1.0)
        if random.random() < 0.3:
            means[:, 0] = random.uniform(0, 0.12, self.count)
        return means.astype(np.float32)

    def part(self, kind: str, random: Random) -> np.ndarray:
        """Of a part of a tissue, ``[C]``."""
        times = self.tissues["muscle" if kind == "outside" else kind]
        ratio: np.ndarray = self.signals(times * _changed(0.12, random)) / self.signals(times)
        return ratio

    def texture(self) -> np.ndarray:
        """Relative change of grey matter with its water, ``[C]``."""
        times, little = self.tissues["gm"], 0.02
        change: np.ndarray = (self.signals(times * _WATER**little) / self.signals(times) - 1) / little
        return change

    def lesion(self, random: Random) -> np.ndarray:
        """Of a lesion: more water than grey matter, for the most part; a cyst; or anything, ``[C]``."""
        chance = random.random()
        if chance < 0.2:
            return random.uniform(0.0, 1.2, self.count)
        kind, sd = ("csf", 0.05) if chance < 0.35 else ("lesion", 0.3)
        value: np.ndarray = self.signals(self.tissues[kind] * _changed(sd, random)) / self._top
        return value

    def vessel(self, random: Random) -> np.ndarray:
        """Of vessels: dark where blood has left before the echo; in T1 bright or dark, ``[C]``."""
        inflow = random.random() < 0.5
        return np.array(
            [random.uniform(0.8, 1.3) if inflow and name == "t1" else random.uniform(0, 0.2)
             for name in self.contrasts]
        )  # fmt: skip


_WATER = np.exp([1.0, 1.0, 0.3])  #: how T1, T2 and proton density change with a tissue's water


def _changed(sd: float, random: Random) -> np.ndarray:
    """Factors of T1, T2 and proton density: of water, and a third as large of each alone."""
    factors: np.ndarray = _WATER ** random.normal(0, sd) * np.exp(random.normal(0, sd / 3, 3))
    return factors
