"""Engines that do not fit are refused by name before anything is loaded; those that fit are opened."""

from __future__ import annotations

import re
import shutil
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from scorefusion.engine.planning.plan import plan
from scorefusion.engine.tensorrt import build as building
from scorefusion.engine.tensorrt.build import build_engines
from scorefusion.engine.tensorrt.manifest import MANIFEST, Profile, Watch, check_engines, read_manifest
from scorefusion.engine.tensorrt.runner import load_engines, open_runners, slabs_of
from scorefusion.errors import BadInput, ScoreFusionError
from scorefusion.models.config import BranchConfig, ModelConfig, TimeConfig, UNetConfig
from scorefusion.models.score_fusion import ScoreFusion
from tests.support.tiny import tiny_config, tiny_model

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


def test_a_profile_says_what_it_takes() -> None:
    profile = Profile(least=(1, 8, 8), best=(4, 16, 16), most=(8, 32, 24))
    assert str(profile) == "1 × 8 × 8 to 8 × 32 × 24 (slices, rows, columns)"
