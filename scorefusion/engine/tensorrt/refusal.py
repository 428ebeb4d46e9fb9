"""Whether a folder of TensorRT engines still fits the model, the volume, the library and the GPU.

Everything is compared with the manifest, before anything is deserialised. What does not fit is refused by
name: what differs, what was expected, what was found, and the command that builds the engines again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, NoReturn, cast

from scorefusion.engine.tensorrt.library import Library, find_library, import_library
from scorefusion.engine.tensorrt.manifest import (
    MANIFEST,
    Manifest,
    NetworkEntry,
    Shape,
    file_hash,
    precision_of,
    read_manifest,
    require_precision,
    structure_hash,
    weights_hash,
)
from scorefusion.errors import BadInput
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.models.unet import UNet


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
    """Compare a folder of engines with what they are to be used for.

    Args:
        folder: that ``scorefusion engine build`` wrote.
        model: in the dtype that it computes in.
        shapes: slabs (slices, rows, columns) that each network will be given; not compared when None.
        gpu: name and compute capability of the GPU; not compared when None.

    Returns:
        What was read.

    Raises:
        BadInput: for a folder without a manifest or with a broken one; a missing, damaged or changed engine
            file; another library or version; another GPU; another precision than the model's; a network
            without an engine, with another configuration or weights, or given slabs outside the profile.
        ScoreFusionError: if TensorRT cannot be imported.
    """
    place = Path(folder)
    manifest = read_manifest(place)
    library = _check_library(place, manifest)
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
    for name in model.slice_networks:
        _check_file(place, manifest, name, manifest.networks[name])
    return Fitting(place, manifest, library)


class Watch:
    """Notices that a network's weights were changed after its engine was checked.

    Calling it costs a look at each parameter's version counter; the weights are hashed again only where one
    has moved.
    """

    def __init__(self, fitting: Fitting, name: str, network: UNet, scales: tuple[int, ...]):
        self.fitting, self.name, self.network, self.scales = fitting, name, network, scales
        self.seen = self._versions()

    def __call__(self) -> None:
        """Look.

        Raises:
            BadInput: if the engine is not this network's any more.
        """
        now = self._versions()
        if now != self.seen:
            _check_network(self.fitting.folder, self.fitting.manifest, self.name, self.network, self.scales)
            self.seen = now

    def _versions(self) -> list[tuple[int, int]]:
        tensors = [*self.network.parameters(), *self.network.buffers()]
        return [(each.data_ptr(), 0 if each.is_inference() else each._version) for each in tensors]


def _check_library(folder: Path, manifest: Manifest) -> Library:
    found = import_library(manifest.library)
    if not isinstance(found, Library):
        found = find_library()
    if (found.name, found.version) != (manifest.library, manifest.version):
        built = f"{manifest.library} {manifest.version}"
        _refuse(
            folder, manifest, f"the engines were built with {built}; {found.name} {found.version} is here"
        )
    return found


def _check_network(
    folder: Path, manifest: Manifest, name: str, network: UNet, scales: tuple[int, ...]
) -> None:
    entry = manifest.networks[name]
    dtype = next(network.parameters()).dtype
    precision = precision_of(dtype)
    if precision != manifest.precision:
        problem = f"the engine of network {name!r} is {manifest.precision}; the model computes in {precision}"
        _refuse(folder, manifest, problem, precision=precision)
    compared = (
        ("another configuration", entry.structure, structure_hash(network, scales)),
        ("other weights", entry.weights, weights_hash(network, require_precision(precision))),
    )
    for what, built, now in compared:
        if built != now:
            problem = (
                f"the engine of network {name!r} was built from {what} than the model has now "
                f"(sha256 {built[:12]} expected, {now[:12]} found)"
            )
            _refuse(folder, manifest, problem)


def _check_shape(folder: Path, manifest: Manifest, name: str, shape: Shape) -> None:
    profile = manifest.networks[name].profile
    if not profile.holds(shape):
        needs = " × ".join(map(str, shape))
        problem = f"the engine of network {name!r} takes {profile}; {needs} is needed"
        edge = max(*shape[1:], *profile.most[1:])
        slices = max(shape[0], profile.most[0])
        fix = manifest.command(folder, size=(edge,) * 3, slices=slices)
        raise BadInput(folder, problem, f"Use smaller slabs, or build again: {fix}")


def _check_file(folder: Path, manifest: Manifest, name: str, entry: NetworkEntry) -> None:
    file = folder / entry.file
    again = f"Build again: {manifest.command(folder)}"
    if not file.is_file():
        raise BadInput(file, f"does not exist; {MANIFEST} lists it as the engine of network {name!r}", again)
    found = file_hash(file)
    if found != entry.sha256:
        problem = (
            f"is damaged, or not the engine of network {name!r} that {MANIFEST} lists "
            f"(sha256 {entry.sha256[:12]} expected, {found[:12]} found)"
        )
        raise BadInput(file, problem, again)


def _refuse(folder: Path, manifest: Manifest, problem: str, *, precision: str | None = None) -> NoReturn:
    raise BadInput(folder, problem, f"Build again: {manifest.command(folder, precision=precision)}")
