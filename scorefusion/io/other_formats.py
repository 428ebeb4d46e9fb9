"""FreeSurfer's MGH, and NRRD and MetaImage: a text header, then voxels, in one file or in a second one."""

import bz2
import gzip
import math
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO, NamedTuple

import nibabel as nib
import numpy as np

from scorefusion.errors import BadInput, out_of_memory
from scorefusion.io.header import (
    BEYOND,
    DAMAGED,
    LPS,
    Format,
    bad_input,
    check_room,
    check_shape,
    codec_for,
    nifti_header,
    nifti_image,
    plain_voxels,
    read_exactly,
    read_first,
    reading,
)
from scorefusion.io.placeholders import check_fetched

_LONGEST = 2**16  #: bytes that a header may have
_CHUNK = 2**20
_RATIOS = {"raw": 1, "zlib": 1032, "bz2": 0}
"""The most bytes that one byte of voxels may hold; 0 if there is no such bound."""


class Content(NamedTuple):
    """What a header says."""

    shape: tuple[int, ...]  # voxels along every axis, the fastest first
    dtype: np.dtype  # of the stored numbers
    numbers: int  # how many numbers each voxel has
    affine: np.ndarray | None  # ``[4, 4]``, (i, j, k) to RAS+ millimetres; None without directions
    zooms: tuple[float, ...]  # voxel size along (i, j, k), 1 where it is not given
    encoding: str  # ``raw``, ``zlib`` (also gzip) or ``bz2``
    data: str | None  # the name of the file of the voxels; None where they follow the header
    skip: int  # bytes before the voxels; negative if they are the last bytes of the file


class TextHeader(Format):
    """What NRRD and MetaImage have in common.

    They are not read by ITK, which on some damaged headers ends the process, prints on its streams, opens
    whatever file a header names, and assumes the identity for a missing orientation.
    """

    unoriented = "does not say how its axes are oriented"

    def content(self, head: bytes) -> Content | None:
        """Parse a header; return None where it is none, raise ValueError or KeyError for a damaged one."""
        raise NotImplementedError

    def encoded(self, values: np.ndarray, affine: np.ndarray, level: int) -> bytes:
        """Return a whole file of little-endian ``[i, j, k]`` voxels, compressed."""
        raise NotImplementedError

    def read_header(self, path: Path, max_voxels: int) -> Any:
        content, *_ = self._opened(path, max_voxels)
        return nifti_header(content.shape, content.dtype, content.affine, content.zooms)

    def read(self, path: Path, max_voxels: int) -> Any:
        content, voxels, length = self._opened(path, max_voxels)
        with reading(voxels, None) as stream:
            stream.seek(*((content.skip, 0) if content.skip >= 0 else (-length, 2)))
            try:
                data = _decoded(stream, length, content.encoding)
            except (EOFError, OSError, ValueError, zlib.error) as error:
                if out_of_memory(error) or getattr(error, "errno", None):
                    raise
                raise BadInput(path, f"its voxels are truncated or damaged ({error})", DAMAGED) from None
        if len(data) < length:
            problem = f"is truncated: its header promises {length:,} bytes of voxels, there are {len(data):,}"
            raise BadInput(path, problem, DAMAGED)
        values = np.frombuffer(data, content.dtype).reshape(content.shape[:3], order="F")
        return nifti_image(values, content.affine, content.zooms)

    def write(self, image: Any, path: Path, level: int) -> None:
        values, affine = plain_voxels(image)
        little = values.astype(values.dtype.newbyteorder("<"), copy=False)
        path.write_bytes(self.encoded(little, affine, level))

    def companions(self, path: Path) -> tuple[Path, ...]:
        content = self._parsed(path)
        return () if content.data is None else (path.parent / content.data,)

    def _opened(self, path: Path, max_voxels: int) -> tuple[Content, Path, int]:
        """Return the checked header, the file of the voxels, and how many bytes they are uncompressed."""
        content = self._parsed(path)
        voxels = path
        if content.data is not None:
            voxels = path.parent / content.data
            check_fetched(voxels)
            if not voxels.is_file():
                problem = f"its voxels are missing: there is no {content.data} in its folder"
                raise BadInput(path, problem, "Put that file there.")
        if content.numbers != 1:
            problem = f"holds {content.numbers} numbers for each voxel, not one"
            raise BadInput(path, problem, "Save one component, or their mean, as a grey volume first.")
        length = math.prod(check_shape(path, list(content.shape), max_voxels)) * content.dtype.itemsize
        size = voxels.stat().st_size - max(content.skip, 0)
        if _RATIOS[content.encoding] and length > size * _RATIOS[content.encoding]:
            problem = f"is truncated: its header promises {length:,} bytes of voxels"
            raise BadInput(path, f"{problem}, {voxels.name} has {max(size, 0):,}", DAMAGED)
        return content, voxels, length

    def _parsed(self, path: Path) -> Content:
        with reading(path, None) as stream:
            head = stream.read(_LONGEST)
        try:
            with np.errstate(all="ignore"):  # numbers of a damaged header
                content = self.content(head)
        except BadInput as error:
            raise BadInput(path, error.problem, error.fix) from None
        except KeyError as error:
            raise BadInput(path, f"its header has no field {error.args[0]!r}", DAMAGED) from None
        except (ValueError, OverflowError) as error:
            raise BadInput(path, f"its header is damaged ({' '.join(str(error).split())})", DAMAGED) from None
        if content is None:
            raise BadInput(path, f"is not a {self.name} file", "Check the file's name and content.")
        data = content.data or ""
        if re.match(r"list\b", data, re.I) or "%" in data:
            fix = f"Save it as one {self.single} file first."
            raise BadInput(path, "has its voxels in several files", fix)
        for name in (PurePosixPath(data), PureWindowsPath(data)):
            if name.is_absolute() or name.drive or ".." in name.parts or "\0" in data:
                problem = f"names a file of voxels outside its folder, {data!r}"
                fix = "Put that file beside it, and correct the name in the header."
                raise BadInput(path, problem, fix)
        return content


