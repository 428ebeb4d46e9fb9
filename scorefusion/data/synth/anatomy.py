"""One individual's head: the template deformed, its blurred borders drawn sharply, with lesions if wanted.

Random fields are cubic B-splines with random coefficients, evaluated on a grid one axis at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scorefusion.errors import BadInput, ScoreFusionError
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
    """Prepare a template of float ``[D, H, W]``: T1 of the head, T1 of the brain alone and 0 outside it,
    probabilities of grey and white matter of one scale (1, 255). The affine is from (x, y, z) index to mm.
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


MARGIN = 16.0  #: what is kept around the brain, in mm
MULTIPLE = 16
BENDS = ((60.0, 4.0), (22.0, 1.8), (8.0, 1.0))  #: deformation: pairs of knot distance and deviation, in mm
LEAST_JACOBIAN = 0.15
#: standard deviations of size (relative, an axis), pose (degrees, an axis) and place (mm, an axis)
ZOOM, TURN, SHIFT = 0.05, 4.0, 2.0
THICKEST = 16.0  #: what is dark in the template so near the brain, in mm, is bone; farther off it is air
_FLOOR = 0.02
_POWER = 0.479  #: mean over a knot interval of the sum of squares of the cubic B-spline's values
MEAN_COUNT = 8.0
SMALLEST, LARGEST = 1.5, 9.0  #: radii in mm; logarithms are drawn uniformly


@dataclass(frozen=True)
class Grid:
    """Where voxels lie."""

    start: tuple[float, float, float]  #: (z, y, x) of the first voxel's centre in mm
    spacing: float  #: voxel size in mm
    shape: tuple[int, int, int]  #: voxels along (z, y, x)

    def axis(self, axis: int) -> np.ndarray:
        """Centres along an axis in mm from the first voxel's outer face, float64."""
        return (np.arange(self.shape[axis]) + 0.5) * self.spacing

    @property
    def extent(self) -> np.ndarray:
        """(z, y, x) in mm."""
        return np.array(self.shape) * self.spacing

    @property
    def affine(self) -> np.ndarray:
        """float64 ``[4, 4]``, (x, y, z) index to mm."""
        affine = np.diag([self.spacing] * 3 + [1.0])
        affine[:3, 3] = self.start[::-1]
        return affine


@dataclass(frozen=True, eq=False)
class Field:
    """A random field of unit variance with a knot every ``knot`` mm, whatever the grid."""

    coefficients: np.ndarray  #: float32 ``[d, h, w]``
    knot: float  #: in mm

    @classmethod
    def draw(cls, random: np.random.Generator, extent: Sequence[float] | np.ndarray, knot: float) -> Field:
        """Draw a field that covers a box of ``extent`` (z, y, x) mm."""
        size = [int(np.ceil(length / knot)) + 3 for length in extent]
        return cls((random.standard_normal(size) / _POWER**1.5).astype(np.float32), knot)

    def on(self, grid: Grid, derivative: int | None = None) -> np.ndarray:
        """float32 ``[D, H, W]``: its values, or its derivative along an axis, per mm."""
        values = self.coefficients
        for axis in range(3):
            basis = _basis(grid.axis(axis), self.knot, self.coefficients.shape[axis], derivative == axis)
            # The axis just finished goes to the back; after three turns the order is z, y, x again.
            values = np.tensordot(values, basis, axes=(0, 1))
        return values


def _basis(places: np.ndarray, knot: float, count: int, derived: bool) -> np.ndarray:
    """float32 ``[places, count]``: the cubic B-splines, or their derivatives, at places in mm."""
    at = places[:, None] / knot - (np.arange(count)[None, :] - 1)
    far = np.abs(at)
    if derived:
        near = at * (1.5 * far - 2.0)
        tail = -0.5 * np.sign(at) * (2.0 - far) ** 2
        values = np.where(far < 1, near, np.where(far < 2, tail, 0.0)) / knot
    else:
        near = 2 / 3 - far**2 + far**3 / 2
        values = np.where(far < 1, near, np.where(far < 2, (2.0 - far) ** 3 / 6, 0.0))
    return values.astype(np.float32)


