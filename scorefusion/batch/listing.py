"""What a source of scans holds, and the checks that hold for every source."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scorefusion.batch.item import Item, Problem, shown
from scorefusion.batch.names import length_problem
from scorefusion.data.listing import stem
from scorefusion.errors import BadInput
from scorefusion.io.atomic import output_target

VOLUME = "volume"
DICOM = "dicom"
SIDES = ("sd", "planes", DICOM)
"""What may lie beside a translation: deviation over samples, disagreement of the planes, a derived series."""


@dataclass(frozen=True)
class Source:
    """What is to be translated.

    Attributes:
        kind: ``folder``, ``table``, ``bids``, ``dicom`` or ``files``.
        items: sorted by name, each with a name and an output of its own.
        ignored: files that are none of the model's conditions.
        notes: a sentence each: what was left out, and why.
    """

    kind: str
    items: tuple[Item, ...]
    ignored: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


def below(root: Path, files: Iterable[Path]) -> list[str]:
    """Files as text, by their paths below a folder where they lie in it."""
    return [shown(file.relative_to(root) if file.is_relative_to(root) else file) for file in files]


def output_path(output: Path, kind: str) -> Path:
    """Where a file of :attr:`.Outcome.outputs` lies: the volume at the item's output, others beside it."""
    return output if kind == VOLUME else side_path(output, kind)


def side_path(output: Path, side: str) -> Path:
    """Where what is beside a translation goes: ``x_sd.nii.gz``, in BIDS ``..._desc-scorefusionsd_T1w``.

    A derived series is a folder: ``x_dicom``.
    """
    name = stem(output)
    if side == DICOM:
        return output.with_name(f"{name}_{side}")
    ending = output.name[len(name) :]
    if "_desc-scorefusion_" in name:
        return output.with_name(name.replace("_desc-scorefusion_", f"_desc-scorefusion{side}_") + ending)
    return output.with_name(f"{name}_{side}{ending}")


def checked(items: Iterable[Item], sides: Sequence[str] = ()) -> tuple[Item, ...]:
    """Sort items; those that would overwrite an input or each other become items with a problem.

    Args:
        items: whose names are their own.
        sides: of :data:`SIDES`, those that will be written.
    """
    ordered = sorted(items, key=lambda item: item.name)
    real = _Places()
    inputs = {real.of(file): item.name for item in ordered for file in item.files}
    owners: dict[str, list[str]] = defaultdict(list)
    for item in ordered:
        for path in _outputs(item, sides) if item.problem is None else ():
            owners[real.of(path)].append(item.name)
    return tuple(_check(item, sides, real, inputs, owners) for item in ordered)


class _Places:
    """Paths without links, each folder resolved once."""

    def __init__(self) -> None:
        self._folders: dict[Path, str] = {}

    def of(self, path: Path) -> str:
        """The file that is read or written under this name: a link is followed."""
        if path.is_symlink():
            return os.path.realpath(path)
        folder = self._folders.get(path.parent)
        if folder is None:
            folder = self._folders[path.parent] = os.path.realpath(path.parent)
        return os.path.join(folder, path.name)


def _check(
    item: Item, sides: Sequence[str], real: _Places, inputs: dict[str, str], owners: dict[str, list[str]]
) -> Item:
    if item.problem is not None:
        return item
    for path in _outputs(item, sides):
        place = real.of(path)
        if place in inputs:
            problem = f"its output {shown(path)} is an input ({inputs[place]})"
            return replace(item, problem=Problem(problem, "Choose another folder for the outputs."))
        if len(owners[place]) > 1:
            other = next((name for name in owners[place] if name != item.name), item.name)
            problem = f"would give the same output as {other}: {shown(path)}"
            return replace(item, problem=Problem(problem, "Rename one of them."))
        if path.is_symlink():
            try:
                output_target(path)
            except BadInput as error:
                return replace(item, problem=Problem.of(error))
    return replace(item, problem=length_problem(item.output.name))


def _outputs(item: Item, sides: Sequence[str]) -> list[Path]:
    return [item.output, *(side_path(item.output, side) for side in sides)]
