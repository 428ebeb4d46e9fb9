"""The names that the package exports exist, and importing it brings neither nibabel nor pydicom."""

from __future__ import annotations

import subprocess
import sys

import pytest

import scorefusion.io
import scorefusion.io.dicom

CODE = "import sys, scorefusion.io, scorefusion.io.dicom; print(*{'nibabel', 'pydicom'} & {*sys.modules})"


@pytest.mark.parametrize(
    "package", [scorefusion.io, scorefusion.io.dicom], ids=lambda package: package.__name__
)
def test_every_name_is_there(package: object) -> None:
    assert all(getattr(package, name) is not None for name in package.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'read_scam'"):
        getattr(package, "read_scam")  # noqa: B009


def test_importing_brings_no_nibabel() -> None:
    assert subprocess.check_output([sys.executable, "-c", CODE]).strip() == b""