class Nrrd(TextHeader):
    """NRRD, of any version."""

    name, endings, detached, single = "NRRD", (".nrrd",), (".nhdr",), ".nrrd"

    def content(self, head: bytes) -> Content | None:
        if not re.match(rb"NRRD000\d\r?\n", head):
            return None
        end = re.search(rb"\r?\n\r?\n", head)
        text = head[: end.end()] if end else head
        fields = _fields(text, ": ")
        data = fields.get("datafile")
        if data is None and end is None:
            raise ValueError("it does not end")
        encoding = fields["encoding"].lower()
        known = {"raw": "raw", "gzip": "zlib", "gz": "zlib", "bzip2": "bz2", "bz2": "bz2"}
        if encoding not in known:
            raise BadInput("", f"has its voxels as {encoding}", "Save it with the encoding gzip first.")
        if int(fields.get("lineskip", "0")):
            problem = "has lines to be skipped before its voxels"
            raise BadInput("", problem, "Save it as one .nrrd file first.")
        shape = _sizes(fields["dimension"], fields["sizes"])
        dtype = _type_of(_NRRD_TYPES, fields["type"].lower())
        if dtype.itemsize > 1:
            if fields["endian"].lower() not in ("little", "big"):
                raise ValueError(f"endian {fields['endian']!r}")
            dtype = dtype.newbyteorder("<" if fields["endian"].lower() == "little" else ">")
        directions = re.findall(r"\([^)]*\)|none", fields.get("spacedirections", ""))
        zooms = fields.get("spacings", fields.get("spacing", "")).split()
        if "none" not in directions and not zooms:
            zooms = [str(np.linalg.norm(_numbers(direction, len(shape)))) for direction in directions]
        numbers = 1
        for place in [k for k, direction in enumerate(directions) if direction == "none"][::-1]:
            if len(shape) > 3 and place < len(shape):  # an axis of components
                numbers *= shape.pop(place)
                del directions[place : place + 1], zooms[place : place + 1]
        skip = int(fields.get("byteskip", "0"))
        skip += len(text) if data is None and skip >= 0 else 0
        affine = _nrrd_affine(fields, directions)
        return Content(tuple(shape), dtype, numbers, affine, _zooms(zooms), known[encoding], data, skip)

    def encoded(self, values: np.ndarray, affine: np.ndarray, level: int) -> bytes:
        own = LPS @ affine
        header = f"""\
NRRD0004
type: {_name_of(_NRRD_TYPES, values.dtype)}
dimension: 3
space: left-posterior-superior
sizes: {" ".join(map(str, values.shape))}
space directions: {" ".join(f"({_text(own[:3, k], ',')})" for k in range(3))}
kinds: domain domain domain
endian: little
encoding: gzip
space origin: ({_text(own[:3, 3], ",")})

"""
        return header.encode() + gzip.compress(values.tobytes(order="F"), level, mtime=0)


