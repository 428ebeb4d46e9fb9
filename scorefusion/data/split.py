"""Train, validation and test by person."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence

SPLITS = ("train", "validation", "test")


def split_of(group: str, fractions: Sequence[float], seed: int) -> str:
    """The split of a person: a function of the seed and the name alone.

    A hash gives the person a number that is uniform in [0, 1); the fractions divide that interval. So no
    person ever changes splits when others come or go, and the sizes are binomial about the fractions.

    Args:
        group: the person.
        fractions: of train, validation and test; they sum to 1.
        seed: another seed, another division.
    """
    digest = hashlib.sha256(f"{seed}:{group}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    train, validation, test = fractions
    if place < train or not (validation or test):
        return "train"
    return "validation" if place < train + validation or not test else "test"


def better_seed(groups: Iterable[str], fractions: Sequence[float], tries: int = 1000) -> int | None:
    """The first seed that fills every split, to one person of its fraction, if there is one."""
    names = sorted(set(groups))
    for seed in range(tries):
        counts = Counter(split_of(name, fractions, seed) for name in names)
        sizes = [(counts[split], share) for split, share in zip(SPLITS, fractions, strict=True)]
        if all(abs(n - share * len(names)) <= 1 and (n > 0) == (share > 0) for n, share in sizes):
            return seed
    return None
