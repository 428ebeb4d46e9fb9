"""Files whose content is elsewhere: links of git-annex, pointers of git-annex and git-lfs, broken links."""

import os
import re
import shlex
from pathlib import Path

from scorefusion.errors import BadInput

_ANNEX = re.compile(r"(^|[/\\])(\.git[/\\]annex|annex[/\\]objects)[/\\]")
_LONGEST = 32768  #: bytes that a pointer file may have; git-annex's own limit


def is_annex_link(path: Path) -> bool:
    """Return whether a symbolic link leads into git-annex's store, with or without its content."""
    return bool(_ANNEX.search(os.readlink(path)) or _ANNEX.search(os.path.realpath(path)))


def check_fetched(path: str | os.PathLike[str]) -> None:
    """Raise BadInput, with the command that fetches a file's content, if the file is a placeholder of it."""
    file = Path(path)
    name, folder = shlex.quote(file.name), str(file.parent)
    run = "Run:" if folder == "." else f"Run in {folder}:"  # both tools look for the repository there
    try:
        if file.is_symlink() and not file.exists():
            if is_annex_link(file):
                fix = f"{run} git annex get {name} (or datalad get)."
                raise BadInput(file, "is not fetched: it is a git-annex link without its content", fix)
            problem = f"is a symbolic link to a file that does not exist, {os.readlink(file)}"
            raise BadInput(file, problem, "Restore that file, or remove the link.")
        if not file.is_file() or file.stat().st_size > _LONGEST:
            return
        with file.open("rb") as stream:
            head = stream.read(64)
    except OSError:
        return  # for the reader to report
    if head.startswith(b"version https://git-lfs"):
        fix = f"{run} git lfs pull --include {name}"
        raise BadInput(file, "is not fetched: it is a git-lfs pointer", f"{fix}.")
    if head.startswith((b"/annex/objects/", b"\\annex\\objects\\")):
        raise BadInput(file, "is not fetched: it is a git-annex pointer", f"{run} git annex get {name}.")
