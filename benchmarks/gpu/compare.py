"""Compare two runs: every figure that moved by more than its spread explains, and by more than 2%."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from scorefusion.errors import BadInput

TIMES = 3.0
"""How many times the larger of two spreads a figure has to move by."""

FLOOR = 0.02
"""Share of the earlier median that a figure has to move by as well."""


def read(path: str | Path) -> dict[str, Any]:
    """Read a file that a run wrote.

    Raises:
        BadInput: if there is none, or it is not one.
    """
    file = Path(path)
    fix = "Give a file that `python -m benchmarks.gpu --out FILE` wrote."
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(file, f"cannot be read ({error})", fix) from None
    if not isinstance(content, dict) or not isinstance(content.get("sections"), dict):
        raise BadInput(file, "is not a run of benchmarks.gpu: it has no sections", fix)
    return content


def figures(content: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Yield each figure and where it is."""
    if isinstance(content, Mapping):
        if "median" in content and "spread" in content:
            if content["median"] is not None and content["spread"] is not None:
                yield path, dict(content)
            return
        for name, value in content.items():
            yield from figures(value, (*path, str(name)))


def machines(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return a line for each fact of the machine or the code that is another one."""
    before, after = (content["sections"].get("machine", {}).get("results", {}) for content in (old, new))
    return [
        f"machine: {name}: {before[name]} to {after[name]}"
        for name in before
        if name in after and before[name] != after[name]
    ]


def compared(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[list[str], int]:
    """Return a line for each figure that moved by more than its spread explains, and how many both have."""
    lines, both = [], 0
    for section, record in new["sections"].items():
        before = dict(figures(old["sections"].get(section, {}).get("results", {})))
        for path, found in figures(record.get("results", {})):
            earlier = before.get(path)
            if earlier is None:
                continue
            both += 1
            spread = max(found["spread"], earlier["spread"])
            change = found["median"] - earlier["median"]
            if abs(change) <= max(TIMES * spread, FLOOR * abs(earlier["median"])) or not change:
                continue
            ratio = found["median"] / earlier["median"] if earlier["median"] else float("inf")
            unit = found.get("unit", "")
            lines.append(
                f"{section}: {' / '.join(path)}: {earlier['median']:.4g} to {found['median']:.4g} {unit}, "
                f"{ratio:.2f} times, spread {spread:.2g}"
            )
    return lines, both