class MetaImage(TextHeader):
    """MetaImage."""

    name, endings, detached, single = "MetaImage", (".mha",), (".mhd",), ".mha"

    def content(self, head: bytes) -> Content | None:
        end = re.search(rb"^[ \t]*ElementDataFile[ \t]*=[^\n]*(\n|$)", head, re.M)
        if end is None:
            return None
        fields = _fields(head[: end.end()], "=")
        data = fields["elementdatafile"]
        local = data.lower() == "local"
        shape = _sizes(fields["ndims"], fields["dimsize"])
        if not _yes(fields.get("binarydata", "true")):
            raise BadInput("", "has its voxels as text", "Save it with binary data first.")
        large = _first(fields, "binarydatabyteordermsb", "elementbyteordermsb")
        dtype = _type_of(_META_TYPES, fields["elementtype"].upper())
        dtype = dtype.newbyteorder(">" if large and _yes(large) else "<")
        numbers = int(fields.get("elementnumberofchannels", "1"))
        encoding = "zlib" if _yes(fields.get("compresseddata", "false")) else "raw"
        skip = int(fields.get("headersize", "0"))  # from the first byte of the file
        if local and 0 < skip < end.end():
            raise ValueError(f"HeaderSize {skip}, but the header has {end.end()} bytes")
        if local and skip == 0 or encoding == "zlib" and skip < 0:
            skip = end.end() if local else 0
        unit = _unit(fields.get("distanceunits", ""))
        words = (_first(fields, "elementspacing", "elementsize") or "").split()
        zooms = tuple(unit * zoom for zoom in _zooms(words))
        affine, file = _meta_affine(fields, len(shape), zooms, unit), None if local else data
        return Content(tuple(shape), dtype, numbers, affine, zooms, encoding, file, skip)

    def encoded(self, values: np.ndarray, affine: np.ndarray, level: int) -> bytes:
        own = LPS @ affine
        zooms = np.linalg.norm(own[:3, :3], axis=0)
        towards = dict(zip("LRPASI", "RLAPIS", strict=True))  # it names where axes come from
        letters = "".join(towards[str(letter)] for letter in nib.aff2axcodes(affine))
        data = zlib.compress(values.tobytes(order="F"), level)
        header = f"""\
ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = True
CompressedDataSize = {len(data)}
TransformMatrix = {_text((own[:3, :3] / zooms).T.ravel())}
Offset = {_text(own[:3, 3])}
CenterOfRotation = 0 0 0
AnatomicalOrientation = {letters}
ElementSpacing = {_text(zooms)}
DimSize = {" ".join(map(str, values.shape))}
ElementType = {_name_of(_META_TYPES, values.dtype)}
ElementDataFile = LOCAL
"""
        return header.encode() + data


_NRRD_TYPES = {
    name: dtype
    for dtype, names in {
        "i1": "int8, signed char, int8_t",
        "u1": "uint8, uchar, unsigned char, uint8_t",
        "i2": "int16, short, short int, signed short, signed short int, int16_t",
        "u2": "uint16, ushort, unsigned short, unsigned short int, uint16_t",
        "i4": "int32, int, signed int, int32_t",
        "u4": "uint32, uint, unsigned int, uint32_t",
        "i8": "int64, longlong, long long, long long int, int64_t",
        "u8": "uint64, ulonglong, unsigned long long, uint64_t",
        "f4": "float",
        "f8": "double",
    }.items()
    for name in names.split(", ")
}
_META_NAMES = "CHAR UCHAR SHORT USHORT INT UINT LONG ULONG LONG_LONG ULONG_LONG FLOAT DOUBLE".split()
_META_NAMES = [f"MET_{name}" for name in _META_NAMES]
_META_TYPES = dict(zip(_META_NAMES, "i1 u1 i2 u2 i4 u4 i4 u4 i8 u8 f4 f8".split(), strict=True))
_SPACES = {"ras": (1, 1), "las": (-1, 1), "lps": (-1, -1)}
"""NRRD's spaces by the letters of their words: the signs of their first two axes in RAS+."""

