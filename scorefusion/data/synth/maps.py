"""The template that synthetic subjects are deformed from: tissue probabilities and two surfaces."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scorefusion.errors import BadInput
from scorefusion.io.nifti import Scan, check_same_grid, read_scan
from scorefusion.optional import need

#: what each map is called in its folder: T1 of the head, T1 of the brain alone, two probability maps
FILES = {
    "head": "icbm152_t1.nii",
    "brain": "icbm152_t1_brain.nii.gz",
    "gm": "icbm152_gm.nii.gz",
    "wm": "icbm152_wm.nii.gz",
}
REACH = 40.0  #: distances to a surface are kept to so many millimetres
SHARPENING = 2.5  #: how much of what stands out of its surroundings is added to a probability
AIR = 0.3  #: below this tone is air, or bone


@dataclass(frozen=True, eq=False)
class Maps:
    """A template head. Arrays are float32 ``[D, H, W]`` (z, y, x) in RAS+ order, all on one grid."""

    gm: np.ndarray  #: probability of grey matter, sharpened
    wm: np.ndarray  #: probability of white matter, sharpened
    brain: np.ndarray  #: signed distance to the surface of the brain in mm, positive inside
    skin: np.ndarray  #: signed distance to the surface of the head in mm, positive inside
    tone: np.ndarray  #: T1 intensity of the head, 0 (air) to 1 (white matter)
    affine: np.ndarray  #: float64 ``[4, 4]``, (x, y, z) index to mm; the axes must not be oblique
    digest: str  #: names the maps' content

    @property
    def spacing(self) -> np.ndarray:
        """Voxel size (z, y, x) in mm."""
        return np.abs(np.diag(self.affine)[:3][::-1])


def read_maps(folder: Path) -> Maps:
    """Read the four maps out of a folder.

    Raises:
        BadInput: if one is missing, is no volume or lies on another grid.
    """
    scans: dict[str, Scan] = {}
    for kind, name in FILES.items():
        path = folder / name
        if not path.is_file():
            fix = "Run `python tools/fetch_data.py phantom`, or name the maps' folder with --maps."
            raise BadInput(path, "is missing: synthetic subjects are deformed from it", fix)
        scans[kind] = read_scan(path)
        check_same_grid(scans["head"], scans[kind])
    affine = scans["head"].ras_affine
    if np.abs(affine[:3, :3] - np.diag(np.diag(affine)[:3])).max() > 1e-3:
        raise BadInput(folder / FILES["head"], "lies obliquely", "Resample the maps onto axes R, A, S.")
    return make_maps(affine=affine, **{kind: scan.values for kind, scan in scans.items()})


def make_maps(
    head: np.ndarray, brain: np.ndarray, gm: np.ndarray, wm: np.ndarray, affine: np.ndarray
) -> Maps:
    """Prepare a template.

    Args:
        head: float ``[D, H, W]``, T1 of the whole head.
        brain: likewise, 0 outside the brain.
        gm: likewise, probability of grey matter, of any scale (1, 255).
        wm: likewise, of white matter, of the same scale.
        affine: ``[4, 4]``, (x, y, z) index to mm.
    """
    ndimage = need("scipy.ndimage", "the phantom")
    spacing = np.abs(np.diag(affine)[:3][::-1])
    scale = max(float(gm.max()), float(wm.max()))
    inside = brain > 0
    tone = head / np.percentile(head[inside], 95)
    # Slice by slice: the skull is as dark as the air, which reaches it through the cut neck.
    across = ndimage.generate_binary_structure(3, 1) & np.array([False, True, False])[:, None, None]
    outline = ndimage.binary_fill_holes(tone > AIR, across) | inside
    parts, count = ndimage.label(outline)
    if count > 1:
        outline = parts == 1 + int(np.argmax(ndimage.sum(outline, parts, range(1, count + 1))))
    digest = hashlib.sha256()
    for array in (head, brain, gm, wm, affine):
        digest.update(np.ascontiguousarray(array, np.float32).tobytes())
    return Maps(
        gm=_sharpened(gm / scale, spacing),
        wm=_sharpened(wm / scale, spacing),
        brain=_distance(inside, spacing),
        skin=_distance(outline, spacing),
        tone=tone.astype(np.float32),
        affine=np.asarray(affine, np.float64),
        digest=digest.hexdigest()[:16],
    )


def _sharpened(probability: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """A mean of many heads is blurred: raise what stands out of its surroundings of 2.5 mm."""
    ndimage = need("scipy.ndimage", "the phantom")
    surroundings = ndimage.gaussian_filter(probability, 2.5 / spacing, mode="nearest")
    return (probability + SHARPENING * (probability - surroundings)).clip(0.0, 1.0).astype(np.float32)


def _distance(inside: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Signed distance in mm to the surface of a mask, smoothed over a millimetre."""
    ndimage = need("scipy.ndimage", "the phantom")
    apart = ndimage.distance_transform_edt(inside, spacing)
    apart -= ndimage.distance_transform_edt(~inside, spacing)
    smooth = ndimage.gaussian_filter(apart.clip(-REACH, REACH), 1.0 / spacing, mode="nearest")
    return smooth.astype(np.float32)
