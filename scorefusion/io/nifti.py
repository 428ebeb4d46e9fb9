"""Volumes of any format: their grids, voxels in RAS+ order, and results in the input's own orientation."""

import json
import math
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform
from nibabel.spatialimages import HeaderDataError, SpatialImage

from scorefusion.errors import BadInput, unknown_name
from scorefusion.io.atomic import written_beside
from scorefusion.io.formats import FORMATS, WRITABLE, format_of, read_header, read_image, volume_stem
from scorefusion.io.header import MAX_VOXELS, bad_input, check_contrast, check_shape, check_voxel_type
from scorefusion.io.nifti_format import mend_orientation, plain_header


@dataclass(frozen=True, eq=False)
class Grid:
    """The voxel grid of a volume, its axes in RAS+ order."""

    name: str  # the file's name, for messages
    shape: tuple[int, int, int]  # voxels along (x, y, z)
    affine: np.ndarray  # float64 ``[4, 4]``, (x, y, z) index to millimetres

    @property
    def voxel(self) -> tuple[float, float, float]:
        """Size of a voxel along (x, y, z) in millimetres."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    def __str__(self) -> str:
        rows = "] [".join(" ".join(f"{number:.6g}" for number in row) for row in self.affine[:3])
        return f"{' × '.join(str(n) for n in self.shape)} voxels, affine [[{rows}]]"


def read_grid(
    path: str | os.PathLike[str], *, assume_affine: bool = False, max_voxels: int = MAX_VOXELS
) -> Grid:
    """Read the grid of a file of any format from its header; arguments and errors are :func:`read_scan`'s."""
    file, name = Path(path), str(path)
    header = read_header(file, max_voxels)
    shape = check_shape(name, [int(n) for n in header.get_data_shape()], max_voxels)
    check_voxel_type(name, header.get_data_dtype())
    mend_orientation(header)
    affine, *_ = find_affine(name, header, shape, None, assume_affine, format_of(file).unoriented)
    return ras_grid(name, shape, affine)


def ras_grid(name: str, shape: tuple[int, int, int], affine: np.ndarray) -> Grid:
    """Return the grid of a volume of ``shape`` (i, j, k), its axes reordered and flipped to RAS+."""
    orientation = io_orientation(affine)
    x, y, z = (shape[int(axis)] for axis in np.argsort(orientation[:, 0]))
    return Grid(name, (x, y, z), affine @ inv_ornt_aff(orientation, shape))


