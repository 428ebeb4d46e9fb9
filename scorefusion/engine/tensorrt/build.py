"""Export a model's 2D networks to ONNX, check them against PyTorch on the CPU, and build TensorRT engines."""

import copy
import importlib
import importlib.util
import itertools
import logging
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

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
from scorefusion.errors import BadInput, ScoreFusionError
from scorefusion.io.atomic import folder_written_beside
from scorefusion.models.folder import check_folder
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.models.unet import UNet
from scorefusion.ops.backends import use_backend
from scorefusion.optional import need

OPSET = 20


class SliceNetwork(nn.Module):
    """A copy of a 2D network as an engine runs it: channels last, features of ``scales`` as outputs."""

    def __init__(self, network: UNet, scales: Sequence[int], dtype: torch.dtype = torch.float32):
        super().__init__()
        self.network, self.scales = copy.deepcopy(network).to("cpu", dtype).eval(), tuple(scales)
        self.labelled = network.label is not None

    @property
    def input_names(self) -> list[str]:
        """Of the ONNX graph."""
        return ["slices", "time", *(["label"] if self.labelled else [])]

    @property
    def output_names(self) -> list[str]:
        """Of the ONNX graph."""
        return ["output", *(f"features_{scale}" for scale in self.scales)]

    @property
    def channels(self) -> int:
        """Of a slice."""
        first = self.network.encoder[0]
        assert isinstance(first, nn.Conv2d)
        return first.in_channels // self.network.config.patch**2

    def forward(self, slices: Tensor, time: Tensor, label: Tensor | None = None) -> tuple[Tensor, ...]:
        """As the module's docstring says."""
        output, features = self.network.forward_with_features(
            slices.permute(0, 3, 1, 2), time, self.scales, label=label
        )
        found = (output, *(features[scale] for scale in self.scales))
        return tuple(each.permute(0, 2, 3, 1).contiguous() for each in found)

    def example(self, slices: int, rows: int, columns: int, seed: int = 0) -> tuple[Tensor, ...]:
        """Inputs of a size: unit normal slices, noise levels over the whole range, every label."""
        config = self.network.config
        generator = torch.Generator().manual_seed(seed)
        dtype = next(self.network.parameters()).dtype
        x = torch.randn(slices, rows, columns, self.channels, generator=generator).to(dtype)
        low, high = {"abar": (0.01, 0.99), "step": (0.0, 999.0), "log_sigma": (-3.0, 3.0)}[config.time.value]
        time = low + (high - low) * torch.linspace(0.0, 1.0, slices + 2, dtype=torch.float32)[1:-1]
        if self.network.label is None:
            return x, time
        return x, time, torch.arange(slices) % self.network.label.num_embeddings


def export_network(wrapped: SliceNetwork) -> bytes:
    """Export through ``torch.export`` and ``torch.onnx``: the ONNX file's bytes, weights included."""
    for package in ("onnx", "onnxscript"):
        need(package, "exporting a network")
    unit = wrapped.network.config.scales[-1]
    slices, rows, columns = (torch.export.Dim(name, min=2) for name in ("slices", "rows", "columns"))
    lengths = {0: slices, 1: unit * rows, 2: unit * columns} if unit > 1 else {0: slices, 1: rows, 2: columns}
    shapes = (lengths, *({0: slices},) * (len(wrapped.input_names) - 1))
    with _quiet(), torch.enable_grad(), use_backend("torch"):
        # With a gradient in sight PyTorch's norm_act is its reference: PyTorch's operations alone.
        program = torch.export.export(
            wrapped.requires_grad_(True), wrapped.example(4, 3 * unit, 5 * unit), dynamic_shapes=shapes
        )
        exported: Any = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=wrapped.input_names,
            output_names=wrapped.output_names,
        )
    wrapped.requires_grad_(False)
    return bytes(exported.model_proto.SerializeToString())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks about packages that are not needed."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


#: of the largest difference from PyTorch in units of the largest output; float16 computes with 11 bits.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 1e-3}


