"""Noise schedules and the noise levels that a solver visits.

Everything is in variance-preserving coordinates, x_t = sqrt(abar) x0 + sqrt(1 - abar) z. EDM's noise level is
sigma = sqrt((1 - abar) / abar), with x_sigma = x_t sqrt(1 + sigma^2). All arithmetic is float64 in numpy: a
schedule is a small table, computed once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from scorefusion.errors import ScoreFusionError, unknown_name

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def sigma_to_abar(sigma: npt.ArrayLike) -> FloatArray:
    """Return abar = 1 / (1 + sigma^2) for EDM noise levels sigma (any shape), as float64."""
    return 1.0 / (1.0 + np.square(np.asarray(sigma, np.float64)))


def abar_to_sigma(abar: npt.ArrayLike) -> FloatArray:
    """Return sigma = sqrt((1 - abar) / abar) for cumulative alphas in (0, 1] (any shape), as float64."""
    array = np.asarray(abar, np.float64)
    return np.sqrt((1.0 - array) / array)


def karras_sigmas(n: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> FloatArray:
    """Return n >= 1 noise levels from `sigma_max` down to `sigma_min` (Karras et al. 2022, equation 5).

    The closing zero is not included; with n = 1 the level is sigma_max. `rho` 1 is even steps of sigma;
    the larger, the more the levels crowd at the clean end, up to equal ratios for infinity; below 0 they
    crowd there still more, and -1 is even steps of 1/sigma.
    """
    if n < 1 or not 0.0 < sigma_min < sigma_max or rho == 0.0:
        raise ScoreFusionError(
            "Karras levels need n >= 1, 0 < sigma_min < sigma_max and rho other than 0; "
            f"got n={n}, sigma_min={sigma_min}, sigma_max={sigma_max}, rho={rho}"
        )
    ramp = np.linspace(0.0, 1.0, n)
    high, low = sigma_max ** (1.0 / rho), sigma_min ** (1.0 / rho)
    sigmas = (high + ramp * (low - high)) ** rho
    sigmas[0] = sigma_max
    if n > 1:
        sigmas[-1] = sigma_min
    return sigmas


@dataclass(frozen=True)
class Levels:
    """The noise levels a solver evaluates the network at, noisiest first."""

    abar: FloatArray  #: float64 [n], strictly increasing (less noise with every step), each in (0, 1)
    t: IntArray  #: int64 [n], the schedule's discrete step of each level, -1 where the level is continuous

    def __post_init__(self) -> None:
        abar = np.array(self.abar, np.float64)
        t = np.array(self.t, np.int64)
        if abar.ndim != 1 or abar.size < 1 or t.shape != abar.shape:
            raise ScoreFusionError(
                f"levels need equal one-dimensional abar and t, got {abar.shape} and {t.shape}"
            )
        if not (abar[0] > 0.0 and abar[-1] < 1.0 and np.all(np.diff(abar) > 0.0)):
            raise ScoreFusionError("levels need abar strictly increasing within (0, 1), noisiest first")
        abar.setflags(write=False)
        t.setflags(write=False)
        object.__setattr__(self, "abar", abar)
        object.__setattr__(self, "t", t)

    def __len__(self) -> int:
        return int(self.abar.size)

    @property
    def sigma(self) -> FloatArray:
        """EDM's noise level of each, float64 [n], decreasing."""
        return abar_to_sigma(self.abar)


class Spacing(Protocol):
    """Anything that can place n noise levels: a `Schedule`, or `Karras`."""

    @property
    def name(self) -> str:
        """What the spacing is called."""

    def respaced(self, n: int, start_abar: float | None = None) -> Levels:
        """Place n levels, from `start_abar` (or the noisiest there is) to the cleanest."""


