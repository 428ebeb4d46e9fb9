"""How far the small patches of a volume are from the truth's, as two crowds: maximum mean discrepancy.

A realism figure: it asks whether patches look like the truth's patches, not whether each is in its place.
Too smooth and too grainy a volume both lie apart; the power spectrum sees only how strong a frequency is.
"""

from __future__ import annotations

import numpy as np

from scorefusion.errors import ScoreFusionError
from scorefusion.metrics.features import discrepancy, squared_distances


def patch_distance(
    volume: np.ndarray, truth: np.ndarray, *, size: int = 5, count: int = 1000, draws: int = 4, seed: int = 0
) -> float:
    """Squared maximum mean discrepancy (Gretton et al. 2012, equation 3, unbiased) of small patches.

    Each patch is taken less its mean. The kernel is exp(-|a - b|²/h), h the median of |a - b|² among the
    truth's patches. Patches of the volume are compared with the truth's at other places, so that fidelity
    does not count. Places lie where the truth exceeds its 20th percentile.

    Args:
        volume: 2D or 3D.
        truth: the same shape and units.
        size: edge of a patch, voxels.
        count: patches of either kind; fewer where there are not so many.
        draws: how often places are drawn anew; the mean is returned.
        seed: of the places: the same for every volume of a shape, so that differences are less noisy.

    Returns:
        0 in the mean for patches alike (the estimate may be a little below); about 2 for nothing in common.

    Raises:
        ScoreFusionError: for different shapes, fewer than 8 places for patches, or a truth without texture.
    """
    if volume.shape != truth.shape:
        raise ScoreFusionError(f"volume has shape {list(volume.shape)}, truth {list(truth.shape)}")
    if size < 2 or min(truth.shape) < size:
        raise ScoreFusionError(f"patches of edge {size} do not fit into shape {list(truth.shape)}")
    middle = tuple(slice(size // 2, length - size + 1 + size // 2) for length in truth.shape)
    places = np.argwhere(truth[middle] > np.percentile(truth, 20.0))
    if len(places) < 8:
        raise ScoreFusionError(f"found {len(places)} places for patches of edge {size}, need at least 8")
    views = [
        np.lib.stride_tricks.sliding_window_view(np.asarray(array, np.float64), (size,) * truth.ndim)
        for array in (volume, truth)
    ]
    random = np.random.default_rng(seed)
    half = min(count, len(places) // 2)
    found = []
    for _ in range(draws):
        drawn = random.permutation(len(places))[: 2 * half]
        here, there = (tuple(places[part].T) for part in (drawn[:half], drawn[half:]))
        true = [_level(views[1][at]) for at in (here, there)]
        width = float(np.median(squared_distances(true[0], true[1])))
        if not width > 0.0:
            raise ScoreFusionError("the truth's patches are all alike; it has no texture to compare with")
        for at, other in ((here, true[1]), (there, true[0])):
            found.append(discrepancy(_level(views[0][at]), other, width))
    return float(np.mean(found))


def _level(patches: np.ndarray) -> np.ndarray:
    """Patches ``[n, ...]`` as rows, less the mean of each."""
    rows = patches.reshape(len(patches), -1)
    return np.asarray(rows - rows.mean(axis=1, keepdims=True))