_UNITS = {"cm": 10.0, "m": 1000.0}
_UNITS |= dict.fromkeys("mm millimeter millimeters millimetre millimetres".split(), 1.0)
_UNITS |= dict.fromkeys("um micron microns micrometer micrometers micrometre micrometres".split(), 0.001)


def _nrrd_affine(fields: Mapping[str, str], directions: Sequence[str]) -> np.ndarray | None:
    space = fields.get("space", "").lower()
    letters = "".join(word[:1] for word in space.split("-")) if "-" in space else space
    if letters not in _SPACES or len(directions) < 3:
        return None
    affine = np.eye(4)
    affine[:3, :3] = np.array([_numbers(direction, 3) for direction in directions[:3]]).T
    affine[:3, 3] = _numbers(fields.get("spaceorigin", "(0,0,0)"), 3)
    units = re.findall(r'"([^"]*)"', fields.get("spaceunits", ""))
    scale = [_unit(unit) for unit in units] if len(units) == 3 else [1.0] * 3
    return np.diag([*_SPACES[letters], 1, 1]) @ np.diag([*scale, 1]) @ affine


def _meta_affine(
    fields: Mapping[str, str], count: int, zooms: Sequence[float], unit: float
) -> np.ndarray | None:
    matrix = _first(fields, "transformmatrix", "rotation", "orientation")
    if matrix is None or count < 3 or len(zooms) < 3:
        return None
    affine = np.eye(4)
    rows = np.array(_numbers(matrix, count * count)).reshape(count, count)[:3, :3]
    affine[:3, :3] = rows.T * zooms[:3]
    origin = _numbers(_first(fields, "offset", "position", "origin") or "0 " * count, count)
    affine[:3, 3] = unit * np.array(origin[:3])
    return LPS @ affine


def _unit(name: str) -> float:
    """Return the millimetres of a unit; 1 for none or ``?``."""
    unit = name.strip(' "?').lower()
    if unit and unit not in _UNITS:
        problem = f"gives its distances in {name.strip()!r}, not in mm, um, cm or m"
        raise BadInput("", problem, "Save it in millimetres first.")
    return _UNITS.get(unit, 1.0)


def _type_of(types: Mapping[str, str], name: str) -> np.dtype:
    if name not in types:
        raise ValueError(f"its type of voxels is not known, {name!r}")
    return np.dtype(types[name])


def _fields(text: bytes, mark: str) -> dict[str, str]:
    """Return the values of a header's lines by name, in lower case and without blanks."""
    parts = (line.partition(mark) for line in text.decode("latin-1").splitlines() if line[:1] != "#")
    return {name.lower().replace(" ", "").strip(): value.strip() for name, found, value in parts if found}


def _first(fields: Mapping[str, str], *names: str) -> str | None:
    return next((fields[name] for name in names if name in fields), None)


def _yes(text: str) -> bool:
    return text[:1].lower() in ("t", "1", "y")


def _sizes(dimension: str, text: str) -> list[int]:
    sizes = [int(word) for word in text.split()]
    if not 1 <= len(sizes) <= 16 or len(sizes) != int(dimension):
        raise ValueError(f"dimension {dimension}, but {len(sizes)} sizes")
    return sizes


def _numbers(text: str, count: int) -> list[float]:
    numbers = [float(word) for word in re.split(r"[\s,()]+", text.strip(" ()")) if word]
    if len(numbers) != count:
        raise ValueError(f"{len(numbers)} numbers where {count} are expected: {text[:80]!r}")
    return numbers


def _zooms(words: Sequence[str]) -> tuple[float, ...]:
    return tuple(float(word) for word in words) if len(words) >= 3 else (1.0, 1.0, 1.0)


def _text(numbers: np.ndarray, comma: str = " ") -> str:
    return comma.join(repr(float(number)) for number in numbers)


