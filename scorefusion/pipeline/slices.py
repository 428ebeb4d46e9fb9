"""What a scan's header says of its slices: the measurement that a model of thick slices undoes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from scorefusion.degradations import SliceStack
from scorefusion.errors import BadInput, ScoreFusionError
from scorefusion.io import Scan

THICK = 1.5  #: slices are thick from so many in-plane voxels on
FARTHEST = 12.0  #: slices farther apart, in in-plane voxels, are refused
LEANING = 1.0  #: angle in degrees between the slices' axis and their normal that is worth a warning
WIDTHS = (0.25, 2.0)  #: thinnest and thickest slices that can be undone, in steps
ROUNDED = 1e-3  #: how much of a number in a header is rounding, relative
AGREE = 0.05  #: how far numbers of a header may differ, relative


@dataclass(frozen=True)
class Slices:
    """How a scan was sliced, and what was assumed."""

    measurement: SliceStack  #: on the output's grid, whose z is ``axis``
    axis: int  #: of the scan's z, y and x (RAS+ order, 0 to 2) that slices are stacked along
    step: float  #: from one slice to the next along their normal in mm
    thickness: float  #: of a slice in mm
    in_plane: tuple[float, float]  #: size of a voxel along the other two axes in mm
    thickness_from: str  #: where the thickness comes from, in words
    assumed: tuple[str, ...]  #: what is not in the header, a sentence each
    warnings: tuple[str, ...]  #: what the model has not learnt, likewise

    @property
    def axes(self) -> tuple[int, int, int]:
        """The scan's axes z, y, x in the order that networks see them: first that of the slices."""
        first, second, third = self.axis, *(axis for axis in range(3) if axis != self.axis)
        return first, second, third

    @property
    def spacing(self) -> float:
        """The output's voxel size along the slices' axis in mm."""
        return self.step / self.measurement.step

    def __str__(self) -> str:
        one, other = self.in_plane
        return (
            f"slices of {self.thickness:.3g} mm ({self.thickness_from}), {self.step:.4g} mm apart, "
            f"{one:.3g} × {other:.3g} mm in plane: {self.measurement.step} of {self.spacing:.4g} mm each"
        )

    def recorded(self) -> dict[str, Any]:
        """Return it in types of JSON, for the file beside an output."""
        return {
            "SliceAxis": "zyx"[self.axis],
            "InputSpacingBetweenSlices": self.step,
            "InputSliceThickness": self.thickness,
            "InputSliceThicknessFrom": self.thickness_from,
            "SliceProfile": self.measurement.profile,
            "SlicesPerInputSlice": self.measurement.step,
            "Assumed": list(self.assumed),
            "NotLearnt": list(self.warnings),
        }


