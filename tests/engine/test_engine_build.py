"""TensorRT engines: exported, checked against PyTorch, built for real without a GPU, never half written."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from typer.testing import CliRunner

from scorefusion._version import __version__
from scorefusion.cli import app
from scorefusion.engine.tensorrt import build as module
from scorefusion.engine.tensorrt.build import SliceNetwork, build_engines, export_network
from scorefusion.engine.tensorrt.library import Target
from scorefusion.engine.tensorrt.manifest import MANIFEST, file_hash, profile_for, read_manifest, weights_hash
from scorefusion.errors import BadInput, ScoreFusionError
from scorefusion.models.config import BranchConfig, ModelConfig, TimeConfig, UNetConfig
from scorefusion.models.presets import preset
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.models.unet import UNet
from tests.support.tiny import tiny_config, tiny_model, write_tiny

SHORT = TimeConfig(channels=8, hidden=8)


def needs(*packages: str) -> Any:
    gone = [package for package in packages if importlib.util.find_spec(package) is None]
    return pytest.mark.skipif(bool(gone), reason=f"not run: needs {', '.join(gone)}")


exports = needs("onnx", "onnxscript", "onnxruntime")
builds = needs("onnx", "onnxscript", "onnxruntime", "tensorrt_rtx")
without = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt") is not None, reason="not run: tensorrt, which is here, needs a GPU"
)


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines") / "t1-sr4"
    told: list[tuple[int, int]] = []
    model = ScoreFusion.from_pretrained("t1-sr4")
    manifest = build_engines(
        model,
        folder,
        precision="fp32",
        size=(100, 120, 60),
        slab=12,
        workspace=2.0,
        report=lambda done, total: told.append((done, total)),
    )
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert read_manifest(folder) == manifest
    return folder


@pytest.mark.slow
@builds
@without
def test_the_bundled_model_becomes_an_engine(bundled: Path) -> None:
    manifest = read_manifest(bundled)
    entry = manifest.networks["slice"]
    assert entry.onnx_error is not None and 0 < entry.onnx_error < 1e-3
    assert (bundled / entry.file).stat().st_size > 1e6
    assert file_hash(bundled / entry.file) == entry.sha256
    assert entry.scales == (2, 4)
    assert entry.profile.least == (1, 8, 8)
    assert entry.profile.best == entry.profile.most == (12, 120, 120)
    import tensorrt_rtx

    assert (manifest.library, manifest.version) == ("tensorrt_rtx", tensorrt_rtx.__version__)
    assert manifest.scorefusion == __version__ and manifest.target.kind == "ahead of time"
    assert sorted(path.name for path in bundled.iterdir()) == [MANIFEST, "slice.engine"]
    assert manifest.command("x") == (
        "scorefusion engine build t1-sr4 -o x --precision fp32 --shape 100 120 60 --slab 12"
    )


@builds
@without
def test_the_command(tmp_path: Path) -> None:
    model, _ = write_tiny(tmp_path)
    folder = tmp_path / "deep" / "engines"
    options = "--precision fp16 --shape 8 6 4 --keep-onnx".split()
    result = CliRunner().invoke(app, ["engine", "build", str(model), "-o", str(folder), *options])
    assert result.exit_code == 0, result.output
    manifest = read_manifest(folder)
    entry = manifest.networks["slice"]
    assert f"{folder}: tensorrt_rtx {manifest.version}, fp16, for ahead of time" in result.output
    assert re.search(r"slice: \d+\.\d MB; export .* s, check .* s, build .* s", result.output)
    assert "features at scales 1" in result.output
    assert f"ONNX differs from PyTorch by {entry.onnx_error:.1e}: onnxruntime" in result.output
    assert "building engines: 3 of 3" in result.output
    assert (folder / "slice.onnx").stat().st_size > 1000 and entry.profile.most == (64, 8, 6)


def paper_like() -> ModelConfig:
    """Two levels of the paper's network: group norms, attention, strided and linear resampling, told abar."""
    network = UNetConfig(
        widths=(8, 16), blocks=1, groups=4, resample="conv", conditioning="add", edges="replicate",
        attention=True, head_channels=8, time=TimeConfig(value="abar", channels=8, hidden=8),
    )  # fmt: skip
    fusion = network.model_copy(update={"attention": False})
    return tiny_config(slice_networks={"slice": network}, fusion=fusion, feature_scales=(1, 2))


