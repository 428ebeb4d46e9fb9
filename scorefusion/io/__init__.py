"""Volumes in and out: images of every kind, file formats, and files that appear whole or not at all.

A name is imported from its module when it is first used, so that importing the package brings no nibabel.
"""

# ruff: noqa: F403
from typing import TYPE_CHECKING

from scorefusion.optional import lazily

if TYPE_CHECKING:
    from scorefusion.io.atomic import *
    from scorefusion.io.figures import *
    from scorefusion.io.formats import *
    from scorefusion.io.header import *
    from scorefusion.io.kinds import *
    from scorefusion.io.nifti import *
    from scorefusion.io.placeholders import *
    from scorefusion.io.video import *

__all__, __getattr__ = lazily(
    __name__,
    {
        "atomic": "check_output folder_written_beside output_target replace_file written_beside",
        "figures": "FIGURE_ENDINGS middle panels plane_images save_figure side_by_side try_to_write",
        "formats": "FORMATS LISTED READABLE WRITABLE check_ending check_volume_output companions format_of "
        "read_header volume_stem",
        "header": "MAX_VOXELS",
        "kinds": "Affine Image affines_for listed scan_of shape_of",
        "nifti": "Grid NAN_CHOICES OUTPUT_DTYPES Scan check_same_grid corner_distance fine_affine make_image "
        "ras_grid ras_order read_grid read_scan save_image",
        "placeholders": "check_fetched",
        "video": "CLIP_ENDINGS clip_frames clip_image read_clip write_clip",
    },
)