def _name_of(types: Mapping[str, str], dtype: np.dtype) -> str:
    return next((name for name, kind in types.items() if dtype.newbyteorder("=") == np.dtype(kind)), "")


def _decoded(stream: BinaryIO, length: int, encoding: str) -> bytes | bytearray:
    """Return the first ``length`` bytes of voxels; compressed ones are read to their checksum."""
    if encoding == "raw":
        return stream.read(length)
    if encoding == "bz2":
        with bz2.BZ2File(stream) as unpacked:
            data: bytes | bytearray = unpacked.read(length)
            beyond = 0
            while beyond <= BEYOND and (more := unpacked.read(_CHUNK)):
                beyond += len(more)
    else:
        engine, data, beyond = zlib.decompressobj(47), bytearray(), 0
        while not engine.eof and beyond <= BEYOND:
            packed = engine.unconsumed_tail or stream.read(_CHUNK)
            if not packed:
                raise EOFError("the compressed data ends before its end")
            room = length - len(data)
            more = engine.decompress(packed, room or _CHUNK)
            if room:
                data += more
            else:
                beyond += len(more)
    if beyond > BEYOND:
        raise ValueError(f"they go on for more than {BEYOND:,} bytes")
    return data


_START = 284
_TYPES = {0: "u1", 1: ">i4", 3: ">f4", 4: ">i2", 10: ">u2"}
_WRITTEN = {"u1": "u1", "i1": "i2", "i2": "i2", "u2": "i4", "i4": "i4"}


class Mgh(Format):
    """MGH with voxels of uint8, int16, int32 or float32; other types are written as one of these."""

    name, endings, single = "MGH", (".mgz", ".mgh"), ".mgz"
    unoriented = "has no orientation (its goodRASFlag is not set)"

    def read_header(self, path: Path, max_voxels: int) -> Any:
        shape, dtype, affine, zooms, *_ = self._parts(path, max_voxels)
        return nifti_header(shape, dtype, affine, zooms)

    def read(self, path: Path, max_voxels: int) -> Any:
        shape, _, affine, zooms, length, codec = self._parts(path, max_voxels)
        with bad_input(path, "cannot be read as MGH"), np.errstate(all="ignore"):  # of a damaged header
            image = nib.MGHImage.from_bytes(read_exactly(path, length, codec))
            values = np.asanyarray(image.dataobj).reshape(shape)
        return nifti_image(values, affine, zooms)

    def write(self, image: Any, path: Path, level: int) -> None:
        values, affine = plain_voxels(image)
        content = nib.MGHImage(values.astype(_WRITTEN.get(values.dtype.str[1:], "f4")), affine).to_bytes()
        codec = None if path.name.lower().endswith(".mgh") else codec_for(".gz")
        with path.open("wb") as file, codec.writer(file, level) if codec else file as stream:
            stream.write(content)

    def _parts(self, path: Path, max_voxels: int) -> tuple[Any, ...]:
        """Return shape, type, affine (None if unknown), voxel size, bytes to the last voxel, compression."""
        head, codec = read_first(path, _START)
        if len(head) < _START or struct.unpack(">i", head[:4])[0] != 1:
            raise BadInput(path, "is not an MGH file", "Give a .mgz or .mgh file of FreeSurfer.")
        *shape, code = struct.unpack(">5i", head[4:24])
        known = check_shape(path, shape if shape[3] != 1 else shape[:3], max_voxels)
        if code not in _TYPES:
            raise BadInput(path, f"its header names a type of voxels that is not known, {code}", DAMAGED)
        dtype = np.dtype(_TYPES[code])
        length = _START + int(np.prod(known, dtype=object)) * dtype.itemsize
        check_room(path, length, codec)
        (flag,) = struct.unpack(">h", head[28:30])
        numbers = np.array(struct.unpack(">15f", head[30:90]), dtype=np.float64)
        zooms, cosines, centre = numbers[:3], numbers[3:12].reshape(3, 3).T, numbers[12:]
        affine = np.eye(4)
        with np.errstate(all="ignore"):
            affine[:3, :3] = cosines * zooms
            affine[:3, 3] = centre - affine[:3, :3] @ (np.array(known) / 2)
        return known, dtype, affine if flag > 0 else None, zooms, length, codec