@exports
def test_onnx_has_pytorchs_numbers() -> None:
    """Any number of slices of any size; norms in float32; inputs, outputs and weights in the precision."""
    import onnx

    from scorefusion.engine.tensorrt.build import check_onnx, widened

    model = tiny_model(paper_like())
    network = cast(UNet, model.slice_networks["slice"])
    wrapped = SliceNetwork(network, (1, 2), torch.bfloat16)
    file = export_network(wrapped)
    error, how = check_onnx(file, wrapped, [(1, 2, 2), (2, 6, 2), (5, 4, 8)])
    assert error < 1e-3 and "onnxruntime" in how and "bfloat16 read as float32" in how
    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(file)).graph
    types = {value.name: value.type.tensor_type.elem_type for value in [*graph.value_info, *graph.input]}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    norms = [n for n in graph.node if n.op_type in ("InstanceNormalization", "GroupNormalization")]
    assert norms and all(types[node.input[0]] == onnx.TensorProto.FLOAT for node in norms)
    short = onnx.TensorProto.BFLOAT16
    assert all(types[n.input[0]] == types[n.input[1]] == short for n in graph.node if n.op_type == "Conv")
    assert {value.type.tensor_type.elem_type for value in graph.output} == {short}
    assert [value.name for value in graph.input] == ["slices", "time", "label"]
    spoilt = onnx.load_from_string(widened(file))
    weight = next(each for each in spoilt.graph.initializer if len(each.dims) == 4)
    doubled = onnx.numpy_helper.to_array(weight) * 2
    weight.CopyFrom(onnx.numpy_helper.from_array(doubled, weight.name))
    with pytest.raises(ScoreFusionError, match=r"differs from PyTorch's by .* 0\.001 is allowed"):
        check_onnx(spoilt.SerializeToString(), wrapped, [(2, 4, 4)])


def test_one_profile_serves_every_plane() -> None:
    config = preset("t1-sr4")
    largest = profile_for(config, "slice", (152, 190, 40))
    assert largest.least == (1, 8, 8) and largest.most == (64, 192, 192)
    assert largest.holds((64, 152, 40)) and largest.holds((1, 192, 40)) and largest.holds((3, 152, 152))
    assert not largest.holds((65, 8, 8)) and not largest.holds((1, 200, 8)) and not largest.holds((1, 8, 4))
    assert profile_for(config, "slice").best == (16, 192, 192)
    axial = config.model_copy(update={"branches": (BranchConfig(plane="axial"),)})
    assert profile_for(axial, "slice", (152, 100, 40), 8).most == (8, 104, 40)
    for size, slab in (((0, 8, 8), None), ((8, 8), None), (None, 0)):
        with pytest.raises(ScoreFusionError, match="at least 1"):
            profile_for(config, "slice", size, slab)


def test_a_hash_knows_the_weights_and_nothing_else() -> None:
    network = tiny_model().slice_networks["slice"]
    first = weights_hash(network, torch.bfloat16)
    moved = tiny_model().slice_networks["slice"].to(memory_format=torch.channels_last).to(torch.bfloat16)
    assert weights_hash(moved, torch.bfloat16) == first != weights_hash(network, torch.float32)
    with torch.no_grad():
        next(moved.parameters()).view(-1)[0] += 1.0
    assert weights_hash(moved, torch.bfloat16) != first


def test_targets() -> None:
    ahead = Target(kind="ahead of time", capabilities=("8.0", "8.6", "8.9", "12.0"))
    runs = {name: ahead.runs_on("any", name) for name in ("7.5", "8.6", "9.0", "10.0", "12.0", "12.1")}
    assert runs == {"7.5": False, "8.6": True, "9.0": False, "10.0": False, "12.0": True, "12.1": True}
    own = Target(kind="gpu", capabilities=("8.9",), gpu="NVIDIA L4")
    assert own.runs_on("NVIDIA L4", "8.9") and not own.runs_on("NVIDIA L40", "8.9")
    assert str(own) == "NVIDIA L4, compute capability 8.9"


