"""Images of any contrast, or of several, out of label maps: in crops of any size, for training.

A label map is deformed, each label is given a random brightness (half the time that of a real sequence,
always where there are several contrasts of one head), and what a scan adds is added: texture, lesions,
vessels, partial volume, shading, limited resolution and noise.
The idea is SynthSeg's (Billot et al., Medical Image Analysis 86, 2023).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from scorefusion.data.dataset import Progress
from scorefusion.data.synth.anatomy import Field, Grid, rotation
from scorefusion.data.synth.contrasts import BRAIN, AnyContrast, Body, Look, require_known
from scorefusion.data.synth.make import rician, write_set
from scorefusion.data.synth.structures import MOST, structure, tissue
from scorefusion.errors import BadInput, ScoreFusionError
from scorefusion.io.formats import LISTED
from scorefusion.io.nifti import read_scan
from scorefusion.optional import need

MARGIN = 4  #: voxels around a crop that filters reach


@dataclass(frozen=True, eq=False)
class LabelMap:
    """A head's labels."""

    name: str  #: of its file
    values: np.ndarray  #: uint8 ``[D, H, W]`` in RAS+ order: places in ``numbers``
    numbers: tuple[int, ...]  #: the structures there are, by :func:`structure`; the first is 0, background
    spacing: tuple[float, float, float]  #: voxel size (z, y, x) in mm

    @property
    def tissues(self) -> tuple[str, ...]:
        """The tissue of each of ``numbers``."""
        return tuple(tissue(number) for number in self.numbers)


def read_label_map(path: Path) -> LabelMap:
    """Read FreeSurfer-numbered labels, cropped to what is not background.

    Raises:
        BadInput: for a file that cannot be read, holds no label or other values than whole numbers.
    """
    scan = read_scan(path)
    whole = np.rint(scan.values)
    fix = "Give a map of FreeSurfer's numbers, as aseg.mgz or SynthSeg's output."
    if np.abs(whole - scan.values).max() > 1e-3 or whole.min() < 0:
        raise BadInput(path, "does not hold whole numbers from 0 up", fix)
    if whole.max() > MOST:
        raise BadInput(path, f"holds the number {whole.max():.0f}, and FreeSurfer's end at {MOST}", fix)
    places = whole.astype(np.intp)
    found = np.flatnonzero(np.bincount(places.reshape(-1)))
    numbers = sorted({0, *(structure(int(number)) for number in found)})
    if not 1 < len(numbers) <= 256:
        raise BadInput(path, f"holds {len(numbers) - 1} structures, not 1 to 255", fix)
    lookup = np.zeros(MOST + 1, np.uint8)
    lookup[found] = [numbers.index(structure(int(number))) for number in found]
    values = lookup[places]
    box = tuple(_span(values, axis) for axis in range(3))
    spacing = np.linalg.norm(scan.ras_affine[:3, :3], axis=0)[::-1]
    z, y, x = (float(size) for size in spacing)
    return LabelMap(path.name, np.ascontiguousarray(values[box]), tuple(numbers), (z, y, x))


def _span(values: np.ndarray, axis: int) -> slice:
    """From the first to the last place along an axis that holds anything but 0."""
    at = np.flatnonzero(values.any(axis=tuple(other for other in range(3) if other != axis)))
    return slice(int(at[0]), int(at[-1]) + 1)


def label_files(folder: Path) -> list[Path]:
    """Return the label maps of a folder, by name.

    Raises:
        BadInput: if there are none.
    """
    inside = folder.iterdir() if folder.is_dir() else ()
    files = sorted(file for file in inside if file.name.lower().endswith(LISTED))
    if not files:
        fix = "Name a folder of FreeSurfer-numbered maps, one file for each head (docs/thick-slices.md)."
        raise BadInput(folder, "holds no label maps", fix)
    return files


@dataclass(frozen=True)
class Painting:
    """How images are made of label maps: ranges are drawn uniformly, shares are probabilities."""

    voxel: tuple[float, float] = (0.65, 1.25)  #: voxel size in mm
    zoom: float = 0.15  #: greatest change of size along each axis, relative
    turn: float = 15.0  #: greatest angle about each axis, in degrees
    bend: float = 2.5  #: standard deviation of the smooth displacement in mm
    axial: float = 0.5  #: share of crops whose first axis is the head's own z; the others y or x
    upright: bool = False  #: keep the order of the head's axes, whatever ``axial`` says
    sequence: float = 0.5  #: share with the brightness of a real sequence
    texture: float = 0.06  #: greatest standard deviation of texture within a label, relative
    lesions: float = 0.4
    vessels: float = 0.3
    partial: tuple[float, float] = (0.4, 0.75)  #: standard deviation of the blur at borders in mm
    resolution: tuple[float, float] = (0.5, 1.3)  #: in-plane resolution in mm
    stripped: float = 0.3  #: share without what is outside the brain
    cut: float = 0.1  #: share of the others with the face cut away
    noise: float = 0.04  #: greatest standard deviation of Rician noise, of the brightest label
    vary: float = 1.0  #: how much shading, gamma and gain differ from image to image, of their full ranges


