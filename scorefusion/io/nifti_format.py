"""NIfTI and Analyze files: headers are checked before voxels are allocated, and their oddities are mended.

nibabel logs every oddity of a header. The logger belongs to the whole process: to silence it for a moment
would silence other threads, too. So headers get a logger of their own without handlers.
"""

import logging
import math
import os
import re
import shlex
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from nibabel.fileholders import FileHolder
from nibabel.spatialimages import HeaderDataError
from nibabel.spm2analyze import Spm2AnalyzeHeader

from scorefusion.errors import BadInput
from scorefusion.io.header import (
    DAMAGED,
    MAX_VOXELS,
    Codec,
    Format,
    bad_input,
    check_room,
    check_shape,
    check_voxel_type,
    codec_for,
    nifti_header,
    nifti_image,
    read_exactly,
    read_first,
)
from scorefusion.io.placeholders import check_fetched

_MAGIC = {348: (b"n+1\0", b"ni1\0"), 540: (b"n+2\0", b"ni2\0")}
_NOT_NIFTI = "Give a NIfTI file (.nii or .nii.gz)."
_CONVERSIONS = {
    (".mif", ".mif.gz", ".mih"): "Convert it: mrconvert {file} {stem}.nii.gz",
    (".head", ".brik", ".brik.gz"): "Convert it: 3dAFNItoNIFTI -prefix {stem}.nii.gz {file}",
    (".mnc", ".mnc.gz"): "Convert it: mnc2nii {file} {stem}.nii",
    (".par", ".rec"): "Convert it: parrec2nii --compressed {file}",
    (".dcm", ".ima"): "Give its folder, and a folder for the output, or convert it: dcm2niix {folder}",
    (".nii.xz",): "Decompress it: xz -dk {file}",
    (".zip", ".tar", ".tar.gz", ".tgz", ".7z"): "Unpack it, and give what is inside.",
}
"""Endings of volumes that are not read, and what makes one of them that is."""

_UNHEARD = logging.Logger("scorefusion.unheard")
_UNHEARD.addHandler(logging.NullHandler())
_UNHEARD.propagate = False

_TOO_LONG = 0.01  #: by how much the square of a qform's quaternion may exceed 1 and count as rounded


class Nifti(Format):
    """NIfTI-1 and -2 in one file, plain or compressed, and whatever has another ending."""

    name = "NIfTI"
    endings: tuple[str, ...] = (".nii.gz", ".nii", ".nii.bz2", ".nii.zst")
    single = ".nii.gz"
    unoriented = "has no affine (its qform and sform codes are 0)"

    def read_header(self, path: Path, max_voxels: int) -> Any:
        header = check_header(path, max_voxels).header
        if isinstance(header, nib.Nifti1Header):
            return header
        return nifti_header(header.get_data_shape(), header.get_data_dtype(), zooms=header.get_zooms())

    def read(self, path: Path, max_voxels: int) -> Any:
        promise = check_header(path, max_voxels)
        with bad_input(path, "cannot be read as NIfTI", "Check it with another viewer."):
            content = read_exactly(promise.voxels, promise.length, promise.codec)
            kind = _IMAGES[type(promise.header), promise.pair]
            if not promise.pair:
                return kind.from_bytes(content)
            head, _ = read_first(promise.file, 2**24)
            streams = {"header": BytesIO(head), "image": BytesIO(content)}
            image = kind.from_file_map({key: FileHolder(fileobj=file) for key, file in streams.items()})
        if isinstance(promise.header, nib.Nifti1Header):
            return image
        return nifti_image(np.asanyarray(image.dataobj), zooms=np.abs(image.header.get_zooms()))

    def write(self, image: Any, path: Path, level: int) -> None:
        codec = codec_for(path.name)
        if codec is None or codec.ending == ".gz" and level == 1:
            nib.save(image, path)
            return
        with path.open("wb") as file, codec.writer(file, level) as stream:
            stream.write(image.to_bytes())