@dataclass(frozen=True)
class Schedule:
    """A discrete schedule: abar after each of the steps t = 0 .. T-1."""

    abar: FloatArray  #: float64 [T], strictly decreasing in t, each in (0, 1)
    name: str = "custom"  #: what it is called in configs and messages

    def __post_init__(self) -> None:
        abar = np.array(self.abar, np.float64)
        if abar.ndim != 1 or abar.size < 1:
            raise ScoreFusionError(f"a schedule needs a one-dimensional abar, got shape {abar.shape}")
        if not (abar[0] < 1.0 and abar[-1] > 0.0 and np.all(np.diff(abar) < 0.0)):
            raise ScoreFusionError(f"schedule '{self.name}' needs abar strictly decreasing within (0, 1)")
        abar.setflags(write=False)
        object.__setattr__(self, "abar", abar)

    def __len__(self) -> int:
        return int(self.abar.size)

    def at(self, t: Sequence[int] | npt.ArrayLike) -> Levels:
        """Return the levels of the given steps, in any order, as noisiest first.

        Raises:
            ScoreFusionError: if a step is outside 0 .. T-1 or comes twice.
        """
        steps = np.sort(np.asarray(t, np.int64).reshape(-1))[::-1]
        if steps.size < 1 or steps[-1] < 0 or steps[0] >= len(self) or np.any(np.diff(steps) == 0):
            raise ScoreFusionError(
                f"steps of schedule '{self.name}' must be distinct and within 0..{len(self) - 1}, "
                f"got {steps.tolist()}"
            )
        return Levels(self.abar[steps], steps)

    def respaced(self, n: int, start_abar: float | None = None) -> Levels:
        """Place n levels evenly over the steps, both ends included; one level is the noisiest.

        Fifty of a thousand steps are round(linspace(0, 999, 50)): the authors' 50 timesteps.

        Args:
            n: number of levels, 1 .. T.
            start_abar: begin at the noisiest step whose abar is at least this (late start), not at T-1.

        Raises:
            ScoreFusionError: if there are not n steps to choose from.
        """
        last = len(self) - 1
        if start_abar is not None:
            last = int(np.count_nonzero(self.abar >= start_abar)) - 1
        if not 1 <= n <= last + 1:
            where = "" if start_abar is None else f" with abar at least {start_abar}"
            raise ScoreFusionError(
                f"cannot place {n} steps: schedule '{self.name}' has {last + 1} steps{where}"
            )
        return self.at(np.rint(np.linspace(last, 0, n)))

    def all(self, start_abar: float | None = None) -> Levels:
        """Return every step, or every step with abar at least `start_abar`, noisiest first."""
        return self.at(np.flatnonzero(self.abar >= (0.0 if start_abar is None else start_abar)))


@dataclass(frozen=True)
class Karras:
    """Continuous levels crowding at the clean end (Karras et al. 2022); see `karras_sigmas`."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    name: str = "karras"

    def respaced(self, n: int, start_abar: float | None = None) -> Levels:
        """Place n levels from sigma_max, or the sigma of `start_abar`, down to sigma_min."""
        sigma_max = self.sigma_max if start_abar is None else float(abar_to_sigma(start_abar))
        abar = sigma_to_abar(karras_sigmas(n, self.sigma_min, sigma_max, self.rho))
        return Levels(abar, np.full(n, -1))


def linear(start: float, end: float, steps: int, name: str = "linear") -> Schedule:
    """Return the schedule of betas evenly spaced from `start` to `end` (Ho et al. 2020)."""
    betas: FloatArray = np.linspace(start, end, steps, dtype=np.float64)
    return Schedule(np.cumprod(1.0 - betas, dtype=np.float64), name)


def cosine(steps: int = 1000) -> Schedule:
    """Return Nichol and Dhariwal's (2021) cosine schedule, betas limited to 0.999."""
    edges = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2.0) ** 2
    return Schedule(np.cumprod(1.0 - np.minimum(1.0 - edges[1:] / edges[:-1], 0.999)), "cosine")


def paper_sampling() -> Schedule:
    """Return Score-Fusion's schedule of sampling and 3D training: betas 1e-4 to 0.09 in 1000 steps."""
    return linear(1e-4, 0.09, 1000, "paper_sampling")


def paper_training() -> Schedule:
    """Return Score-Fusion's schedule of 2D training (Palette's): betas 1e-6 to 1e-2 in 2000 steps."""
    return linear(1e-6, 1e-2, 2000, "paper_training")


_SCHEDULES: dict[str, Callable[..., Spacing]] = {
    "paper_sampling": paper_sampling,
    "paper_training": paper_training,
    "cosine": cosine,
    "linear": linear,
    "karras": Karras,
}


def make_schedule(name: str, **options: Any) -> Spacing:
    """Return a schedule by name; `options` are that schedule's arguments.

    Raises:
        ScoreFusionError: naming the nearest schedule, if there is none of that name; or naming the options.
    """
    if name not in _SCHEDULES:
        raise unknown_name("schedule", name, _SCHEDULES)
    try:
        return _SCHEDULES[name](**options)
    except TypeError as error:
        raise ScoreFusionError(f"schedule '{name}': {error}") from error
