"""The manifest beside TensorRT engines, and whether they fit the model, the volume, the library and the GPU.

All that loading compares is in the manifest, so nothing is deserialised to find out that it does not fit.
"""

import hashlib
import json
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn, cast

import torch
from torch import nn

from scorefusion.engine.tensorrt.library import Library, Target, find_library, import_library
from scorefusion.errors import BadInput, ScoreFusionError, unknown_name
from scorefusion.models.config import Frozen, ModelConfig, read_config
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.models.unet import UNet
from scorefusion.ops.reference.planes import AXIS

MANIFEST = "manifest.json"
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
#: slice sizes, in pixels, of an engine that is built for no volume in particular: the most, the best.
LARGEST, USUAL = 256, 192
MOST_SLICES, USUAL_SLICES = 64, 16

Shape = tuple[int, int, int]


class Profile(Frozen):
    """The (slices, rows, columns) that an engine takes, ``least`` to ``most``; it is tuned for ``best``."""

    least: Shape
    best: Shape
    most: Shape

    def holds(self, shape: Shape) -> bool:
        """Whether a slab of (slices, rows, columns) is within."""
        return all(low <= n <= high for low, n, high in zip(self.least, shape, self.most, strict=True))

    def __str__(self) -> str:
        least, most = (" × ".join(map(str, shape)) for shape in (self.least, self.most))
        return f"{least} to {most} (slices, rows, columns)"


class NetworkEntry(Frozen):
    """One network's engine."""

    file: str  #: its name in the folder
    sha256: str  #: of the file
    weights: str  #: hash of the network's weights in the engine's precision; see :func:`weights_hash`
    structure: str  #: hash of what else the network is; see :func:`structure_hash`
    scales: tuple[int, ...]  #: of its feature outputs
    profile: Profile  #: the shapes it takes
    #: largest relative error of the ONNX file against PyTorch, or None where it was not checked
    onnx_error: float | None
    onnx_check: str  #: how it was checked, or why it was not
    seconds: dict[str, float]  #: what exporting, checking and building took


class Manifest(Frozen):
    """A folder of engines."""

    scorefusion: str  #: version that built it
    model: str  #: what the build was given: a bundled name or a folder
    precision: str  #: of weights, inputs and outputs
    library: str  #: ``tensorrt`` or ``tensorrt_rtx``
    version: str  #: the library's
    target: Target  #: the GPUs it is for
    size: Shape | None  #: the largest volume (D, H, W) that was asked for, or None
    networks: dict[str, NetworkEntry]  #: the engines, by the name of the 2D network

    def write(self, folder: Path) -> None:
        """Write it into a folder."""
        text = json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False)
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")

    def command(
        self,
        folder: str | os.PathLike[str],
        *,
        precision: str | None = None,
        size: Sequence[int] | None = None,
        slices: int | None = None,
    ) -> str:
        """The command that builds the folder again, with what has to differ."""
        words = ["scorefusion", "engine", "build", self.model, "-o", os.fspath(folder)]
        words += ["--precision", precision or self.precision]
        if size or self.size:
            words += ["--shape", *map(str, size or self.size or ())]
        most = max((entry.profile.most[0] for entry in self.networks.values()), default=MOST_SLICES)
        if slices or most != MOST_SLICES:
            words += ["--slab", str(slices or most)]
        return shlex.join(words)


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """Read a folder's manifest."""
    place = Path(folder)
    file = place / MANIFEST
    if not file.is_file():
        problem = f"holds no {MANIFEST}" if place.is_dir() else "does not exist"
        raise BadInput(place, problem, f"Build engines: scorefusion engine build MODEL -o {place}")
    return read_config(Manifest, file)


