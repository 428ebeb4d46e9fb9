"""Images put in order along their normal: the grid of a volume, or why they are none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scorefusion.errors import BadInput
from scorefusion.io.dicom.frames import Frame
from scorefusion.io.dicom.kind import frame_count

_SAME_PLACE = 1e-3  # mm between slices that are one
_UNEVEN = (0.02, 0.02)  # mm, and share of the spacing: what rounding to two decimals does
_SHIFT = 0.1  # pixels by which the whole stack may lean
_MEASURED = ("EchoTime", "EffectiveEchoTime", "InversionTime", "FlipAngle", "DiffusionBValue")
_ROUNDED = (0.005, 1e-3)  # ms, degrees or s/mm², and share: what scanners and archives round by
_EXPLAIN_ONLY = ("AcquisitionNumber", "TemporalPositionIdentifier", "TemporalPositionIndex", "TriggerTime")
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Stack:
    """The slices of a volume.

    Attributes:
        frames: in order along the normal (row direction × column direction).
        affine: float64 ``[4, 4]``, (column, row, slice) index to millimetres, RAS+.
        spacing: millimetres from slice to slice.
    """

    frames: tuple[Frame, ...]
    affine: np.ndarray
    spacing: float


def stack(name: str, frames: Sequence[Frame]) -> Stack:
    """Put frames in order and see that they are one even grid.

    Args:
        name: the folder, for messages.
        frames: in any order.

    Raises:
        BadInput: naming the files, for images of several sizes, orientations or contrasts, for two at one
            place, for slices that are missing, and for a stack that leans (gantry tilt).
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
    _check_single(ordered, np.diff(places))
    _check_contrast(ordered)
    _check_even(ordered, np.diff(places))
    _check_upright(ordered, places, normal)
    spacing = float(places[-1] - places[0]) / (len(ordered) - 1)
    affine = np.eye(4)
    down, along = ordered[0].spacing
    affine[:3, :3] = np.stack([row * along, column * down, normal * spacing], axis=1)
    affine[:3, 3] = ordered[0].position
    return Stack(tuple(ordered), _LPS_TO_RAS @ affine, spacing)


def _check_alike(frames: Sequence[Frame]) -> None:
    first = frames[0]
    for frame in frames[1:]:
        if frame.shape != first.shape:
            theirs, ours = (f"{columns} × {rows}" for rows, columns in (first.shape, frame.shape))
            raise _mixed(frame, first, f"has {ours} pixels, {_label(first)} has {theirs}", "sizes")
        if np.abs(frame.orientation - first.orientation).max() > 1e-3:
            raise _mixed(frame, first, f"lies in another plane than {_label(first)}", "orientations")
        if not np.allclose(frame.spacing, first.spacing, rtol=1e-3, atol=0):
            raise _mixed(frame, first, f"has another PixelSpacing than {_label(first)}", "pixel sizes")
        if frame.stored != first.stored:
            raise _mixed(frame, first, f"stores other numbers than {_label(first)}", "pixel formats")


def _check_single(frames: Sequence[Frame], gaps: np.ndarray) -> None:
    same = np.flatnonzero(gaps < _SAME_PLACE)
    if not len(same):
        return
    one, other = frames[same[0]], frames[same[0] + 1]
    if (one.sop_instance, one.index) == (other.sop_instance, other.index):
        raise BadInput(other.file, f"is a copy of {_label(one)}", "Remove one of the two.")
    keys = sorted({*one.traits, *other.traits})
    differ = [key for key in keys if _differ(one, other, key)]
    how = "; they differ in nothing that is known here"
    if differ:
        told = (f"{key} ({one.traits.get(key, 'none')}, {other.traits.get(key, 'none')})" for key in differ)
        how = f"; they differ in {', '.join(told)}"
    count = f"{len(same)} places of its series" if len(same) > 1 else "one place"
    problem = f"{_frame(other)}lies where {_label(one)} does, two slices at {count}{how}"
    raise BadInput(other.file, problem, _apart(one, other, "each echo, time point or other repetition"))


def _check_contrast(frames: Sequence[Frame]) -> None:
    first = frames[0]
    for frame in frames[1:]:
        for key in sorted({*first.traits, *frame.traits} - {*_EXPLAIN_ONLY}):
            if _differ(frame, first, key):
                ours, theirs = frame.traits.get(key, "none"), first.traits.get(key, "none")
                raise _mixed(frame, first, f"has {key} {ours}, {_label(first)} has {theirs}", "contrasts")


def _differ(one: Frame, other: Frame, key: str) -> bool:
    """Whether a trait differs by more than rounding."""
    ours, theirs = one.traits.get(key), other.traits.get(key)
    if ours is None or theirs is None or key not in _MEASURED:
        return ours != theirs
    try:
        return not math.isclose(float(ours), float(theirs), abs_tol=_ROUNDED[0], rel_tol=_ROUNDED[1])
    except ValueError:
        return True


def _check_even(frames: Sequence[Frame], gaps: np.ndarray) -> None:
    usual = float(np.median(gaps))
    worst = int(np.argmax(np.abs(gaps - usual)))
    if abs(gaps[worst] - usual) <= max(_UNEVEN[0], _UNEVEN[1] * usual):
        return
    before, after = _label(frames[worst]), _label(frames[worst + 1])
    missing = round(float(gaps[worst]) / usual) - 1
    told = f"{missing} slice{'s' * (missing > 1)} missing" if missing > 0 else "an uneven spacing"
    problem = f"lies {gaps[worst]:.4g} mm from {before}, others {usual:.4g} mm: {told}"
    fix = f"Add what is missing between {before} and {after}, or resample the series to an even spacing."
    raise BadInput(frames[worst + 1].file, problem, fix)


def _check_upright(frames: Sequence[Frame], places: np.ndarray, normal: np.ndarray) -> None:
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
    return BadInput(frame.file, f"{_frame(frame)}{problem}", fix)


def _apart(one: Frame, other: Frame, what: str) -> str:
    if one.file == other.file:
        return f"Export {what} as a series of its own, or split the file by converting it with dcm2niix."
    return f"Put {what} into a folder of its own."


def _frame(frame: Frame) -> str:
    return f"frame {frame.index + 1} " if frame_count(frame.header) > 1 else ""


def _label(frame: Frame) -> str:
    many = frame_count(frame.header) > 1
    return f"{frame.file.name} frame {frame.index + 1}" if many else frame.file.name
