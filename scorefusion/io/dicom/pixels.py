"""Pixels of DICOM files: what they claim is checked, then pydicom and its plugins decode them.

Decoders in C can crash or hang on a damaged file, so compressed pixels are decoded in a process of their own.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scorefusion.errors import BadInput
from scorefusion.io.dicom.file import DAMAGED, DEFLATE_RATIO, capacity, pydicom, read_pixels, reading
from scorefusion.io.dicom.frames import Frame

_TAGS = """
    Rows Columns NumberOfFrames SamplesPerPixel PhotometricInterpretation BitsAllocated BitsStored HighBit
    PixelRepresentation ExtendedOffsetTable ExtendedOffsetTableLengths PixelData
""".split()
_RLE_RATIO = 64
_JPEG_SIZES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_JPEG_BARE = {0x01, *range(0xD0, 0xD9)}
_JPEG_2000 = b"\xff\x4f\xff\x51"

_SECONDS = 120  # that decoding a file may take
_TYPES = {np.dtype(name).str for name in ("u1", "i1", "<u2", "<i2", "<u4", "<i4")}
_START = f"import json, sys; sys.path[:] = json.loads(sys.argv[1]); from {__name__} import serve; serve()"


def check_pixels(frames: Sequence[Frame]) -> None:
    """Check, before anything is allocated, that a file can hold its frames and that they can be decoded."""
    path, syntax = frames[0].file, frames[0].header.file_meta.TransferSyntaxUID
    with reading(path):
        promised = _promised(frames)
        room = size = capacity(path)
    if syntax.is_encapsulated:
        try:
            decoder = pydicom("pixels").get_decoder(syntax)
        except NotImplementedError:
            problem = f"is compressed as {syntax.name}, which pydicom does not decode"
            raise BadInput(path, problem, "Decompress it first, by gdcmconv --raw or dcmdjpeg.") from None
        if not decoder.is_available:
            missing = "; ".join(decoder.missing_dependencies).replace("requires gdcm", "requires python-gdcm")
            problem = f"is compressed as {syntax.name}, for which no decoder is installed"
            raise BadInput(path, problem, f"Install one of these with pip: {missing}.")
        room = size * _RLE_RATIO if _is_rle(syntax) else promised
    elif syntax.is_deflated:
        room = size * DEFLATE_RATIO
    if promised > room:
        problem = f"is truncated: its header promises {promised:,} bytes of pixels, the file has {size:,}"
        raise BadInput(path, problem, DAMAGED)


def decoded(frames: Sequence[Frame], decoder: Decoder) -> Iterator[tuple[Frame, np.ndarray]]:
    """Yield all frames of one file with their pixels as they are stored, ``[rows, columns]``."""
    path, promised, shape = frames[0].file, _promised(frames), frames[0].shape
    data = read_pixels(path, _TAGS, promised)
    syntax = data.file_meta.TransferSyntaxUID
    _check(path, data, frames)
    if not syntax.is_encapsulated:
        images = _decode(path, data)
    elif _is_rle(syntax):
        images = _decode(path, data, decoding_plugin="pydicom")
    else:
        del data
        images = decoder.decode(path, _TAGS, promised, shape)
    for frame in sorted(frames, key=lambda frame: frame.index):
        image = next(images, None)
        if image is None or image.shape != shape:
            found = "nothing" if image is None else image.shape
            raise BadInput(path, f"decodes to {found}, not to {shape} pixels", DAMAGED)
        yield frame, image
    if next(images, None) is not None:
        raise BadInput(path, f"decodes to more than {len(frames)} frames", DAMAGED)


def _check(path: Path, data: Any, frames: Sequence[Frame]) -> None:
    """Check the size of the pixels; of compressed ones, so that decoders allocate no more than that."""
    with reading(path):
        pixels, promised, count = data.get("PixelData"), _promised(frames), len(frames)
        if not isinstance(pixels, bytes) or not pixels:
            raise BadInput(path, "has no PixelData", DAMAGED)
        if not data.file_meta.TransferSyntaxUID.is_encapsulated:
            if len(pixels) < promised:
                sizes = f"{promised:,} bytes of pixels are promised, {len(pixels):,} are there"
                raise BadInput(path, f"is truncated: {sizes}", DAMAGED)
            return
        streams = 0
        for stream in pydicom("encaps").generate_frames(pixels, number_of_frames=count):
            streams += 1
            size = codestream_size(stream)
            if size is not None and size != frames[0].shape:
                theirs, ours = (f"{columns} × {rows}" for rows, columns in (size, frames[0].shape))
                problem = f"holds a compressed image of {theirs} pixels, its header says {ours}"
                raise BadInput(path, problem, DAMAGED)
        if streams != count:
            raise BadInput(path, f"is truncated: {count} frames are promised, {streams} are there", DAMAGED)


def _is_rle(syntax: Any) -> bool:
    """Return whether pydicom decodes it in Python."""
    return syntax.name.startswith("RLE")


def _promised(frames: Sequence[Frame]) -> int:
    return len(frames) * math.prod(frames[0].shape) * frames[0].stored.itemsize


def codestream_size(stream: bytes) -> tuple[int, int] | None:
    """Return (rows, columns) of a JPEG, JPEG-LS or JPEG 2000 stream; None for another, such as RLE."""
    if stream[:2] == b"\xff\xd8":
        return _jpeg_size(stream)
    start = stream.find(_JPEG_2000) if stream[4:8] == b"jP  " else 0
    if stream[start : start + 4] != _JPEG_2000:
        return None
    right, down, left, top = (_number(stream, start + at, 4) for at in (8, 12, 16, 20))
    return down - top, right - left


def _jpeg_size(stream: bytes) -> tuple[int, int] | None:
    place = 2
    while place + 9 <= len(stream):
        if stream[place] != 0xFF:
            return None
        marker = stream[place + 1]
        if marker == 0xFF:
            place += 1
        elif marker in _JPEG_BARE:
            place += 2
        elif marker in _JPEG_SIZES:
            return _number(stream, place + 5, 2), _number(stream, place + 7, 2)
        else:
            place += 2 + max(2, _number(stream, place + 2, 2))
    return None


def _number(stream: bytes, place: int, size: int) -> int:
    return int.from_bytes(stream[place : place + size], "big")


class Decoder(contextlib.AbstractContextManager["Decoder"]):
    """Decodes one file after another in a process of its own, which is started when it is first needed.

    Nothing but pixels of the expected size is taken from it. After a crash the next file gets a new one.
    """

    _process: subprocess.Popen[bytes] | None = None

    def __exit__(self, *raised: object) -> None:
        self._end()

    def decode(
        self, path: Path, keywords: Sequence[str], promised: int, shape: tuple[int, int]
    ) -> Iterator[np.ndarray]:
        """Yield the stored pixels of every frame of a file, each of ``shape``, in all ``promised`` bytes."""
        process = self._process = self._process or _started()
        assert process.stdin is not None and process.stdout is not None
        request = {"path": str(path.absolute()), "keywords": list(keywords), "promised": promised}
        complete = False
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
            # The shape and type of the next frame, or an error; an empty object after the last frame.
            while (line := process.stdout.readline(1000)).endswith(b"\n"):
                answer = json.loads(line)
                complete = "error" in answer or not answer
                if not answer:
                    return
                if "error" in answer:
                    raise BadInput(path, answer["error"], DAMAGED)
                if answer["shape"] != list(shape) or answer["dtype"] not in _TYPES:
                    problem = f"decodes to {answer['shape']}, not to {list(shape)} pixels"
                    raise BadInput(path, problem, DAMAGED)
                dtype = np.dtype(answer["dtype"])
                data = process.stdout.read(shape[0] * shape[1] * dtype.itemsize)
                if len(data) < shape[0] * shape[1] * dtype.itemsize:
                    break
                yield np.frombuffer(data, dtype).reshape(shape)
            problem = f"cannot be decoded: its decoder crashed, or needed more than {_SECONDS} s"
            raise BadInput(path, problem, DAMAGED)
        finally:
            if not complete:
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


def serve() -> None:
    """Decode the files that standard input names, until it ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # decoders print
    for line in sys.stdin.buffer:
        if hasattr(signal, "alarm"):
            signal.alarm(_SECONDS)
        try:
            request = json.loads(line)
            path = Path(request["path"])
            for image in _decode(path, read_pixels(path, request["keywords"], request["promised"])):
                answer = {"shape": image.shape, "dtype": image.dtype.str}
                answers.write(json.dumps(answer).encode() + b"\n" + image.tobytes())
            answers.write(b"{}\n")
        except BadInput as error:
            answers.write(json.dumps({"error": error.problem[:800]}).encode() + b"\n")
        answers.flush()
        if hasattr(signal, "alarm"):
            signal.alarm(0)


def _decode(path: Path, data: Any, **options: Any) -> Iterator[np.ndarray]:
    with reading(path):
        decoder = pydicom("pixels").get_decoder(data.file_meta.TransferSyntaxUID)
        for image, _ in decoder.iter_array(data, raw=True, **options):
            yield image
