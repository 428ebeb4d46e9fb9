"""Files of a multipart form, written to the disk as they come in, up to a number of bytes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, BinaryIO

from python_multipart.multipart import FormParserError, MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool

from scorefusion.errors import ScoreFusionError


class TooLarge(ScoreFusionError):
    """More bytes than are taken."""


async def receive(
    chunks: AsyncIterator[bytes], content_type: str, folder: Path, *, limit: int, count: int
) -> list[tuple[Path, str]]:
    """Read a form's files; other fields are passed over.

    Args:
        chunks: the body.
        content_type: of the request.
        folder: empty; the files are written here, as 0, 1 and so on, whatever their names.
        limit: bytes of the body.
        count: files that are expected.

    Returns:
        Each file and the name that the client gave it, in order.

    Raises:
        TooLarge: for a larger body.
        ScoreFusionError: for something else than a form with so many files.
    """
    kind, parameters = parse_options_header(content_type)
    if kind != b"multipart/form-data" or b"boundary" not in parameters:
        raise ScoreFusionError("an upload is a form, multipart/form-data, with the scan as 'file'")
    form = _Form(folder, count)
    total = 0
    try:
        parser = MultipartParser(parameters[b"boundary"], form.callbacks)
        async for chunk in chunks:
            total += len(chunk)
            if total > limit:
                raise TooLarge(f"an upload has at most {limit:,} bytes")
            await run_in_threadpool(parser.write, chunk)
        parser.finalize()
    except FormParserError as error:
        raise ScoreFusionError(f"the form is damaged ({error})") from None
    finally:
        form.close()
    if len(form.files) != count or not form.ended:
        raise ScoreFusionError(f"this model takes {count} whole file(s), got {len(form.files)}")
    return form.files


class _Form:
    """What the parser calls."""

    def __init__(self, folder: Path, count: int):
        self.folder, self.count = folder, count
        self.files: list[tuple[Path, str]] = []
        self.ended = False
        self._file: BinaryIO | None = None
        self._name, self._value, self._disposition = b"", b"", b""
        self.callbacks: Any = {
            "on_part_begin": self._begin,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._open,
            "on_part_data": self._data,
            "on_part_end": self.close,
            "on_end": self._end,
        }

    def close(self) -> None:
        """Close what is being written."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _begin(self) -> None:
        self._disposition = b""

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name, self._value = b"", b""

    def _open(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"filename" not in options:
            return
        if len(self.files) == self.count:
            raise ScoreFusionError(f"this model takes {self.count} file(s), got more")
        path = self.folder / str(len(self.files))
        self._file = path.open("xb")
        self.files.append((path, shown_name(options[b"filename"])))

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._file.write(data[start:end])

    def _end(self) -> None:
        self.ended = True


def shown_name(name: bytes) -> str:
    """A client's name for a file, as it is shown: without folders, in letters that print, not long."""
    last = name.decode("utf-8", "replace").replace("\\", "/").rpartition("/")[2]
    return "".join(letter for letter in last if letter.isprintable())[:120].strip() or "scan"
