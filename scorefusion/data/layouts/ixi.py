"""IXI: ``IXI002-Guys-0828-T1.nii.gz``, in one folder or one for each contrast (``IXI-T1/``, ``IXI-T2/``).

``IXI002`` is the person; then come the hospital and the scan. T1 lies on another grid than T2 and PD.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from scorefusion.data.listing import Volume, layout, stem
from scorefusion.models.contrast import canonical

_NAME = re.compile(r"(?P<scan>(?P<group>IXI\d+)-[a-z]+-\d+)-(?P<contrast>T1|T2|PD|MRA)", re.I)


@layout
def list_ixi(root: Path, files: Sequence[Path], contrasts: Sequence[str]) -> Iterator[Volume]:
    """Volumes named as in the IXI dataset; its diffusion volumes (DTI) are left out."""
    for path in files:
        if match := _NAME.fullmatch(stem(path)):
            yield Volume(match["scan"], match["group"], canonical(match["contrast"]), path)
