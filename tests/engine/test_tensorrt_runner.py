"""The TensorRT runner, against a double that computes; on a GPU, against PyTorch."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scorefusion.engine.engine import Engine
from scorefusion.engine.planning.plan import plan
from scorefusion.engine.runners import EagerRunner
from scorefusion.engine.tensorrt.build import SliceNetwork, build_engines, export_network
from scorefusion.engine.tensorrt.library import find_library, this_gpu
from scorefusion.engine.tensorrt.manifest import profile_for
from scorefusion.engine.tensorrt.runner import TensorRTRunner, load_engines, slabs_of
from scorefusion.errors import BadInput, ScoreFusionError
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.models.table import table_for
from scorefusion.pipeline import Pipeline
from tests.support.tiny import tiny_image, tiny_model


def needs(*packages: str) -> Any:
    gone = [package for package in packages if importlib.util.find_spec(package) is None]
    return pytest.mark.skipif(bool(gone), reason=f"not run: needs {', '.join(gone)}")


CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def exported() -> tuple[ScoreFusion, SliceNetwork, bytes]:
    model = tiny_model()
    wrapped = SliceNetwork(model.slice_networks["slice"], (1,))  # type: ignore[arg-type]
    return model, wrapped, export_network(wrapped)


@pytest.fixture
def runner(exported: tuple[ScoreFusion, SliceNetwork, bytes]) -> TensorRTRunner:
    from tests.support.tensorrt_double import LIBRARY
    from tests.support.tensorrt_double import Engine as Double

    model, wrapped, file = exported
    profile = profile_for(model.config, "slice", (12, 12, 12), 8)
    double = Double(wrapped, file)
    return TensorRTRunner(double, LIBRARY, scales=(1,), dtype=torch.float32, profile=profile, device=CPU)


def slab(count: int, h: int, w: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """As the engine gives it: channels last; one noise level and one label, expanded."""
    cut = torch.randn(count, h, w, 8, generator=torch.Generator().manual_seed(seed)).permute(0, 3, 1, 2)
    return cut, torch.tensor([0.3]).expand(count), torch.tensor([2]).expand(count)


@needs("onnx", "onnxscript", "onnxruntime")
def test_the_runner_gives_the_networks_numbers(
    runner: TensorRTRunner, exported: tuple[ScoreFusion, SliceNetwork, bytes]
) -> None:
    eager = EagerRunner(exported[0].slice_networks["slice"], (1,))  # type: ignore[arg-type]
    for seed, (count, h, w) in enumerate([(8, 12, 6), (1, 5, 12), (8, 12, 6)]):
        given = slab(count, h, w, seed)
        with torch.no_grad():
            want, wanted = eager(*given)
        got, found = runner(*given)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[1], wanted[1], rtol=1e-4, atol=1e-5)
        assert got.shape == (count, 1, h, w) and set(found) == {1}
        assert found[1].is_contiguous(memory_format=torch.channels_last)


@needs("onnx", "onnxscript", "onnxruntime")
def test_the_runner_binds_static_memory_once(runner: TensorRTRunner) -> None:
    runner.reserve([(2, 6, 6), (8, 12, 12), (4, 12, 6)])
    contexts = runner.engine.contexts
    assert [context.shapes["slices"] for context in contexts] == [(8, 12, 12, 8), (4, 12, 6, 8), (2, 6, 6, 8)]
    assert runner.bytes == 64 * 8 * 12 * 12 * 8 + (8 * 12 * 12 + 8 * 12 * 12 * 8) * 4
    shared = {context.addresses["output"] for context in contexts}
    memory = [call[1] for context in contexts for call in context.calls if call[0] == "set_device_memory"]
    assert len(shared) == 1 and len(set(memory)) == 1
    cut, time, label = slab(4, 12, 6)
    first = runner(cut, time, label)
    context = contexts[1]
    names = [call[0] for call in context.calls]
    assert names[:3] == ["set_input_shape"] * 3 and names[-1] == "execute_async_v3"
    bound = {call[1]: call[2] for call in context.calls if call[0] == "set_tensor_address"}
    assert bound["slices"] == cut.data_ptr() and bound["output"] == first[0].data_ptr()
    assert bound["features_1"] == first[1][1].data_ptr() and set(bound) == set(runner.engine.names)
    before = len(context.calls)
    again = runner(cut, time * 2, label)
    assert [call[0] for call in context.calls[before:]] == ["execute_async_v3"]
    assert again[0].data_ptr() == first[0].data_ptr() and len(contexts) == 3
    runner(*slab(4, 12, 6, seed=1))
    assert [call[0] for call in context.calls[before + 1 :]] == ["set_tensor_address", "execute_async_v3"]


@needs("onnx", "onnxscript", "onnxruntime")
def test_the_runner_refuses_what_it_cannot_bind(runner: TensorRTRunner) -> None:
    cut, time, label = slab(4, 6, 6)
    for wrong, said in (
        (cut.contiguous(), "channels last in memory"),
        (cut.half(), r"takes \[N, 8, h, w\] of torch.float32; got .* of torch.float16"),
        (cut[:, :3], r"got \[4, 3, 6, 6\]"),
        (slab(9, 6, 6)[0], "takes 1 × 1 × 1 to 8 × 12 × 12 .*; got 9 × 6 × 6; use smaller slabs"),
    ):
        with pytest.raises(ScoreFusionError, match=said):
            runner(wrong, time[:1], label[:1])
    assert not runner.engine.contexts and runner.capturable()
    runner(cut, time, label)
    runner.engine.contexts[0].works = False
    assert not runner.capturable()
    with pytest.raises(ScoreFusionError, match=r"tensorrt_double 1.0 could not run a slab of \(4, 6, 6\)"):
        runner(cut, time, label)


@needs("onnx", "onnxscript", "onnxruntime")
def test_a_runner_looks_before_it_runs(runner: TensorRTRunner) -> None:
    def out_of_date() -> None:
        raise BadInput("engines", "are out of date")

    runner.watch = out_of_date
    with pytest.raises(BadInput, match="out of date"):
        runner(*slab(4, 6, 6))
    assert not runner.engine.contexts


@needs("onnx", "onnxscript", "onnxruntime")
def test_a_whole_sample_with_the_runner(
    runner: TensorRTRunner, exported: tuple[ScoreFusion, SliceNetwork, bytes]
) -> None:
    """The engine, its slabs and feature layers on what the runner returns: the eager engine's volume."""
    model = exported[0]
    condition = torch.randn(1, 1, 12, 8, 10, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
    layout = plan(model.config, (12, 8, 10), slab=5, strategy="fuse+features")
    runner.reserve(slabs_of(layout)["slice"])
    table, volumes = table_for(model.config, steps=2), []
    for runners in ({"slice": runner}, None):
        engine = Engine(model, layout, runners=runners)  # type: ignore[arg-type]
        engine.load(condition)
        volumes.append(engine.run(table, [3]))
    torch.testing.assert_close(volumes[0], volumes[1], rtol=1e-4, atol=1e-5)
    assert len(runner.engine.contexts) == len(slabs_of(layout)["slice"]) == 3


# On a GPU.

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="not run: no CUDA device")


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_engine_on_a_gpu(precision: str, tmp_path: Path) -> None:
    """Built, loaded, run and replayed from a CUDA graph: PyTorch's numbers each time."""
    device = torch.device("cuda", torch.cuda.current_device())
    model = ScoreFusion.from_pretrained("t1-sr4")
    manifest = build_engines(model, tmp_path / "engines", precision=precision, size=(64, 64, 64), slab=8)
    if not manifest.target.runs_on(*this_gpu(device)):
        pytest.skip(f"not run: {find_library().name} builds for {manifest.target}")
    dtype, tolerance = {"fp32": (torch.float32, 1e-3), "bf16": (torch.bfloat16, 5e-2)}[precision]
    model = model.to(device, dtype)
    shape = (8, 64, 48)
    runner = load_engines(tmp_path / "engines", model, shapes={"slice": [shape]}, device=device)["slice"]
    eager = EagerRunner(model.slice_networks["slice"], (2, 4))  # type: ignore[arg-type]
    cut = torch.randn(*shape, runner.channels, device=device, dtype=dtype).permute(0, 3, 1, 2)
    time, label = torch.full((8,), 0.5, device=device), torch.ones(8, dtype=torch.int64, device=device)

    def same(found: Any) -> None:
        with torch.no_grad():
            want, wanted = eager(cut, time, label)
        for got, expected in ((found[0], want), *((found[1][s], wanted[s]) for s in (2, 4))):
            error = (got.float() - expected.float()).abs().max() / expected.float().abs().max()
            assert error < tolerance

    with torch.cuda.stream(torch.cuda.Stream(device)):
        same(runner(cut, time, label))
        torch.cuda.synchronize()
        if runner.capturable():
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                found = runner(cut, time, label)
            cut.copy_(torch.randn_like(cut))
            graph.replay()
            torch.cuda.synchronize()
            same(found)


@pytest.mark.gpu
@on_gpu
def test_a_pipeline_on_a_gpu(tmp_path: Path) -> None:
    """A whole translation with engines: the eager runner's."""
    folder = tmp_path / "engines"
    manifest = build_engines(ScoreFusion.from_pretrained("t1-sr4"), folder, precision="fp32", size=(64,) * 3)
    if not manifest.target.runs_on(*this_gpu(torch.device("cuda"))):
        pytest.skip(f"not run: {find_library().name} builds for {manifest.target}")
    image, volumes = tiny_image((14, 12, 10)), []
    for choice in ({"runner": "eager"}, {"runner": "tensorrt", "engines": folder}):
        pipeline = Pipeline("t1-sr4", device="cuda", dtype="float32", **choice)  # type: ignore[arg-type]
        volumes.append(pipeline(image, steps=2, seed=1).volume)
    assert abs(volumes[0] - volumes[1]).max() < 1e-2 * abs(volumes[0]).max()
