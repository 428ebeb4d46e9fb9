"""Numbers as DICOM's decimal strings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from scorefusion.optional import need


def decimals(numbers: Iterable[float]) -> list[Any]:
    """The nearest numbers that decimal strings of 16 characters can say: ten digits and more."""
    decimal = need("pydicom.valuerep", "writing DICOM").DSfloat
    return [decimal(float(number), auto_format=True) for number in numbers]
