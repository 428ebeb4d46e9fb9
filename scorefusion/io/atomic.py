"""Atomic writes: files and folders appear under their final name whole or not at all."""

import os
import secrets
import shlex
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from scorefusion.errors import BadInput
from scorefusion.io.placeholders import is_annex_link

PathLike = str | os.PathLike[str]


def output_target(path: PathLike) -> Path:
    """Return the file that a write to ``path`` replaces: ``path`` itself, or what it links to.

    A symbolic link stays, and its target is replaced, or created if the target's folder exists. Other hard
    links to a replaced file keep the old content. Raises BadInput for a git-annex link, whose target must not
    change; a link in a loop or into a folder that does not exist; a target that is not a regular file.
    """
    target = final = Path(path)
    with _writing(final):
        if final.is_symlink():
            target = Path(os.path.realpath(final))
            if is_annex_link(final):
                fix = f"Run: git annex unlock {shlex.quote(final.name)}, or choose another name."
                raise BadInput(final, "is a git-annex link, whose content must not be replaced", fix)
            if target.is_symlink():
                raise BadInput(final, "is a symbolic link that leads to itself", "Remove it.")
            if not target.parent.is_dir():
                problem = f"is a symbolic link into a folder that does not exist, {target.parent}"
                raise BadInput(final, problem, "Create the folder, or remove the link.")
        if target.exists() and not (target.is_file() or target.is_dir()):
            raise BadInput(final, "is not a regular file", "Choose another name.")
    return target


@contextmanager
def _writing(path: PathLike) -> Iterator[None]:
    """Turn an OSError inside the block into a BadInput that names ``path``."""
    try:
        yield
    except OSError as error:
        fix = "Choose another folder, or free some space."
        raise BadInput(path, f"could not be written ({error.strerror or error})", fix) from error


@contextmanager
def written_beside(path: PathLike) -> Iterator[Path]:
    """Yield a hidden name in the file's folder to write to; renamed to ``path`` when the block ends well.

    An error or an interrupt inside the block removes the hidden file; a kill leaves it. ``path`` itself is
    either the old file or the new one, never a part. A replaced file's mode is kept, and its owner and group
    where the system allows it; a new file's mode follows the umask. A symbolic link is written through
    (:func:`output_target`). The hidden name keeps the ending, for writers that choose a format by it. Raises
    BadInput if the system refuses to write, naming ``path`` and the system's reason.
    """
    final = output_target(path)
    beside = final.with_name(f".{secrets.token_hex(4)}.{Path(path).name}")
    try:
        with _writing(path):
            if final.is_file():  # nobody may read what is being written who may not read the old file
                os.close(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            yield beside
            with open(beside, "rb+") as file:
                os.fsync(file.fileno())
            replace_file(beside, final)
    finally:
        beside.unlink(missing_ok=True)


def replace_file(finished: Path, final: Path) -> None:
    """Rename a finished file or folder to ``final``, with the mode of what it replaces, or raise OSError."""
    _keep_access(finished, final)
    os.replace(finished, final)


def _keep_access(new: Path, old: Path) -> None:
    """Give ``new`` the mode of ``old``, if that exists; its owner and group where the system allows it."""
    try:
        before = old.stat()
    except FileNotFoundError:
        return
    mode, after = stat.S_IMODE(before.st_mode), new.stat()
    mode &= 0o7777 if stat.S_ISDIR(before.st_mode) else 0o777
    if hasattr(os, "chown") and (before.st_uid, before.st_gid) != (after.st_uid, after.st_gid):
        for owner, group in ((before.st_uid, before.st_gid), (-1, before.st_gid)):
            try:
                os.chown(new, owner, group)
                break
            except OSError:
                continue
        else:  # another group than before: it gets the rights of others
            mode = (mode & ~0o070) | ((mode & 0o007) << 3)
    new.chmod(mode)


@contextmanager
def folder_written_beside(path: PathLike) -> Iterator[Path]:
    """Yield a hidden folder to write files into; renamed to ``path`` when the block ends well.

    An existing folder is replaced whole; its mode and those of files of the same names are kept. An error or
    an interrupt inside the block removes the hidden folder and leaves the old one; a kill may leave hidden
    folders beside it. A symbolic link is written through. Parent folders are made. Raises BadInput if the
    system refuses to write, naming ``path`` and the system's reason.
    """
    final = output_target(path).absolute()
    token = secrets.token_hex(4)
    beside, old = (final.with_name(f".{token}.{kind}.{final.name}") for kind in ("new", "old"))
    try:
        with _writing(path):
            beside.mkdir(parents=True)
            yield beside
            for file in (path for path in beside.rglob("*") if path.is_file()):
                with open(file, "rb+") as stream:
                    os.fsync(stream.fileno())
                _keep_access(file, final / file.relative_to(beside))
            if final.exists():
                _keep_access(beside, final)
                final.rename(old)
            try:
                beside.rename(final)
            except OSError:
                if old.exists():
                    old.rename(final)
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        if final.exists():
            shutil.rmtree(old, ignore_errors=True)


def check_output(path: PathLike, endings: Iterable[str], inputs: Iterable[PathLike] = ()) -> Path:
    """Check before any work is done that a file can be written; return its path.

    Raises BadInput for an ending other than the accepted ones, such as ``.nii.gz``, a missing or unwritable
    folder, the name of a folder or of one of ``inputs``, and as :func:`output_target`.
    """
    final, accepted = Path(path), tuple(endings)
    if not final.name.lower().endswith(accepted) or final.name.lower() in accepted:
        fix = f"End its name in {' or '.join(accepted)}."
        raise BadInput(final, "has the wrong ending for this output", fix)
    if final.is_dir():
        raise BadInput(final, "is a folder", "Name a file inside it.")
    target = output_target(final)
    folder = target.parent
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise BadInput(final, f"cannot be written: {folder} {problem}", "Create the folder first.")
    for name in inputs:
        both = os.path.exists(final) and os.path.exists(name)
        if os.path.samefile(final, name) if both else final.resolve() == Path(name).resolve():
            raise BadInput(final, "is an input as well as the output", "Give the output another name.")
    probe = folder / f".{secrets.token_hex(4)}.{target.name}"
    try:
        probe.touch(exist_ok=False)
    except OSError as error:
        reason = error.strerror or str(error)
        raise BadInput(final, f"cannot be written: {folder}: {reason}", "Choose another folder.") from None
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return final
