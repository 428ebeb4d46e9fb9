"""The names of contrasts: one spelling for what datasets spell in many ways."""

from collections.abc import Iterable

LABELS = "labels"  #: the contrast that is a label map: resampled to the nearest voxel, and may be empty.
_SPELLINGS = {
    "t1": ("t1w", "t1n", "t1pre", "axt1", "axt1pre"),
    "t1c": ("t1ce", "t1gd", "t1post", "t1wce", "axt1post"),
    "t2": ("t2w", "axt2"),
    "flair": ("t2f", "t2flair", "axflair"),
    "pd": ("pdw",),
    "ct": (),
    "mra": (),
    LABELS: ("label", "seg", "dseg", "segmentation"),
}
_CANONICAL = {other: name for name, others in _SPELLINGS.items() for other in (name, *others)}


def canonical(name: str) -> str:
    """One spelling of a contrast: ``T1w`` is ``t1``, ``seg`` is ``labels``; an unknown name in lower case."""
    lower = name.lower()
    return _CANONICAL.get(lower, lower)


def in_order(names: Iterable[str]) -> list[str]:
    """Contrasts by name, the label map last."""
    return sorted(names, key=lambda name: (name == LABELS, name))


def is_known(name: str) -> bool:
    """Whether a name is a usual one of a contrast."""
    return name.lower() in _CANONICAL
