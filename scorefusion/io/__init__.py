"""Volumes in and out: images of every kind, file formats, and files that appear whole or not at all.

A name is imported from its module when it is first used, so that importing the package brings no nibabel.
"""

# ruff: noqa: F403
from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scorefusion.io.atomic import *
    from scorefusion.io.formats import *
    from scorefusion.io.grid import *
    from scorefusion.io.header import *
    from scorefusion.io.kinds import *
    from scorefusion.io.nifti import *
    from scorefusion.io.placeholders import *
    from scorefusion.io.video import *

_NAMES = {
    "atomic": "check_output folder_written_beside output_target replace_file written_beside",
    "formats": "FORMATS LISTED READABLE WRITABLE check_ending check_volume_output companions format_of "
    "read_header volume_stem",
    "grid": "Grid corner_distance ras_grid read_grid",
    "header": "MAX_VOXELS",
    "kinds": "Affine Image affines_for listed scan_of shape_of",
    "nifti": "NAN_CHOICES OUTPUT_DTYPES Scan check_same_grid fine_affine make_image ras_order "
    "read_scan save_image",
    "placeholders": "check_fetched",
    "video": "CLIP_ENDINGS clip_frames clip_image read_clip write_clip",
}
_MODULE = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = sorted(_MODULE)


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE[name]}"), name)
