"""TensorRT engines of a model's 2D networks: exported, checked on the CPU, built, written with a manifest."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from scorefusion._version import __version__
from scorefusion.engine.tensorrt.library import Library, build_target, find_library, logger
from scorefusion.engine.tensorrt.manifest import (
    MANIFEST,
    Manifest,
    NetworkEntry,
    Profile,
    file_hash,
    profile_for,
    require_precision,
    structure_hash,
    weights_hash,
)
from scorefusion.engine.tensorrt.onnx_check import can_check, check_onnx
from scorefusion.engine.tensorrt.onnx_export import SliceNetwork, export_network
from scorefusion.errors import BadInput, ScoreFusionError
from scorefusion.io.atomic import folder_written_beside
from scorefusion.models.folder import check_folder
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.models.unet import UNet

Report = Callable[[int, int], None]


def build_engines(
    model: ScoreFusion,
    folder: str | os.PathLike[str],
    *,
    size: Sequence[int] | None = None,
    slab: int | None = None,
    precision: str = "bf16",
    workspace: float | None = None,
    check: bool = True,
    keep_onnx: bool = False,
    source: str | None = None,
    report: Report | None = None,
) -> Manifest:
    """Build an engine of each 2D network.

    Args:
        model: its own weights are not changed.
        folder: where to; appears whole or not at all. One that holds engines is replaced.
        size: the largest volume (D, H, W); see :func:`profile_for`.
        slab: the most slices at once.
        precision: of weights, inputs and outputs: fp16, bf16 or fp32. Normalisation is float32.
        workspace: GiB of scratch memory that TensorRT may use; its own limit when None.
        check: compare the exported network with PyTorch, where onnxruntime is installed.
        keep_onnx: keep the ONNX files beside the engines.
        source: what the model was loaded from, for the commands in messages; its name when None.
        report: called with (stages done, in all): export, check and build of each network.

    Returns:
        The manifest.

    Raises:
        ScoreFusionError: without TensorRT, for sizes or a precision that are none, if TensorRT refuses, or if
            the exported network's numbers are not PyTorch's.
        BadInput: if the folder cannot be written, or holds something else.
    """
    dtype = require_precision(precision)
    if workspace is not None and workspace <= 0:
        raise ScoreFusionError(f"the workspace is in GiB and more than 0; got {workspace:g}")
    networks = {name: cast(UNet, network) for name, network in model.slice_networks.items()}
    profiles = {name: profile_for(model.config, name, size, slab) for name in networks}
    check_target(folder)
    library = find_library()
    target = build_target(library)
    why_not = can_check() if check else "not checked: --no-check"
    entries: dict[str, NetworkEntry] = {}
    total = 3 * len(networks)
    tell = report or (lambda done, total: None)
    with folder_written_beside(folder) as place:
        for number, (name, network) in enumerate(networks.items()):
            clock = _Clock()
            wrapped = SliceNetwork(network, model.config.feature_scales, dtype)
            file = export_network(wrapped)
            seconds = {"export": clock()}
            tell(3 * number + 1, total)
            error, how = None, why_not or ""
            if why_not is None:
                edge = profiles[name].least[1]
                error, how = check_onnx(file, wrapped, [(1, edge, edge), (3, 2 * edge, 3 * edge)])
            seconds["check"] = clock()
            tell(3 * number + 2, total)
            stem = _file_name(name)
            (place / f"{stem}.engine").write_bytes(
                serialized_engine(library, file, wrapped, profiles[name], workspace)
            )
            if keep_onnx:
                (place / f"{stem}.onnx").write_bytes(file)
            seconds["build"] = clock()
            entries[name] = NetworkEntry(
                file=f"{stem}.engine",
                sha256=file_hash(place / f"{stem}.engine"),
                weights=weights_hash(network, dtype),
                structure=structure_hash(network, wrapped.scales),
                scales=wrapped.scales,
                profile=profiles[name],
                onnx_error=error,
                onnx_check=how,
                seconds=seconds,
            )
            tell(3 * number + 3, total)
        manifest = Manifest(
            scorefusion=__version__,
            model=source or model.config.name,
            precision=precision,
            library=library.name,
            version=library.version,
            target=target,
            size=None if size is None else (size[0], size[1], size[2]),
            networks=entries,
        )
        manifest.write(place)
    return manifest


def serialized_engine(
    library: Library, file: bytes, wrapped: SliceNetwork, profile: Profile, workspace: float | None = None
) -> Any:
    """Compile an ONNX file: strongly typed, one stream, no memory of its own.

    Args:
        library: TensorRT.
        file: the ONNX file.
        wrapped: the network it holds.
        profile: the shapes to compile for.
        workspace: GiB of scratch memory allowed.

    Returns:
        The engine's bytes, as an object with the buffer interface.

    Raises:
        ScoreFusionError: with TensorRT's own words, if it refuses.
    """
    trt = library.module
    log, errors = logger(library)
    builder = trt.Builder(log)
    if not hasattr(trt.IExecutionContext, "update_device_memory_size_for_shapes"):
        raise ScoreFusionError(f"{library.name} {library.version} is too old; TensorRT 10.1 is the oldest")
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # from 11.0 on always
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(file):
        errors += [parser.get_error(number).desc() for number in range(parser.num_errors)]
        raise _refused(library, "read the exported network", errors)
    config = builder.create_builder_config()
    config.max_aux_streams = 0
    config.clear_flag(trt.BuilderFlag.TF32)
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):  # TensorRT-RTX's condition for CUDA graphs
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(workspace * 2**30))
    ranges = builder.create_optimization_profile()
    for name in wrapped.input_names:
        sizes = (profile.least, profile.best, profile.most)
        ranges.set_shape(name, *((*n, wrapped.channels) if name == "slices" else n[:1] for n in sizes))
    config.add_optimization_profile(ranges)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise _refused(library, "build the engine", errors)
    return engine


def check_target(folder: str | os.PathLike[str]) -> None:
    """Find out whether a folder of engines can be written, before anything is built.

    Raises:
        BadInput: if it cannot, or is there, is not empty and holds no engines.
    """
    check_folder(folder)
    place = Path(folder)
    if place.is_dir() and any(place.iterdir()) and not (place / MANIFEST).is_file():
        raise BadInput(place, f"is not empty and holds no {MANIFEST}", "Name a new folder for the engines.")


class _Clock:
    """Seconds since the last call."""

    def __init__(self) -> None:
        self.last = time.perf_counter()

    def __call__(self) -> float:
        before, self.last = self.last, time.perf_counter()
        return round(self.last - before, 2)


def _file_name(network: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", network)


def _refused(library: Library, what: str, errors: Sequence[str]) -> ScoreFusionError:
    said = "; ".join(dict.fromkeys(errors)) or "it does not say why"
    return ScoreFusionError(f"{library.name} {library.version} could not {what}: {said}")
