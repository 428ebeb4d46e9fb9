"""DICOM series: find them in folders, read them as volumes, write translations as derived series.

A name is imported from its module when it is first used, so that importing the package brings no pydicom.
"""

# ruff: noqa: F403
from typing import TYPE_CHECKING

from scorefusion.optional import lazily

if TYPE_CHECKING:
    from scorefusion.io.dicom.file import *
    from scorefusion.io.dicom.find import *
    from scorefusion.io.dicom.read import *
    from scorefusion.io.dicom.write import *

__all__, __getattr__ = lazily(
    __name__,
    {
        "file": "is_dicom",
        "find": "PassedOver SeriesDescription choose_series find_series matching summaries",
        "read": "DicomScan read_dicom_series",
        "write": "WrittenSeries save_dicom_series",
    },
)