def corner_distance(affine: np.ndarray, other: np.ndarray, shape: Sequence[int]) -> float:
    """Return the largest distance in millimetres between the positions of a grid's corners by two affines.

    These are float64 ``[4, 4]``; ``shape`` counts voxels along each axis, in the affines' order.
    """
    corners = np.array([[x, y, z, 1.0] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    corners[:, :3] *= np.array(shape) - 1
    apart = corners @ (affine - other).T
    return float(np.linalg.norm(apart[:, :3], axis=1).max())


def find_affine(
    name: str, header: Any, shape: Sequence[int], affine: Any, assume: bool, unoriented: str
) -> tuple[np.ndarray, int, str]:
    """Choose the first valid one of an image's affine (as nibabel chose it), its header's sform and qform.

    Where none is and ``assume`` holds, the axes are R, A, S, the voxel size is pixdim's and the origin is in
    the centre. ``unoriented`` is the problem of a header without forms. Returns the affine, float64
    ``[4, 4]``, NIfTI's code of its form, 0 where it is assumed, and what is unusual about the choice.
    """
    codes = {form: int(header[f"{form}_code"]) for form in ("sform", "qform")}
    chosen = "sform" if codes["sform"] else "qform"
    if codes[chosen] and _is_regular(affine):
        return np.asarray(affine, dtype=np.float64), codes[chosen], ""
    for form in (form for form, code in codes.items() if code):
        own = own_form(header, form)
        if _is_regular(own):
            note = f"its {chosen} is not valid; the {form} is used" if form != chosen else ""
            return np.asarray(own, dtype=np.float64), codes[form], note
    if codes["qform"] and not all(header.get_zooms()[:3]):
        raise _sizeless(name, header)
    if assume:
        zooms = np.array(header.get_zooms()[:3], dtype=np.float64)
        assumed = np.diag([*zooms, 1.0])
        if not (zooms > 0).all() or not _is_regular(assumed):
            raise _sizeless(name, header)
        assumed[:3, 3] = -0.5 * zooms * (np.array(shape) - 1)
        return assumed, 0, "its header has no orientation: pixdim and RAS axes are assumed"
    fix = "Set one, or pass --assume-affine (assume_affine=True in Python) to use pixdim and RAS axes."
    if not any(codes.values()):
        raise BadInput(name, unoriented, fix)
    problem = "has a singular affine, which places its voxels in a plane or nowhere"
    if codes["qform"] and own_form(header, "qform") is None:
        problem = "has a damaged qform (its quaternion is longer than 1)"
        problem += " and a singular sform" if codes["sform"] else " and no sform"
    raise BadInput(name, problem, fix)


def own_form(header: Any, form: str) -> np.ndarray | None:
    """Return a header's sform or qform as it stands, float64 ``[4, 4]``; None where nibabel refuses it."""
    try:
        return header.get_sform() if form == "sform" else header.get_qform()
    except (HeaderDataError, ValueError):
        return None


def _is_regular(affine: Any) -> bool:
    """Return whether an affine is finite and its axes have three directions."""
    if affine is None:
        return False
    affine = np.asarray(affine, dtype=np.float64)
    with np.errstate(all="ignore"):
        columns = np.linalg.norm(affine[:3, :3], axis=0)
        if not (np.isfinite(affine).all() and np.isfinite(columns).all() and columns.all()):
            return False
        three = abs(np.linalg.det(affine[:3, :3] / columns)) > 1e-3
        return bool(three and np.isfinite(io_orientation(affine)).all())


def _sizeless(name: str, header: Any) -> BadInput:
    zooms = [float(zoom) for zoom in header.get_zooms()[:3]]
    return BadInput(name, f"has no usable voxel size (pixdim {zooms})", "Set pixdim in its header.")


NAN_CHOICES = ("error", "zero")
OUTPUT_DTYPES = ("float32", "input")

Factor = int | Sequence[int]

_ECHO = re.compile(r"\bTE=(\d+(?:\.\d+)?)")
_ASSIGNED = re.compile(r"\w+=[^;/\s]*")
_MAX_SIDECAR = 2**20
_BIDS_DEPTH = 4  #: folders between a dataset and its volumes, at most: sub, ses, anat, and one more
ACQUISITION = ("Modality", "SeriesDescription", "ProtocolName")

_OF_THE_INPUT = "intent_code intent_name intent_p1 intent_p2 intent_p3 cal_min cal_max aux_file".split()
_OF_ITS_GRID = "dim_info slice_code slice_start slice_end slice_duration".split()
"""Fields of a header that do not hold for a result, and those that do not hold on another grid."""

_LARGEST, _LEAST, _FINEST = 1e30, 1e-30, 2.0**-20
"""Limits of float32 here: the largest magnitude, the least range, the least range per magnitude."""

_RAS = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])


