"""Distances of the set of results from the set of truths: FID and MMD of 3D features, and MMD of voxels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from scorefusion.evaluate.cases import FOREGROUND
from scorefusion.evaluate.features import FeatureNetwork
from scorefusion.evaluate.statistics import Estimate, jackknife, left_out
from scorefusion.evaluate.store import Store
from scorefusion.metrics import Moments, discrepancy, frechet_distance, paired_terms, squared_distances

Keys = Sequence[Mapping[str, str]]
Crowds = list[np.ndarray]
Value = TypeVar("Value")

_VOXELS = 1 << 18
"""How many voxels of each volume are compared at a time."""


def set_distances(
    keys: Keys,
    rows: Sequence[str],
    store: Store,
    networks: Sequence[FeatureNetwork],
    *,
    persons: Sequence[str],
) -> dict[str, dict[str, Estimate]]:
    """Every row's distances, with the jackknife's intervals over persons.

    Args:
        keys: for each subject, row name (and ``truth``) to its stored volume.
        rows: the rows.
        store: that holds the volumes.
        networks: whose features are compared.
        persons: of each subject.

    Returns:
        Row to ``fid NETWORK``, ``mmd NETWORK`` and ``mmd voxels``. Left out is what too few vectors or
        persons, or boxes of several sizes, do not give.
    """
    found: dict[str, dict[str, Estimate]] = {row: {} for row in rows}
    for network in networks:
        true = _crowds(keys, "truth", store, network, persons)
        width = _width(np.concatenate(true))
        for row in rows:
            crowds = _crowds(keys, row, store, network, persons)
            if sum(map(len, crowds)) < 2 or not width > 0.0:
                continue
            fid, mmd = _frechet(crowds, true), _discrepancy(crowds, true, width)
            found[row][f"fid {network.name}"] = _estimate(len(true), fid)
            found[row][f"mmd {network.name}"] = _estimate(len(true), mmd)
    _add_voxels(found, keys, store, persons)
    return found


def _estimate(count: int, figure: Callable[[Sequence[int]], float]) -> Estimate:
    """A figure of persons 0 .. count - 1 with its interval."""
    return jackknife(figure(range(count)), left_out(count, figure) if count > 2 else [], count)


def _frechet(crowds: Crowds, true: Crowds) -> Callable[[Sequence[int]], float]:
    one, other = ([Moments.of(vectors) for vectors in several] for several in (crowds, true))

    def figure(kept: Sequence[int]) -> float:
        first, second = (
            sum((several[k] for k in kept[1:]), start=several[kept[0]]) for several in (one, other)
        )
        return frechet_distance(first, second)

    return figure


def _discrepancy(crowds: Crowds, true: Crowds, width: float) -> Callable[[Sequence[int]], float]:
    one, other = ([vectors.astype(np.float64) for vectors in several] for several in (crowds, true))

    def figure(kept: Sequence[int]) -> float:
        return discrepancy(
            np.concatenate([one[k] for k in kept]), np.concatenate([other[k] for k in kept]), width
        )

    return figure


def _add_voxels(
    found: dict[str, dict[str, Estimate]], keys: Keys, store: Store, persons: Sequence[str]
) -> None:
    """Discrepancy of the normalised volumes themselves, one kernel width for all rows as for features."""
    truths = [store.volume(each["truth"]) for each in keys]
    members = _gather(range(len(keys)), persons)
    if len(members) < 2 or len({truth.shape for truth in truths}) > 1:
        return
    within = _apart(truths, truths)
    width = _median(within)
    if not width > 0.0:
        return
    for row, figures in found.items():
        results = [store.volume(each[row]) for each in keys]
        terms = paired_terms(_apart(results, results), within, _apart(results, truths), width)
        between = [[terms[np.ix_(one, other)].mean() for other in members] for one in members]
        figures["mmd voxels"] = _estimate(len(members), _paired(np.array(between)))


def _paired(terms: np.ndarray) -> Callable[[Sequence[int]], float]:
    """The mean of the terms of two different persons."""

    def figure(kept: Sequence[int]) -> float:
        count, some = len(kept), terms[np.ix_(kept, kept)]
        return float((some.sum() - np.trace(some)) / (count * (count - 1)))

    return figure


def _apart(some: Crowds, others: Crowds) -> np.ndarray:
    """Squared distances ``[N, M]`` of volumes, in float64 without a copy of them all."""
    total = np.zeros((len(some), len(others)))
    for first in range(0, some[0].size, _VOXELS):
        part = slice(first, first + _VOXELS)
        total += squared_distances(
            np.array([volume.ravel()[part] for volume in some], np.float64),
            np.array([volume.ravel()[part] for volume in others], np.float64),
        )
    return total


def _crowds(
    keys: Keys, row: str, store: Store, network: FeatureNetwork, persons: Sequence[str]
) -> list[np.ndarray]:
    """Feature vectors of each person; computed once and stored."""
    found = []
    for each in keys:
        key = store.key(f"features {network.name}", network=network.description, volume=each[row])
        vectors = store.array(key)
        if vectors is None:
            truth = store.volume(each["truth"])
            vectors = network.vectors(store.volume(each[row]), truth > FOREGROUND)
            store.put_array(key, vectors)
        found.append(vectors)
    return [np.concatenate(several) for several in _gather(found, persons)]


def _gather(values: Sequence[Value], persons: Sequence[str]) -> list[list[Value]]:
    """Values by person, in the order the persons first appear."""
    found: dict[str, list[Value]] = {}
    for value, person in zip(values, persons, strict=True):
        found.setdefault(person, []).append(value)
    return list(found.values())


def _width(vectors: np.ndarray) -> float:
    """The kernel's width for some of the truth's vectors ``[N, F]``."""
    rows = vectors.astype(np.float64)
    return _median(squared_distances(rows, rows))


def _median(apart: np.ndarray) -> float:
    """The median squared distance of two different ones."""
    pairs = apart[np.triu_indices(len(apart), 1)]
    return float(np.median(pairs)) if pairs.size else 0.0
