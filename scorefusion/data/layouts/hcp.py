"""Human Connectome Project: a folder for each person, preprocessed volumes in ``T1w/``.

Of the versions of a scan the first in this order that some person has whole is taken for all: aligned to the
AC-PC line and corrected for bias; the same without skull; aligned only; as scanned. ``MNINonLinear/`` is left
out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from scorefusion.data.listing import Volume, layout, stem
from scorefusion.models.contrast import LABELS, canonical

_ALIGNED = re.compile(r"(T1w|T2w)_(acpc_dc_restore|acpc_dc_restore_brain|acpc_dc)", re.I)
_VERSIONS = ("acpc_dc_restore", "acpc_dc_restore_brain", "acpc_dc")
_RAW = re.compile(r"(?P<person>.+)_[37]T_(?P<contrast>T1w|T2w)_(?:MPR|SPC)\d*", re.I)
_SEGMENTATION = "aparc+aseg"


@layout
def list_hcp(root: Path, files: Sequence[Path], contrasts: Sequence[str]) -> Iterator[Volume]:
    """Structural volumes of the HCP (Young Adult and Lifespan)."""
    for path in files:
        name, folder = stem(path), path.parent
        aligned, raw = _ALIGNED.fullmatch(name), _RAW.fullmatch(name)
        if aligned or name == _SEGMENTATION:
            home = folder.parent if folder.name == "T1w" else folder
            person = home.name
            if person == "MNINonLinear":
                continue
            if aligned:
                variant = _VERSIONS.index(aligned[2].lower())
                yield Volume(person, _group(person), canonical(aligned[1]), path, variant)
            else:
                for variant in range(len(_VERSIONS)):
                    yield Volume(person, _group(person), LABELS, path, variant)
        elif raw:
            contrast = canonical(raw["contrast"])
            yield Volume(raw["person"], _group(raw["person"]), contrast, path, len(_VERSIONS))


def _group(person: str) -> str:
    """The person of a session: ``HCA6002236_V1_MR`` is a visit of ``HCA6002236``."""
    return re.sub(r"_V\d+(_[A-Z]+)?$", "", person, flags=re.I)
