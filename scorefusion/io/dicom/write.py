"""Write a translation as a DICOM series derived from the one it was computed from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scorefusion._version import __version__
from scorefusion.errors import BadInput, ScoreFusionError
from scorefusion.io.atomic import folder_written_beside
from scorefusion.io.dicom.carry import Names
from scorefusion.io.dicom.derived import Derivation, Rescaling, choose_rescaling, derived_image
from scorefusion.io.dicom.file import PathLike, is_dicom, pydicom, read_header, reading
from scorefusion.io.dicom.frames import family
from scorefusion.io.dicom.read import DicomScan
from scorefusion.io.grid import corner_distance
from scorefusion.io.nifti import fine_affine

if TYPE_CHECKING:
    from scorefusion.pipeline import Translation

_APART = 1e-3  # mm
_IGNORE = 0  # pydicom's IGNORE: do not warn

IMPLEMENTATION = "2.25.299046374138190811285474829350154103"
"""ImplementationClassUID of the files written here, by which they are recognised."""


@dataclass(frozen=True)
class WrittenSeries:
    """What was written."""

    folder: Path  # where it was written
    series_uid: str  # SeriesInstanceUID
    files: int  # the number of files
    slope: float  # RescaleSlope; a stored value differs from the volume's by at most half of it
    intercept: float  # RescaleIntercept


def save_dicom_series(
    translation: Translation,
    folder: PathLike,
    source: DicomScan | Sequence[DicomScan] | None = None,
    *,
    deidentify: bool = False,
    secret: str = "",
    description: str | None = None,
) -> WrittenSeries:
    """Write a translation as classic single-frame MR or CT images, derived from its source series.

    The folder is written under another name and renamed. UIDs depend on those of the source, on how the
    volume was computed and on its voxels, not on a clock: the same translation gives the same bytes.

    Args:
        translation: of a :class:`DicomScan`.
        folder: the output folder; a series written here before is replaced, any other must be empty.
        source: the series that were translated, that of the grid first; None for the translation's own
            source.
        deidentify: keep only geometry, modality and numbers and codes of the acquisition; UIDs and the
            patient's number become pseudonyms.
        secret: key of the pseudonyms, so that nobody else can work them out; also links a patient's studies
            to each other.
        description: SeriesDescription; None for the model's name before the source's.

    Raises:
        BadInput: for a source that is no DICOM series of CT or MR, or whose pixels show burned-in text that
            must not leave; for a folder that holds something else, or lies in the source's; or if it cannot
            be written.
        ScoreFusionError: for a translation on another grid, or without pydicom.
    """
    sources = _sources(translation, source)
    final = _check_folder(Path(folder), sources)
    scan = sources[0]
    names = Names(hide=deidentify, secret=secret)
    rescaling = choose_rescaling(
        translation.volume, slope=scan.slope, intercept=scan.intercept, dtype=scan.dtype
    )
    explanation = _explanation(translation, rescaling)
    texts = (explanation, repr(description), repr(deidentify))
    series_uid = names.new("series", *_identity(translation, sources, rescaling, *texts))
    modality = _modality(scan, deidentify)
    derivation = Derivation(
        translation, sources, names, series_uid, modality, rescaling, explanation, description
    )
    count = translation.volume.shape[2]
    with folder_written_beside(final) as beside:
        for k in range(count):
            with reading(scan.frames[k // derivation.factor].file):
                image = derived_image(derivation, k)
            _write(image, beside / f"{int(image.InstanceNumber):05d}.dcm")
    return WrittenSeries(final, series_uid, count, rescaling.slope, rescaling.intercept)


def _sources(translation: Translation, source: DicomScan | Sequence[DicomScan] | None) -> list[DicomScan]:
    given = translation.source if source is None else source
    sources: list[Any] = [*given] if isinstance(given, Sequence) else [given]
    for scan in sources:
        if not isinstance(scan, DicomScan):
            problem = "is no DICOM series, and a DICOM series can only be derived from one"
            raise BadInput(scan.name, problem, "Translate a DICOM series, or save a NIfTI file.")
        _check_uids(scan)
    if not sources:
        raise ScoreFusionError("a derived series needs the series it is derived from; 'source' is empty")
    first = sources[0]
    factors = first.own_factors(translation.factor)
    shape = tuple(n * factor for n, factor in zip(first.shape, factors, strict=True))
    apart = corner_distance(fine_affine(first.affine, factors), translation.affine, shape)
    if translation.volume.shape != shape or apart > _APART:
        problem = f"has another grid than the translation of {translation.source.name}"
        fix = "Give the series that was translated, the first condition's first."
        raise BadInput(first.name, problem, fix)
    return sources


def _check_uids(scan: DicomScan) -> None:
    for frame in scan.frames:
        with reading(frame.file):
            study = str(frame.header.get("StudyInstanceUID") or "")
        for uid in (study, scan.series_uid, frame.sop_instance):
            if uid and not pydicom("uid").UID(uid, validation_mode=_IGNORE).is_valid:
                problem = f"has an impossible UID ({uid!r}), which a derived series would refer to"
                raise BadInput(frame.file, problem, "Correct it, or save a NIfTI file.")


def _check_folder(folder: Path, sources: Sequence[DicomScan]) -> Path:
    final = folder.resolve()
    for scan in sources:
        searched = scan.folder.resolve()
        inside = searched.is_dir() and final.is_relative_to(searched)
        if inside or any(frame.file.resolve().is_relative_to(final) for frame in scan.frames):
            problem = f"holds the input or lies in its folder ({scan.folder})"
            raise BadInput(folder, problem, "Choose a folder beside it.")
    if not final.exists():
        return folder
    if not final.is_dir():
        raise BadInput(folder, "is a file", "Name a folder for the series.")
    for path in final.iterdir():
        if path.is_dir() or not is_dicom(path) or not _written_here(path):
            problem = f"holds other files ({path.name}), which would be lost"
            raise BadInput(folder, problem, "Choose a new folder.")
    return folder


def _written_here(path: Path) -> bool:
    meta = read_header(path, ("SOPInstanceUID",)).file_meta
    return str(meta.get("ImplementationClassUID", "")) == IMPLEMENTATION


def _modality(scan: DicomScan, deidentify: bool) -> str:
    kinds = {family(frame.sop_class) for frame in scan.frames}
    modality = kinds.pop() if len(kinds) == 1 else None
    if modality not in ("CT", "MR"):
        problem = f"is a series of {modality or 'several kinds'}; derived ones are written of CT and MR"
        raise BadInput(scan.name, problem, "Save a NIfTI file instead.")
    if deidentify and any(frame.header.get("BurnedInAnnotation") == "YES" for frame in scan.frames):
        problem = "has text burned into its pixels (BurnedInAnnotation YES)"
        problem += ", which de-identifying leaves there"
        raise BadInput(scan.name, problem, "Remove it from the pixels first.")
    return modality


def _explanation(translation: Translation, rescaling: Rescaling) -> str:
    """Return how the volume was computed, in at most 1024 ASCII characters."""
    finer = " x ".join(str(n) for n in translation.factor)
    grid = f"{finer} (z, y, x) voxels for each of the source" if max(translation.factor) > 1 else "same grid"
    contrast = f" ({', '.join(translation.conditions)} to {translation.target})" if translation.target else ""
    samples = "1 sample" if translation.samples == 1 else f"mean of {translation.samples} samples"
    model = f"{translation.model or 'unnamed'}{contrast}"
    text = (
        f"Synthesised by scorefusion {__version__}, model {model}: {grid}; strategy {translation.strategy}, "
        f"solver {translation.solver}, {translation.evaluations} evaluations, {samples}, "
        f"seed {translation.seed}, {translation.dtype}. Each slice was computed from the whole source; the "
        f"image referenced lies where it does. Values rounded to steps of {rescaling.slope:.10g}. "
        f"Not for diagnosis."
    )
    return text.encode("ascii", "replace").decode()[:1024]


def _identity(
    translation: Translation, sources: Sequence[DicomScan], rescaling: Rescaling, *texts: str
) -> list[str]:
    """Return everything that decides the files' content: two series with one UID are the same bytes."""
    voxels = hashlib.sha256()
    for k in range(translation.volume.shape[2]):
        voxels.update(rescaling.stored(translation.volume[:, :, k]).tobytes())
    frames = [f"{frame.sop_instance} {frame.index}" for scan in sources for frame in scan.frames]
    return [*(scan.series_uid for scan in sources), *frames, *texts, voxels.hexdigest()]


def _write(image: Any, path: Path) -> None:
    meta = pydicom("dataset").FileMetaDataset()
    meta.TransferSyntaxUID = pydicom("uid").ExplicitVRLittleEndian
    meta.ImplementationClassUID, meta.ImplementationVersionName = IMPLEMENTATION, "SCOREFUSION"
    image.file_meta = meta
    image.save_as(path, enforce_file_format=True)
