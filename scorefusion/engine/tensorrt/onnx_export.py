"""A 2D network with its feature outputs as ONNX, channels last, any number of slices of any size.

    inputs    slices [N, h, w, C], time float32 [N], label int64 [N] (where the network has labels)
    outputs   output [N, h, w, 1], features_s [N, h/s, w/s, width] for each scale s

Slices and outputs are in the network's precision and lie in memory as the engine's buffers and
``ops.ensemble_features`` have them, so nothing is rearranged at the edges. Normalisation is float32 in every
precision: the casts are in the graph.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from scorefusion.models.unet import UNet
from scorefusion.ops.backends import use_backend
from scorefusion.optional import need

OPSET = 20


class SliceNetwork(nn.Module):
    """A 2D network as an engine runs it: slices channels last, its features among the outputs.

    Args:
        network: is copied.
        scales: whose features are given, in this order.
        dtype: of the copy's weights.
    """

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
    """Export through ``torch.export`` and ``torch.onnx``.

    Returns:
        The ONNX file's bytes, weights included.

    Raises:
        ScoreFusionError: if ``onnx`` or ``onnxscript`` is not installed.
    """
    need("onnx", "exporting a network")
    need("onnxscript", "exporting a network")
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
