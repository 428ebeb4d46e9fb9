"""What a source of scans is read for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Wanted:
    """What a source is read for.

    Attributes:
        out: the folder of the outputs.
        conditions: the model's, by their canonical names.
        target: what the model makes, such as ``t1``.
        ending: of the outputs: ``.nii.gz`` or ``.nii``.
        layout: of a folder: ``auto``, ``files`` (each file is a scan), ``dicom``, or one of ``LAYOUTS``.
        choose: where a subject has several files of a condition, parts of the right one's path.
        series: of DICOM, only the series that this means to :func:`.dicom_find.matching`; None for all.
        masks: whether a table's column ``mask`` says what is missing, for a model that fills in.
    """

    out: Path
    conditions: tuple[str, ...]
    target: str
    ending: str = ".nii.gz"
    layout: str = "auto"
    choose: tuple[str, ...] = ()
    series: str | None = None
    masks: bool = False
