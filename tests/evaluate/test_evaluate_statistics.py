"""Intervals and tests against cases known by hand and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from scorefusion.errors import ScoreFusionError
from scorefusion.evaluate import statistics
from scorefusion.evaluate.statistics import (
    by_person,
    compare,
    holm,
    interval,
    intervals,
    jackknife,
    left_out,
    wilcoxon,
)

pytest.importorskip("scipy")
RNG = np.random.default_rng(0)


def test_an_interval_covers_the_mean_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 999)
    found = intervals(RNG.normal(3.0, 1.0, (400, 20)).tolist())
    covered = np.mean([each.low <= 3.0 <= each.high for each in found])
    assert 0.88 < covered < 0.99
    width = np.mean([each.high - each.low for each in found])
    assert width == pytest.approx(2 * 1.96 / math.sqrt(20), rel=0.1)


def test_intervals_of_few_and_of_equal_values() -> None:
    one = interval([4.0])
    assert one.mean == 4.0 and one.count == 1 and math.isnan(one.low) and math.isnan(one.high)
    same = interval([2.0, 2.0, 2.0])
    assert (same.mean, same.low, same.high) == (2.0, 2.0, 2.0)
    two = interval([1.0, 3.0])
    assert two.mean == 2.0 and 1.0 <= two.low <= two.high <= 3.0
    mixed = intervals([[2.0, 2.0, 2.0], [1.0, 2.0, 5.0]], seed=1)
    assert mixed[0].low == mixed[0].high == 2.0 and mixed[1] == interval([1.0, 2.0, 5.0], seed=1)
    assert interval([1.0, 2.0, 5.0], seed=1) == interval([1.0, 2.0, 5.0], seed=1)
    for wrong in ([], [1.0, math.inf]):
        with pytest.raises(ScoreFusionError, match="needs finite values"):
            interval(wrong)


def test_the_jackknife_of_a_mean_is_students_interval() -> None:
    values = RNG.normal(size=9)
    found = jackknife(float(values.mean()), left_out(9, lambda kept: float(values[list(kept)].mean())), 9)
    reach = 2.306004 * values.std(ddof=1) / 3.0
    assert found.low == pytest.approx(values.mean() - reach, rel=1e-5)
    assert found.high == pytest.approx(values.mean() + reach, rel=1e-5)
    assert math.isnan(jackknife(1.0, [], 2).low)


def test_wilcoxon_by_hand() -> None:
    """All n differences positive: the two-sided exact p is 2^(1-n). 1..5 with -6: ranks 6 of 21, p 0.4375."""
    assert wilcoxon([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]) == pytest.approx(2**-6)
    assert wilcoxon([1.0, 2.0, 3.0, 4.0, 5.0, -6.0]) == pytest.approx(28 / 64)
    assert wilcoxon([0.0, 0.0]) == 1.0 and math.isnan(wilcoxon([0.3]))


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == pytest.approx([1.0, 1.0])
    adjusted = holm([0.02, math.nan, 0.01])
    assert adjusted[0] == pytest.approx(0.02) and adjusted[2] == pytest.approx(0.02)
    assert math.isnan(adjusted[1])


def test_comparisons() -> None:
    base = RNG.normal(30.0, 3.0, 10)
    values = {"a": (base + 0.5 + RNG.normal(0, 0.1, 10)).tolist(), "b": base.tolist(), "c": base.tolist()}
    better, same = compare(values, [("a", "b"), ("c", "b")])
    assert better.difference.low > 0.3 and better.difference.high < 0.7
    assert better.p == pytest.approx(2**-9) and better.adjusted == pytest.approx(2**-8)
    assert same.difference.mean == 0.0 and same.p == 1.0
    with pytest.raises(ScoreFusionError, match="'a' has 10 subjects and 'b' 9"):
        compare({"a": values["a"], "b": values["b"][:9]}, [("a", "b")])


def test_sessions_of_a_person_count_once() -> None:
    assert by_person([1.0, 3.0, 10.0], ["x", "x", "y"]) == [2.0, 10.0]