#: of several contrasts of one head, as blurred as an average of many heads or as sharp as a scan
PAIRED = Painting(voxel=(0.8, 1.6), upright=True, partial=(0.4, 1.8), vary=0.3)


def paint(
    labels: LabelMap,
    size: Sequence[int],
    random: np.random.Generator,
    painting: Painting | None = None,
    *,
    whole: bool = False,
    contrasts: Sequence[str] = (),
) -> np.ndarray:
    """Draw an image of a crop of a deformed label map, or several images that differ in contrast alone.

    Args:
        labels: the head.
        size: (z, y, x) in voxels; z is the axis that slices will be stacked along, whichever of the head's
            it is.
        random: every choice comes from it.
        painting: ranges; by default those of one image, or of several.
        whole: show the middle of the head in its own order of axes, not any place and any axis first.
        contrasts: of ``t1``, ``t2``, ``pd`` and ``flair``, those that are shown, by the same relaxation times
            and of the same lesions and texture; none of them for one image of any contrast.

    Returns:
        float32 ``[D, H, W]``, or ``[C, D, H, W]`` if contrasts are named, about -1 (nothing) to 1 (the
        brightest structures).

    Raises:
        ScoreFusionError: for a contrast that no sequence is known for.
    """
    images, _ = _painted(labels, size, random, painting, whole, contrasts)
    return images if contrasts else images[0]