def slices_of(scan: Scan, typical: SliceStack, options: Mapping[str, Any]) -> Slices:
    """Find how a scan was sliced.

    Args:
        scan: a volume as it was read, with what its DICOM tags or its BIDS sidecar say.
        typical: the model's own measurement: which steps and widths it has learnt.
        options: ``thickness``, ``gap``, ``spacing`` in mm and ``profile``; None for what the header says.

    Raises:
        BadInput: if its slices are not thick, are thick along two axes, too far apart, or of thicknesses that
            contradict each other.
        ScoreFusionError: for options that contradict each other or the header.
    """
    columns = scan.ras_affine[:3, 2::-1]
    edges = np.linalg.norm(columns, axis=0)
    axis = int(np.argmax(edges))
    normal = np.cross(columns[:, axis - 1], columns[:, axis - 2])
    step = float(abs(columns[:, axis] @ normal) / np.linalg.norm(normal))
    second, third = sorted(float(edge) for other, edge in enumerate(edges) if other != axis)
    across = math.sqrt(second * third)
    sizes = " × ".join(f"{edge:.3g}" for edge in edges[::-1])
    if step < THICK * across * (1 - ROUNDED):
        problem = (
            f"is not thick-sliced: its voxels are {sizes} mm (x, y, z in RAS), {step / across:.2g} times "
        )
        problem += "as long along the slices' axis as in plane"
        fix = "Name another model with --model; `scorefusion models` says what each is for."
        raise BadInput(scan.name, problem, fix)
    if third >= THICK * second * (1 - ROUNDED):
        problem = f"is coarse along two axes: its voxels are {sizes} mm (x, y, z in RAS)"
        raise BadInput(scan.name, problem, "Resample it in plane to square voxels first.")
    if step > FARTHEST * across * (1 + ROUNDED):
        problem = f"has slices {step / across:.3g} in-plane voxels apart; up to {FARTHEST:g} can be filled"
        raise BadInput(scan.name, problem, "Resample it in plane to larger voxels first.")
    assumed, warnings = list[str](), list[str]()
    lean = math.degrees(math.acos(min(1.0, step / float(edges[axis]))))
    if lean > LEANING:
        warnings.append(
            f"its slices lean by {lean:.2g}° from their normal, as a tilted gantry's do, which the model has "
            "not learnt"
        )
    count = _count(scan.name, step, across, typical, options.get("spacing"), warnings)
    thickness, source = _thickness(scan, step, options, assumed)
    width = thickness / step
    if abs(width - 1) <= ROUNDED:  # the step of an affine in float32 is no round number
        width = 1.0
    thinnest, thickest = WIDTHS
    if not thinnest <= width <= thickest:
        problem = f"has slices of {thickness:.3g} mm ({source}), {step:.3g} mm apart by its affine"
        possible = f"from {thinnest * step:.3g} to {thickest * step:.3g} mm"
        raise BadInput(scan.name, problem, f"Say how thick they are with --thickness, {possible}.")
    least, most = typical.widths
    if not least * (1 - AGREE) <= width <= most * (1 + AGREE):
        warnings.append(
            f"a thickness of {width:.2g} steps is outside what the model has learnt ({least:g} to {most:g})"
        )
    profile = options.get("profile")
    if profile is None:
        assumed.append("the slice profile is taken for a box")
    measurement = typical.model_copy(
        update={"step": count, "width": width, "profile": profile or "box", "gain": 0.0}
    )
    plane = tuple(float(edge) for other, edge in enumerate(edges) if other != axis)
    return Slices(
        measurement, axis, step, thickness, cast(Any, plane), source, tuple(assumed), tuple(warnings)
    )


def _count(
    name: str, step: float, across: float, typical: SliceStack, spacing: float | None, warnings: list[str]
) -> int:
    """How many slices each becomes."""
    least, most = typical.steps
    if spacing is not None:
        wanted = step / spacing if spacing > 0 else 0.0
        if not least <= round(wanted) <= most:
            raise ScoreFusionError(
                f"--spacing {spacing:g} would make {wanted:.3g} slices of each, {step:.3g} mm apart in "
                f"{name}; the model makes {least} to {most}"
            )
        return round(wanted)
    count = max(round(step / across), least)
    if count > most:
        warnings.append(
            f"{step / across:.2g} slices of each would be cubic; {most} are made, the most that were learnt"
        )
        return most
    return count


def _thickness(scan: Scan, step: float, options: Mapping[str, Any], assumed: list[str]) -> tuple[float, str]:
    """Thickness of a slice in mm, and where it comes from."""
    thickness, gap = options.get("thickness"), options.get("gap")
    if thickness is not None and gap is not None and abs(thickness + gap - step) > AGREE * step:
        raise ScoreFusionError(
            f"--thickness {thickness:g} and --gap {gap:g} make {thickness + gap:g} mm, but in {scan.name} "
            f"it is {step:.4g} mm from slice to slice; give one of them"
        )
    if thickness is not None or gap is not None:
        found, source = (
            (step - (gap or 0.0), "step less gap") if thickness is None else (thickness, "as given")
        )
        if found <= 0:
            raise ScoreFusionError(
                f"slices of {found:g} mm cannot be; they are {step:.4g} mm apart in {scan.name}"
            )
        return float(found), source
    said = scan.acquisition.get("SliceThickness", "")
    values = sorted({float(value) for value in said.split("\\") if _is_number(value)})
    if len(values) > 1 and values[-1] - values[0] > AGREE * values[-1]:
        problem = f"has slices of different thickness ({', '.join(f'{value:g}' for value in values)} mm)"
        raise BadInput(scan.name, problem, "Split it, or say with --thickness what to take for all.")
    if values and values[-1] > 0:
        return values[-1], "SliceThickness"
    assumed.append("the header does not say how thick slices are; the step from one to the next is taken")
    return step, "assumed"


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