class Planted(Exception):
    pass


@exports
@pytest.mark.parametrize("planted", [Planted, KeyboardInterrupt, OSError])
def test_never_half_written(
    planted: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two networks, the second of which fails: nothing appears, and what was there stays."""
    built: list[str] = []

    def build(library: Any, file: bytes, wrapped: SliceNetwork, *rest: Any) -> bytes:
        if built:
            raise planted("the second")
        built.append("the first")
        return b"engine"

    monkeypatch.setattr(module, "export_network", lambda wrapped: b"onnx")
    monkeypatch.setattr(module, "serialized_engine", build)
    monkeypatch.setattr(module, "find_library", lambda: module.Library("tensorrt_rtx", "1", None))
    network = UNetConfig(widths=(8,), blocks=1, norm="channel", time=SHORT)
    branches = (BranchConfig(plane="axial", network="a"), BranchConfig(plane="coronal", network="b"))
    model = tiny_model(tiny_config(slice_networks={"a": network, "b": network}, branches=branches))
    folder = tmp_path / "engines"
    with pytest.raises(BadInput if planted is OSError else planted):
        build_engines(model, folder, check=False)
    assert built and not list(tmp_path.iterdir())
    folder.mkdir()
    (folder / MANIFEST).write_text("{}")
    built.clear()
    with pytest.raises(BadInput if planted is OSError else planted):
        build_engines(model, folder, check=False)
    assert list(tmp_path.iterdir()) == [folder] and [path.name for path in folder.iterdir()] == [MANIFEST]
    monkeypatch.setattr(module, "serialized_engine", lambda *rest: b"engine")
    manifest = build_engines(model, folder, check=False)
    assert manifest.networks["a"].onnx_check == "not checked: --no-check"
    assert sorted(path.name for path in folder.iterdir()) == ["a.engine", "b.engine", MANIFEST]
    assert list(tmp_path.iterdir()) == [folder]


def test_what_cannot_be_built_is_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    with pytest.raises(ScoreFusionError, match=r"unknown precision 'fp15'; did you mean 'fp16'\?"):
        build_engines(model, tmp_path / "x", precision="fp15")
    with pytest.raises(ScoreFusionError, match="more than 0; got -1"):
        build_engines(model, tmp_path / "x", workspace=-1)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match="is not empty and holds no manifest.json"):
        build_engines(model, tmp_path)
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ScoreFusionError, match=r"TensorRT is not here.*pip install 'scorefusion\[tensorrt\]'"
    ):
        build_engines(model, tmp_path / "x")
    result = CliRunner().invoke(app, ["engine", "build", "t1-sr5", "-o", str(tmp_path / "x")])
    assert result.exit_code == 2 and "did you mean 't1-sr4'" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@builds
def test_tensorrts_own_words(tmp_path: Path) -> None:
    """A file that is no ONNX, and a workspace that is too small for anything to be said in advance."""
    from scorefusion.engine.tensorrt.library import find_library

    model = tiny_model()
    wrapped = SliceNetwork(model.slice_networks["slice"], (1,))  # type: ignore[arg-type]
    with pytest.raises(ScoreFusionError, match=r"tensorrt.* could not read the exported network: .+"):
        module.serialized_engine(find_library(), b"no", wrapped, profile_for(model.config, "slice"))


def test_without_onnxruntime_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "onnxruntime" else found(name, *rest)
    )
    monkeypatch.setattr(module, "export_network", lambda wrapped: b"onnx")
    monkeypatch.setattr(module, "serialized_engine", lambda *rest: b"engine")
    monkeypatch.setattr(module, "find_library", lambda: module.Library("tensorrt_rtx", "1", None))
    manifest = build_engines(tiny_model(), tmp_path / "engines")
    entry = manifest.networks["slice"]
    assert entry.onnx_error is None and entry.onnx_check.startswith(
        "not checked: onnxruntime is not installed"
    )
    assert (
        json.loads((tmp_path / "engines" / MANIFEST).read_text())["networks"]["slice"]["onnx_error"] is None
    )