@dataclass(frozen=True, eq=False)
class Anatomy:
    """A head on a grid."""

    grid: Grid  #: where its voxels lie
    #: for csf, gm, wm, bone, marrow, fat, muscle (and lesion) the part of each voxel it fills, float32
    #: ``[D, H, W]``; the rest is air
    fractions: dict[str, np.ndarray]
    depth: np.ndarray  #: mm below the surface of the brain, float32 ``[D, H, W]``, negative outside
    mixed: np.ndarray  #: probability of white matter in the template, float32 ``[D, H, W]``
    least_jacobian: float  #: the smallest determinant of the deformation's derivative


def make_grid(maps: Maps, spacing: float) -> Grid:
    """The box around the template's brain on a grid of its own voxel size."""
    if not 0.4 <= spacing <= 8.0:
        raise ScoreFusionError(f"spacing must be between 0.4 and 8 mm, not {spacing:g}")
    within = np.argwhere(maps.brain > 0)
    origin = maps.affine[:3, 3][::-1]
    low = np.maximum(within.min(0) * maps.spacing - MARGIN, 0)
    high = np.minimum(within.max(0) * maps.spacing + MARGIN, (np.array(maps.brain.shape) - 1) * maps.spacing)
    shape = [max(1, round(length / spacing / MULTIPLE)) * MULTIPLE for length in high - low]
    start = origin + (low + high) / 2 - (np.array(shape) - 1) / 2 * spacing
    return Grid(tuple(float(at) for at in start), spacing, tuple(shape))  # type: ignore[arg-type]


def make_anatomy(maps: Maps, grid: Grid, random: np.random.Generator) -> Anatomy:
    """Draw one individual from its own stream."""
    ndimage = need("scipy.ndimage", "the phantom")
    places, least = deformation(maps, grid, random)

    gm, wm, depth, skin, tone = (
        ndimage.map_coordinates(volume, places, order=1, mode="nearest", output=np.float32)
        for volume in (maps.gm, maps.wm, maps.brain, maps.skin, maps.tone)
    )
    mixed = wm.copy()

    def noise(knot: float) -> np.ndarray:
        return Field.draw(random, grid.extent, knot).on(grid)

    # Inside the skull: the likeliest of three, after smooth noise moved the odds.
    csf = np.log((1 - gm - wm).clip(0, 1) + _FLOOR) + 0.9 * noise(5.0) + 0.4
    wm = np.log(wm + _FLOOR) + 0.8 * noise(5.0)
    gm = np.log(gm + _FLOOR)
    white = share(wm - np.maximum(gm, csf))
    grey = share(gm - csf)
    gap = 2.5 + noise(25.0)
    cavity = share(depth + gap)

    # Outside it: bone with marrow within, then soft tissue under a skin.
    out = -depth - gap
    thick = (6.0 + 1.5 * noise(30.0)).clip(2.5, None)
    bone = share(np.minimum(thick - out, skin - 3.0))
    marrow = share(thick / 6 - np.abs(out - thick / 2)) * (thick > 5)
    head = share(skin)
    dark = share(0.3 + 0.05 * noise(15.0) - tone) * (skin > 8)
    fatty = share(np.minimum(tone - 0.6 + 0.15 * noise(10.0) + 0.4 * (skin < 8), skin - 1.5))

    bone = np.where(out < THICKEST, np.maximum(bone, dark), bone)

    soft = head * (1 - cavity) * (1 - bone) * (1 - dark)
    skull = head * (1 - cavity) * bone
    cavity *= head
    fractions = {
        "csf": cavity * (1 - white) * (1 - grey),
        "gm": cavity * (1 - white) * grey,
        "wm": cavity * white,
        "bone": skull * (1 - marrow),
        "marrow": skull * marrow,
        "fat": soft * fatty,
        "muscle": soft * (1 - fatty),
    }
    return Anatomy(grid, fractions, depth, mixed, least)


