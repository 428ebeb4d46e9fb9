"""What a step launches, moves and computes on a GPU, as counted on fake CUDA tensors: at most so much.

A change that raises a bound says why in its commit; one that lowers a count lowers the bound.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.step_budget import budget, config_of, main
from benchmarks.step_walk import Call, Spec, Step, walk
from scorefusion.engine.planning.forecast import forecast
from scorefusion.models.folder import write_config
from scorefusion.models.presets import preset
from scorefusion.ops import backends

pytestmark = pytest.mark.skipif(bool(backends.missing("triton")), reason=str(backends.missing("triton")))

BOX = (96, 112, 96)
FLOP = 1_122_898_624_512
"""FLOP of one step of t1-sr4 at 96×112×96, whatever the slab: 1,123 GFLOP."""


@functools.cache
def walked(pixels: int, size: tuple[int, int, int] = BOX) -> Step:
    return walk(preset("t1-sr4"), size, pixels=pixels)


@functools.cache
def small(name: str = "small", size: tuple[int, int, int] = (8, 12, 16), **options: Any) -> Step:
    return walk(preset(name), size, **options)


def calls_of(step: Step, name: str) -> list[Call]:
    return [call for call in step.calls if call.name == name]


@pytest.mark.parametrize(("slab", "kernels", "gigabytes"), [(2**17, 4947, 14.542), (2**20, 692, 14.414)])
def test_the_bundled_models_step(slab: int, kernels: int, gigabytes: float) -> None:
    counts = budget(walked(slab))
    assert counts["flop"] == FLOP
    assert counts["kernels"] <= kernels
    assert counts["bytes"] <= gigabytes * 1e9


def test_what_a_gpu_should_not_be_given() -> None:
    """Casts, odd channels, other layouts, float32 passes, launches that leave a GPU idle; at 2^20 pixels."""
    counts = budget(walked(2**20))
    assert counts["casts"]["kernels"] <= 3 and counts["casts"]["bytes"] <= 20_128_128
    assert counts["odd_channels"]["kernels"] <= 3
    assert counts["odd_channels"]["shapes"].keys() <= {"48 to 4, 3x3"}
    assert counts["not_channels_last"] <= 1  # after average pooling in 3D, which gives NCDHW
    assert counts["float32_passes"] <= 3
    assert counts["starved"] <= 52
    large = [row["programs_per_multiprocessor"] for row in counts["triton"] if row["bytes"] > 2**22]
    assert min(large) >= 0.47
    longest = max(row["serial"] for row in counts["triton"])
    assert longest <= 8


def test_groups_of_kernels() -> None:
    groups = budget(walked(2**20))["groups"]
    most = {
        "convolution 3x3": 96, "convolution 1x1": 42, "convolution 3x3x3": 22, "convolution 1x1x1": 9,
        "biases": 147, "norm_act": 114, "additions": 79, "resampling": 28, "folding": 6,
        "gather_slices": 3, "ensemble_features": 6, "fuse_step": 1, "copies and casts": 14,
        "other PyTorch kernels": 26, "small kernels": 99,
    }  # fmt: skip
    assert groups.keys() <= most.keys()
    for name, row in groups.items():
        assert row["kernels"] <= most[name], name


def test_compilations_for_a_second_box() -> None:
    counts = budget(walked(2**20), walked(2**20, (104, 120, 88)))["compilations"]
    if counts["first"] is None:
        pytest.skip("Triton's interpreter compiles nothing")
    assert counts["first"] <= 48 and counts["second"] <= 22
    again = budget(walked(2**20), walked(2**20))["compilations"]
    assert again["second"] == 0


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [("small", (8, 12, 16), {}), ("small", (8, 8, 8), {"strategy": "average"}), ("paper", (16, 24, 32), {})],
)
def test_flop_are_those_of_the_forecast(
    name: str, size: tuple[int, int, int], options: dict[str, Any]
) -> None:
    step = small(name, size, **options)
    assert budget(step)["flop"] == forecast(step.plan).flop


def test_a_convolution_with_a_bias_is_two_kernels() -> None:
    convolutions = calls_of(small(), "aten::convolution")
    assert convolutions
    for call in convolutions:
        x, weight, bias = call.args[:3]
        first, *rest = call.kernels
        outputs = call.outputs[0].bytes
        assert (first.read, first.written) == (x.bytes + weight.bytes, outputs)
        assert [kernel.bytes for kernel in rest] == ([2 * outputs + bias.bytes] if bias is not None else [])
        pixels = call.outputs[0].shape[0] * torch.Size(call.outputs[0].shape[2:]).numel()
        assert first.flop == 2 * pixels * torch.Size(weight.shape).numel()


def test_views_and_memory_are_free() -> None:
    names = {call.name.split("::")[1] for call in small().calls}
    assert not names & {"view", "expand", "empty", "permute", "slice", "detach"} and "addmm" in names


@pytest.mark.parametrize(("name", "most"), [("small", 1), ("paper", 4)])
def test_norm_act_is_its_triton_launches(name: str, most: int) -> None:
    """One of LayerNorm; of GroupNorm the statistics of each input, their combination, and the result."""
    step = small(name, (16, 24, 32) if name == "paper" else (8, 12, 16))
    calls = calls_of(step, "scorefusion::norm_act")
    assert calls and max(len(call.kernels) for call in calls) == most
    for call in calls:
        if call.args[7] is not None:  # groups
            assert len(call.kernels) == (4 if call.args[1] is not None else 3)
            x, other = call.args[:2]
            statistics = sum(kernel.read for kernel in call.kernels[:-2])
            assert statistics == x.bytes + (other.bytes if other is not None else 0)
        assert call.kernels[-1].written == call.outputs[0].bytes


def test_attention_is_one_kernel() -> None:
    step = small("paper", (16, 24, 32))
    calls = calls_of(step, "aten::_scaled_dot_product_flash_attention")
    assert calls and all(len(call.kernels) == 1 and call.kernels[0].flop for call in calls)
    assert not calls_of(step, "aten::_softmax")


def test_bytes_of_a_tensor() -> None:
    dense = torch.empty(3, 4, 5)
    assert Spec.of(dense).bytes == 240
    assert Spec.of(dense[:1].expand(3, 4, 5)).bytes == 80
    assert Spec.of(dense.bfloat16()[:, :2]).bytes == 60
    assert Spec.of(dense[:0]).bytes == 0
    assert str(Spec.of(dense)) == "3x4x5 float32"


def test_more_slabs_are_more_launches_of_the_same_work() -> None:
    whole, cut = (budget(small("small", (8, 8, 8), pixels=pixels)) for pixels in (2**20, 2**7))
    assert cut["kernels"] > whole["kernels"] and cut["flop"] == whole["flop"]
    assert sum(row["launches"] for row in cut["triton"]) > sum(row["launches"] for row in whole["triton"])


def test_float32_counts_no_casts() -> None:
    counts = budget(small("small", (8, 12, 16), dtype=torch.float32))
    assert counts["casts"]["kernels"] == 0 and counts["float32_passes"] == 0 and counts["dtype"] == "float32"


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The same counts as JSON; a preset, a model folder, a slab as a power, another dtype."""
    config = config_of("small")
    write_config(config, tmp_path)
    expected = budget(small("small", (8, 8, 8), pixels=2**9))
    found = []
    for model in ("small", str(tmp_path)):
        assert main(["--model", model, "--size", "8", "8", "8", "--slab", "2^9"]) == 0
        counts = json.loads(capsys.readouterr().out)
        assert counts.pop("model") == model and counts.pop("slab") == 512
        found.append(counts)
    assert found[0] == found[1] == json.loads(json.dumps(expected))
    assert (
        main(["--model", "small", "--size", "8", "8", "8", "--dtype", "float32", "--second", "8", "8", "12"])
        == 0
    )
    counts = json.loads(capsys.readouterr().out)
    assert counts["dtype"] == "float32" and counts["slab"] == 2**20
    assert counts["compilations"]["size"] == [8, 8, 12]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "no-such-model"], "no-such-model"),
        (["--model", "small", "--dtype", "bf17"], "bf17"),
        (["--model", "small", "--strategy", "guess"], "guess"),
    ],
)
def test_what_cannot_be_counted(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert said in output.err and output.err.startswith("error: ") and not output.out
