"""Engines that do not fit are refused by name before anything is loaded; the runner, against a double."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_config, tiny_image, tiny_model
from torch import Tensor

from scorefusion.engine import build as building
from scorefusion.engine.build import build_engines
from scorefusion.engine.engine import Engine
from scorefusion.engine.library import find_library, this_gpu
from scorefusion.engine.manifest import MANIFEST, Profile, profile_for, read_manifest
from scorefusion.engine.onnx_export import SliceNetwork, export_network
from scorefusion.engine.plan import plan
from scorefusion.engine.refusal import Watch, check_engines
from scorefusion.engine.runners import EagerRunner
from scorefusion.engine.tensorrt import TensorRTRunner, load_engines, open_runners, slabs_of
from scorefusion.errors import BadInput, ScoreFusionError
from scorefusion.models.config import BranchConfig, ModelConfig, TimeConfig, UNetConfig
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.models.table import table_for
from scorefusion.pipeline import Pipeline


def needs(*packages: str) -> Any:
    gone = [package for package in packages if importlib.util.find_spec(package) is None]
    return pytest.mark.skipif(bool(gone), reason=f"not run: needs {', '.join(gone)}")


CPU = torch.device("cpu")


def two_networks() -> ModelConfig:
    network = UNetConfig(widths=(8,), blocks=1, norm="channel", time=TimeConfig(channels=8, hidden=8))
    branches = (
        BranchConfig(plane="axial", network="axial"),
        BranchConfig(plane="coronal", network="other"),
        BranchConfig(plane="sagittal", network="other"),
    )
    return tiny_config(slice_networks={"axial": network, "other": network}, branches=branches)


def stand_in(version: str = "1.7.1") -> types.ModuleType:
    """A TensorRT that can be imported and nothing else."""
    module = types.ModuleType("tensorrt_rtx")
    module.__version__ = version  # type: ignore[attr-defined]
    return module


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder as the build leaves it, but for the bytes of the engines."""
    folder = tmp_path_factory.mktemp("built") / "engines"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tensorrt", None)
        patch.setitem(sys.modules, "tensorrt_rtx", stand_in())
        patch.setattr(building, "export_network", lambda wrapped: b"onnx")
        patch.setattr(building, "serialized_engine", lambda *rest: b"engine" * 1000)
        build_engines(
            tiny_model(two_networks()),
            folder,
            precision="fp16",
            size=(16, 12, 8),
            slab=8,
            check=False,
            source="mine",
        )
    yield folder