def weights_hash(network: nn.Module, dtype: torch.dtype) -> str:
    """SHA-256 over a network's weights rounded to ``dtype``, on any device: names, shapes, dtypes, bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        value = tensor.detach().to(dtype) if tensor.is_floating_point() else tensor.detach()
        value = value.cpu().contiguous()
        digest.update(f"{name} {list(value.shape)} {value.dtype}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def structure_hash(network: UNet, scales: Sequence[int]) -> str:
    """SHA-256 over a network's configuration and the scales whose features it gives."""
    described = {"config": network.config.model_dump(mode="json"), "scales": list(scales)}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def file_hash(file: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def require_precision(name: str) -> torch.dtype:
    """The dtype of a precision."""
    if name not in PRECISIONS:
        raise unknown_name("precision", name, PRECISIONS)
    return PRECISIONS[name]


def profile_for(
    config: ModelConfig, network: str, size: Sequence[int] | None = None, slab: int | None = None
) -> Profile:
    """The shapes an engine of a network should take, up to a volume (D, H, W) and ``slab`` slices at once.

    One range serves every plane, since volumes are cut to their foreground. Without a size, 256 voxels an
    edge, tuned for 192; without a slab, 64 slices, tuned for 16.
    """
    if slab is not None and slab < 1:
        raise ScoreFusionError(f"a slab has at least 1 slice, got {slab}")
    if size is not None and (len(size) != 3 or min(size) < 1):
        raise ScoreFusionError(f"a volume's size is D H W, each at least 1; got {list(size)}")
    padded = config.grid(size or (LARGEST,) * 3)
    planes = {branch.plane for branch in config.branches if branch.network == network}
    kept = ([padded[i] for i in range(3) if i + 2 != AXIS[plane]] for plane in planes)
    rows, columns = (max(lengths) for lengths in zip(*kept, strict=True))
    best = (rows, columns) if size else config.grid((USUAL,) * 3)[1:]
    return Profile(
        least=(1, config.multiple, config.multiple),
        best=(slab or USUAL_SLICES, *best),
        most=(slab or MOST_SLICES, rows, columns),
    )


class Fitting(NamedTuple):
    """Engines that fit: the folder, its manifest, and the library they were built with."""

    folder: Path
    manifest: Manifest
    library: Library


def check_engines(
    folder: str | os.PathLike[str],
    model: ScoreFusion,
    *,
    shapes: Mapping[str, Iterable[Shape]] | None = None,
    gpu: tuple[str, str] | None = None,
) -> Fitting:
    """Compare a folder of engines with what they are to be used for; return what was read.

    Args:
        folder: that ``scorefusion engine build`` wrote.
        model: in the dtype that it computes in.
        shapes: slabs (slices, rows, columns) that each network will be given; not compared when None.
        gpu: name and compute capability of the GPU; not compared when None.

    Raises:
        BadInput: for a folder without a manifest or with a broken one; a missing, damaged or changed engine
            file; another library or version; another GPU; another precision than the model's; a network
            without an engine, with another configuration or weights, or given slabs outside the profile.
        ScoreFusionError: if TensorRT cannot be imported.
    """
    place = Path(folder)
    manifest = read_manifest(place)
    library = import_library(manifest.library)
    library = library if isinstance(library, Library) else find_library()
    if (library.name, library.version) != (manifest.library, manifest.version):
        built = f"the engines were built with {manifest.library} {manifest.version}"
        _refuse(place, manifest, f"{built}; {library.name} {library.version} is here")
    if gpu is not None and not manifest.target.runs_on(*gpu):
        found = f"{gpu[0]}, compute capability {gpu[1]}"
        _refuse(place, manifest, f"the engines are for {manifest.target}; this is {found}")
    for name, module in model.slice_networks.items():
        if name not in manifest.networks:
            has = ", ".join(sorted(manifest.networks)) or "none"
            _refuse(place, manifest, f"there is no engine for network {name!r} of the model; there is {has}")
        _check_network(place, manifest, name, cast(UNet, module), model.config.feature_scales)
        for shape in (shapes or {}).get(name, ()):
            _check_shape(place, manifest, name, shape)
    again = f"Build again: {manifest.command(place)}"
    for name in model.slice_networks:
        entry = manifest.networks[name]
        file = place / entry.file
        what = f"the engine of network {name!r}"
        if not file.is_file():
            raise BadInput(file, f"does not exist; {MANIFEST} lists it as {what}", again)
        found = file_hash(file)
        if found != entry.sha256:
            hashes = f"(sha256 {entry.sha256[:12]} expected, {found[:12]} found)"
            raise BadInput(file, f"is damaged, or not {what} that {MANIFEST} lists {hashes}", again)
    return Fitting(place, manifest, library)


class Watch:
    """Notices that a network's weights were changed after its engine was checked.

    It looks at the parameters' version counters, and hashes the weights again only where one has moved.
    """

    def __init__(self, fitting: Fitting, name: str, network: UNet, scales: tuple[int, ...]):
        self.fitting, self.name, self.network, self.scales = fitting, name, network, scales
        self.seen = self._versions()

    def __call__(self) -> None:
        """Look."""
        now = self._versions()
        if now != self.seen:
            _check_network(self.fitting.folder, self.fitting.manifest, self.name, self.network, self.scales)
            self.seen = now

    def _versions(self) -> list[tuple[int, int]]:
        tensors = [*self.network.parameters(), *self.network.buffers()]
        return [(each.data_ptr(), 0 if each.is_inference() else each._version) for each in tensors]


def _check_network(
    folder: Path, manifest: Manifest, name: str, network: UNet, scales: tuple[int, ...]
) -> None:
    entry = manifest.networks[name]
    dtype = next(network.parameters()).dtype
    precision = next((name for name, each in PRECISIONS.items() if each == dtype), str(dtype))
    if precision != manifest.precision:
        problem = f"the engine of network {name!r} is {manifest.precision}; the model computes in {precision}"
        _refuse(folder, manifest, problem, precision=precision)
    compared = (
        ("another configuration", entry.structure, structure_hash(network, scales)),
        ("other weights", entry.weights, weights_hash(network, require_precision(precision))),
    )
    for what, built, now in compared:
        if built != now:
            hashes = f"(sha256 {built[:12]} expected, {now[:12]} found)"
            problem = f"the engine of network {name!r} was built from {what} than the model has now {hashes}"
            _refuse(folder, manifest, problem)


def _check_shape(folder: Path, manifest: Manifest, name: str, shape: Shape) -> None:
    profile = manifest.networks[name].profile
    if not profile.holds(shape):
        needs = " × ".join(map(str, shape))
        problem = f"the engine of network {name!r} takes {profile}; {needs} is needed"
        edge = max(*shape[1:], *profile.most[1:])
        fix = manifest.command(folder, size=(edge,) * 3, slices=max(shape[0], profile.most[0]))
        raise BadInput(folder, problem, f"Use smaller slabs, or build again: {fix}")


def _refuse(folder: Path, manifest: Manifest, problem: str, *, precision: str | None = None) -> NoReturn:
    raise BadInput(folder, problem, f"Build again: {manifest.command(folder, precision=precision)}")