@dataclass(frozen=True, eq=False)
class Scan:
    """A volume as it was read."""

    name: str  # the file's name, or a description, for messages
    file: Path | None  # the file it was read from; None for an image in memory
    values: np.ndarray  # float32 ``[D, H, W]`` (z, y, x) in RAS+ order, slope and intercept applied
    affine: np.ndarray  # float64 ``[4, 4]``, the input's own (i, j, k) to millimetres
    affine_assumed: bool  # whether the header has none
    shape: tuple[int, int, int]  # (i, j, k) in the input's own order
    header: Any  # the input's own NIfTI header
    dtype: np.dtype  # the stored type
    slope: float = 1.0  # stored values are (value - intercept) / slope
    intercept: float = 0.0  # see ``slope``
    kind: Any = None  # how a result becomes what the caller handed in, a ``kinds.Kind``; None for NIfTI
    warnings: tuple[str, ...] = ()  # sentences on what was not read, or read in an unusual way

    @property
    def ras_affine(self) -> np.ndarray:
        """(x, y, z) index of ``values`` to millimetres, float64 ``[4, 4]``."""
        return self.affine @ inv_ornt_aff(io_orientation(self.affine), self.shape)

    @property
    def acquisition(self) -> dict[str, str]:
        """Acquisition parameters by DICOM keyword (ms, mm): of the description and JSON sidecar."""
        description = bytes(self.header["descrip"].tobytes()).rstrip(b"\0").decode("latin-1")
        values = {"SeriesDescription": _ASSIGNED.sub(" ", description)}
        if echo := _ECHO.search(description):
            values["EchoTime"] = echo[1]
        return values | (_sidecar(self.file) if self.file is not None else {})

    def own_factors(self, factor: Factor) -> tuple[int, int, int]:
        """Return a factor, or (z, y, x) factors in RAS+ order, along the input's own (i, j, k)."""
        x, y, z = reversed(_three(factor))
        i, j, k = ((x, y, z)[int(axis)] for axis in io_orientation(self.affine)[:, 0])
        return i, j, k

    def to_own_order(self, volume: np.ndarray) -> np.ndarray:
        """Return ``[D, H, W]`` in RAS+ order, on this grid or a finer one, in the input's own order."""
        back = ornt_transform(_RAS, io_orientation(self.affine))
        return np.ascontiguousarray(apply_orientation(volume.transpose(2, 1, 0), back))


def read_scan(
    source: str | os.PathLike[str] | SpatialImage | Scan,
    *,
    nan: str = "error",
    assume_affine: bool = False,
    constant: bool = False,
    max_voxels: int = MAX_VOXELS,
) -> Scan:
    """Read one 3D volume.

    Args:
        source: a file of any format of :data:`scorefusion.io.FORMATS`, or an image in memory; a scan, as of a
            DICOM series, is returned as it is.
        nan: ``error``, or ``zero`` to count NaN and infinite voxels as 0.
        assume_affine: where neither sform nor qform is valid, take the axes for R, A, S, the voxel size from
            pixdim and the origin in the centre.
        constant: accept a volume whose voxels are all equal, as an empty label map's are.
        max_voxels: refuse a larger volume before allocating it.

    Raises BadInput for anything but one 3D volume of real numbers with an orientation and some contrast.
    """
    if nan not in NAN_CHOICES:
        raise unknown_name("treatment of NaN", nan, NAN_CHOICES)
    if isinstance(source, Scan):
        check_shape(source.name, list(source.shape), max_voxels)
        return source
    unoriented = FORMATS[0].unoriented
    if isinstance(source, SpatialImage):
        file = source.get_filename()
        name, path = file or "image", Path(file) if file else None
        if not isinstance(source, nib.Nifti1Pair):
            source = nib.Nifti1Image(np.asanyarray(source.dataobj), source.affine)
        image: Any = source
    else:
        path = Path(source)
        name, image = str(path), read_image(path, max_voxels)
        unoriented = format_of(path).unoriented
    header = plain_header(image.header)
    mend_orientation(header)
    shape = check_shape(name, list(image.shape), max_voxels)
    dtype = np.dtype(header.get_data_dtype())
    check_voxel_type(name, dtype)
    affine, code, note = find_affine(name, header, shape, image.affine, assume_affine, unoriented)
    if code and note:
        header.set_sform(affine, code)
    return Scan(
        name=name,
        file=path,
        values=ras_order(_values(name, image, nan, constant).reshape(shape), affine),
        affine=affine,
        affine_assumed=not code,
        shape=shape,
        header=header,
        dtype=dtype,
        slope=float(getattr(image.dataobj, "slope", 1.0)),
        intercept=float(getattr(image.dataobj, "inter", 0.0)),
        warnings=(note,) if note else (),
    )


