"""A 2D network leaves PyTorch: exported whole, as PyTorch's own operations, as ONNX, as a TensorRT engine."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scorefusion.models.presets import preset
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.ops.decompositions import decompositions


def needs(*packages: str) -> Any:
    gone = [package for package in packages if importlib.util.find_spec(package) is None]
    return pytest.mark.skipif(bool(gone), reason=f"not run: needs {', '.join(gone)}")


class SliceNetwork(nn.Module):
    """The network of one branch with the features that the 3D network takes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = ScoreFusion(preset("small")).eval().slice_networks["slice"]

    def forward(self, x: Tensor, time: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output, features = self.network.forward_with_features(x, time, (1, 2), label=label)
        return output, features[1], features[2]


def inputs(count: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 6, 16, 24, generator=generator)
    return x, torch.linspace(-2, 2, count), torch.arange(count) % 3


@pytest.fixture(scope="module")
def exported() -> torch.export.ExportedProgram:
    slab = torch.export.Dim("slab", min=2, max=64)
    with torch.no_grad():
        return torch.export.export(SliceNetwork(), inputs(4), dynamic_shapes=({0: slab},) * 3)


@pytest.fixture(scope="module")
def plain(exported: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    return exported.run_decompositions(decompositions())


def called(program: torch.export.ExportedProgram) -> set[str]:
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


def test_the_export_holds_the_operation(exported: torch.export.ExportedProgram) -> None:
    assert "scorefusion.norm_act.default" in called(exported)


def test_decomposed_it_is_pytorch_alone(plain: torch.export.ExportedProgram) -> None:
    assert not [name for name in called(plain) if name.startswith("scorefusion")]
    for count in (2, 7):
        expected = SliceNetwork()(*inputs(count))
        for got, want in zip(plain.module()(*inputs(count)), expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def onnx_file(plain: torch.export.ExportedProgram, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("onnx") / "slice.onnx"
    torch.onnx.export(plain, dynamo=True, verbose=False).save(file)
    return file


@needs("onnx", "onnxscript", "onnxruntime")
def test_onnx_gives_the_same_numbers(onnx_file: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
    given = inputs(5)
    names = [tensor.name for tensor in session.get_inputs()]
    found = session.run(None, {name: value.numpy() for name, value in zip(names, given, strict=True)})
    for got, want in zip(found, SliceNetwork()(*given), strict=True):
        torch.testing.assert_close(torch.from_numpy(got), want, rtol=1e-4, atol=1e-5)


@needs("onnx", "onnxscript", "tensorrt_rtx")
def test_tensorrt_builds_an_engine_ahead_of_time(onnx_file: Path) -> None:
    """Built without a GPU, for slabs of 2 to 64 slices; running it needs one."""
    import tensorrt_rtx as tensorrt

    builder = tensorrt.Builder(tensorrt.Logger(tensorrt.Logger.ERROR))
    network = builder.create_network(1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt.OnnxParser(network, tensorrt.Logger(tensorrt.Logger.ERROR))
    assert parser.parse_from_file(str(onnx_file)), [
        parser.get_error(i).desc() for i in range(parser.num_errors)
    ]
    profile = builder.create_optimization_profile()
    for number in range(network.num_inputs):
        given = network.get_input(number)
        sizes = [tuple(count if n == -1 else n for n in given.shape) for count in (2, 8, 64)]
        profile.set_shape(given.name, *sizes)
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    assert engine is not None and engine.nbytes > 100_000
