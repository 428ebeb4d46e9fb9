"""Model folders: what is written is read back, and nothing else is."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import scorefusion.models.folder as folder_module
from scorefusion.errors import BadInput, ScoreFusionError
from scorefusion.models.folder import bundled_models, check_folder
from scorefusion.models.score_fusion import ScoreFusion
from tests.support.tiny import tiny_config, tiny_model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return tiny_model().save_pretrained(tmp_path / "a" / "model", card="# tiny")


def rewrite(folder: Path, change) -> None:
    """Change a folder's tensors in place."""
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def test_round_trip(saved):
    model = tiny_model()
    again = ScoreFusion.from_pretrained(saved)
    assert sorted(path.name for path in saved.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert not [path for path in saved.parent.iterdir() if path != saved]
    assert again.config == model.config and not again.training
    assert model.state_dict().keys() == again.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert all(parameter.requires_grad for parameter in again.parameters())
    x, condition = torch.randn(1, 1, 3, 4, 5), torch.rand(1, 1, 3, 4, 5)
    with torch.no_grad():
        one, other = model.eps(x, condition, 300), again.eps(x, condition, 300)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_weights_are_channels_last(saved):
    model = ScoreFusion.from_pretrained(saved)
    conv = model.slice_networks["slice"].encoder[1].conv1.weight
    assert conv.is_contiguous(memory_format=torch.channels_last)
    conv = model.fusion.encoder[1].conv1.weight
    assert conv.is_contiguous(memory_format=torch.channels_last_3d)


def test_half_weights_are_loaded_as_float32(tmp_path):
    model = tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folder = model.save_pretrained(tmp_path / "half", card="# half", dtype=torch.float16)
    stored = load_file(folder / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    for name, value in ScoreFusion.from_pretrained(folder).state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, before[name].half().float(), rtol=0, atol=0)
        assert model.state_dict()[name].dtype == torch.float32
    with torch.no_grad():
        model.fusion.norm.weight[0] = 1e6
    with pytest.raises(ScoreFusionError, match=r"fusion.norm.weight.*float16"):
        model.save_pretrained(tmp_path / "over", card="# over", dtype=torch.float16)
    assert not (tmp_path / "over").exists()


def test_saving_again_replaces_and_keeps_other_files(saved):
    (saved / "curves.png").write_bytes(b"png")
    tiny_model(seed=1).save_pretrained(saved, card="# second")
    assert (saved / "README.md").read_text() == "# second\n" and (saved / "curves.png").exists()
    first = next(iter(ScoreFusion.from_pretrained(saved).state_dict().values()))
    assert torch.equal(first, next(iter(tiny_model(seed=1).state_dict().values())))


def test_an_interrupted_save_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(folder_module, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tiny_model().save_pretrained(tmp_path / "model", card="# tiny")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for call in (check_folder, lambda folder: tiny_model().save_pretrained(folder, card="")):
        with pytest.raises(BadInput, match="cannot be written"):
            call(tmp_path / "file" / "model")
    check_folder(tmp_path / "new" / "model")
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(BadInput, match="cannot be written"):
        check_folder(tmp_path / "model")


def test_names_are_bundled_models(monkeypatch, tmp_path, saved):
    monkeypatch.setattr(folder_module, "ASSETS", saved.parent)
    monkeypatch.chdir(tmp_path)
    shutil.move(saved, saved.with_name("tiny-sr2"))
    assert bundled_models() == ["tiny-sr2"]
    assert ScoreFusion.from_pretrained("tiny-sr2").config.name == "tiny"
    with pytest.raises(ScoreFusionError, match="unknown model 'tiny-sr3'; did you mean 'tiny-sr2'"):
        ScoreFusion.from_pretrained("tiny-sr3")
    with pytest.raises(BadInput, match="does not exist.*tiny-sr2"):
        ScoreFusion.from_pretrained("./tiny-sr2")
    shutil.copytree(tmp_path / "a" / "tiny-sr2", tmp_path / "mine")
    assert ScoreFusion.from_pretrained("mine").config.name == "tiny"


def test_missing_unexpected_and_misshaped_tensors_are_named(saved):
    def change(state: dict[str, torch.Tensor]) -> None:
        del state["fusion.norm.weight"]
        state["fusion.extra"] = torch.zeros(1)
        state["fusion.norm.bias"] = torch.zeros(3)

    rewrite(saved, change)
    with pytest.raises(BadInput) as error:
        ScoreFusion.from_pretrained(saved)
    assert "lacks fusion.norm.weight" in str(error.value)
    assert "unexpected fusion.extra" in str(error.value)
    assert "fusion.norm.bias [3] (needed: [8])" in str(error.value)


def test_the_wrong_config_key_is_named(saved):
    config = json.loads((saved / "config.json").read_text())
    config["predicton"] = config.pop("prediction")
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match="did you mean 'prediction'"):
        ScoreFusion.from_pretrained(saved)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "pickle"])
def test_a_pickle_in_safetensors_clothes_is_refused(saved, legacy):
    torch.save({"a": torch.zeros(3)}, saved / "model.safetensors", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(BadInput, match="pickled checkpoint where safetensors is expected.*import-official"):
        ScoreFusion.from_pretrained(saved)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return Path.touch, (self.path,)


def test_a_hostile_pickle_is_not_run(saved, tmp_path):
    (saved / "model.safetensors").write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
    with pytest.raises(BadInput, match="pickled"):
        ScoreFusion.from_pretrained(saved)
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "last.ckpt", "net.pth"])
def test_a_pickled_checkpoint_beside_the_config_is_refused(saved, name):
    (saved / "model.safetensors").rename(saved / name)
    with pytest.raises(BadInput, match=f"{name}: is a pickled checkpoint"):
        ScoreFusion.from_pretrained(saved)
    with pytest.raises(BadInput, match="pickled checkpoint where a model folder is expected"):
        ScoreFusion.from_pretrained(saved / name)


@pytest.mark.parametrize("keep", [0, 5, 100, -10])
def test_truncated_weights(saved, keep):
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(BadInput, match="damaged or not a safetensors file"):
        ScoreFusion.from_pretrained(saved)


def test_no_model_here(saved, tmp_path):
    with pytest.raises(BadInput, match="does not exist"):
        ScoreFusion.from_pretrained(tmp_path / "nothing")
    with pytest.raises(BadInput, match="holds no config.json"):
        ScoreFusion.from_pretrained(tmp_path)
    with pytest.raises(BadInput, match="is a file where a folder is expected"):
        ScoreFusion.from_pretrained(saved / "config.json")
    (saved / "model.safetensors").unlink()
    with pytest.raises(BadInput, match="model.safetensors: does not exist"):
        ScoreFusion.from_pretrained(saved)


def test_an_absurd_config_is_refused_before_allocating(saved):
    config = json.loads(tiny_config().model_dump_json())
    config["slice_networks"]["slice"]["widths"] = [2**20]
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match="holds the wrong shape"):
        ScoreFusion.from_pretrained(saved)
