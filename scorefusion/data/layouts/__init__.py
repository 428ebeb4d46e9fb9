"""Dataset layouts by name, one module each, and which one a folder has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scorefusion.data.layouts.bids import list_bids
from scorefusion.data.layouts.brats import list_brats
from scorefusion.data.layouts.fastmri import list_fastmri
from scorefusion.data.layouts.folder import list_folder
from scorefusion.data.layouts.hcp import list_hcp
from scorefusion.data.layouts.ixi import list_ixi
from scorefusion.data.listing import Layout, Listing

LAYOUTS: dict[str, Layout] = {
    "bids": list_bids,
    "brats": list_brats,
    "ixi": list_ixi,
    "fastmri": list_fastmri,
    "hcp": list_hcp,
    "folder": list_folder,
}
"""Of the layouts of folders, the most particular first."""


def detect(root: Path, files: Sequence[Path], contrasts: Sequence[str]) -> tuple[str, Listing]:
    """The particular layout that understands most of the files; plain folders if none understands any."""
    found = {name: layout(root, files, contrasts) for name, layout in LAYOUTS.items()}
    particular = [name for name in LAYOUTS if name != "folder" and found[name].count]
    best = max(particular, key=lambda name: found[name].count, default="folder")
    return best, found[best]
