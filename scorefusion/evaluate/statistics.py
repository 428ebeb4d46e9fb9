"""Statistics over subjects: bootstrap intervals, jackknife, Wilcoxon's test with Holm's correction."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from scorefusion.errors import ScoreFusionError
from scorefusion.optional import need

CONFIDENCE = 0.95
RESAMPLES = 9999
Value = TypeVar("Value")


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval."""

    mean: float  #: over the subjects
    low: float  #: end of the interval of :data:`CONFIDENCE`; NaN where there are too few subjects
    high: float  #: the other end
    count: int  #: of subjects


@dataclass(frozen=True)
class Comparison:
    """One method less another, subject by subject."""

    name: str  #: of the one
    other: str  #: of the other
    difference: Estimate  #: the mean, with a bootstrap interval over subjects
    p: float  #: of Wilcoxon's two-sided signed-rank test; NaN for fewer than 2 subjects
    adjusted: float  #: p after Holm's correction for the comparisons made together


def interval(values: Sequence[float], *, seed: int = 0) -> Estimate:
    """The mean of one number per subject, and its bootstrap interval; see :func:`intervals`."""
    return intervals([values], seed=seed)[0]


def intervals(rows: Sequence[Sequence[float]], *, seed: int = 0) -> list[Estimate]:
    """The means of several rows of one number per subject, and their bootstrap intervals over subjects.

    Bias-corrected and accelerated (BCa, Efron 1987), by scipy; percentiles where that is not defined.
    """
    array = np.asarray(rows, np.float64)
    if array.size == 0 or not np.isfinite(array).all():
        raise ScoreFusionError(f"an interval needs finite values, at least one; got {array.tolist()}")
    means, count = array.mean(axis=1), array.shape[1]
    ends = np.full((len(array), 2), math.nan)
    alike = np.ptp(array, axis=1) == 0.0
    if count > 1:
        ends[alike] = means[alike, None]
    options: dict[str, Any] = {"axis": -1, "confidence_level": CONFIDENCE, "n_resamples": RESAMPLES}
    for method in ("BCa", "percentile"):
        open_rows = np.isnan(ends).any(axis=1)
        if count == 1 or not open_rows.any():
            break
        stats, options["random_state"] = need("scipy.stats", "an interval"), np.random.default_rng(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = stats.bootstrap((array[open_rows],), np.mean, method=method, **options)
        ends[open_rows] = np.stack([*result.confidence_interval], axis=-1)
    return [Estimate(float(m), float(e[0]), float(e[1]), count) for m, e in zip(means, ends, strict=True)]


def jackknife(whole: float, without: Sequence[float], count: int) -> Estimate:
    """The interval of a figure of a whole set, from its values with each subject left out in turn.

    The standard error is ``sqrt((n - 1)/n · sum (x_i - mean x)²)`` (Tukey 1958), times Student's t; there is
    no interval for a ``count`` of fewer than 3 subjects.
    """
    left = np.asarray(without, np.float64)
    if count < 3 or left.size != count:
        return Estimate(whole, math.nan, math.nan, count)
    error = math.sqrt((count - 1) / count * float(((left - left.mean()) ** 2).sum()))
    reach = error * float(need("scipy.stats", "an interval").t.ppf(0.5 + CONFIDENCE / 2, count - 1))
    return Estimate(whole, whole - reach, whole + reach, count)


def wilcoxon(differences: Sequence[float]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test that paired differences have median 0, by scipy.

    NaN for fewer than 2; 1 where all are 0. It is at least 2^(1-n): above 0.05 for fewer than 6 subjects.
    """
    array = np.asarray(differences, np.float64)
    if array.size < 2:
        return math.nan
    if not array.any():
        return 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(need("scipy.stats", "Wilcoxon's test").wilcoxon(array).pvalue)


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): p times how many are at least as large, in order; NaN stays."""
    order = sorted((i for i, p in enumerate(ps) if not math.isnan(p)), key=lambda i: ps[i])
    adjusted, floor = [math.nan] * len(ps), 0.0
    for rank, i in enumerate(order):
        floor = max(floor, min(1.0, (len(order) - rank) * ps[i]))
        adjusted[i] = floor
    return adjusted


def compare(
    values: Mapping[str, Sequence[float]], pairs: Sequence[tuple[str, str]]
) -> tuple[Comparison, ...]:
    """Compare pairs, one less other, on the same subjects in one order; Holm's correction is over pairs."""
    for name, other in pairs:
        if len(values[name]) != len(values[other]):
            counts = f"'{name}' has {len(values[name])} subjects and '{other}' {len(values[other])}"
            raise ScoreFusionError(f"{counts}; pairs need the same ones")
    changes = [np.subtract(values[name], values[other]).tolist() for name, other in pairs]
    ps = [wilcoxon(change) for change in changes]
    rows = zip(pairs, intervals(changes), ps, holm(ps), strict=True)
    return tuple(Comparison(*pair, estimate, p, adjusted) for pair, estimate, p, adjusted in rows)


def gather(values: Sequence[Value], groups: Sequence[str]) -> list[list[Value]]:
    """Values by person, in the order the persons first appear."""
    members: dict[str, list[Value]] = {}
    for value, group in zip(values, groups, strict=True):
        members.setdefault(group, []).append(value)
    return list(members.values())


def by_person(values: Sequence[float], groups: Sequence[str]) -> list[float]:
    """One number per person: the mean over a person's sessions, in the order the persons first appear."""
    return [float(np.mean(each)) for each in gather(values, groups)]


def left_out(count: int, figure: Callable[[Sequence[int]], float]) -> list[float]:
    """A figure of a set of ``count`` members with each of them left out in turn."""
    return [figure([k for k in range(count) if k != out]) for out in range(count)]