def check_onnx(
    file: bytes, wrapped: SliceNetwork, shapes: Sequence[tuple[int, int, int]]
) -> tuple[float, str]:
    """Compare an exported file with its network for some (slices, rows, columns).

    Returns the largest relative error, and how it was found.
    """
    runtime: Any = importlib.import_module("onnxruntime")
    dtype = next(wrapped.network.parameters()).dtype
    exact = copy.deepcopy(wrapped).float()
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    model = widened(file) if dtype == torch.bfloat16 else file
    session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    worst = 0.0
    for shape in shapes:
        given = wrapped.example(*shape)
        if dtype == torch.bfloat16:
            given = (given[0].float(), *given[1:])
        feeds = {name: value.numpy() for name, value in zip(wrapped.input_names, given, strict=True)}
        with torch.no_grad():
            wanted = exact(given[0].float(), *given[1:])
        found = [torch.from_numpy(each).float() for each in session.run(wrapped.output_names, feeds)]
        for name, got, want in zip(wrapped.output_names, found, wanted, strict=True):
            error = float((got - want).abs().max()) / (float(want.abs().max()) or 1.0)
            if not error <= TOLERANCE[dtype]:
                hint = ". Build with --precision bf16 or fp32" if dtype == torch.float16 else ""
                raise ScoreFusionError(
                    f"the exported network's {name} differs from PyTorch's by {error:.2g} of its largest "
                    f"value, for {list(shape)} slices, rows, columns; {TOLERANCE[dtype]:g} is allowed{hint}"
                )
            worst = max(worst, error)
    how = f"onnxruntime {runtime.__version__} on the CPU"
    return worst, how + (", bfloat16 read as float32" if dtype == torch.bfloat16 else "")


def widened(file: bytes) -> bytes:
    """The same ONNX graph with every bfloat16 read as float32."""
    onnx: Any = importlib.import_module("onnx")
    short, plain = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
    model = onnx.load_from_string(file)

    def wide(tensor: Any) -> None:
        if tensor.data_type == short:
            values = onnx.numpy_helper.to_array(tensor).astype("float32")
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))

    del model.graph.value_info[:]
    for tensor in model.graph.initializer:
        wide(tensor)
    for value in [*model.graph.input, *model.graph.output]:
        if value.type.tensor_type.elem_type == short:
            value.type.tensor_type.elem_type = plain
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "value":
                wide(attribute.t)
            elif node.op_type == "Cast" and attribute.name == "to" and attribute.i == short:
                attribute.i = plain
    return bytes(model.SerializeToString())


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
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Manifest:
    """Build an engine of each 2D network; return the manifest.

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
    how = "" if check else "not checked: --no-check"
    if check and importlib.util.find_spec("onnxruntime") is None:
        how = "not checked: onnxruntime is not installed; pip install 'scorefusion[tensorrt]'"
    checks = not how
    entries: dict[str, NetworkEntry] = {}
    total = 3 * len(networks)
    with folder_written_beside(folder) as place:
        for number, (name, network) in enumerate(networks.items()):
            marks = [time.perf_counter()]
            wrapped = SliceNetwork(network, model.config.feature_scales, dtype)
            file = export_network(wrapped)
            marks.append(time.perf_counter())
            report(3 * number + 1, total)
            error = None
            if checks:
                edge = profiles[name].least[1]
                error, how = check_onnx(file, wrapped, [(1, edge, edge), (3, 2 * edge, 3 * edge)])
            marks.append(time.perf_counter())
            report(3 * number + 2, total)
            stem = re.sub(r"[^A-Za-z0-9_-]", "_", name)
            engine = serialized_engine(library, file, wrapped, profiles[name], workspace)
            (place / f"{stem}.engine").write_bytes(engine)
            if keep_onnx:
                (place / f"{stem}.onnx").write_bytes(file)
            marks.append(time.perf_counter())
            spans = (round(after - before, 2) for before, after in itertools.pairwise(marks))
            entries[name] = NetworkEntry(
                file=f"{stem}.engine",
                sha256=file_hash(place / f"{stem}.engine"),
                weights=weights_hash(network, dtype),
                structure=structure_hash(network, wrapped.scales),
                scales=wrapped.scales,
                profile=profiles[name],
                onnx_error=error,
                onnx_check=how,
                seconds=dict(zip(("export", "check", "build"), spans, strict=True)),
            )
            report(3 * number + 3, total)
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
    """Compile an ONNX file for a profile: strongly typed, one stream, no memory of its own; workspace in GiB.

    Returns the engine's bytes, as an object with the buffer interface.
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
    """Find out whether a folder of engines can be written, before anything is built."""
    check_folder(folder)
    place = Path(folder)
    if place.is_dir() and any(place.iterdir()) and not (place / MANIFEST).is_file():
        raise BadInput(place, f"is not empty and holds no {MANIFEST}", "Name a new folder for the engines.")


def _refused(library: Library, what: str, errors: Sequence[str]) -> ScoreFusionError:
    said = "; ".join(dict.fromkeys(errors)) or "it does not say why"
    return ScoreFusionError(f"{library.name} {library.version} could not {what}: {said}")
