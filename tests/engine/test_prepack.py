"""Packed networks: the same results, the same parameters, never silently stale."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from scorefusion.engine import prepack
from scorefusion.engine.prepack import (
    PackedConvolution,
    Packing,
    packed_bytes,
    packed_layers,
    packing_for,
    prepacked,
)
from scorefusion.errors import ScoreFusionError
from scorefusion.models import by_depth
from scorefusion.models.config import UNetConfig
from scorefusion.models.unet import UNet
from scorefusion.ops import backends

REASON = backends.missing("cpp") or backends.outdated()
pytestmark = pytest.mark.skipif(bool(REASON), reason=str(REASON))


def network(dims: int, **options: object) -> UNet:
    torch.manual_seed(dims)
    config = UNetConfig(widths=(16, 32), blocks=1, groups=8, **options)  # type: ignore[arg-type]
    made = UNet(dims, 5, 1, config, labels=3).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return made


def given(dims: int) -> tuple[Tensor, Tensor]:
    return torch.randn(2, 5, *(6, 10, 14)[-dims:]), torch.rand(2)


def run(net: UNet, x: Tensor, time: Tensor) -> Tensor:
    with torch.no_grad():
        return net(x, time, label=torch.tensor([0, 2]))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("resample", ["res", "conv"])
def test_computes_the_same(dims: int, resample: str) -> None:
    net, (x, time) = network(dims, resample=resample, edges="replicate"), given(dims)
    fast = prepacked(net)
    # A halving convolution has stride 2.
    layers, rest = packed_layers(fast), [] if resample == "res" else ["encoder.2.conv"]
    kinds = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
    assert [name for name, part in fast.named_modules() if isinstance(part, kinds)] == rest
    assert {"encoder.0", "encoder.1.conv1", "decoder.0.0.skip", "embed.0", "output"} <= layers.keys()
    torch.testing.assert_close(run(fast, x, time), run(net, x, time), rtol=1e-4, atol=1e-5)
    assert all(layer.packed_bytes > 0 for layer in layers.values())


def test_large_volumes_by_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the 3D network makes a few depth rows at a time goes through the packed layers as well."""
    net, (x, time) = network(3, resample="conv"), given(3)
    expected, layers = run(net, x, time), packed_layers(prepacked(net)).keys()
    monkeypatch.setattr(by_depth, "LARGE", 2**16)
    assert packed_layers(prepacked(net)).keys() == layers
    torch.testing.assert_close(run(prepacked(net), x, time), expected, rtol=1e-4, atol=1e-5)


def test_shares_its_parameters() -> None:
    net = network(2)
    fast = prepacked(net)
    assert list(fast.state_dict()) == list(net.state_dict())
    assert all(a is b for a, b in zip(net.parameters(), fast.parameters(), strict=True))
    assert not packed_layers(net)


def test_is_never_stale() -> None:
    net, (x, time) = network(2), given(2)
    fast = prepacked(net)
    other = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    before = run(fast, x, time)
    net.load_state_dict(other.state_dict())
    after = run(fast, x, time)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, run(net, x, time), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        for layer in packed_layers(fast).values():
            layer.weight.data = layer.weight.data * 0.5
    torch.testing.assert_close(run(fast, x, time), run(net, x, time), rtol=1e-4, atol=1e-5)


def test_gradients_and_other_dtypes_go_the_direct_way() -> None:
    net, (x, time) = network(2), given(2)
    fast = prepacked(net)
    label = torch.tensor([0, 2])
    fast(x, time, label=label).sum().backward()
    assert all(layer.weight.grad is not None for layer in packed_layers(fast).values())
    short, slow = fast.bfloat16(), copy.deepcopy(net)
    result = run(short, x.bfloat16(), time)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), run(slow.float(), x, time), rtol=0.1, atol=0.1)


def test_which_layers_are_packed() -> None:
    def extent(layer: nn.Module) -> int | None:
        return prepack._fits(layer)

    assert extent(nn.Conv2d(16, 32, 3, padding=1)) == 3 == extent(nn.Conv3d(3, 5, 3, padding=1, bias=False))
    assert extent(nn.Conv2d(16, 32, 1)) == 1 == extent(nn.Conv1d(5, 3, 1)) == extent(nn.Linear(3, 3))
    for other in (
        nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.Conv2d(16, 32, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(16, 32, 3, padding=1, groups=2), nn.Conv2d(16, 32, 3, padding=2, dilation=2),
        nn.Conv2d(16, 32, 3), nn.Conv1d(16, 32, 3, padding=1), nn.Conv2d(16, 32, 1, padding=1), nn.SiLU(),
    ):  # fmt: skip
        assert extent(other) is None, other


def test_without_a_bias() -> None:
    layer = nn.Conv3d(16, 16, 3, padding=1, bias=False, padding_mode="replicate")
    packed = PackedConvolution(layer, Packing((2, 4, 4), torch.float32))
    x, add = torch.randn(1, 16, 3, 5, 4), torch.randn(1, 16, 3, 5, 4)
    with torch.no_grad():
        torch.testing.assert_close(packed.plus(x, add), layer(x) + add, rtol=1e-4, atol=1e-5)
    assert "tile=2x4x4" in repr(packed)


@pytest.mark.parametrize(
    ("dtype", "instructions", "pairs", "expected"),
    [
        (torch.float32, {"avx2"}, False, ((4, 4), (4, 4, 4))),
        (torch.float32, {"avx2", "avx512f", "amx_bf16"}, True, ((4, 4), (4, 4, 4))),
        (torch.bfloat16, {"avx2", "avx512_bf16"}, True, ((2, 4), (2, 2, 2))),
        (torch.bfloat16, {"avx2", "avx512_bf16", "amx_bf16"}, True, None),
        (torch.bfloat16, {"avx2"}, False, None),
        (torch.float32, {"asimd"}, False, None),
        (torch.float16, {"avx2"}, False, None),
    ],
    ids=["AVX2", "AMX in float32", "pairs", "AMX multiplies faster", "no pairs", "unmeasured", "float16"],
)
def test_the_instructions_decide(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, instructions: set[str], pairs: bool, expected: object
) -> None:
    monkeypatch.setattr(prepack, "cpu_instructions", lambda: frozenset(instructions))
    monkeypatch.setattr(prepack, "multiplies_pairs", lambda: pairs)
    for dims in (2, 3):
        found = packing_for(dims, dtype)
        assert (None if found is None else found.tile) == (None if expected is None else expected[dims - 2])  # type: ignore[index]
        assert found is None or found.products == dtype


def test_bytes_are_counted_beforehand() -> None:
    for dims in (2, 3):
        net = network(dims)
        held = sum(layer.packed_bytes for layer in packed_layers(prepacked(net)).values())
        assert packed_bytes(net) == held > 0
        assert packed_bytes(copy.deepcopy(net).to("meta")) == held


def test_refuses_a_network_that_trains() -> None:
    with pytest.raises(ScoreFusionError, match="evaluation mode; got one on cpu, training"):
        prepacked(network(2).train())
