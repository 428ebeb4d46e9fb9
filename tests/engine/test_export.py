"""A 2D network leaves PyTorch: exported whole, and as PyTorch's own operations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scorefusion.engine.tensorrt.build import SliceNetwork
from scorefusion.models.presets import preset
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.ops.norm_act import decompositions


def network() -> SliceNetwork:
    torch.manual_seed(0)
    return SliceNetwork(ScoreFusion(preset("small")).slice_networks["slice"], (1, 2))  # type: ignore[arg-type]


def inputs(count: int) -> tuple[Tensor, ...]:
    return network().example(count, 16, 24, seed=1)


@pytest.fixture(scope="module")
def exported() -> torch.export.ExportedProgram:
    slab = torch.export.Dim("slab", min=2, max=64)
    with torch.no_grad():
        return torch.export.export(network(), inputs(4), dynamic_shapes=({0: slab},) * 3)


def called(program: torch.export.ExportedProgram) -> set[str]:
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


def test_the_export_holds_the_operation(exported: torch.export.ExportedProgram) -> None:
    assert "scorefusion.norm_act.default" in called(exported)


def test_decomposed_it_is_pytorch_alone(exported: torch.export.ExportedProgram) -> None:
    plain = exported.run_decompositions(decompositions())
    assert not [name for name in called(plain) if name.startswith("scorefusion")]
    for count in (2, 7):
        expected = network()(*inputs(count))
        for got, want in zip(plain.module()(*inputs(count)), expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
