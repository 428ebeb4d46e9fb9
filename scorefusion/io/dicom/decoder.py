"""Compressed DICOM pixels, decoded in a process apart: decoders in C can crash or hang on a damaged file."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scorefusion.errors import BadInput
from scorefusion.io.dicom.file import DAMAGED, read_pixels, reading
from scorefusion.optional import need

SECONDS = 120
"""What a file may take."""

_TYPES = {np.dtype(name).str for name in ("u1", "i1", "<u2", "<i2", "<u4", "<i4")}
_START = f"import json, sys; sys.path[:] = json.loads(sys.argv[1]); from {__name__} import serve; serve()"


class Decoder:
    """Decodes one file after another in a process that it starts when it is first needed, and ends.

    Nothing but pixels of the expected size is taken from there. After a crash the next file gets a new one.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *raised: object) -> None:
        self._end()

    def decode(
        self, path: Path, keywords: Sequence[str], promised: int, shape: tuple[int, int]
    ) -> Iterator[np.ndarray]:
        """Every frame of a file as its pixels are stored, in order.

        Args:
            path: the file.
            keywords: attributes that decoding needs.
            promised: bytes of all frames.
            shape: (rows, columns) of each.

        Raises:
            BadInput: for pixels that cannot be decoded, or decode to another shape.
        """
        process = self._process = self._process or _started()
        assert process.stdin is not None and process.stdout is not None
        asked = {"path": str(path.absolute()), "keywords": list(keywords), "promised": promised}
        whole = False
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(asked).encode() + b"\n")
                process.stdin.flush()
            while told := _line(process, path):
                if "error" in told:
                    whole = True
                    raise BadInput(path, told["error"], DAMAGED)
                if told["shape"] != list(shape) or told["dtype"] not in _TYPES:
                    raise BadInput(path, f"decodes to {told['shape']}, not to {list(shape)} pixels", DAMAGED)
                dtype = np.dtype(told["dtype"])
                data = process.stdout.read(shape[0] * shape[1] * dtype.itemsize)
                if len(data) < shape[0] * shape[1] * dtype.itemsize:
                    raise _crash(path)
                yield np.frombuffer(data, dtype).reshape(shape)
            whole = True
        finally:
            if not whole:
                self._end()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


def _started() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", _START, json.dumps(sys.path)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)


def _line(process: subprocess.Popen[bytes], path: Path) -> Any:
    """What is told of the next frame; nothing after the last."""
    assert process.stdout is not None
    line = process.stdout.readline(1000)
    if not line.endswith(b"\n"):
        raise _crash(path)
    return json.loads(line)


def _crash(path: Path) -> BadInput:
    problem = f"cannot be decoded: its decoder crashed, or needed more than {SECONDS} s"
    return BadInput(path, problem, DAMAGED)


def serve() -> None:
    """Decode the files that standard input names, until it ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # decoders print
    for line in sys.stdin.buffer:
        if hasattr(signal, "alarm"):
            signal.alarm(SECONDS)
        try:
            asked = json.loads(line)
            path = Path(asked["path"])
            for image in decode_here(path, read_pixels(path, asked["keywords"], asked["promised"])):
                told = {"shape": image.shape, "dtype": image.dtype.str}
                answers.write(json.dumps(told).encode() + b"\n" + image.tobytes())
            answers.write(b"{}\n")
        except BadInput as error:
            answers.write(json.dumps({"error": error.problem[:800]}).encode() + b"\n")
        answers.flush()
        if hasattr(signal, "alarm"):
            signal.alarm(0)


def decode_here(path: Path, data: Any, **options: Any) -> Iterator[np.ndarray]:
    """Decode a file in this process.

    Args:
        path: of the file.
        data: what :func:`.dicom_file.read_pixels` read of it.
        options: of pydicom's decoder.

    Raises:
        BadInput: for a damaged file.
    """
    with reading(path):
        decoder = need("pydicom.pixels", "reading DICOM").get_decoder(data.file_meta.TransferSyntaxUID)
        for image, _ in decoder.iter_array(data, raw=True, **options):
            yield image
