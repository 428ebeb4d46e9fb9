"""NIfTI files read without nibabel's messages about headers that it mends, and without touching its logger.

nibabel tells its logger of every oddity of a header. The logger belongs to the whole process: to silence it
for a moment would silence other threads, too. So headers are handed a logger of their own that nobody hears.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import nibabel as nib

_UNHEARD = logging.Logger("scorefusion.unheard")
_UNHEARD.addHandler(logging.NullHandler())
_UNHEARD.propagate = False


class _Quiet:
    """Mends a header as nibabel does; what cannot be mended is still an error."""

    def check_fix(self, logger: Any = None, error_level: int | None = None) -> None:
        super().check_fix(logger or _UNHEARD, error_level)  # type: ignore[misc]


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


def image_of_bytes(content: bytes, version: int) -> Any:
    """The image that a single-file NIfTI's content is; ``version`` 1 or 2."""
    return {1: _Image1, 2: _Image2}[version].from_bytes(content)


def image_of_pair(path: Path, version: int) -> Any:
    """The image of a .hdr and an .img file."""
    return {1: _Pair1, 2: _Pair2}[version].from_filename(path)


def plain_header(header: Any) -> Any:
    """A copy of a header in nibabel's own class."""
    if type(header).__module__ != __name__:
        return header.copy()
    own = next(kind for kind in type(header).__mro__ if kind.__module__.startswith("nibabel"))
    return own(header.binaryblock, header.endianness, check=False, extensions=header.extensions)
