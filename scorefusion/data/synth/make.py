"""Synthetic subjects, one or a folder: signal equations of each tissue, the coil's shading, noise."""

import json
import zlib
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np

from scorefusion.data.dataset import Progress
from scorefusion.data.synth.anatomy import Anatomy, Field, Maps, add_lesions, make_anatomy, make_grid
from scorefusion.errors import BadInput, ScoreFusionError, unknown_name
from scorefusion.io.atomic import folder_written_beside, written_beside

Values = np.ndarray | float
TOP = 1000.0  #: the brightest voxels of an image, but for one in a thousand, are stored as this


@dataclass(frozen=True)
class Tissue:
    """Relaxation of a tissue at 3 T."""

    t1: float  #: longitudinal relaxation time in ms
    t2: float  #: transverse relaxation time in ms
    pd: float  #: proton density, water 1
    spread: float = 0.03  #: standard deviation between people of each of the three, relative


TISSUES = {
    "csf": Tissue(4000.0, 1800.0, 1.0, 0.02),
    "gm": Tissue(1331.0, 110.0, 0.84),
    "wm": Tissue(832.0, 80.0, 0.70),
    "bone": Tissue(220.0, 0.4, 0.2),
    "marrow": Tissue(365.0, 133.0, 0.2, 0.1),
    "fat": Tissue(371.0, 133.0, 0.35, 0.1),
    "muscle": Tissue(1420.0, 32.0, 0.8, 0.05),
    "lesion": Tissue(1450.0, 180.0, 0.88, 0.08),
}
"""Brain: Wansapura et al., J. Magn. Reson. Imaging 9 (1999) 531; marrow, fat, muscle: Gold et al., Am. J.
Roentgenol. 183 (2004) 343. Proton densities, bone, fluid and lesions are round figures of the usual size; fat
and marrow keep the part of theirs that fat suppression leaves."""


@dataclass(frozen=True)
class Sequence:
    """A pulse sequence; times in ms."""

    kind: Literal["spin-echo", "inversion-recovery", "gradient-echo"]  #: which signal equation
    tr: float  #: repetition time
    te: float  #: echo time
    ti: float = 0.0  #: inversion time, of an inversion recovery
    flip: float = 90.0  #: flip angle in degrees, of a spoiled gradient echo

    def signal(self, t1: Values, t2: Values, pd: Values) -> Any:
        """Magnitude for relaxation times in ms and a proton density; any shapes that broadcast."""
        if self.kind == "spin-echo":
            return spin_echo(t1, t2, pd, tr=self.tr, te=self.te)
        if self.kind == "inversion-recovery":
            return inversion_recovery(t1, t2, pd, tr=self.tr, te=self.te, ti=self.ti)
        return gradient_echo(t1, t2, pd, tr=self.tr, te=self.te, flip=self.flip)


SEQUENCES = {
    "t1": Sequence("gradient-echo", tr=18.0, te=5.0, flip=30.0),
    "t1ir": Sequence("inversion-recovery", tr=2500.0, te=10.0, ti=1100.0),
    "t2": Sequence("spin-echo", tr=5000.0, te=100.0),
    "pd": Sequence("spin-echo", tr=5000.0, te=15.0),
    "flair": Sequence("inversion-recovery", tr=9000.0, te=100.0, ti=2500.0),
}


def sequences_named(names: tuple[str, ...]) -> dict[str, Sequence]:
    """Look sequences up."""
    for name in names:
        if name not in SEQUENCES:
            raise unknown_name("contrast", name, SEQUENCES)
    if not names or len(set(names)) < len(names):
        raise ScoreFusionError(f"name each contrast once, at least one; got {list(names)}")
    return {name: SEQUENCES[name] for name in names}


def spin_echo(t1: Values, t2: Values, pd: Values, *, tr: float, te: float) -> Any:
    """PD (1 - exp(-TR/T1)) exp(-TE/T2), for TE much shorter than TR; times in ms."""
    return pd * (1 - np.exp(-tr / t1)) * np.exp(-te / t2)


