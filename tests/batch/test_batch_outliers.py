"""Scans unlike the others: scores against scipy's, and what is said of them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import median_abs_deviation

from scorefusion.batch import report
from scorefusion.batch.queue import Entry


def rows(**figures: object) -> list[Entry]:
    """Rows named 0, 1, ... of a figure each, such as ``residual=[...]``."""
    ((figure, values),) = figures.items()
    made = []
    for number, value in enumerate(values):  # type: ignore[arg-type]
        kinds = {"residual": {"residual": value}, "seconds": {"seconds": {"sample": value}}}
        held = kinds.get(figure, {"numbers": {figure: value}})
        made.append(Entry(name=str(number), state="done", **held))
    return made


def flag(entries: list[Entry]) -> dict[str, list[str]]:
    """What is unusual about each scan."""
    return {name: list(flags.values()) for name, flags in report.unusual(entries).items()}


@pytest.mark.parametrize("figure", ["residual", "seconds", "change"])
def test_flags_what_is_more_than_five_robust_deviations_off(figure: str) -> None:
    values = np.random.default_rng(3).standard_t(2, 400) + 20
    score = np.abs(values - np.median(values)) / median_abs_deviation(values, scale="normal")
    away = np.abs(values - np.median(values))
    far = (score > 5) & (away > 2 * np.sort(away)[359]) & (away > 0.1 * np.median(values))
    assert 5 < far.sum() < 40
    assert set(flag(rows(**{figure: values}))) == {str(k) for k in np.flatnonzero(far)}


def test_says_how_unusual_in_words() -> None:
    usual = list(np.linspace(0.003, 0.0033, 20))
    told = flag(rows(residual=[*usual, 0.0285]))
    assert told == {"20": ["residual 9.0 times the median (2.9% against 0.32%)"]}
    told = flag(rows(seconds=[*np.linspace(50, 70, 20), 725.0, 4.0]))
    assert told == {"20": ["time 12 times the median (12 min 05 s against 1 min 00 s)"],
                    "21": ["time 0.067 of the median (4.0 s against 1 min 00 s)"]}  # fmt: skip
    told = flag(rows(change=[*np.linspace(-0.01, 0.01, 21), 0.3, -0.3]))
    assert told == {
        "21": ["change above the others (0.300 against 0)"],
        "22": ["change below the others (-0.300 against 0)"],
    }


def test_too_few_to_tell() -> None:
    few = [1.0] * (report.FEWEST - 2) + [100.0]
    assert flag(rows(residual=few)) == {}
    assert set(flag(rows(residual=[1.0, *few]))) == {str(len(few))}


def test_where_most_are_alike_the_mean_deviation_counts() -> None:
    """The median deviation is 0, and would make an outlier of whatever is not the median."""
    share = [0.0] * 80 + [0.01, 0.011] * 10
    assert flag(rows(fraction=share)) == {}
    assert set(flag(rows(fraction=[*share, 0.3]))) == {"100"}
    assert set(flag(rows(fraction=[0.0] * 8 + [0.01]))) == {"8"}
    assert flag(rows(fraction=[0.5] * 50)) == {}


def test_a_second_group_is_not_unusual_but_who_is_far_from_both_is() -> None:
    groups = [60.0 + k % 3 for k in range(80)] + [200.0 + k % 3 for k in range(20)]
    assert flag(rows(seconds=groups)) == {}
    assert set(flag(rows(seconds=[*groups, 400.0]))) == {"100"}


def test_what_hardly_differs_is_not_unusual_however_alike_the_others_are() -> None:
    assert flag(rows(seconds=[60.0 + 0.01 * (k % 5) for k in range(40)] + [63.0])) == {}
    assert flag(rows(residual=[2e-8 + 1e-9 * (k % 5) for k in range(40)] + [5e-7])) == {}


def test_what_is_not_finite_is_unusual_and_counts_for_nothing() -> None:
    told = flag(rows(residual=[*np.linspace(1, 2, 20), np.nan, np.inf, 1.5]))
    assert told == {"20": ["residual is nan"], "21": ["residual is inf"]}


def test_only_what_is_done_counts() -> None:
    some = rows(seconds=[60.0, 61, 62, 63, 64, 65, 66, 67])
    failed = [Entry(name=f"f{k}", state="failed", seconds={"sample": 1.0}) for k in range(30)]
    assert flag([*some, *failed]) == {}
    assert flag([]) == {}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (188, "3 min 08 s"),
     (3599.7, "1 h 00 min"), (7530, "2 h 06 min")],
)  # fmt: skip
def test_times_read_as_times(seconds: float, text: str) -> None:
    assert report.duration(seconds) == text