def deformation(maps: Maps, grid: Grid, random: np.random.Generator) -> tuple[np.ndarray, float]:
    """Where in the template each voxel of an individual comes from.

    Size, pose and bends of three scales. Where the sum would fold space, all bends are made smaller until it
    does not. Float32 ``[3, D, H, W]`` (z, y, x) voxel coordinates, and the derivative's least determinant.
    """
    matrix = np.exp(random.normal(0, ZOOM, 3))[:, None] * rotation(np.deg2rad(random.normal(0, TURN, 3)))
    shift = random.normal(0, SHIFT, 3)
    bends = [[(sd, Field.draw(random, grid.extent, knot)) for knot, sd in BENDS] for _ in range(3)]

    z, y, x = (max(1, n // 2) for n in grid.shape)
    thin = Grid(grid.start, grid.spacing * 2, (z, y, x))
    derivatives = np.empty((*thin.shape, 3, 3), np.float32)
    for i in range(3):
        for j in range(3):
            derivatives[..., i, j] = sum(sd * field.on(thin, derivative=j) for sd, field in bends[i])
    strength = 1.0
    while (least := float(np.linalg.det(matrix + strength * derivatives).min())) < LEAST_JACOBIAN:
        strength *= 0.9
    del derivatives

    middle = grid.extent / 2
    offset = np.array(grid.start) - grid.spacing / 2 - maps.affine[:3, 3][::-1]
    axes = [grid.axis(axis) - middle[axis] for axis in range(3)]
    places = np.empty((3, *grid.shape), np.float32)
    for i in range(3):
        at = [matrix[i, j] * axes[j] for j in range(3)]
        places[i] = (at[0][:, None, None] + at[1][None, :, None]) + at[2][None, None, :]
        places[i] += middle[i] + shift[i] + offset[i]
        for sd, field in bends[i]:
            places[i] += np.float32(strength * sd) * field.on(grid)
        places[i] /= maps.spacing[i]
    return places, least


def share(level: np.ndarray) -> np.ndarray:
    """The part of each voxel in which a smooth level is positive, to first order: a plane cuts the voxel.

    Float32 ``[D, H, W]`` both; the step is one voxel wide along the border's normal.
    """
    slope = np.zeros_like(level)
    for axis, length in enumerate(level.shape):
        if length > 1:
            along = np.gradient(level, axis=axis)
            along *= along
            slope += along
    np.sqrt(slope, out=slope)
    slope += np.float32(1e-6)
    return (level / slope + np.float32(0.5)).clip(0.0, 1.0)


def rotation(angles: np.ndarray) -> np.ndarray:
    """Rotation matrix ``[3, 3]`` over (z, y, x) of three angles in radians, about z, then y, then x."""
    turns = np.eye(3)
    for (i, j), angle in zip(((1, 2), (0, 2), (0, 1)), angles, strict=True):
        turn = np.eye(3)
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        turns = turns @ turn
    return turns


def add_lesions(anatomy: Anatomy, random: np.random.Generator) -> None:
    """Turn blobs of white matter into ``lesion``, a new entry of the anatomy's fractions.

    Between 1 and about 16 of them, most of them small. A blob's border is wavy; grey matter and fluid stay.
    """
    grid, white = anatomy.grid, anatomy.fractions["wm"]
    lesion = np.zeros_like(white)
    inner = np.flatnonzero((white > 0.95) & (anatomy.depth > 4.0))
    count = 1 + int(random.poisson(MEAN_COUNT - 1)) if inner.size else 0
    for _ in range(count):
        centre = np.array(np.unravel_index(inner[int(random.random() * inner.size)], white.shape))
        radius = float(np.exp(random.uniform(np.log(SMALLEST), np.log(LARGEST))))
        axes = radius * np.exp(random.normal(0, 0.2, 3))
        box, level = _blob(grid, centre, axes, random)
        np.maximum(lesion[box], share(level), out=lesion[box])
    lesion *= white
    white -= lesion
    anatomy.fractions["lesion"] = lesion


def _blob(
    grid: Grid, centre: np.ndarray, axes: np.ndarray, random: np.random.Generator
) -> tuple[tuple[slice, ...], np.ndarray]:
    """The box around an ellipsoid with a wavy surface, and its level in mm, positive inside."""
    half = np.ceil(1.6 * axes / grid.spacing).astype(int) + 2
    low, high = np.maximum(centre - half, 0), np.minimum(centre + half + 1, grid.shape)
    waves = Field.draw(random, (2 * half + 1) * grid.spacing, max(2.5, float(axes.min())))
    window = Grid((0.0, 0.0, 0.0), grid.spacing, tuple(int(n) for n in 2 * half + 1))  # type: ignore[arg-type]
    mesh = np.meshgrid(*(np.arange(-h, h + 1) * grid.spacing / a for h, a in zip(half, axes, strict=True)))
    away = np.sqrt(sum(np.swapaxes(part, 0, 1) ** 2 for part in mesh))
    level = float(axes.min()) * (1.0 - away + 0.2 * waves.on(window))
    cut = tuple(slice(int(a), int(b)) for a, b in zip(low - centre + half, high - centre + half, strict=True))
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return box, level[cut].astype(np.float32)
