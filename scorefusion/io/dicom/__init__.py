"""DICOM series: find them in folders, read them as volumes, write translations as derived series.

A name is imported from its module when it is first used, so that importing the package brings no pydicom.
"""

# ruff: noqa: F403
from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scorefusion.io.dicom.file import *
    from scorefusion.io.dicom.find import *
    from scorefusion.io.dicom.read import *
    from scorefusion.io.dicom.write import *

_NAMES = {
    "file": "is_dicom",
    "find": "PassedOver SeriesDescription choose_series find_series matching summaries",
    "read": "DicomScan read_dicom_series",
    "write": "WrittenSeries save_dicom_series",
}
_MODULE = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = sorted(_MODULE)


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE[name]}"), name)