def write_painted(
    files: Sequence[Path],
    out: Path,
    *,
    count: int,
    first: int = 0,
    seed: int = 0,
    spacing: float = 1.0,
    progress: Progress | None = None,
) -> list[Path]:
    """Make a folder of whole heads painted of label maps, or go on with it, as :func:`write_subjects` does.

    Each subject has ``image``, int16 from 0 (nothing) to about 1000, and ``labels``, int16, FreeSurfer's
    numbers with the right side's as the left's. Each is of a map drawn at random.

    Raises:
        ScoreFusionError: for a number out of range.
        BadInput: for a file that is no label map, a folder of another set, or one that cannot be written.
    """
    if not 0.4 <= spacing <= 8.0:
        raise ScoreFusionError(f"spacing must be between 0.4 and 8 mm, not {spacing:g}")
    how = replace(Painting(), voxel=(spacing, spacing))
    recipe = {
        "synthetic": True,
        "what": "Images painted of deformed label maps; brightness, texture and noise are random.",
        "seed": seed,
        "maps": [file.name for file in files],
        "settings": {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(how).items()},
    }

    def make(own: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        random = np.random.default_rng(own)
        labels = read_label_map(files[int(random.integers(len(files)))])
        edges = zip(labels.values.shape, labels.spacing, strict=True)
        size = [max(1, round(length * edge * (1 + how.zoom) / spacing)) for length, edge in edges]
        (image,), places = _painted(labels, size, random, how, True)
        numbers = np.array(labels.numbers, np.int16)[places]
        return {"image": 500 * (image + 1), "labels": numbers}, np.diag([spacing] * 3 + [1.0])

    return write_set(out, recipe, make, count=count, first=first, seed=seed, progress=progress)


def _painted(
    labels: LabelMap,
    size: Sequence[int],
    random: np.random.Generator,
    painting: Painting | None,
    whole: bool,
    contrasts: Sequence[str] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """The images ``[C, D, H, W]``, and the places of their labels in ``numbers``, ``[D, H, W]``."""
    how = painting or (PAIRED if contrasts else Painting())
    voxel = float(random.uniform(*how.voxel))
    shape = tuple(int(n) + 2 * MARGIN for n in size)
    grid = Grid((0.0, 0.0, 0.0), voxel, shape)  # type: ignore[arg-type]
    numbers = _deformed(labels, grid, how, random, whole)
    tissues = np.array(labels.tissues)
    brain = np.isin(tissues, BRAIN)
    if brain.any() and random.random() < how.stripped:
        numbers = np.where(brain[numbers], numbers, 0).astype(np.uint8)
    elif random.random() < how.cut:
        normal = random.standard_normal(3)
        place = sum(
            n * axis for n, axis in zip(normal, np.ix_(*(np.linspace(-1, 1, n) for n in shape)), strict=True)
        )
        numbers = np.where((place > random.uniform(0, 1)) & ~brain[numbers], 0, numbers).astype(np.uint8)
    look: Look = Body(contrasts, random) if contrasts else AnyContrast(how.sequence)
    means = look.brightness(labels.numbers, random)
    top = means.max(axis=1)
    images = means[:, numbers]
    _split(images, numbers, tissues, grid, look, random)
    if how.texture:
        _texture(images, voxel, how, look, random)
    if random.random() < how.lesions:
        _add_blobs(images, numbers > 0, voxel, top, look, random)
    if random.random() < how.vessels:
        _add_tubes(images, numbers > 0, voxel, top, look, random)
    inner = tuple(slice(MARGIN, -MARGIN) for _ in range(3))
    blur = np.full(3, random.uniform(*how.partial) / voxel)
    scans = [_scanned(*image, voxel, blur, how, random) for image in zip(images, top, strict=True)]
    return np.stack(scans), numbers[inner]


def _scanned(
    image: np.ndarray, top: float, voxel: float, blur: np.ndarray, how: Painting, random: np.random.Generator
) -> np.ndarray:
    """What a scanner makes of an image ``[D, H, W]`` with margins, whose brightest structure is ``top``."""
    gaussian = need("scipy.ndimage", "images of label maps").gaussian_filter
    sharpness = float(random.uniform(*how.resolution))
    blur = blur.copy()
    blur[1:] = np.hypot(blur[1:], np.sqrt(max(sharpness**2 - voxel**2, 0.0)) / 2.355 / voxel)
    image = gaussian(image, blur, mode="nearest", truncate=3.0)
    image = image[tuple(slice(MARGIN, -MARGIN) for _ in range(3))] / np.float32(top)
    inside = Grid((0.0, 0.0, 0.0), voxel, image.shape)
    shade = np.float32(how.vary * random.uniform(0, 0.2))
    image = image * np.exp(shade * Field.draw(random, inside.extent, 70.0).on(inside))
    image = np.power(image, np.float32(np.exp(how.vary * random.normal(0, 0.2))))
    sigma = float(random.uniform(0, how.noise)) * (random.random() < 0.8)
    if sigma:
        image = rician(image, sigma, random)
    gain = 0.95 + how.vary * (random.uniform(0.8, 1.1) - 0.95)
    return (image * np.float32(2 * gain) - 1).astype(np.float32)


def _deformed(
    labels: LabelMap, grid: Grid, how: Painting, random: np.random.Generator, whole: bool
) -> np.ndarray:
    """Draw a box of the label map, turned, enlarged, bent and perhaps mirrored: uint8 ``[D, H, W]``."""
    first = 0 if random.random() < how.axial else int(random.integers(1, 3))
    order = [first, *random.permutation([axis for axis in range(3) if axis != first])]
    signs = random.choice([-1.0, 1.0], 3)
    order = [0, 1, 2] if how.upright else order
    matrix = np.eye(3) if whole else np.eye(3)[:, order] * signs
    matrix = (
        np.diag(1 + random.uniform(-how.zoom, how.zoom, 3))
        @ rotation(np.deg2rad(random.uniform(-how.turn, how.turn, 3)))
        @ matrix
    )
    full = np.array(labels.values.shape)
    wanted = np.isin(labels.tissues, ("wm", "gm", "csf"))
    wanted = wanted if wanted.any() and random.random() < 0.75 else np.arange(len(wanted)) > 0
    middle = full / 2
    for _ in range(0 if whole else 16):
        middle = random.uniform(0, full)
        if wanted[labels.values[tuple(middle.astype(int))]]:
            break
    axes = [grid.axis(axis) - grid.extent[axis] / 2 for axis in range(3)]
    flat = np.zeros(grid.shape, np.int64)
    inside = np.ones(grid.shape, bool)
    for i in range(3):
        at = [(matrix[i, j] * axes[j]).astype(np.float32) for j in range(3)]
        place = (at[0][:, None, None] + at[1][None, :, None]) + at[2][None, None, :]
        for knot, bend in ((45.0, how.bend), (14.0, 0.3 * how.bend)):
            place += np.float32(bend) * Field.draw(random, grid.extent, knot).on(grid)
        place /= np.float32(labels.spacing[i])
        place += np.float32(middle[i])
        index = place.astype(np.int32)  # towards 0: what is below 0 is caught by the sign
        inside &= (place >= 0) & (index < full[i])
        flat *= full[i]
        flat += index
    flat[~inside] = 0
    found = labels.values.reshape(-1)[flat]
    found[~inside] = 0
    return found


def _split(
    images: np.ndarray,
    numbers: np.ndarray,
    tissues: np.ndarray,
    grid: Grid,
    look: Look,
    random: np.random.Generator,
) -> None:
    """Brighten or darken a random part of white matter, and of grey matter, in place."""
    for name in ("wm", "gm", "outside"):
        if random.random() < 0.5:
            field = Field.draw(random, grid.extent, float(random.uniform(6, 25))).on(grid)
            part = (field > random.uniform(-0.5, 1.0)) & (tissues == name)[numbers]
            images[:, part] *= look.part(name, random).astype(np.float32)[:, None]


def _texture(
    images: np.ndarray, voxel: float, how: Painting, look: Look, random: np.random.Generator
) -> None:
    """Multiply by correlated noise and a slow drift, in place."""
    gaussian = need("scipy.ndimage", "images of label maps").gaussian_filter
    sigma = random.uniform(0.5, 1.2) / voxel
    noise = gaussian(random.standard_normal(images[0].shape, np.float32), sigma, mode="wrap", truncate=2.5)
    noise *= np.float32(random.uniform(0, how.texture) / max(float(noise.std()), 1e-6))
    for image, change in zip(images, look.texture(), strict=True):
        image *= 1 + np.float32(change) * noise


def _add_blobs(
    images: np.ndarray,
    head: np.ndarray,
    voxel: float,
    top: np.ndarray,
    look: Look,
    random: np.random.Generator,
) -> None:
    """Add lesions in place: ellipsoids of 1 to 10 mm, in part see-through."""
    count = 1 + random.poisson(2.0 * head.size / 64**3)
    value = look.lesion(random) * top
    for _ in range(count):
        radii = np.exp(random.uniform(np.log(0.5), np.log(5.0))) * np.exp(random.normal(0, 0.25, 3)) / voxel
        own = value if random.random() < 0.7 else look.lesion(random) * top
        _stamp(images, head, random.uniform(0, head.shape), radii, own, float(random.uniform(0.4, 1)))


def _add_tubes(
    images: np.ndarray,
    head: np.ndarray,
    voxel: float,
    top: np.ndarray,
    look: Look,
    random: np.random.Generator,
) -> None:
    """Add vessels in place: thin bent tubes, brighter or darker than all else."""
    value = look.vessel(random) * top
    for _ in range(1 + random.poisson(1.5 * head.size / 64**3)):
        at, radius = random.uniform(0, head.shape), random.uniform(0.4, 1.3) / voxel
        direction = random.standard_normal(3)
        for _ in range(int(random.integers(20, 90))):
            direction = direction / np.linalg.norm(direction) + random.normal(0, 0.15, 3)
            at = at + 0.7 * direction
            _stamp(images, head, at, np.full(3, radius), value, 1.0)


def _stamp(
    images: np.ndarray,
    head: np.ndarray,
    centre: np.ndarray,
    radii: np.ndarray,
    value: np.ndarray,
    cover: float,
) -> None:
    """Set an ellipsoid's voxels in the head to ``value [C]``, in place; its border covers voxels in part."""
    low = np.maximum(np.floor(centre - radii - 1), 0).astype(int)
    high = np.minimum(np.ceil(centre + radii + 2), head.shape).astype(int)
    if (high <= low).any():
        return
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    axes = np.ix_(*((np.arange(a, b) - c) / r for a, b, c, r in zip(low, high, centre, radii, strict=True)))
    distance = np.sqrt(sum(axis**2 for axis in axes))
    share = np.clip((1 - distance) * float(radii.min()) + 0.5, 0, 1) * cover * head[box]
    share = share.astype(np.float32)
    for image, bright in zip(images, value.astype(np.float32), strict=True):
        image[box] += share * (bright - image[box])


class LabelCrops:
    """Draw crops of the heads of a folder; files are read when they are first needed.

    Args:
        files: of label maps.
        painting: how they become images; see :func:`paint`.
        contrasts: those of each crop; none for one image of any contrast.

    Raises:
        ScoreFusionError: for a contrast that no sequence is known for.
    """

    def __init__(
        self, files: Sequence[Path], painting: Painting | None = None, contrasts: Sequence[str] = ()
    ) -> None:
        self.files, self.painting, self.contrasts = tuple(files), painting, tuple(contrasts)
        require_known(self.contrasts)
        self._read: dict[Path, LabelMap] = {}

    def draw(self, size: Sequence[int], random: np.random.Generator) -> np.ndarray:
        """Return a random place of a random head, float32 ``[C, D, H, W]``; see :func:`paint`."""
        file = self.files[int(random.integers(len(self.files)))]
        if file not in self._read:
            self._read[file] = read_label_map(file)
        images = paint(self._read[file], size, random, self.painting, contrasts=self.contrasts)
        return images if self.contrasts else images[None]