def inversion_recovery(t1: Values, t2: Values, pd: Values, *, tr: float, te: float, ti: float) -> Any:
    """PD abs(1 - 2 exp(-TI/T1) + exp(-TR/T1)) exp(-TE/T2), a magnitude image; times in ms."""
    return pd * np.abs(1 - 2 * np.exp(-ti / t1) + np.exp(-tr / t1)) * np.exp(-te / t2)


def gradient_echo(t1: Values, t2: Values, pd: Values, *, tr: float, te: float, flip: float) -> Any:
    """PD sin(a) (1 - E) / (1 - cos(a) E) exp(-TE/T2) with E = exp(-TR/T1), spoiled; T2 stands for T2*."""
    angle, recovered = np.deg2rad(flip), np.exp(-tr / t1)
    return pd * np.sin(angle) * (1 - recovered) / (1 - np.cos(angle) * recovered) * np.exp(-te / t2)


class Body:
    """An individual's relaxation times: by tissue, and varying smoothly within each."""

    def __init__(self, anatomy: Anatomy, random: np.random.Generator) -> None:
        self.anatomy = anatomy
        #: T1, T2 and proton density of each
        self.tissues = {
            name: np.exp(random.normal(0, tissue.spread, 3)) * (tissue.t1, tissue.t2, tissue.pd)
            for name, tissue in TISSUES.items()
        }
        extent = anatomy.grid.extent
        self._fields = [
            [(0.02, Field.draw(random, extent, 30.0)), (0.01, Field.draw(random, extent, 5.0))]
            for _ in range(3)
        ]
        deep = ((anatomy.depth - 12.0) / 12.0).clip(0.0, 1.0)
        self._nuclei = (deep * anatomy.mixed).reshape(-1)

    def signal(self, sequence: Sequence) -> np.ndarray:
        """Noiseless signal of a sequence, float32 ``[D, H, W]``: the sum over the tissues in each voxel."""
        grid = self.anatomy.grid
        varied = [
            1.0 + sum(np.float32(sd) * field.on(grid).reshape(-1) for sd, field in fields)
            for fields in self._fields
        ]
        image = np.zeros(int(np.prod(grid.shape)), np.float32)
        for name, fraction in self.anatomy.fractions.items():
            part = fraction.reshape(-1)
            at = np.flatnonzero(part)
            values = zip(self.tissues[name], varied, strict=True)
            t1, t2, pd = (np.float32(value) * field[at] for value, field in values)
            if name == "gm":
                # Deep nuclei hold fibres: towards white matter, as far as the template has both there.
                nuclei = self._nuclei[at]
                t1 *= 1 - np.float32(0.35) * nuclei
                t2 *= 1 - np.float32(0.35) * nuclei
                pd *= 1 - np.float32(0.15) * nuclei
            image[at] += part[at] * sequence.signal(t1, t2, pd)
        return image.reshape(grid.shape)


def scan(
    body: Body, sequence: Sequence, random: np.random.Generator, *, snr: float, bias: float
) -> np.ndarray:
    """One image, float32 ``[D, H, W]``, scaled to ``TOP``, from the contrast's own stream."""
    image = body.signal(sequence)
    fractions = body.anatomy.fractions
    brain = fractions["gm"] + fractions["wm"]
    mean = float(np.vdot(brain, image) / max(float(brain.sum()), 1e-6))
    grid = body.anatomy.grid
    image *= np.exp(np.float32(bias) * Field.draw(random, grid.extent, 70.0).on(grid))
    if snr > 0:
        image = rician(image, mean / snr, random)
    return image * np.float32(TOP / max(float(np.quantile(image[::2, ::2, ::2], 0.999)), 1e-9))