@pytest.fixture
def folder(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", stand_in())
    return Path(shutil.copytree(built, tmp_path / "engines"))


def half(model: ScoreFusion | None = None) -> ScoreFusion:
    return (model or tiny_model(two_networks())).to(torch.float16)


def refused(folder: Path, model: ScoreFusion | None = None, **given: Any) -> str:
    with pytest.raises(BadInput) as raised:
        check_engines(folder, model or half(), **given)
    return str(raised.value)


AGAIN = "Build again: scorefusion engine build mine -o {} --precision {} --shape 16 12 8 --slab 8"


def test_what_fits_is_taken(folder: Path) -> None:
    layout = plan(two_networks(), (16, 12, 8), slab=4, dtype=torch.float16)
    slabs = slabs_of(layout)
    assert slabs == {"axial": {(4, 12, 8)}, "other": {(4, 16, 8), (4, 16, 12)}}
    fits = check_engines(folder, half(), shapes=slabs, gpu=("NVIDIA L4", "8.9"))
    assert fits.folder == folder and fits.manifest == read_manifest(folder)
    uneven = plan(two_networks(), (16, 12, 10), slab=4, batch=2, dtype=torch.float16)
    assert slabs_of(uneven)["axial"] == {(8, 12, 10)}
    assert slabs_of(uneven)["other"] == {(8, 16, 10), (8, 16, 12), (4, 16, 12)}


def test_changed_weights_are_refused_by_network(folder: Path) -> None:
    model = half()
    with torch.no_grad():
        next(model.slice_networks["other"].parameters()).view(-1)[0] += 1.0
    said = refused(folder, model)
    assert "the engine of network 'other' was built from other weights than the model has now" in said
    built = read_manifest(folder).networks["other"].weights[:12]
    assert re.search(rf"sha256 {built} expected, [0-9a-f]{{12}} found", said)
    assert said.endswith(AGAIN.format(folder, "fp16"))
    assert "'axial'" not in said


def test_another_configuration_is_refused(folder: Path) -> None:
    config = two_networks()
    other = config.slice_networks["axial"].model_copy(
        update={"time": TimeConfig(channels=8, hidden=8, scale=2.0)}
    )
    config = config.model_copy(update={"slice_networks": {**config.slice_networks, "axial": other}})
    said = refused(folder, half(tiny_model(config)))
    assert "network 'axial' was built from another configuration than the model has now" in said


def test_a_network_without_an_engine_is_refused(folder: Path) -> None:
    model = half(tiny_model(tiny_config()))
    said = refused(folder, model)
    assert "no engine for network 'slice' of the model; there is axial, other" in said


def test_a_shape_outside_the_profile_is_refused(folder: Path) -> None:
    for shape in ((9, 16, 8), (8, 20, 8), (8, 16, 16)):
        said = refused(folder, shapes={"other": [(8, 16, 8), shape]})
        needed = " × ".join(map(str, shape))
        assert "network 'other' takes 1 × 1 × 1 to 8 × 16 × 12 (slices, rows, columns)" in said
        assert f"; {needed} is needed" in said and "or build again: scorefusion engine build mine" in said
    assert "--shape 20 20 20 --slab 8" in refused(folder, shapes={"other": [(8, 20, 8)]})


def test_another_precision_is_refused(folder: Path) -> None:
    for dtype, name in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        said = refused(folder, tiny_model(two_networks()).to(dtype))
        assert f"network 'axial' is fp16; the model computes in {name}" in said
        assert said.endswith(AGAIN.format(folder, name))


def test_another_library_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", stand_in("1.8.0"))
    assert "built with tensorrt_rtx 1.7.1; tensorrt_rtx 1.8.0 is here" in refused(folder)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setitem(sys.modules, "tensorrt", stand_in("10.9.0"))
    assert "built with tensorrt_rtx 1.7.1; tensorrt 10.9.0 is here" in refused(folder)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(ScoreFusionError, match="TensorRT is not here"):
        check_engines(folder, half())


def test_another_gpu_is_refused(folder: Path) -> None:
    said = refused(folder, gpu=("NVIDIA H100", "9.0"))
    assert "compute capability 8.0, 8.6, 8.9, 12.0 and later; this is NVIDIA H100, compute" in said


def test_missing_and_damaged_files_are_refused(folder: Path) -> None:
    engine = folder / "other.engine"
    with engine.open("r+b") as file:
        file.seek(100)
        file.write(b"!")
    said = refused(folder)
    assert said.startswith(f"{engine}: is damaged, or not the engine of network 'other'")
    assert re.search("sha256 [0-9a-f]{12} expected, [0-9a-f]{12} found", said)
    engine.unlink()
    assert refused(folder).startswith(f"{engine}: does not exist; manifest.json lists it")
    (folder / MANIFEST).write_text('{"scorefusion": "0.1.0", "precison": "fp16"}')
    assert "did you mean 'precision'?" in refused(folder)
    (folder / MANIFEST).write_text("{")
    assert "is not valid .json" in refused(folder)
    (folder / MANIFEST).unlink()
    assert "holds no manifest.json. Build engines: scorefusion engine build" in refused(folder)
    assert "does not exist" in refused(folder / "none")


@pytest.mark.skipif(torch.cuda.is_available(), reason="not run: there is a CUDA device")
def test_without_a_gpu_there_is_one_clear_error(folder: Path) -> None:
    with pytest.raises(ScoreFusionError, match=r"engines run on an NVIDIA GPU; .* finds 0 GPUs here"):
        load_engines(folder, half())


@pytest.mark.parametrize("opens", [True, False])
def test_what_fits_is_deserialised(folder: Path, opens: bool) -> None:
    """One engine for each network, from its own file; TensorRT's own words where it refuses."""

    class Log:
        Severity = types.SimpleNamespace(INTERNAL_ERROR=0, ERROR=1)

        def __init__(self) -> None:
            pass

    class Runtime:
        def __init__(self, log: Any) -> None:
            self.log = log

        def deserialize_cuda_engine(self, file: bytes) -> Any:
            assert file == b"engine" * 1000
            self.log.log(2, "a remark")
            self.log.log(1, "Serialization assertion failed")
            names = ["slices", "time", "output", "features_1"]
            engine = types.SimpleNamespace(
                num_io_tensors=4,
                get_tensor_name=names.__getitem__,
                get_tensor_shape=lambda name: (-1, -1, -1, 8),
            )
            return engine if opens else None

    module = sys.modules["tensorrt_rtx"]
    module.ILogger, module.Runtime = Log, Runtime  # type: ignore[attr-defined]
    model = half()
    fits = check_engines(folder, model)
    if not opens:
        with pytest.raises(BadInput, match=r"tensorrt_rtx cannot load it \(Serialization assertion failed\)"):
            open_runners(fits, model, device=CPU)
        return
    runners = open_runners(fits, model, device=CPU)
    assert list(runners) == ["axial", "other"]
    runner = runners["other"]
    assert (runner.dtype, runner.scales, runner.channels, runner.labelled) == (torch.float16, (1,), 8, False)
    assert runner.profile.most == (8, 16, 12)
    with torch.no_grad():
        next(model.slice_networks["other"].parameters()).zero_()
    runners["axial"].watch()
    with pytest.raises(BadInput, match="network 'other' was built from other weights"):
        runner.watch()


# The runner: what it binds and what it returns.


@pytest.fixture(scope="module")
def exported() -> tuple[ScoreFusion, SliceNetwork, bytes]:
    model = tiny_model()
    wrapped = SliceNetwork(model.slice_networks["slice"], (1,))  # type: ignore[arg-type]
    return model, wrapped, export_network(wrapped)


@pytest.fixture
def runner(exported: tuple[ScoreFusion, SliceNetwork, bytes]) -> TensorRTRunner:
    from tensorrt_double import LIBRARY
    from tensorrt_double import Engine as Double

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


def test_weights_changed_after_loading_are_noticed(folder: Path) -> None:
    model = half()
    network = model.slice_networks["other"]
    watch = Watch(check_engines(folder, model), "other", network, (1,))  # type: ignore[arg-type]
    watch()
    weight = next(network.parameters())
    with torch.no_grad():
        weight.mul_(1.0)
    watch()
    with torch.no_grad():
        weight.mul_(2.0)
    for _ in range(2):
        with pytest.raises(BadInput, match="network 'other' was built from other weights"):
            watch()
    with torch.no_grad():
        weight.mul_(0.5)
    watch()
    weight.data = weight.data * 2.0
    with pytest.raises(BadInput, match="network 'other' was built from other weights"):
        watch()


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


def test_a_profile_says_what_it_takes() -> None:
    profile = Profile(least=(1, 8, 8), best=(4, 16, 16), most=(8, 32, 24))
    assert str(profile) == "1 × 8 × 8 to 8 × 32 × 24 (slices, rows, columns)"
