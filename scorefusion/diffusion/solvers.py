"""Solvers as tables: every sampler here is one affine update a step, so a solver returns only numbers.

One row of a table is one evaluation of the network, whose output is m:

    x0 = project(clamp(P x_t + Q m))
    x' = A x_t + B x0 + C x0_prev + S z

The last row always lands on x0 itself (A = 0, B = 1, C = 0, S = 0). Write s = sqrt(1 - abar) for a level's
noise and a dash for the next level, which after the last is the clean image, abar' = 1.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from scorefusion.diffusion.level import prediction_coefficients
from scorefusion.diffusion.schedule import FloatArray, Levels, Spacing, paper_sampling
from scorefusion.errors import ScoreFusionError, unknown_name

COLUMNS = ("abar", "t", "P", "Q", "A", "B", "C", "S")


@dataclass(frozen=True)
class Table:
    """A solver: what to multiply by what, step by step."""

    rows: FloatArray  #: float64 [n, 8], a row for each network evaluation, columns as in `COLUMNS`
    name: str  #: the solver's name
    prediction: str = "eps"  #: what the network must output: "eps", "v", "x0" or "edm"
    sigma_data: float = 1.0  #: the standard deviation of the data that "edm" assumes

    def __post_init__(self) -> None:
        rows = np.array(self.rows, np.float64)
        if rows.ndim != 2 or rows.shape[0] < 1 or rows.shape[1] != len(COLUMNS):
            raise ScoreFusionError(f"a solver table needs shape [n, {len(COLUMNS)}], got {list(rows.shape)}")
        if not np.isfinite(rows).all():
            raise ScoreFusionError(f"solver '{self.name}' has a number that is not finite at these levels")
        if tuple(rows[-1, 4:]) != (0.0, 1.0, 0.0, 0.0):
            raise ScoreFusionError(f"the last row of solver '{self.name}' must be A, B, C, S = 0, 1, 0, 0")
        rows.setflags(write=False)
        object.__setattr__(self, "rows", rows)

    def __len__(self) -> int:
        return int(self.rows.shape[0])

    @property
    def abar_start(self) -> float:
        """Cumulative alpha at which the table begins: x = sqrt(abar) prior_mean + sqrt(1 - abar) z."""
        return float(self.rows[0, 0])

    @property
    def stochastic(self) -> bool:
        """Whether any row adds noise."""
        return bool(np.any(self.rows[:, 7] != 0.0))


def ddpm(levels: Levels, prediction: str = "eps", sigma_data: float = 1.0) -> Table:
    """Ancestral sampling with the fixed-small variance (Ho et al. 2020, equations 6 and 7), full or respaced.

    With alpha = abar/abar', the row is A = sqrt(alpha) s'^2/s^2, B = sqrt(abar') (1 - alpha)/s^2 and
    S = s' sqrt(1 - alpha)/s.
    """
    abar, after = levels.abar, _after(levels)
    alpha, noise, noise_after = abar / after, 1.0 - abar, 1.0 - after
    a = np.sqrt(alpha) * noise_after / noise
    b = np.sqrt(after) * (1.0 - alpha) / noise
    s = np.sqrt((1.0 - alpha) * noise_after / noise)
    return _table("ddpm", levels, prediction, sigma_data, a, b, np.zeros_like(a), s)


def ddim(
    levels: Levels, prediction: str = "eps", sigma_data: float = 1.0, eta: float = 0.0, spread: float = 0.0
) -> Table:
    """DDIM (Song et al. 2021, equations 12 and 16); eta 0 is deterministic, eta 1 is `ddpm`.

    S = eta s' sqrt(1 - alpha)/s, A = sqrt(s'^2 - S^2)/s, B = sqrt(abar') - A sqrt(abar). The noise that A and
    B reuse is that implied by the clamped and projected x0.

    A step puts the network's mean where one of all possible x0 should be, so few and large steps leave out
    the variance that x0 has about its mean, and the result is too smooth. ``spread`` v is that variance: the
    step is then the one that is exact where, all inputs but x given, x0 is Gaussian with variance v. It goes
    from sigma to r, r^2 = sigma'^2 (1 - the share of it that is fresh noise), by

        x_r = x0 + a (x_sigma - x0),  a = (sqrt((v + r^2) (v + sigma^2)) - v)/sigma^2

    which is r/sigma for v = 0, and A = a sqrt(abar'/abar). The last step, to the clean image, is unchanged.
    """
    if not 0.0 <= eta <= 1.0:
        raise ScoreFusionError(f"ddim needs eta within 0..1, got {eta}")
    if spread < 0.0:
        raise ScoreFusionError(f"ddim needs spread at least 0, got {spread}")
    abar, after = levels.abar, _after(levels)
    noise, noise_after = 1.0 - abar, 1.0 - after
    variance = eta**2 * noise_after / noise * (1.0 - abar / after)
    a = np.sqrt(np.maximum(noise_after - variance, 0.0) / noise)
    if spread > 0.0:
        ratio = np.sqrt(after / abar)
        sigma, reached = levels.sigma, a * levels.sigma / ratio
        a[:-1] = ((np.sqrt((spread + reached**2) * (spread + sigma**2)) - spread) / sigma**2 * ratio)[:-1]
    b = np.sqrt(after) - a * np.sqrt(abar)
    return _table("ddim", levels, prediction, sigma_data, a, b, np.zeros_like(a), np.sqrt(variance))


def euler(levels: Levels, prediction: str = "edm", sigma_data: float = 1.0) -> Table:
    """Euler steps of EDM's ODE in sigma (Karras et al. 2022, algorithm 1 without the correction).

    The step x_sigma' = x_sigma + (sigma' - sigma)(x_sigma - x0)/sigma is, in these coordinates, exactly that
    of `ddim` at eta 0.
    """
    return Table(ddim(levels, prediction, sigma_data).rows, "euler", prediction, sigma_data)


def heun(levels: Levels, prediction: str = "edm", sigma_data: float = 1.0) -> Table:
    """EDM's second-order Heun (Karras et al. 2022, algorithm 1): n levels cost 2n - 1 network evaluations.

    A Heun step evaluates the network twice, so no single row can say it; two rows say it exactly. The first
    is Euler's, to the trial point y at sigma'. The second evaluates there and corrects. The slope of the
    first was (x_sigma - x0_prev)/sigma, which is also (y - x0_prev)/sigma', so

        x_sigma' = y + (sigma' - sigma)/(2 sigma') (x0_prev - x0)

    and the row is A = 1, B = sqrt(abar') (sigma - sigma')/(2 sigma'), C = -B. The step to the clean image is
    Euler's alone. There is no churn: this is the deterministic sampler.
    """
    euler_rows = ddim(levels, prediction, sigma_data).rows
    sigma, after = levels.sigma[:-1], levels.sigma[1:]
    gain = np.sqrt(levels.abar[1:]) * (sigma - after) / (2.0 * after)
    rows = np.zeros((2 * len(levels) - 1, len(COLUMNS)))
    rows[0::2] = euler_rows
    rows[1::2, :4] = euler_rows[1:, :4]
    rows[1::2, 4:] = np.stack([np.ones_like(gain), gain, -gain, np.zeros_like(gain)], axis=1)
    return Table(rows, "heun", prediction, sigma_data)


def dpmpp_2m(levels: Levels, prediction: str = "eps", sigma_data: float = 1.0) -> Table:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): second order, one evaluation a step, deterministic.

    With lambda = log(sqrt(abar)/s), h = lambda' - lambda and r = h_before/h,
    A = s'/s and x0's total weight w = sqrt(abar') (1 - exp(-h)) is split as B = w (1 + 1/(2r)), C = -w/(2r).
    The first step and the last, to the clean image, are first order.
    """
    return _multistep("dpmpp_2m", levels, prediction, sigma_data, 0.0)


def dpmpp_2m_sde(levels: Levels, prediction: str = "eps", sigma_data: float = 1.0, eta: float = 1.0) -> Table:
    """SDE-DPM-Solver++(2M), midpoint form (Lu et al. 2022, equation 18).

    As `dpmpp_2m` with A = (s'/s) exp(-eta h), w = sqrt(abar') (1 - exp(-(1 + eta) h)) and
    S = s' sqrt(1 - exp(-2 eta h)). The paper's form is eta 1; eta 0 is `dpmpp_2m`.
    """
    if eta < 0.0:
        raise ScoreFusionError(f"dpmpp_2m_sde needs eta >= 0, got {eta}")
    return _multistep("dpmpp_2m_sde", levels, prediction, sigma_data, eta)


def official(
    steps: int = 50, start_abar: float | None = None, prediction: str = "eps", sigma_data: float = 1.0
) -> Table:
    """The authors' sampler: `ddpm` over 50 evenly spaced timesteps of `paper_sampling`, or another number."""
    rows = ddpm(paper_sampling().respaced(steps, start_abar), prediction, sigma_data).rows
    return Table(rows, "official", prediction, sigma_data)


_SOLVERS: dict[str, Callable[..., Table]] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "euler": euler,
    "heun": heun,
}
SOLVERS = (*_SOLVERS, "official")  #: every solver `make_table` knows.
_TAKES_ETA = ("ddim", "dpmpp_2m_sde")


def make_table(
    solver: str,
    steps: int | None = None,
    *,
    schedule: Spacing | None = None,
    levels: Levels | None = None,
    start_abar: float | None = None,
    prediction: str = "eps",
    sigma_data: float = 1.0,
    eta: float | None = None,
    spread: float | None = None,
) -> Table:
    """Return a solver's table by name.

    Args:
        solver: one of `SOLVERS`.
        steps: number of noise levels (for heun, n levels are 2n - 1 evaluations); 50 if neither this nor
            `levels` is given.
        schedule: where the levels lie: a `Schedule` or `Karras`; the paper's sampling schedule if not given.
        levels: the levels themselves, instead of `schedule`, `steps` and `start_abar`.
        start_abar: begin there rather than at the schedule's noisiest level (late start).
        prediction: what the network outputs: "eps", "v", "x0" or "edm".
        sigma_data: the data's standard deviation, used by "edm".
        eta: how much fresh noise ddim (0 if not given) and dpmpp_2m_sde (1) add.
        spread: the variance of x0 about its mean that ddim's steps allow for (0 if not given).

    Raises:
        ScoreFusionError: for an unknown solver, naming the nearest, or arguments that do not go together.
    """
    if solver not in SOLVERS:
        raise unknown_name("solver", solver, SOLVERS)
    if eta is not None and solver not in _TAKES_ETA:
        raise ScoreFusionError(f"solver '{solver}' takes no eta; {' and '.join(_TAKES_ETA)} do")
    if spread is not None and solver != "ddim":
        raise ScoreFusionError(f"solver '{solver}' takes no spread; ddim does")
    if solver == "official":
        if levels is not None or (schedule is not None and schedule.name != "paper_sampling"):
            raise ScoreFusionError(
                "solver 'official' fixes its schedule, paper_sampling; use 'ddpm' with another"
            )
        return official(50 if steps is None else steps, start_abar, prediction, sigma_data)
    if levels is None:
        spacing = paper_sampling() if schedule is None else schedule
        levels = spacing.respaced(50 if steps is None else steps, start_abar)
    elif schedule is not None or start_abar is not None or steps not in (None, len(levels)):
        raise ScoreFusionError(
            f"levels are given ({len(levels)}), so schedule, steps and start_abar cannot be"
        )
    options = {name: value for name, value in (("eta", eta), ("spread", spread)) if value is not None}
    return _SOLVERS[solver](levels, prediction, sigma_data, **options)


def _after(levels: Levels) -> FloatArray:
    """Return abar of the level that each step goes to; the last goes to the clean image."""
    return np.append(levels.abar[1:], 1.0)


def _multistep(name: str, levels: Levels, prediction: str, sigma_data: float, eta: float) -> Table:
    """Return the two-step table that both forms of DPM-Solver++ share."""
    count = len(levels)
    signal, noise = np.sqrt(levels.abar), np.sqrt(1.0 - levels.abar)
    h = np.diff(np.log(signal) - np.log(noise))
    weight = signal[1:] * -np.expm1(-(1.0 + eta) * h)
    share = np.append(0.0, 0.5 * h[1:] / h[:-1])[: h.size]
    a, b, c, s = np.zeros(count), np.ones(count), np.zeros(count), np.zeros(count)
    a[:-1] = noise[1:] / noise[:-1] * np.exp(-eta * h)
    b[:-1] = weight * (1.0 + share)
    c[:-1] = -weight * share
    s[:-1] = noise[1:] * np.sqrt(-np.expm1(-2.0 * eta * h))
    return _table(name, levels, prediction, sigma_data, a, b, c, s)


def _table(name: str, levels: Levels, prediction: str, sigma_data: float, *update: FloatArray) -> Table:
    """Put the columns together, with P and Q of the prediction; ``update`` is A, B, C and S."""
    p, q = prediction_coefficients(prediction, levels.abar, sigma_data)
    columns = [levels.abar, levels.t.astype(np.float64), p, q, *update]
    return Table(np.stack(columns, axis=1), name, prediction, sigma_data)
