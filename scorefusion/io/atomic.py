"""Files that appear under their final name whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from scorefusion.errors import BadInput

PathLike = str | os.PathLike[str]


@contextmanager
def written_beside(path: PathLike) -> Iterator[Path]:
    """Yield a hidden name in the same folder to write to; renamed to ``path`` when the block ends well.

    Whatever ends the block early (an error, an interrupt) removes the hidden file; a kill leaves it under its
    hidden name. ``path`` itself is either the old file or the new one, never a part.

    Args:
        path: the final name. The hidden one keeps its ending, for writers that choose a format by it.

    Raises:
        BadInput: if the system refuses to write, naming ``path`` and the system's reason.
    """
    final = Path(path)
    beside = final.with_name(f".{secrets.token_hex(4)}.{final.name}")
    try:
        yield beside
        with open(beside, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(beside, final)
    except OSError as error:
        fix = "Choose another folder, or free some space."
        raise BadInput(final, f"could not be written ({error.strerror or error})", fix) from error
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def folder_written_beside(path: PathLike) -> Iterator[Path]:
    """Yield a hidden folder to write files into; renamed to ``path`` when the block ends well.

    A folder that is there is replaced whole. Whatever ends the block early removes the hidden folder and
    leaves the old one; a kill may leave hidden folders beside it.

    Args:
        path: the final name; folders above it are made.

    Raises:
        BadInput: if the system refuses to write, naming ``path`` and the system's reason.
    """
    final = Path(path).absolute()
    token = secrets.token_hex(4)
    beside, old = (final.with_name(f".{token}.{kind}.{final.name}") for kind in ("new", "old"))
    try:
        beside.mkdir(parents=True)
        yield beside
        for file in (path for path in beside.rglob("*") if path.is_file()):
            with open(file, "rb+") as stream:
                os.fsync(stream.fileno())
        if final.exists():
            final.rename(old)
        try:
            beside.rename(final)
        except OSError:
            if old.exists():
                old.rename(final)
            raise
    except OSError as error:
        fix = "Choose another folder, or free some space."
        raise BadInput(path, f"could not be written ({error.strerror or error})", fix) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        if final.exists():
            shutil.rmtree(old, ignore_errors=True)


def check_output(path: PathLike, endings: Iterable[str], inputs: Iterable[PathLike] = ()) -> Path:
    """Find out before any work is done whether a file can be written.

    Args:
        path: the file to be written.
        endings: accepted endings, such as ``.nii.gz``.
        inputs: files that must not be overwritten.

    Returns:
        The path.

    Raises:
        BadInput: for a wrong ending, a missing or unwritable folder, the name of a folder or of an input.
    """
    final, accepted = Path(path), tuple(endings)
    if not final.name.lower().endswith(accepted) or final.name.lower() in accepted:
        endings_text = " or ".join(accepted)
        raise BadInput(final, "has the wrong ending for this output", f"End its name in {endings_text}.")
    if final.is_dir():
        raise BadInput(final, "is a folder", "Name a file inside it.")
    folder = final.parent
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise BadInput(final, f"cannot be written: {folder} {problem}", "Create the folder first.")
    for name in inputs:
        if _same_file(final, Path(name)):
            raise BadInput(final, "is an input as well as the output", "Give the output another name.")
    probe = folder / f".{secrets.token_hex(4)}.{final.name}"
    try:
        probe.touch(exist_ok=False)
    except OSError as error:
        reason = error.strerror or str(error)
        raise BadInput(final, f"cannot be written: {folder}: {reason}", "Choose another folder.") from None
    finally:
        _remove(probe)
    return final


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        pass


def _same_file(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return one.resolve() == other.resolve()