class Pair(Nifti):
    """NIfTI in two files, and Analyze 7.5, whose orientation nobody knows."""

    name = "NIfTI or Analyze"
    endings = ()
    detached = (".hdr", ".img", ".hdr.gz", ".img.gz")
    unoriented = "does not say how it is oriented (Analyze, or qform and sform codes of 0)"

    def companions(self, path: Path) -> tuple[Path, ...]:
        promise = check_header(path)
        return tuple(file for file in (promise.file, promise.voxels) if file != path)


class Promise(NamedTuple):
    """What a header says is in the file."""

    header: Any  # as nibabel reads it
    pair: bool  # whether the voxels are in a second file, .img
    file: Path  # the file of the header
    voxels: Path  # the file of the voxels
    codec: Codec | None  # the compression of the file of the voxels; None if it is not compressed
    length: int  # bytes from the start of that (uncompressed) file to the end of its voxels


def check_header(path: Path, max_voxels: int = MAX_VOXELS) -> Promise:
    """Read the first bytes of a file and check that it can be one 3D volume of its size."""
    source = _pair_member(path, "img", "hdr")
    check_fetched(source)
    if not source.exists():
        raise BadInput(path, "does not exist", "Check the name.")
    head, codec = read_first(source, 540)
    if not source.stat().st_size:
        raise BadInput(path, "is empty (0 bytes)", DAMAGED)
    header, pair = _parse(path, head)
    shape = [int(n) for n in header["dim"][1 : 1 + int(header["dim"][0])]]
    check_shape(path, shape, max_voxels)
    offset = float(header["vox_offset"])
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError):
        problem = f"its header names a type of voxels that does not exist, {int(header['datatype'])}"
        raise BadInput(path, problem, DAMAGED) from None
    if not (math.isfinite(offset) and 0 <= offset < 2**40):
        raise BadInput(path, f"its header places the voxels at byte {offset:g}", DAMAGED)
    length = int(offset) + math.prod(shape) * int(dtype.itemsize)
    check_voxel_type(path, dtype)
    voxels = source
    if pair:
        voxels = _pair_member(source, "hdr", "img")
        if voxels == source:
            stem = re.sub(r"\.hdr(\.gz)?$", "", source.name, flags=re.I)
            problem = f"its voxels are missing: there is no {stem}.img"
            raise BadInput(path, problem, "Put that file into the folder.")
        check_fetched(voxels)
        _, codec = read_first(voxels, 0)
    check_room(voxels, length, codec)
    return Promise(header, pair, source, voxels, codec, length)


def _pair_member(path: Path, ending: str, other: str) -> Path:
    """Return the other file of a pair, in the spelling that exists; ``path`` where it has another ending."""
    match = re.fullmatch(rf"(.+)\.({ending})(\.gz)?", path.name, re.I)
    if match is None:
        return path
    other = other.upper() if match[2].isupper() else other
    names = [f"{match[1]}.{other}{match[3] or ''}", f"{match[1]}.{other}{'' if match[3] else '.gz'}"]
    return next((path.with_name(name) for name in names if os.path.lexists(path.with_name(name))), path)


def _parse(path: Path, head: bytes) -> tuple[Any, bool]:
    """Return the header object, unchecked, and whether the voxels are in an .img file."""
    for order in "<>":
        length = int(np.frombuffer(head[:4].ljust(4, b"\0"), order + "i4")[0])
        if length not in _MAGIC or len(head) < length:
            continue
        magic = head[344:348] if length == 348 else head[4:8]
        kind: Any = nib.Nifti1Header if length == 348 else nib.Nifti2Header
        pair = magic.startswith(b"ni")
        if magic not in _MAGIC[length]:
            if length != 348 or not re.search(r"\.(hdr|img)(\.gz)?$", path.name, re.I):
                continue
            kind, pair = Spm2AnalyzeHeader, True
        header = kind(head[:length], endianness=order, check=False)
        if not 1 <= int(header["dim"][0]) <= 7:
            raise BadInput(path, f"its header gives {int(header['dim'][0])} dimensions", DAMAGED)
        return header, pair
    if match := re.fullmatch(r"(.+)\.img(\.gz)?", path.name, re.I):
        header_file = _pair_member(path, "img", "hdr")
        if header_file != path:
            raise BadInput(header_file, "is not a NIfTI or Analyze header", DAMAGED)
        problem = f"is not a NIfTI file, and its header {match[1]}.hdr is missing"
        raise BadInput(path, problem, "Put the header into the same folder.")
    conversion = _NOT_NIFTI
    for endings, fix in _CONVERSIONS.items():
        if ending := next((ending for ending in endings if path.name.lower().endswith(ending)), None):
            file, stem, folder = map(shlex.quote, (str(path), str(path)[: -len(ending)], str(path.parent)))
            conversion = fix.format(file=file, stem=stem, folder=folder).rstrip(".") + "."
            break
    raise BadInput(path, "is not a NIfTI file", conversion)


