"""Synthetic subjects, one or a folder of them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from scorefusion.data.dataset import Progress
from scorefusion.data.synth.anatomy import Anatomy, Maps, add_lesions, make_anatomy, make_grid
from scorefusion.data.synth.scanner import Body, scan, sequences_named
from scorefusion.errors import BadInput, ScoreFusionError
from scorefusion.io.atomic import folder_written_beside, written_beside

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
    maps: Maps, seed: int, contrasts: Sequence[str] = CONTRASTS, settings: Settings | None = None
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
    maps: Maps, out: Path, *, count: int, first: int = 0, seed: int = 0,
    contrasts: Sequence[str] = CONTRASTS, settings: Settings | None = None, progress: Progress | None = None,
) -> list[Path]:  # fmt: skip
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
    if count < 1 or first < 0 or seed < 0:
        raise ScoreFusionError(f"need count >= 1, first >= 0 and seed >= 0; got {count}, {first}, {seed}")
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
    names = {f"sub-{number:03d}": subject_seed(seed, number) for number in range(first, first + count)}
    _claim(out, recipe, names)
    folders = [out / name for name in names]
    for done, folder in enumerate(folders):
        if not folder.exists():
            subject = make_subject(maps, names[folder.name], contrasts, settings)
            with folder_written_beside(folder) as beside:
                for kind, volume in {**subject.volumes, "labels": subject.labels}.items():
                    _write_volume(beside / f"{folder.name}_{kind}.nii.gz", volume, subject.affine)
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
    """Images as int16, labels as uint8."""
    if volume.dtype != np.uint8:
        volume = np.rint(volume).clip(0, 32767).astype(np.int16)
    image = nib.Nifti1Image(volume.transpose(2, 1, 0), affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = b"synthetic (scorefusion phantom)"
    image.set_qform(affine, 2)
    image.set_sform(affine, 2)
    nib.save(image, file)
