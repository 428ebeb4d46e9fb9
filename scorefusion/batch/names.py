"""Which names a file may be given: those that stay in their folder, on any system."""

from __future__ import annotations

import os
import re

from scorefusion.batch.item import Problem, shown

LONGEST = 255 - len(".01234567.") - len("_planes")
"""Bytes a file's name may have, so that the names made of it fit into what file systems take."""

_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.I)


def name_problem(name: str, ending: str) -> Problem | None:
    """Why a name from a table cannot become a file's name; None if it can.

    Args:
        name: without ending and folder.
        ending: what will be added.
    """
    fix = "Use letters, digits, '-', '_' and '.'."
    text = shown(name).encode("unicode_escape").decode("ascii")
    if not name or name.startswith("."):
        return Problem(f"'{text}' is no name for a file: it is empty or begins with '.'", fix)
    if any(character in '/\\:*?"<>|' or ord(character) < 32 for character in name):
        return Problem(f"'{text}' is no name for a file: it holds a separator or a special character", fix)
    if name.endswith((" ", ".")) or _RESERVED.fullmatch(name):
        return Problem(f"'{text}' is a name that some systems reserve", fix)
    return length_problem(name + ending)


def length_problem(name: str) -> Problem | None:
    """Why a file's name is too long; None if it is not."""
    length = len(os.fsencode(name))
    if length <= LONGEST:
        return None
    return Problem(f"its output's name would have {length} bytes, at most {LONGEST} fit", "Shorten it.")
