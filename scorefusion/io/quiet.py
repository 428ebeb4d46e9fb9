"""NIfTI headers and files mended in silence: nibabel's repairs without its messages, and a rounded qform.

nibabel tells its logger of every oddity of a header. The logger belongs to the whole process: to silence it
for a moment would silence other threads, too. So headers are handed a logger of their own that nobody hears.
"""

from __future__ import annotations

import logging
from io import BytesIO
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.fileholders import FileHolder
from nibabel.spatialimages import HeaderDataError
from nibabel.spm2analyze import Spm2AnalyzeHeader

_UNHEARD = logging.Logger("scorefusion.unheard")
_UNHEARD.addHandler(logging.NullHandler())
_UNHEARD.propagate = False


_TOO_LONG = 0.01
"""By how much the square of a qform's quaternion may exceed 1 and count as rounded, not as damaged."""


def mend_orientation(header: Any) -> None:
    """Repair in place what other readers repair of a header's two forms, none of which changes a valid one.

    A quaternion slightly longer than 1 is shortened to 1, as nifti1_io and ITK do; voxel sizes lose their
    sign; qfac 0 counts as 1; negative codes as 0, undefined positive ones as 2 (aligned), since other readers
    use any form whose code is positive.
    """
    names = ("quatern_b", "quatern_c", "quatern_d")
    vector = np.array([header[name] for name in names], dtype=np.float64)
    square = float(vector @ vector)
    if 1 < square <= 1 + _TOO_LONG:
        limit = abs(header.quaternion_threshold)
        if square - 1 >= limit:
            for name, value in zip(names, vector / (np.sqrt(square) * (1 + 1e-15)), strict=True):
                header[name] = value
    header["pixdim"][1:4] = np.abs(header["pixdim"][1:4])
    if header["pixdim"][0] not in (-1, 1):
        header["pixdim"][0] = 1
    for name in ("qform_code", "sform_code"):
        if int(header[name]) not in nib.nifti1.xform_codes.value_set("code"):
            header[name] = 2 if int(header[name]) > 0 else 0


class _Quiet:
    """Mends a header as nibabel does; what cannot be mended is still an error."""

    def check_fix(self, logger: Any = None, error_level: int | None = None) -> None:
        if isinstance(self, nib.Nifti1Header):
            mend_orientation(self)  # before nibabel takes undefined codes for 0
            sizes = np.array(self["pixdim"][1:4])
        super().check_fix(logger or _UNHEARD, error_level)  # type: ignore[misc]
        if isinstance(self, nib.Nifti1Header) and not int(self["sform_code"]):
            self["pixdim"][1:4] = sizes  # without a sform the voxel size counts, and nibabel makes 1 mm of 0

    def get_best_affine(self) -> Any:
        """NaN where nibabel refuses the qform, so that the image can still be made."""
        try:
            return super().get_best_affine()  # type: ignore[misc]
        except (HeaderDataError, ValueError):
            return np.full((4, 4), np.nan)


class _Header1(_Quiet, nib.Nifti1Header):
    pass


class _Header2(_Quiet, nib.Nifti2Header):
    pass


class _PairHeader1(_Quiet, nib.nifti1.Nifti1PairHeader):
    pass


class _PairHeader2(_Quiet, nib.nifti2.Nifti2PairHeader):
    pass


class _Image1(nib.Nifti1Image):
    header_class = _Header1


class _Image2(nib.Nifti2Image):
    header_class = _Header2


class _Pair1(nib.Nifti1Pair):
    header_class = _PairHeader1


class _Pair2(nib.Nifti2Pair):
    header_class = _PairHeader2


class _AnalyzeHeader(_Quiet, Spm2AnalyzeHeader):
    pass


class _Analyze(nib.AnalyzeImage):
    header_class = _AnalyzeHeader


def image_of_bytes(content: bytes, version: int) -> Any:
    """The image that a single-file NIfTI's content is; ``version`` 1 or 2."""
    return {1: _Image1, 2: _Image2}[version].from_bytes(content)


def image_of_pair(header: bytes, voxels: bytes, version: int) -> Any:
    """The image of the contents of a .hdr and an .img file; ``version`` is 0 for Analyze 7.5."""
    kind = {0: _Analyze, 1: _Pair1, 2: _Pair2}[version]
    files = {"header": FileHolder(fileobj=BytesIO(header)), "image": FileHolder(fileobj=BytesIO(voxels))}
    return kind.from_file_map(files)


def plain_header(header: Any) -> Any:
    """A copy of a header in nibabel's own class."""
    if type(header).__module__ != __name__:
        return header.copy()
    own = next(kind for kind in type(header).__mro__ if kind.__module__.startswith("nibabel"))
    return own(header.binaryblock, header.endianness, check=False, extensions=header.extensions)