def rician(image: np.ndarray, sigma: float, random: np.random.Generator) -> np.ndarray:
    """The magnitude of ``image`` plus complex Gaussian noise of ``sigma`` in each part; float32.

    Gudbjartsson and Patz, Magn. Reson. Med. 34 (1995) 910.
    """
    real = random.standard_normal(image.shape, np.float32) * np.float32(sigma) + image
    imaginary = random.standard_normal(image.shape, np.float32) * np.float32(sigma)
    return np.hypot(real, imaginary)


#: the numbers of a label map; ``other`` is bone, marrow, fat, muscle and skin
LABELS = {"background": 0, "csf": 1, "gm": 2, "wm": 3, "other": 4, "lesion": 5}
CONTRASTS = ("t1", "t2", "flair")


@dataclass(frozen=True)
class Settings:
    """What all subjects of a set share."""

    spacing: float = 1.0  #: voxel size in mm
    lesions: bool = False  #: whether the white matter has lesions
    snr: float = 40.0  #: mean signal of the brain over the noise's standard deviation; 0 for no noise
    bias: float = 0.1  #: standard deviation of the logarithm of the coil's shading

    def __post_init__(self) -> None:
        if self.snr < 0 or self.bias < 0:
            raise ScoreFusionError(f"snr and bias cannot be negative: {self.snr:g}, {self.bias:g}")


@dataclass(frozen=True, eq=False)
class PhantomSubject:
    """A synthetic subject."""

    #: float32 ``[D, H, W]`` (z, y, x) in RAS+ order by contrast; the brightest is about 1000
    volumes: dict[str, np.ndarray]
    labels: np.ndarray  #: uint8 ``[D, H, W]``, the tissue that fills most of each voxel, by ``LABELS``
    affine: np.ndarray  #: float64 ``[4, 4]``, (x, y, z) index to mm


def make_subject(
    maps: Maps, seed: int, contrasts: Collection[str] = CONTRASTS, settings: Settings | None = None
) -> PhantomSubject:
    """Make one synthetic subject.

    Anatomy, lesions, relaxation times and each contrast draw from streams of their own: a contrast looks the
    same whichever others are made, and lesions change nothing beside them.

    Args:
        maps: the template, of :func:`scorefusion.data.synth.read_maps`.
        seed: the subject's own, not negative.
        contrasts: names of :data:`scorefusion.data.synth.SEQUENCES`.
        settings: those of the set; the defaults if None.

    Raises:
        ScoreFusionError: for an unknown contrast or a voxel size out of range.
    """
    settings = settings or Settings()
    sequences = sequences_named(tuple(contrasts))
    anatomy = make_anatomy(maps, make_grid(maps, settings.spacing), _stream(seed, "anatomy"))
    if settings.lesions:
        add_lesions(anatomy, _stream(seed, "lesions"))
    body = Body(anatomy, _stream(seed, "body"))
    volumes = {
        name: scan(body, sequence, _stream(seed, name), snr=settings.snr, bias=settings.bias)
        for name, sequence in sequences.items()
    }
    return PhantomSubject(volumes, labels_of(anatomy), anatomy.grid.affine)


def labels_of(anatomy: Anatomy) -> np.ndarray:
    """The label of what fills most of each voxel, uint8 ``[D, H, W]``."""
    parts = anatomy.fractions
    groups = {name: part for name, part in parts.items() if name in LABELS}
    groups["other"] = parts["bone"] + parts["marrow"] + parts["fat"] + parts["muscle"]
    most = 1.0 - sum(groups.values())
    labels = np.zeros(anatomy.grid.shape, np.uint8)
    for name, part in groups.items():
        larger = part > most
        labels[larger] = LABELS[name]
        most = np.where(larger, part, most)
    return labels


