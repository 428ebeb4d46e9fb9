"""DICOM series as volumes: what the pipeline takes, and what a derived series needs to know of its source."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import nibabel as nib
import numpy as np

from scorefusion.errors import BadInput
from scorefusion.io.dicom.decoder import Decoder
from scorefusion.io.dicom.find import SeriesDescription, choose_series, summaries
from scorefusion.io.dicom.frames import Frame, frames_of
from scorefusion.io.dicom.pixels import check_pixels, decoded
from scorefusion.io.dicom.stack import Stack, stack
from scorefusion.io.header import MAX_VOXELS, check_shape
from scorefusion.io.nifti import Scan, ras_order

_ACQUISITION = ("Modality", "SeriesDescription", "ProtocolName")


@dataclass(frozen=True, eq=False)
class DicomScan(Scan):
    """A volume read from a DICOM series: axis i along a row, j down a column, k along the normal.

    Attributes:
        folder: where the series was looked for.
        series_uid: its SeriesInstanceUID.
        frames: its images in the order of k.
    """

    folder: Path = Path()
    series_uid: str = ""
    frames: tuple[Frame, ...] = ()

    @property
    def acquisition(self) -> dict[str, str]:
        """What the first image's header says of how it was acquired, by DICOM keyword; EchoTime in ms."""
        first = self.frames[0]
        found = {key: str(first.header.get(key) or "") for key in _ACQUISITION}
        echo = first.traits.get("EchoTime") or first.traits.get("EffectiveEchoTime")
        return found | ({"EchoTime": echo} if echo else {})


def read_dicom_series(
    source: str | os.PathLike[str] | SeriesDescription,
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
        source: a folder with the series' files, at any depth; an enhanced object's file; or one of
            :func:`~scorefusion.io.dicom.find.find_series`' descriptions.
        series: which one to read, where the folder holds several: its SeriesInstanceUID or the end of it, its
            SeriesNumber, or a part of its SeriesDescription.
        constant: accept a volume whose voxels are all alike.
        max_voxels: refuse a larger volume before allocating it.

    Raises:
        BadInput: naming the file, for anything but one upright, even, whole grid of grey slices of one
            contrast; or for a compression for which no decoder is installed.
        ScoreFusionError: without pydicom, naming the extra that brings it.
    """
    described = source if isinstance(source, SeriesDescription) else choose_series(source, series)
    name = str(described.folder)
    if described.problem:
        raise BadInput(name, f"its series {described.uid} {described.problem}", "Name another series.")
    frames: list[Frame] = []
    for file in described.files:
        frames += frames_of(file, max_voxels)
        _check_size(name, frames, max_voxels)
    warnings = summaries(described.passed, described.folder)
    try:
        grid = stack(name, frames)
    except BadInput as error:
        if not warnings:
            raise
        raise BadInput(error.file, f"{error.problem} ({'; '.join(warnings)})", error.fix) from None
    rows, columns = grid.frames[0].shape
    shape = check_shape(name, [columns, rows, len(grid.frames)], max_voxels)
    values = _values(name, grid, constant)
    slopes, intercepts = ({getattr(frame, key) for frame in frames} for key in ("slope", "intercept"))
    uniform = len(slopes) == len(intercepts) == 1
    dtype = frames[0].stored if uniform else np.dtype(np.float32)
    return DicomScan(
        name=name,
        file=described.folder,
        values=ras_order(values.transpose(2, 1, 0), grid.affine),
        affine=grid.affine,
        affine_assumed=False,
        shape=shape,
        header=_nifti_header(shape, grid.affine, dtype),
        dtype=dtype,
        slope=slopes.pop() if uniform else 1.0,
        intercept=intercepts.pop() if uniform else 0.0,
        folder=described.folder,
        series_uid=described.uid,
        frames=grid.frames,
        warnings=tuple(warnings),
    )


def _check_size(name: str, frames: list[Frame], max_voxels: int) -> None:
    rows, columns = frames[-1].shape
    if len(frames) * rows * columns > max_voxels:
        problem = (
            f"holds more than {max_voxels:,} voxels ({len(frames)} slices of {columns} × {rows} and more)"
        )
        raise BadInput(name, problem, "Crop or resample it first.")


def _values(name: str, grid: Stack, constant: bool) -> np.ndarray:
    """float32 ``[k, j, i]``, rescaled."""
    files = list(_by_file(grid))
    for frames in files:
        check_pixels(frames)
    places = {id(frame): k for k, frame in enumerate(grid.frames)}
    values = np.empty((len(grid.frames), *grid.frames[0].shape), dtype=np.float32)
    with Decoder() as decoder, np.errstate(over="ignore", invalid="ignore"):
        for frames in files:
            for frame, pixels in decoded(frames, decoder):
                values[places[id(frame)]] = pixels.astype(np.float64) * frame.slope + frame.intercept
    if not np.isfinite(values).all():
        problem = "holds values beyond those of float32 after rescaling"
        raise BadInput(name, problem, "Check RescaleSlope and RescaleIntercept.")
    if not constant and values.min() == values.max():
        value = float(values.flat[0])
        raise BadInput(name, f"is constant: every voxel is {value:g}", "Give a volume with contrast.")
    return values


def _by_file(grid: Stack) -> Iterator[list[Frame]]:
    ordered = sorted(grid.frames, key=lambda frame: (str(frame.file), frame.index))
    for _, frames in groupby(ordered, key=attrgetter("file")):
        yield list(frames)


def _nifti_header(shape: tuple[int, int, int], affine: np.ndarray, dtype: np.dtype) -> nib.Nifti1Header:
    """The header a NIfTI file of the series has: scanner coordinates, millimetres, the stored type."""
    header = nib.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header.set_xyzt_units("mm")
    header.set_sform(affine, 1)
    header.set_qform(affine, 1)
    return header
