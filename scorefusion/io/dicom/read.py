"""DICOM series as volumes: slices put in order, checked to be one even grid, and decoded."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import numpy as np

from scorefusion.errors import BadInput
from scorefusion.io.dicom.file import PathLike
from scorefusion.io.dicom.find import SeriesDescription, choose_series, summaries
from scorefusion.io.dicom.frames import Frame, frames_of
from scorefusion.io.dicom.pixels import Decoder, check_pixels, decoded
from scorefusion.io.header import LPS, MAX_VOXELS, check_contrast, check_shape, nifti_header
from scorefusion.io.nifti import ACQUISITION, Scan, ras_order

_SAME_PLACE = 1e-3  # mm between slices that are one
_UNEVEN = (0.02, 0.02)  # mm, and share of the spacing: what rounding to two decimals does
_SHIFT = 0.1  # pixels by which the whole stack may lean
_MEASURED = ("EchoTime", "EffectiveEchoTime", "InversionTime", "FlipAngle", "DiffusionBValue")
_ROUNDED = (0.005, 1e-3)  # ms, degrees or s/mm², and share: what scanners and archives round by
_EXPLAIN_ONLY = ("AcquisitionNumber", "TemporalPositionIdentifier", "TemporalPositionIndex", "TriggerTime")


@dataclass(frozen=True, eq=False)
class DicomScan(Scan):
    """A volume read from a DICOM series: axis i along a row, j down a column, k along the normal."""

    folder: Path = Path()  # where the series was looked for
    series_uid: str = ""  # its SeriesInstanceUID
    frames: tuple[Frame, ...] = ()  # its images in the order of k

    @property
    def acquisition(self) -> dict[str, str]:
        """Acquisition parameters of the first image by DICOM keyword; EchoTime in ms.

        SliceThickness, in mm, is that of all images: several values are separated by backslashes.
        """
        first = self.frames[0]
        values = {key: str(first.header.get(key) or "") for key in ACQUISITION}
        thick = {f"{frame.thickness:g}" for frame in self.frames if frame.thickness}
        values |= {"SliceThickness": "\\".join(sorted(thick))} if thick else {}
        echo = first.traits.get("EchoTime") or first.traits.get("EffectiveEchoTime")
        return values | ({"EchoTime": echo} if echo else {})


def read_dicom_series(
    source: PathLike | SeriesDescription,
    *,
    series: str | None = None,
    constant: bool = False,
    max_voxels: int = MAX_VOXELS,
) -> DicomScan:
    """Read one DICOM series, of classic single-frame or enhanced multi-frame objects.

    Values are stored ones times RescaleSlope plus RescaleIntercept, slice by slice. Slices are put in order
    by their position along the normal, whatever their names and numbers. Files that are not used are named in
    ``warnings``.

    Args:
        source: a folder with the series' files, at any depth; an enhanced object's file; or one of the
            descriptions of :func:`~scorefusion.io.dicom.find_series`.
        series: which one to read, where the folder holds several: its SeriesInstanceUID or the end of it, its
            SeriesNumber, or a part of its SeriesDescription.
        constant: accept a volume whose voxels are all equal.
        max_voxels: refuse a larger volume before allocating it.

    Raises BadInput, naming the file, for anything but one upright, even, whole grid of grey slices of one
    contrast, or for a compression for which no decoder is installed; ScoreFusionError without pydicom.
    """
    described = source if isinstance(source, SeriesDescription) else choose_series(source, series)
    name = str(described.folder)
    if described.problem:
        raise BadInput(name, f"its series {described.uid} {described.problem}", "Name another series.")
    frames: list[Frame] = []
    for file in described.files:
        frames += frames_of(file, max_voxels)
        rows, columns = frames[-1].shape
        if len(frames) * rows * columns > max_voxels:
            slices = f"{len(frames)} slices of {columns} × {rows} and more"
            problem = f"holds more than {max_voxels:,} voxels ({slices})"
            raise BadInput(name, problem, "Crop or resample it first.")
    warnings = summaries(described.passed, described.folder)
    try:
        ordered, affine = stack(name, frames)
    except BadInput as error:
        if not warnings:
            raise
        raise BadInput(error.file, f"{error.problem} ({'; '.join(warnings)})", error.fix) from None
    rows, columns = ordered[0].shape
    shape = check_shape(name, [columns, rows, len(ordered)], max_voxels)
    values = _values(name, ordered, constant)
    slopes, intercepts = ({getattr(frame, key) for frame in frames} for key in ("slope", "intercept"))
    uniform = len(slopes) == len(intercepts) == 1
    dtype = frames[0].stored if uniform else np.dtype(np.float32)
    header = nifti_header(shape, dtype)
    header.set_sform(affine, 1)
    header.set_qform(affine, 1)
    return DicomScan(
        name=name,
        file=described.folder,
        values=ras_order(values.transpose(2, 1, 0), affine),
        affine=affine,
        affine_assumed=False,
        shape=shape,
        header=header,
        dtype=dtype,
        slope=slopes.pop() if uniform else 1.0,
        intercept=intercepts.pop() if uniform else 0.0,
        folder=described.folder,
        series_uid=described.uid,
        frames=ordered,
        warnings=tuple(warnings),
    )


def stack(name: str, frames: Sequence[Frame]) -> tuple[tuple[Frame, ...], np.ndarray]:
    """Put frames in order along their normal (row × column direction) and check that they are one even grid.

    Also returns the affine, float64 ``[4, 4]``, (column, row, slice) index to RAS+ millimetres.
    """
    if len(frames) < 2:
        fix = "Give the folder with all slices of the series."
        raise BadInput(name, f"holds {len(frames)} slice; a volume has several", fix)
    _check_alike(frames)
    row, column = frames[0].orientation
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    places = np.array([float(frame.position @ normal) for frame in frames])
    order = sorted(range(len(frames)), key=lambda n: (places[n], str(frames[n].file), frames[n].index))
    ordered = [frames[n] for n in order]
    places = places[order]
    _check_contrasts(ordered, np.diff(places))
    _check_even(ordered, places, normal)
    spacing = float(places[-1] - places[0]) / (len(ordered) - 1)
    affine = np.eye(4)
    down, along = ordered[0].spacing
    affine[:3, :3] = np.stack([row * along, column * down, normal * spacing], axis=1)
    affine[:3, 3] = ordered[0].position
    return tuple(ordered), LPS @ affine


def _check_alike(frames: Sequence[Frame]) -> None:
    first = frames[0]
    for frame in frames[1:]:
        if frame.shape != first.shape:
            theirs, ours = (f"{columns} × {rows}" for rows, columns in (first.shape, frame.shape))
            raise _mixed(frame, first, f"has {ours} pixels, {first.label} has {theirs}", "sizes")
        if np.abs(frame.orientation - first.orientation).max() > 1e-3:
            raise _mixed(frame, first, f"lies in another plane than {first.label}", "orientations")
        if not np.allclose(frame.spacing, first.spacing, rtol=1e-3, atol=0):
            raise _mixed(frame, first, f"has another PixelSpacing than {first.label}", "pixel sizes")
        if frame.stored != first.stored:
            raise _mixed(frame, first, f"stores other numbers than {first.label}", "pixel formats")


def _check_contrasts(frames: Sequence[Frame], gaps: np.ndarray) -> None:
    """Check that ordered frames lie at places of their own, and are of one contrast."""
    same = np.flatnonzero(gaps < _SAME_PLACE)
    if len(same):
        one, other = frames[same[0]], frames[same[0] + 1]
        if (one.sop_instance, one.index) == (other.sop_instance, other.index):
            raise BadInput(other.file, f"is a copy of {one.label}", "Remove one of the two.")
        differ = [key for key in sorted({*one.traits, *other.traits}) if _differ(one, other, key)]
        pairs = (f"{key} ({one.traits.get(key, 'none')}, {other.traits.get(key, 'none')})" for key in differ)
        how = f"; they differ in {', '.join(pairs) or 'nothing that is known here'}"
        count = f"{len(same)} places of its series" if len(same) > 1 else "one place"
        problem = f"{other.within} lies where {one.label} does, two slices at {count}{how}".lstrip()
        raise BadInput(other.file, problem, _apart(one, other, "each echo, time point or other repetition"))
    first = frames[0]
    for frame in frames[1:]:
        for key in sorted({*first.traits, *frame.traits} - {*_EXPLAIN_ONLY}):
            if _differ(frame, first, key):
                ours, theirs = frame.traits.get(key, "none"), first.traits.get(key, "none")
                raise _mixed(frame, first, f"has {key} {ours}, {first.label} has {theirs}", "contrasts")


def _differ(one: Frame, other: Frame, key: str) -> bool:
    """Return whether a trait differs by more than rounding."""
    ours, theirs = one.traits.get(key), other.traits.get(key)
    if ours is None or theirs is None or key not in _MEASURED:
        return ours != theirs
    try:
        return not math.isclose(float(ours), float(theirs), abs_tol=_ROUNDED[0], rel_tol=_ROUNDED[1])
    except ValueError:
        return True


def _check_even(frames: Sequence[Frame], places: np.ndarray, normal: np.ndarray) -> None:
    """Check that ordered frames are equally far apart, and that none lies aside of the normal."""
    gaps = np.diff(places)
    usual = float(np.median(gaps))
    worst = int(np.argmax(np.abs(gaps - usual)))
    if abs(gaps[worst] - usual) > max(_UNEVEN[0], _UNEVEN[1] * usual):
        before, after = frames[worst].label, frames[worst + 1].label
        missing = round(float(gaps[worst]) / usual) - 1
        what = f"{missing} slice{'s' * (missing > 1)} missing" if missing > 0 else "an uneven spacing"
        problem = f"lies {gaps[worst]:.4g} mm from {before}, others {usual:.4g} mm: {what}"
        fix = f"Add what is missing between {before} and {after}, or resample the series to an even spacing."
        raise BadInput(frames[worst + 1].file, problem, fix)
    first, last = frames[0], frames[-1]
    positions = np.array([frame.position for frame in frames])
    lean = positions - positions[0] - (places - places[0])[:, None] * normal
    shift = float(np.linalg.norm(lean, axis=1).max())
    if shift <= _SHIFT * min(first.spacing):
        return
    angle = float(np.degrees(np.arctan2(np.linalg.norm(lean[-1]), places[-1] - places[0])))
    problem = f"lies {shift:.4g} mm aside of the normal through {first.file.name}"
    problem += f": a tilted gantry ({angle:.3g}°)" if angle > 0.01 else ": slices out of line"
    raise BadInput(last.file, problem, "Resample the series to an upright grid first.")


def _mixed(frame: Frame, first: Frame, problem: str, what: str) -> BadInput:
    fix = f"Its series mixes {what}. {_apart(frame, first, 'each of them')}"
    return BadInput(frame.file, f"{frame.within} {problem}".lstrip(), fix)


def _apart(one: Frame, other: Frame, what: str) -> str:
    if one.file == other.file:
        return f"Export {what} as a series of its own, or split the file by converting it with dcm2niix."
    return f"Put {what} into a folder of its own."


def _values(name: str, ordered: Sequence[Frame], constant: bool) -> np.ndarray:
    by_file = sorted(ordered, key=lambda frame: (str(frame.file), frame.index))
    files = [list(frames) for _, frames in groupby(by_file, key=attrgetter("file"))]
    for frames in files:
        check_pixels(frames)
    places = {id(frame): k for k, frame in enumerate(ordered)}
    values = np.empty((len(ordered), *ordered[0].shape), dtype=np.float32)
    with Decoder() as decoder, np.errstate(over="ignore", invalid="ignore"):
        for frames in files:
            for frame, pixels in decoded(frames, decoder):
                values[places[id(frame)]] = pixels.astype(np.float64) * frame.slope + frame.intercept
    if not np.isfinite(values).all():
        problem = "holds values beyond those of float32 after rescaling"
        raise BadInput(name, problem, "Check RescaleSlope and RescaleIntercept.")
    if not constant:
        check_contrast(name, values)
    return values