def subject_seed(seed: int, number: int) -> int:
    """The seed of subject ``number`` of a set with ``seed``."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def write_subjects(
    maps: Maps,
    out: Path,
    *,
    count: int,
    first: int = 0,
    seed: int = 0,
    contrasts: Collection[str] = CONTRASTS,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Make a folder of synthetic subjects, or go on with it.

    Subject k lies in ``out/sub-00k`` and depends on the seed, k, and the settings alone. Each folder appears
    whole or not at all; one that is there already is left alone. ``out/phantom.json`` says what was asked.

    Args:
        maps: the template.
        out: the folder.
        count: how many subjects.
        first: the number of the first one.
        seed: of the set.
        contrasts: names of :data:`scorefusion.data.synth.SEQUENCES`.
        settings: those of the set; the defaults if None.
        progress: called with (done, total).

    Returns:
        The subjects' folders.

    Raises:
        ScoreFusionError: for an unknown contrast or a number out of range.
        BadInput: if the folder holds subjects made otherwise, or cannot be written.
    """
    settings = settings or Settings()
    sequences = sequences_named(tuple(contrasts))
    make_grid(maps, settings.spacing)
    recipe = {
        "synthetic": True,
        "what": "Synthetic subjects: random deformations of the ICBM-152 tissue maps, computed signals.",
        "seed": seed,
        "maps": maps.digest,
        "settings": asdict(settings),
        "sequences": {name: asdict(sequence) for name, sequence in sequences.items()},
        "labels": LABELS,
    }

    def make(own: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        subject = make_subject(maps, own, contrasts, settings)
        return {**subject.volumes, "labels": subject.labels}, subject.affine

    return write_set(out, recipe, make, count=count, first=first, seed=seed, progress=progress)


def write_set(
    out: Path,
    recipe: dict[str, Any],
    make: Callable[[int], tuple[dict[str, np.ndarray], np.ndarray]],
    *,
    count: int,
    first: int,
    seed: int,
    progress: Progress | None,
) -> list[Path]:
    """Write what ``make`` gives of each subject's seed, volumes by kind and their affine; see above."""
    if count < 1 or first < 0 or seed < 0:
        raise ScoreFusionError(f"need count >= 1, first >= 0 and seed >= 0; got {count}, {first}, {seed}")
    names = {f"sub-{number:03d}": subject_seed(seed, number) for number in range(first, first + count)}
    _claim(out, recipe, names)
    folders = [out / name for name in names]
    for done, folder in enumerate(folders):
        if not folder.exists():
            volumes, affine = make(names[folder.name])
            with folder_written_beside(folder) as beside:
                for kind, volume in volumes.items():
                    _write_volume(beside / f"{folder.name}_{kind}.nii.gz", volume, affine)
        if progress:
            progress(done + 1, count)
    return folders


def _stream(seed: int, name: str) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, zlib.crc32(name.encode())])))


def _claim(out: Path, recipe: dict[str, Any], names: dict[str, int]) -> None:
    """Write the set's recipe, or see that the one that is there is the same; add the subjects to it."""
    path = out / "phantom.json"
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            names = found.pop("subjects") | names
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            problem = f"is not the recipe of a synthetic set ({error})"
            raise BadInput(path, problem, "Choose another folder.") from None
        differ = sorted(key for key in recipe.keys() | found.keys() if recipe.get(key) != found.get(key))
        if differ:
            problem = f"describes subjects with another {', '.join(differ)} than was asked for"
            raise BadInput(path, problem, "Choose another folder, or the same settings.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(out, f"cannot be made ({error.strerror})", "Choose another folder.") from None
    text = json.dumps(recipe | {"subjects": dict(sorted(names.items()))}, indent=2)
    with written_beside(path) as beside:
        beside.write_text(text + "\n", encoding="utf-8")


def _write_volume(file: Path, volume: np.ndarray, affine: np.ndarray) -> None:
    """Images as int16, labels as uint8 or int16."""
    if volume.dtype.kind == "f":
        volume = np.rint(volume).clip(0, 32767).astype(np.int16)
    image = nib.Nifti1Image(volume.transpose(2, 1, 0), affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = b"synthetic (scorefusion phantom)"
    image.set_qform(affine, 2)
    image.set_sform(affine, 2)
    nib.save(image, file)
