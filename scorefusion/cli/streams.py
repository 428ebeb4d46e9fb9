"""Standard output and standard error that may fail at any time without ending the work."""

from __future__ import annotations

import errno
import os
import sys
from typing import IO, Any, TextIO, cast

from scorefusion.errors import ScoreFusionError, one_line

READER_GONE = 141
"""Exit status where the reader of a result has gone, as a shell reports a process that SIGPIPE ended."""


class Shield:
    """A text stream whose first failure switches it off; what is written afterwards is discarded.

    Characters that the stream's encoding lacks are written as ``?``.

    Args:
        stream: any text stream; None for one that was closed before the program started.
    """

    def __init__(self, stream: IO[str] | None):
        self.error: OSError | ValueError | None = None
        if stream is None:
            self.error = OSError(errno.EBADF, os.strerror(errno.EBADF))
        self.stream: IO[str] = stream or open(os.devnull, "w", encoding="utf-8")

    def __getattr__(self, name: str) -> Any:
        """Everything else is the stream's own, but its binary side, which would bypass the shield."""
        if name in ("buffer", "stream"):
            raise AttributeError(name)
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write text, if the stream still takes any."""
        if self.error is None:
            try:
                self._write(text)
            except (OSError, ValueError) as error:
                self.error = error
        return len(text)

    def flush(self) -> None:
        """Flush, if the stream still takes anything."""
        if self.error is None:
            try:
                self.stream.flush()
            except (OSError, ValueError) as error:
                self.error = error

    def isatty(self) -> bool:
        """Whether it is a terminal that still takes text."""
        try:
            return self.error is None and self.stream.isatty()
        except (OSError, ValueError):
            return False

    def _write(self, text: str) -> None:
        try:
            self.stream.write(text)
        except UnicodeEncodeError:
            encoding = getattr(self.stream, "encoding", None) or "ascii"
            self.stream.write(text.encode(encoding, "replace").decode(encoding))


def shielded(stream: IO[str] | None) -> TextIO:
    """The stream behind a :class:`Shield`; one that has a shield is returned as it is."""
    return cast(TextIO, stream if isinstance(stream, Shield) else Shield(stream))


def shield_standard_streams() -> None:
    """Put both standard streams of this process behind a :class:`Shield`, until it ends.

    Descriptors 0 to 2 that are closed are opened on the null device, so that no output file gets one of these
    numbers, to which libraries and child processes write their messages.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdout, sys.stderr = shielded(sys.stdout), shielded(sys.stderr)


def require_stdout() -> None:
    """Check that standard output took the text that a verb was run for."""
    error = _stdout_error()
    if isinstance(error, BrokenPipeError):
        raise SystemExit(READER_GONE)
    if error is not None:
        raise ScoreFusionError(f"standard output cannot be written ({one_line(error)})")


def note(problem: str | None) -> None:
    """Print what went wrong beside the work, if anything did, on standard error."""
    if problem is not None:
        print(f"scorefusion: {problem}", file=shielded(sys.stderr))


def note_lost_output() -> None:
    """Say on standard error that the rest of standard output was lost, unless it was closed on purpose."""
    error = _stdout_error()
    if error is not None and getattr(error, "errno", None) not in (errno.EPIPE, errno.EBADF):
        note(f"standard output could not be written ({one_line(error)}); the work went on without it")


def _stdout_error() -> OSError | ValueError | None:
    sys.stdout.flush()
    return sys.stdout.error if isinstance(sys.stdout, Shield) else None