def check_same_grid(scan: Scan, other: Scan, factor: Factor = 1) -> None:
    """Check that ``other`` has the grid of ``scan``, or the ``factor`` times finer one, to 1% of a voxel.

    A factor is one number, or (z, y, x) in RAS+ order. Raises BadInput, naming both files and what differs.
    """
    factors = _three(factor)
    shape = tuple(factor * n for factor, n in zip(factors, scan.values.shape, strict=True))
    if other.values.shape != shape:
        theirs, ours = (" × ".join(str(n) for n in reversed(edges)) for edges in (other.values.shape, shape))
        problem = f"has {theirs} voxels (x, y, z in RAS), {scan.name} needs {ours}"
        raise BadInput(other.name, problem, "Resample it onto that grid first.")
    distance = corner_distance(fine_affine(scan.ras_affine, factor), other.ras_affine, shape[::-1])
    voxel = float(np.linalg.norm(other.affine[:3, :3], axis=0).min())
    if distance > 0.01 * voxel:
        problem = f"lies elsewhere than {scan.name}: their affines put a corner {distance:.3g} mm apart"
        raise BadInput(other.name, problem, "Register and resample it onto that grid first.")


def ras_order(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return ``[i, j, k]`` voxels with that affine as ``[D, H, W]`` (z, y, x) in RAS+ order, contiguous."""
    return np.ascontiguousarray(apply_orientation(array, io_orientation(affine)).transpose(2, 1, 0))


def fine_affine(affine: np.ndarray, factor: Factor) -> np.ndarray:
    """Return the affine ``[4, 4]`` of the finer grid whose blocks are the voxels of ``affine``'s.

    ``affine`` has any axis order; ``factor`` is the edge of the blocks, or their edges along its axes.
    """
    share = 1.0 / np.array(_three(factor), dtype=np.float64)
    step = np.diag([*share, 1.0])
    step[:3, 3] = (share - 1.0) / 2.0
    return affine @ step


def _three(factor: Factor) -> tuple[int, int, int]:
    first, second, third = (factor,) * 3 if isinstance(factor, int) else factor
    return first, second, third


def make_image(scan: Scan, volume: np.ndarray, *, factor: Factor = 1, dtype: str = "float32") -> Any:
    """Make a NIfTI image of a result, with the header of the input where that still holds.

    Kept: units, description, qform and sform codes, extensions. Changed: dimensions, voxel size, qform and
    sform (moved to the finer grid), the stored type and its scaling. Cleared: intent and its parameters,
    display range, auxiliary file; on another grid also slice timing and encoding directions. An assumed
    affine is written as the sform, with code 2 (aligned).

    Args:
        volume: ``[i, j, k]`` in the input's own order and units.
        factor: how much finer the grid is, one number or (z, y, x) in RAS+ order.
        dtype: ``float32``, unscaled; or ``input``: the type the input was stored in; integers are rounded and
            limited to the type's range, with the input's slope and intercept; else a ScoreFusionError.
    """
    if dtype not in OUTPUT_DTYPES:
        raise unknown_name("output dtype", dtype, OUTPUT_DTYPES)
    kind = np.dtype(np.float32) if dtype == "float32" else scan.dtype.newbyteorder("=")
    header = scan.header.copy()
    header["vox_offset"] = 0  # chosen when it is written; nibabel would warn of an odd one
    factors = scan.own_factors(factor)
    affine = fine_affine(scan.affine, factors)
    sform = 2 if scan.affine_assumed else int(header["sform_code"])
    own = own_form(header, "qform") if int(header["qform_code"]) and not scan.affine_assumed else None
    if own is not None and not (np.isfinite(own).all() and np.linalg.det(own[:3, :3])):
        own = None
    qform = 0 if own is None else int(header["qform_code"])
    header["qform_code"] = qform  # nibabel would read a damaged qform to compare it
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        # 2^63 - 1 is no float64
        high = np.nextafter(float(limits.max), 0) if kind.itemsize == 8 else limits.max
        stored = np.rint((volume.astype(np.float64) - scan.intercept) / scan.slope)
        data = stored.clip(limits.min, high).astype(kind)
    else:
        data = volume.astype(kind)
    second = isinstance(header, nib.Nifti2Header) or max(volume.shape) > 32767
    for field in _OF_THE_INPUT + (_OF_ITS_GRID if max(factors) > 1 else []):
        header[field] = b"" if header[field].dtype.kind == "S" else 0
    image = (nib.Nifti2Image if second else nib.Nifti1Image)(data, affine, header, dtype=kind)
    image.header.set_sform(affine if sform else None, sform)
    image.header.set_zooms(np.linalg.norm(affine[:3, :3], axis=0))
    image.header.set_qform(None if own is None else fine_affine(own, factors), qform)
    if kind.kind in "iu":
        image.header.set_slope_inter(scan.slope, scan.intercept)
    return image


def save_image(image: Any, path: str | os.PathLike[str]) -> Path:
    """Write an image under another name in the same folder and rename it to ``path``; BadInput if refused."""
    final = Path(path)
    if not final.name.lower().endswith(WRITABLE):
        fix = f"End its name in {', '.join(WRITABLE)}."
        raise BadInput(final, "has the wrong ending for a volume", fix)
    with written_beside(final) as beside:
        format_of(final).write(image, beside, 1)
    return final


def _values(name: str, image: Any, nan: str, constant: bool) -> np.ndarray:
    with bad_input(name, "its voxels cannot be read"), np.errstate(all="ignore"):
        values = np.asanyarray(image.get_fdata(caching="unchanged", dtype=np.float32))
    finite = np.isfinite(values)
    low, high = _range(values, finite)
    largest = max(abs(low), abs(high))
    if np.isinf(values).any() or largest > _LARGEST or high - low < max(_LEAST, _FINEST * largest):
        with np.errstate(all="ignore"):
            stored = np.asanyarray(image.dataobj).reshape(values.shape)
        finite = np.isfinite(stored)
        _check_range(name, stored, values, finite, float(getattr(image.dataobj, "slope", 1.0)))
    count = int(values.size - np.count_nonzero(finite))
    if count and nan == "error":
        fix = "Pass --nan zero (nan='zero' in Python) to count them as 0."
        raise BadInput(name, f"holds {count:,} voxels that are NaN or infinite", fix)
    if count:
        values = np.where(finite, values, np.float32(0))
    if not constant:
        check_contrast(name, values)
    return values


def sidecar_path(volume: Path) -> Path:
    """Return the path of the JSON file beside a volume, of its name."""
    return volume.with_name(f"{volume_stem(volume.name)}.json")


def sidecar_of(file: Path | None) -> dict[str, Any]:
    """Return what the JSON file beside a volume holds; nothing for a folder, or a file that BIDS has not.

    In a BIDS dataset what files in the folders above say of it comes with it (the inheritance principle).
    """
    if file is None or file.is_dir():
        return {}
    beside = sidecar_path(file)
    found: dict[str, Any] = {}
    for path in (*_inherited(beside), beside):
        try:
            small = path.name != file.name and path.stat().st_size <= _MAX_SIDECAR
            values = json.loads(path.read_text()) if small else {}
        except (OSError, ValueError, RecursionError):
            continue
        found |= values if isinstance(values, dict) else {}
    return found


def _inherited(beside: Path) -> list[Path]:
    """The JSON files that BIDS has a sidecar inherit from, the most general first; none outside a dataset.

    They lie in folders from the dataset's own down, with the same suffix and no other entities.
    """
    folders = [beside.parent, *list(beside.absolute().parent.parents)[:_BIDS_DEPTH]]
    top = next((n for n, each in enumerate(folders) if (each / "dataset_description.json").is_file()), None)
    if top is None:
        return []
    *entities, suffix = beside.stem.split("_")
    found = []
    for folder in folders[top::-1]:
        general = {each: each.stem.split("_") for each in folder.glob("*.json") if each.name != beside.name}
        fitting = [
            (len(parts), each)
            for each, parts in general.items()
            if parts[-1] == suffix and set(parts[:-1]) <= set(entities)
        ]
        found += [each for _, each in sorted(fitting)]
    return found


def check_sidecar(volume: Path, inputs: Sequence[Path]) -> None:
    """Check before any work is done that a sidecar can be written beside a volume.

    Raises:
        BadInput: where the sidecar is one of the inputs', or its name is that of a folder.
    """
    final = sidecar_path(volume)
    for file in inputs:
        if not file.is_dir() and sidecar_path(file).resolve() == final.resolve():
            problem = f"would have the sidecar of the input {file}, {final.name}"
            raise BadInput(volume, problem, "Give the output another name.")
    if final.is_dir():
        raise BadInput(final, f"is a folder; {volume.name} needs a sidecar there", "Choose another name.")


def save_sidecar(values: dict[str, Any], volume: Path) -> Path:
    """Write a JSON file beside a volume, of its name and whole or not at all.

    Raises:
        BadInput: if it cannot be written.
    """
    final = sidecar_path(volume)
    with written_beside(final) as beside:
        beside.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return final


def _sidecar(file: Path) -> dict[str, str]:
    """Return the acquisition parameters in the JSON file beside a NIfTI file, if there is one."""
    values = sidecar_of(file)
    parameters = {key: values[key] for key in ACQUISITION if isinstance(values.get(key), str)}
    if type(values.get("EchoTime")) in (int, float):
        parameters["EchoTime"] = f"{1000 * values['EchoTime']:g}"  # in seconds there
    if type(values.get("SliceThickness")) in (int, float):
        parameters["SliceThickness"] = f"{values['SliceThickness']:g}"
    return parameters


def _range(values: np.ndarray, finite: np.ndarray) -> tuple[float, float]:
    """Return the least and the largest finite value; (0, 0) where there is none; integers exactly."""
    if not finite.any():
        return 0.0, 0.0
    if values.dtype.kind in "iu":
        return int(values.min()), int(values.max())
    low, high = np.min(values, initial=np.inf, where=finite), np.max(values, initial=-np.inf, where=finite)
    return float(low), float(high)


def _check_range(name: str, stored: np.ndarray, values: np.ndarray, finite: np.ndarray, slope: float) -> None:
    """Refuse stored values that are too large, too small or too close to each other for float32."""
    low, high = _range(stored, finite)
    largest, span = max(abs(low), abs(high)), high - low
    scaling = "" if slope == 1 else f" (its scl_slope is {slope:g})"
    if largest > _LARGEST:
        beyond = np.count_nonzero(finite & ~(np.abs(stored) <= _LARGEST))
        problem = f"holds {beyond:,} voxels beyond ±{_LARGEST:g}, up to {largest:.3g}{scaling}"
        problem += ": too large for float32"
        power = math.floor(math.log10(min(largest, sys.float_info.max))) - 2
        fix = f"Divide its voxels by 1e{power}, or set those that stand for missing data to the background."
        raise BadInput(name, problem, fix)
    if 0 < span < _LEAST:
        problem = f"holds voxels that differ by at most {span:.3g}{scaling}: too little for float32"
        raise BadInput(name, problem, f"Multiply its voxels by 1e{2 - math.floor(math.log10(span))}.")
    coarse = 0 < span < _FINEST * largest
    if coarse and not np.array_equal(values[finite].astype(stored.dtype), stored[finite]):
        problem = f"holds voxels that differ by at most {span:.3g} around {low:.6g}: too little for float32"
        value = low if isinstance(low, int) else f"{low:.15g}"
        raise BadInput(name, problem, f"Subtract {value} from its voxels.")
