"""Distances between two sets of feature vectors: Fréchet distance (FID), maximum mean discrepancy (MMD)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scorefusion.errors import ScoreFusionError


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over a set of vectors, from which mean and covariance of any union of sets follow."""

    count: int  #: of vectors
    total: np.ndarray  #: float64 ``[F]``, their sum
    squares: np.ndarray  #: float64 ``[F, F]``, the sum of their outer products

    @classmethod
    def of(cls, vectors: np.ndarray) -> Moments:
        """The sums of feature vectors ``[N, F]``."""
        if vectors.ndim != 2:
            raise ScoreFusionError(f"feature vectors must be [N, F], got shape {list(vectors.shape)}")
        rows = np.asarray(vectors, np.float64)
        return cls(len(rows), rows.sum(0), rows.T @ rows)

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.total + other.total, self.squares + other.squares)

    def __sub__(self, other: Moments) -> Moments:
        return Moments(self.count - other.count, self.total - other.total, self.squares - other.squares)

    @property
    def mean(self) -> np.ndarray:
        """Of the vectors, ``[F]``."""
        return self.total / self.count

    @property
    def covariance(self) -> np.ndarray:
        """``[F, F]``, with the divisor count - 1."""
        return (self.squares - self.count * np.outer(self.mean, self.mean)) / (self.count - 1)


def frechet_distance(one: Moments, other: Moments) -> float:
    """Squared Fréchet distance of the two normal distributions that fit best (Heusel et al. 2017).

    ``|m1 - m2|² + tr(S1 + S2 - 2 (S1 S2)^(1/2))``; the root's trace is that of ``(R S2 R)^(1/2)``, R² = S1.
    Raises ScoreFusionError for fewer than 2 vectors, or vectors of other lengths.
    """
    if min(one.count, other.count) < 2 or one.total.shape != other.total.shape:
        found = f"{one.count} of {len(one.total)} and {other.count} of {len(other.total)} numbers"
        raise ScoreFusionError(
            f"a Fréchet distance needs two sets of at least 2 vectors as long; got {found}"
        )
    first, second = one.covariance, other.covariance
    values, axes = np.linalg.eigh(first)
    root = (axes * np.sqrt(values.clip(0.0))) @ axes.T
    between = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(0.0)).sum()
    return float(((one.mean - other.mean) ** 2).sum() + np.trace(first) + np.trace(second) - 2.0 * between)


def squared_distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Squared distances ``[N, M]`` of all rows of ``[N, F]`` to all of ``[M, F]``."""
    squares = (one**2).sum(1)[:, None] + (other**2).sum(1)[None]
    return np.asarray(np.maximum(squares - 2.0 * one @ other.T, 0.0))


def discrepancy(one: np.ndarray, other: np.ndarray, width: float) -> float:
    """Squared maximum mean discrepancy (Gretton et al. 2012, equation 3, unbiased) of two sets.

    They are ``[N, F]`` and ``[M, F]``, N and M at least 2; ``width`` is h of the kernel exp(-|a - b|²/h). The
    result is 0 in the mean for two draws of one distribution (the estimate may be a little below), at most 2.
    Raises ScoreFusionError for fewer vectors, or a width that is not positive.
    """
    if min(len(one), len(other)) < 2 or not width > 0.0:
        needed = "a discrepancy needs two sets of at least 2 vectors and a positive kernel width"
        raise ScoreFusionError(f"{needed}; got {len(one)}, {len(other)} and {width:g}")

    def among(rows: np.ndarray) -> float:
        n = len(rows)
        return float((np.exp(-squared_distances(rows, rows) / width).sum() - n) / (n * (n - 1)))

    between = float(np.exp(-squared_distances(one, other) / width).mean())
    return among(one) + among(other) - 2.0 * between


def paired_terms(one: np.ndarray, other: np.ndarray, across: np.ndarray, width: float) -> np.ndarray:
    """Terms of the squared maximum mean discrepancy of N pairs (Gretton et al. 2012, equation 4).

    They are ``k(a_i, a_j) + k(b_i, b_j) - k(a_i, b_j) - k(a_j, b_i)``, with k the kernel of
    :func:`discrepancy`; their mean over all i ≠ j is unbiased even where b_i depends on a_i, as a translation
    does on its truth. :func:`discrepancy` takes the sets for independent, and is below 0 for equal ones.

    Squared distances ``[N, N]`` are of all a_i to all a_j (``one``), all b_i to all b_j (``other``) and all
    a_i to all b_j (``across``). The result ``[N, N]`` is symmetric; its diagonal does not count.
    """
    crossed = np.exp(-across / width)
    return np.asarray(np.exp(-one / width) + np.exp(-other / width) - crossed - crossed.T)
