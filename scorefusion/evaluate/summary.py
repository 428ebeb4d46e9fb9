"""From figures by subject to a table: means with intervals, distances of sets, and tests between rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scorefusion.evaluate.methods import Method
from scorefusion.evaluate.output import Store
from scorefusion.evaluate.run import Results, figure_names
from scorefusion.evaluate.sets import FeatureNetwork, set_distances
from scorefusion.evaluate.shared_start import plane_row
from scorefusion.evaluate.statistics import Comparison, Estimate, by_person, compare, intervals
from scorefusion.metrics import shown
from scorefusion.models.strategies import PAPER_ORDER

Values = dict[str, dict[str, list[float]]]


@dataclass(frozen=True, eq=False)
class Line:
    """A row of the table."""

    name: str  #: the method's
    kind: str  #: ``baseline``, ``sample`` or ``one-step``
    figures: dict[str, Estimate]  #: by name, metrics and ``seconds`` where they were measured
    sets: dict[str, Estimate]  #: distances from the truths: ``fid NETWORK``, ``mmd NETWORK``, ``mmd voxels``
    flop: float | None  #: per volume; None for a baseline


@dataclass(frozen=True, eq=False)
class Summary:
    """Everything that tables and pictures show."""

    lines: tuple[Line, ...]  #: the rows, in order
    values: Values  #: row to figure to one number per person
    order: dict[str, tuple[Comparison, ...]]  #: by figure, each of ``PAPER_ORDER`` against the one before
    against: dict[str, tuple[Comparison, ...]]  #: every other row against the main one, by figure
    main: str  #: the row that others are compared with
    people: int  #: how many persons
    denoising: dict[str, list[float]]  #: ``contender strategy`` to mean squared errors by noise level
    bands: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]  #: frequency, log10 power ratio, correlation


def summarise(
    results: Results,
    methods: Sequence[Method],
    store: Store,
    networks: Sequence[FeatureNetwork],
    *,
    main: str,
) -> Summary:
    """Summarise results whose volumes are in the store, with FID and MMD by the networks.

    Others are compared with the row ``main``, or with the first one if it is none of them.
    """
    groups = results.persons
    members: dict[str, list[str]] = {}
    kinds = {method.name: str(method.kind) for method in methods}
    for method in methods:
        members[method.name] = [method.name]
        strategy = plane_row(method.name)
        planes = [m.name for m in methods if m.run and m.name == m.run.name and plane_row(m.name) == strategy]
        if strategy and len(planes) > 1 and method.name == planes[-1]:
            members[strategy], kinds[strategy] = planes, "sample"
    values = {name: _values(results, of, groups) for name, of in members.items()}
    rows = [method.name for method in methods]
    sets = set_distances(results.keys, rows, store, networks, persons=groups)
    figures = _estimates(values)
    lines = []
    for name, of in members.items():
        flop = float(np.mean([results.flop[each] for each in of])) if of[0] in results.flop else None
        lines.append(Line(name, kinds[name], figures[name], _mean_sets([sets[each] for each in of]), flop))
    chosen = main if main in members else lines[0].name
    ordered = [name for name in PAPER_ORDER if name in members]
    return Summary(
        lines=tuple(lines),
        values=values,
        order=_comparisons(values, list(zip(ordered[1:], ordered, strict=False))),
        against=_comparisons(values, [(name, chosen) for name in members if name != chosen]),
        main=chosen,
        people=len(set(groups)),
        denoising=_denoising(results, groups),
        bands={name: _bands(results, of) for name, of in members.items()},
    )


def _values(results: Results, rows: Sequence[str], groups: Sequence[str]) -> dict[str, list[float]]:
    """Figure to one number per person: the mean over the rows, and over a person's sessions."""
    found = {}
    for figure in figure_names():
        each = [[record[row][figure] for row in rows] for record in results.records]
        if all(value is not None for numbers in each for value in numbers):
            found[figure] = by_person([float(np.mean(numbers)) for numbers in each], groups)
    return found


def _estimates(values: Values) -> dict[str, dict[str, Estimate]]:
    found: dict[str, dict[str, Estimate]] = {name: {} for name in values}
    for figure in figure_names():
        names = [name for name in values if figure in values[name]]
        if names:
            estimates = intervals([values[name][figure] for name in names])
            for name, estimate in zip(names, estimates, strict=True):
                found[name][figure] = estimate
    return found


def _comparisons(values: Values, pairs: Sequence[tuple[str, str]]) -> dict[str, tuple[Comparison, ...]]:
    found = {}
    for figure in (metric.name for metric in shown("tested")):
        able = [pair for pair in pairs if all(figure in values[name] for name in pair)]
        if able:
            found[figure] = compare({name: each.get(figure, []) for name, each in values.items()}, able)
    return found


def _denoising(results: Results, groups: Sequence[str]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for name in results.denoising[0]:
        for strategy in results.denoising[0][name]:
            errors = np.array([each[name][strategy] for each in results.denoising])
            persons = [by_person(column.tolist(), groups) for column in errors.T]
            found[f"{name} {strategy}".strip()] = [float(np.mean(column)) for column in persons]
    return found


def _bands(results: Results, rows: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of boxes of other sizes the bands are read off at the first's."""
    records = [record[row] for record in results.records for row in rows]
    frequency = np.array(records[0]["frequency"])
    ratio, correlation = (
        np.mean([np.interp(frequency, each["frequency"], each[key]) for each in records], axis=0)
        for key in ("log_power_ratio", "shell_correlation")
    )
    return frequency, ratio, correlation


def _mean_sets(each: Sequence[dict[str, Estimate]]) -> dict[str, Estimate]:
    """The mean of several rows' distances; its interval is the mean of theirs, since they are alike."""
    found = {}
    for name in each[0]:
        numbers = [(one[name].mean, one[name].low, one[name].high) for one in each]
        mean, low, high = (float(value) for value in np.mean(numbers, axis=0))
        found[name] = Estimate(mean, low, high, each[0][name].count)
    return found
