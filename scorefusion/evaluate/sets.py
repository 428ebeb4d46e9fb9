"""Distances of the set of results from the set of truths: FID and MMD of 3D features, and MMD of voxels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from scorefusion.evaluate.case import FOREGROUND
from scorefusion.evaluate.features import FeatureNetwork
from scorefusion.evaluate.statistics import Estimate, jackknife, left_out
from scorefusion.evaluate.store import Store
from scorefusion.feature_distance import Moments, discrepancy, frechet_distance, squared_distances

Keys = Sequence[Mapping[str, str]]
Crowds = list[np.ndarray]


def set_distances(
    keys: Keys,
    rows: Sequence[str],
    store: Store,
    networks: Sequence[FeatureNetwork],
    *,
    persons: Sequence[str],
    spans: Sequence[float],
) -> dict[str, dict[str, Estimate]]:
    """Every row's distances, with the jackknife's intervals over persons.

    Args:
        keys: for each subject, row name (and ``truth``) to its stored volume.
        rows: the rows.
        store: that holds the volumes.
        networks: whose features are compared.
        persons: of each subject.
        spans: of each subject, white less black of its truth.

    Returns:
        Row to ``fid NETWORK``, ``mmd NETWORK`` and ``mmd voxels``. Left out is what too few vectors, or boxes
        of several sizes, do not give.
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
    truths = [store.volume(each["truth"]) for each in keys]
    if len({truth.shape for truth in truths}) == 1:
        for row in rows:
            errors = [
                (store.volume(each[row]) - truth) / span
                for each, truth, span in zip(keys, truths, spans, strict=True)
            ]
            parts = [np.mean(several, axis=0) for several in _gather(errors, persons)]
            found[row]["mmd voxels"] = _estimate(len(parts), _mean_difference(parts))
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


def _mean_difference(parts: Sequence[np.ndarray]) -> Callable[[Sequence[int]], float]:
    """The authors' MMD, of the linear kernel on voxels: the squared length of the mean difference."""
    total = np.sum(parts, axis=0, dtype=np.float64)

    def figure(kept: Sequence[int]) -> float:
        rest = total
        for k in set(range(len(parts))) - set(kept):
            rest = rest - parts[k]
        return float(((rest / len(kept)) ** 2).sum())

    return figure


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


def _gather(values: Sequence[np.ndarray], persons: Sequence[str]) -> list[list[np.ndarray]]:
    """Values by person, in the order the persons first appear."""
    found: dict[str, list[np.ndarray]] = {}
    for value, person in zip(values, persons, strict=True):
        found.setdefault(person, []).append(value)
    return list(found.values())


def _width(vectors: np.ndarray) -> float:
    """The median squared distance of two of the truth's vectors."""
    rows = vectors.astype(np.float64)
    apart = squared_distances(rows, rows)[np.triu_indices(len(rows), 1)]
    return float(np.median(apart)) if apart.size else 0.0
