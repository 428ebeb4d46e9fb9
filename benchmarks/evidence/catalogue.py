"""Every case there is: the modules of `benchmarks.evidence.cases`, one an operation, under its stem."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

from benchmarks.evidence import cases
from benchmarks.evidence.case import Case
from scorefusion.errors import unknown_name


def stems() -> list[str]:
    """Return the operations that have cases."""
    return sorted(info.name for info in pkgutil.iter_modules(cases.__path__))


def require_stem(stem: str) -> str:
    """Return the stem if it has cases.

    Raises:
        ScoreFusionError: if not, with the nearest that has.
    """
    if stem not in stems():
        raise unknown_name("operation", stem, stems())
    return stem


def cases_of(stem: str, device: str, fast: bool = False) -> Iterator[Case]:
    """Yield an operation's cases.

    Args:
        stem: the operation.
        device: "meta" for the paper's sizes, to be compiled; "cpu" for sizes to be counted.
        fast: only those of the slice that continuous integration runs.
    """
    module = importlib.import_module(f"{cases.__name__}.{stem}")
    for case in module.cases(device):
        if case.fast or not fast:
            yield case
