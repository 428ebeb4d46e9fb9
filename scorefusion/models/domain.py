"""What a model was made for: one spelling for the names of contrasts, voxel sizes and intensities."""

import textwrap
from collections.abc import Iterable

from scorefusion.models.config import DomainConfig, ModelConfig

ANY_MR = "mri"  #: the condition of a model that takes any contrast of MR
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
_OF_MR = ("t1", "t1c", "t2", "flair", "pd", "t2star")
_NAMES = {
    "t1": "T1", "t1c": "T1 with contrast agent", "t2": "T2", "flair": "FLAIR", "pd": "proton density",
    "ct": "CT", "pet": "PET", "mra": "MR angiography", "bold": "BOLD", "dwi": "diffusion", "swi": "SWI",
    "t2star": "T2*", "asl": "perfusion", "map": "a quantitative map", "phase": "phase",
    LABELS: "a label map", "mask": "a mask", "mr": "MRI", "video": "video",
}  # fmt: skip

INTENSITY_NAMES = {
    "non-negative": "intensities from 0 up, in any unit",
    "hounsfield": "Hounsfield units",
    "8-bit": "intensities from 0 to 255",
}


def canonical(name: str) -> str:
    """One spelling of a contrast: ``T1w`` is ``t1``, ``seg`` is ``labels``; an unknown name in lower case."""
    lower = name.lower()
    return _CANONICAL.get(lower, lower)


def stands_for(condition: str, contrast: str) -> bool:
    """Whether an image of a contrast may be given for a condition: ``mri`` is any contrast of MR."""
    return condition == contrast or (condition == ANY_MR and contrast in _OF_MR)


def in_order(names: Iterable[str]) -> list[str]:
    """Contrasts by name, the label map last."""
    return sorted(names, key=lambda name: (name == LABELS, name))


def is_known(name: str) -> bool:
    """Whether a name is a usual one of a contrast."""
    return name.lower() in _CANONICAL


def made_for(config: ModelConfig) -> str:
    """The section of a model's card that says what it was made for, Markdown."""
    lines = ["## What it was made for", ""]
    for name in dict.fromkeys(config.conditions):
        text = _described(config.domain.get(name, DomainConfig())) or "unknown, so its images are not checked"
        lines += textwrap.wrap(f"* `{name}`: {text}.", 110, subsequent_indent="  ")
    return "\n".join(lines) + "\n"


def _described(domain: DomainConfig) -> str:
    parts = []
    if domain.contrasts:
        parts.append(" or ".join(contrast_title(contrast) for contrast in domain.contrasts))
    if domain.spacing is not None:
        parts.append(f"voxels of {spacing_range(domain)}")
    if domain.anisotropy is not None:
        parts.append(f"no more than {domain.anisotropy:g} times longer along one axis than along another")
    if domain.intensity is not None:
        parts.append(INTENSITY_NAMES[domain.intensity])
    if domain.background == "zero":
        parts.append("a background of 0")
    return ", ".join(parts)


def spacing_range(domain: DomainConfig) -> str:
    """Return the voxel sizes, such as ``4 to 8.4 mm`` or ``3 to 6 × 1 × 1 mm (z, y, x)``."""
    texts = [f"{a:g}" if a == b else f"{a:g} to {b:g}" for a, b in domain.spacing or ()]
    return f"{texts[0]} mm" if len(set(texts)) == 1 else f"{' × '.join(texts)} mm (z, y, x)"


def contrast_title(contrast: str) -> str:
    """Return a contrast's name as in running text, such as ``FLAIR``."""
    name = canonical(contrast)
    return _NAMES.get(name, name)
