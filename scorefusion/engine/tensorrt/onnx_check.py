"""The ONNX file that an engine is built from, run on the CPU by ONNX Runtime and held to PyTorch's numbers.

Both compute with the weights as the file has them; PyTorch in float32. ONNX Runtime has float16 on the CPU,
but no bfloat16 convolutions: of a bfloat16 file every bfloat16 is read as float32, which checks graph and
weights.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from scorefusion.engine.tensorrt.onnx_export import SliceNetwork
from scorefusion.errors import ScoreFusionError

TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 1e-3}
"""Of the largest difference from PyTorch in units of the largest output; float16 computes with 11 bits."""


def check_onnx(
    file: bytes, wrapped: SliceNetwork, shapes: Sequence[tuple[int, int, int]]
) -> tuple[float, str]:
    """Compare the file with the network.

    Args:
        file: what :func:`export_network` returned for it.
        wrapped: the network.
        shapes: (slices, rows, columns) to try.

    Returns:
        The largest relative error, and how it was found.

    Raises:
        ScoreFusionError: if it exceeds :data:`TOLERANCE`, or an output is not finite.
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
            error = relative_error(got, want)
            if not error <= TOLERANCE[dtype]:
                hint = ". Build with --precision bf16 or fp32" if dtype == torch.float16 else ""
                raise ScoreFusionError(
                    f"the exported network's {name} differs from PyTorch's by {error:.2g} of its largest "
                    f"value, for {list(shape)} slices, rows, columns; {TOLERANCE[dtype]:g} is allowed{hint}"
                )
            worst = max(worst, error)
    how = f"onnxruntime {runtime.__version__} on the CPU"
    return worst, how + (", bfloat16 read as float32" if dtype == torch.bfloat16 else "")


def can_check() -> str | None:
    """Why the file cannot be checked here, or None."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "not checked: onnxruntime is not installed; pip install 'scorefusion[tensorrt]'"
    return None


def relative_error(got: Tensor, want: Tensor) -> float:
    """Largest difference over the largest magnitude wanted; not a number if something is not finite."""
    largest = float(want.abs().max())
    return float((got - want).abs().max()) / (largest or 1.0)


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