def mend_orientation(header: Any) -> None:
    """Repair in place what other readers repair of a header's two forms, without changing a valid one.

    A quaternion slightly longer than 1 is shortened to 1, as nifti1_io and ITK do; voxel sizes lose their
    sign; qfac 0 counts as 1; negative codes as 0, undefined positive ones as 2 (aligned), since other readers
    use any form whose code is positive.
    """
    names = ("quatern_b", "quatern_c", "quatern_d")
    vector = np.array([header[name] for name in names], dtype=np.float64)
    square = float(vector @ vector)
    if 1 < square <= 1 + _TOO_LONG and square - 1 >= abs(header.quaternion_threshold):
        for name, value in zip(names, vector / (np.sqrt(square) * (1 + 1e-15)), strict=True):
            header[name] = value
    header["pixdim"][1:4] = np.abs(header["pixdim"][1:4])
    if header["pixdim"][0] not in (-1, 1):
        header["pixdim"][0] = 1
    for name in ("qform_code", "sform_code"):
        if int(header[name]) not in nib.nifti1.xform_codes.value_set("code"):
            header[name] = 2 if int(header[name]) > 0 else 0


class _Quiet:
    """Mends a header as nibabel does, without its messages; what cannot be mended is still an error."""

    def check_fix(self, logger: Any = None, error_level: int | None = None) -> None:
        if isinstance(self, nib.Nifti1Header):
            mend_orientation(self)  # before nibabel takes undefined codes for 0
            sizes = np.array(self["pixdim"][1:4])
        super().check_fix(logger or _UNHEARD, error_level)  # type: ignore[misc]
        if isinstance(self, nib.Nifti1Header) and not int(self["sform_code"]):
            self["pixdim"][1:4] = sizes  # without a sform the voxel size counts, and nibabel makes 1 mm of 0

    def get_best_affine(self) -> Any:
        """NaN where nibabel refuses the qform, so that the image can still be made."""
        try:
            return super().get_best_affine()  # type: ignore[misc]
        except (HeaderDataError, ValueError):
            return np.full((4, 4), np.nan)


def _quiet(image: type, header: type) -> Any:
    own = type("QuietHeader", (_Quiet, header), {"__module__": __name__})
    return type("QuietImage", (image,), {"__module__": __name__, "header_class": own})


_IMAGES: dict[tuple[Any, bool], Any] = {
    (nib.Nifti1Header, False): _quiet(nib.Nifti1Image, nib.Nifti1Header),
    (nib.Nifti2Header, False): _quiet(nib.Nifti2Image, nib.Nifti2Header),
    (nib.Nifti1Header, True): _quiet(nib.Nifti1Pair, nib.nifti1.Nifti1PairHeader),
    (nib.Nifti2Header, True): _quiet(nib.Nifti2Pair, nib.nifti2.Nifti2PairHeader),
    (Spm2AnalyzeHeader, True): _quiet(nib.AnalyzeImage, Spm2AnalyzeHeader),
}
"""Images by the class of their header and whether they are in two files."""


def plain_header(header: Any) -> Any:
    """Return a copy of a header in nibabel's own class."""
    if type(header).__module__ != __name__:
        return header.copy()
    own = next(kind for kind in type(header).__mro__ if kind.__module__.startswith("nibabel"))
    return own(header.binaryblock, header.endianness, check=False, extensions=header.extensions)
