"""BraTS: a folder for each case, ``CASE/CASE_t1.nii.gz`` up to 2021, ``CASE/CASE-t1n.nii.gz`` from 2023 on.

In the newer names ``BraTS-GLI-00005-001`` is the second time point of person ``BraTS-GLI-00005``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from scorefusion.data.listing import Volume, layout, stem
from scorefusion.models.contrast import canonical

_NEW = re.compile(r"(?P<case>(?P<group>brats-[a-z]+-\d+)-\d+)-(?P<contrast>t1n|t1c|t2w|t2f|seg)", re.I)
_OLD = re.compile(r"(?P<case>(?P<group>brats\d*_.+))_(?P<contrast>t1|t1ce|t2|flair|seg)", re.I)


@layout
def list_brats(root: Path, files: Sequence[Path], contrasts: Sequence[str]) -> Iterator[Volume]:
    """Cases named as in the BraTS challenges of 2018 to 2021 and from 2023 on."""
    for path in files:
        name = stem(path)
        match = _NEW.fullmatch(name) or _OLD.fullmatch(name)
        if match:
            yield Volume(match["case"], match["group"], canonical(match["contrast"]), path)
