"""The authors' checkpoints: their outputs reproduced, their files read strictly, nothing executed."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from scorefusion.degradations import Pooling, Projection
from scorefusion.diffusion.level import NoiseLevel
from scorefusion.diffusion.sample import sample
from scorefusion.diffusion.schedule import paper_sampling
from scorefusion.diffusion.solvers import ddpm
from scorefusion.errors import BadInput, ScoreFusionError
from scorefusion.models.config import PLANES
from scorefusion.models.official import describe, load_official
from scorefusion.models.presets import preset
from scorefusion.models.score_fusion import ScoreFusion, network_time
from scorefusion.ops.gather_slices import gather_slices
from scorefusion.ops.reference.planes import AXIS
from tests.support.official_states import (
    ENSEMBLE,
    GOLDEN,
    ensemble_tables,
    keys,
    noise,
    slice_keys,
    slice_tables,
    state_of,
    two_condition_keys,
    two_view_keys,
)

TOLERANCE = 1e-4
OURS = {"2D": "single", "merge": "average", "3D": "fuse", "3D_feature": "fuse+features"}


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(GOLDEN / "official_small.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.fixture(scope="module")
def model() -> ScoreFusion:
    return load_official(state_of(keys("small"))).requires_grad_(False)


@pytest.fixture(scope="module")
def slice_state() -> dict[str, Tensor]:
    return state_of(slice_keys())


def error(found: Tensor, golden: Tensor) -> float:
    """The largest difference over the largest value."""
    return float((found.reshape(golden.shape) - golden).abs().max() / golden.abs().max())


@pytest.mark.parametrize("t", [500, 20])
@pytest.mark.parametrize("theirs", list(OURS))
def test_eps(golden, model, theirs, t):
    x = golden["x"]
    eps = model.eps(x[:, :1], x[:, 1:2], t, strategy=OURS[theirs])
    assert eps.shape == x[:, :1].shape
    assert error(eps, golden[f"eps_{theirs}_t{t}"]) < TOLERANCE


def test_position_and_mask(golden, model):
    assert torch.equal(model.prepare(golden["x"][:, 1:2]).common, golden["x"][:, 2:])


@pytest.mark.parametrize(("view", "plane"), list(enumerate(PLANES, start=1)))
def test_views_and_features(golden, model, view, plane):
    x = golden["x"]
    inputs = model.prepare(x[:, 1:2])
    network = model.slice_networks[plane]
    count = x.shape[AXIS[plane]]
    slab = gather_slices(x[:, :1], x[:, 1:2], inputs.common, plane, 0, count, context=2)
    level = NoiseLevel.of(float(paper_sampling().abar[500]), 500, count, "cpu")
    output, features = network.forward_with_features(slab, network_time(network.config, level), (8, 4, 2, 1))
    assert error(output, golden[f"view{view}_eps_t500"]) < TOLERANCE
    for scale, number in ((8, 1), (4, 4), (2, 7), (1, 10)):
        assert error(features[scale][5], golden[f"view{view}_feature{number}_slice5_t500"]) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param("sample_plain", torch.float64, marks=pytest.mark.slow),
        pytest.param("sample_poolx4", torch.float64, marks=pytest.mark.slow),
        ("sample_poolx4", torch.float32),
    ],
)
def test_trajectories(golden, model, name, dtype):
    # Six steps from abar = 1e-20 magnify the rounding of a float32 network beyond 1e-4 of the largest value
    # in a few of the 9,216 voxels. The golden arrays carry that too: they lie 1.5e-4 and 1.3e-4 from what
    # float64 networks give (6 voxels and 1 beyond 1e-4), whatever the precision of the schedule and update,
    # and white noise of float32's size on eps moves the end by 0.9e-4 to 3.6e-4. So the bound of 1e-4 holds
    # for all but 0.1 % of the voxels, and those few have one of their own.
    network = ScoreFusion(model.config).eval()
    network.load_state_dict(model.state_dict())
    network = network.to(dtype).requires_grad_(False)
    x = golden["x"].to(dtype)
    inputs = network.prepare(x[:, 1:2])
    found = sample(
        lambda x_t, level: network(x_t, inputs, level, strategy="fuse+features"),
        x[:, 1:2],
        ddpm(paper_sampling().at([999, 799, 599, 400, 200, 0])),
        seeds=[0],
        clamp=1.0,
        project=Projection(Pooling(4)) if name == "sample_poolx4" else None,
        noise=lambda number: noise(number, x[:, :1].shape).to(dtype),
    )
    expected = golden[name].reshape(found.shape)
    off = (found - expected).abs() / expected.abs().max()
    most, share = (2e-4, 1e-3) if dtype == torch.float64 else (1e-3, 5e-3)
    assert float(off.max()) < most
    assert float((off > TOLERANCE).double().mean()) < share
    assert float(off.square().mean().sqrt()) < 2e-5


def test_full_width_is_inferred():
    config, origins = describe(keys("full"))
    paper = preset("paper")
    no_dropout = {n: net.model_copy(update={"dropout": 0.0}) for n, net in paper.slice_networks.items()}
    assert config.slice_networks == no_dropout
    assert config.fusion == paper.fusion
    assert (config.branches, config.feature_scales, config.context) == (
        paper.branches,
        paper.feature_scales,
        paper.context,
    )
    assert config.strategies == ("single", "alternate", "average", "fuse", "fuse+features")
    assert config.base_weights == (0.3334, 0.3333, 0.3333)
    assert {name for names in origins.values() for name in names} == keys("full").keys()


def test_defaults_are_the_authors_sampler(model):
    config = model.config
    assert config.prediction == "eps" and config.intensity == "minmax"
    assert (config.residual.base, config.residual.scale) == ("nearest", 2.0)
    assert (config.degradation.kind, config.degradation.factors) == ("block-mean", (4, 4, 4))
    sampling = config.sampling
    assert (sampling.solver, sampling.steps, sampling.schedule, sampling.clamp) == (
        "official",
        50,
        "paper",
        1.0,
    )
    assert sampling.strategy == "fuse+features"


def test_an_ensemble_file(tmp_path, golden, model):
    last = {name: torch.zeros(shape) for name, shape in keys("small").items()}
    tables = ensemble_tables()
    inner = {f"{ENSEMBLE}model2D_{view}.{n}": v for view in (1, 2, 3) for n, v in slice_tables().items()}
    ema = {**tables, **inner, **state_of(keys("small"))}
    file = tmp_path / "model-3.pt"
    torch.save({"step": 7000, "model": {**tables, **inner, **last}, "ema": ema}, file)
    averaged, zero = load_official(file), load_official(file, ema=False, strategy="merge")
    found, zeros = averaged.state_dict(), zero.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(found[name], value), name
        assert not zeros[name].any()
    assert zero.config.sampling.strategy == "average"
    torch.save({"step": 7000, "model": last}, file)
    with pytest.raises(BadInput, match=r"holds no 'ema' weights.*--no-ema"):
        load_official(file)


def test_a_slice_file(tmp_path, golden, model, slice_state):
    file = tmp_path / "300_Network_ema.pth"
    torch.save({**slice_tables(), **slice_state}, file)
    loaded = load_official(file, plane="coronal")
    assert loaded.config.strategies == ("single",) and loaded.fusion is None
    renamed = {
        name.replace("denoise_fn.", f"{ENSEMBLE}model2D_2.denoise_fn."): v for name, v in slice_state.items()
    }
    ensemble = load_official({**state_of(keys("small")), **renamed})
    x = golden["x"]
    with torch.no_grad():
        alone = loaded.eps(x[:, :1], x[:, 1:2], 500)
        inside = ensemble.eps(x[:, :1], x[:, 1:2], 500, strategy="single", planes=["coronal"])
    assert torch.equal(alone, inside)


def test_slice_files_by_plane(slice_state):
    other = {name: value * 0.9 for name, value in slice_state.items()}
    loaded = load_official({"sagittal": other, "axial": slice_state}).requires_grad_(False)
    assert loaded.config.strategies == ("single", "alternate", "average")
    assert loaded.config.sampling.strategy == "average"
    x, condition = torch.randn(1, 1, 8, 8, 16), torch.rand(1, 1, 8, 8, 16)
    single = [loaded.eps(x, condition, 9, strategy="single", planes=[p]) for p in ("axial", "sagittal")]
    torch.testing.assert_close(loaded.eps(x, condition, 9), (single[0] + single[1]) / 2)
    with pytest.raises(ScoreFusionError, match="unknown plane 'axail'"):
        load_official({"axail": slice_state, "coronal": slice_state})
    with pytest.raises(ScoreFusionError, match="unknown plane 'axail'"):
        load_official(slice_state, plane="axail")


def test_stage_two_has_no_feature_layers(golden):
    shapes = {name: shape for name, shape in keys("small").items() if "feature_" not in name}
    loaded = load_official(state_of(shapes)).requires_grad_(False)
    assert loaded.config.strategies == ("single", "alternate", "average", "fuse")
    assert loaded.config.sampling.strategy == "fuse" and not loaded.features
    x = golden["x"]
    assert error(loaded.eps(x[:, :1], x[:, 1:2], 500), golden["eps_3D_t500"]) < TOLERANCE
    with pytest.raises(ScoreFusionError, match=r"not trained for strategy 'fuse\+features'"):
        load_official(state_of(shapes), strategy="3D_feature")


@pytest.mark.parametrize("layers", [3, 6])
def test_two_conditions(layers):
    loaded = load_official(state_of(two_condition_keys(layers)), conditions=("t1", "t2")).requires_grad_(
        False
    )
    config = loaded.config
    assert config.conditions == ("t1", "t2") and config.base_weights is None
    assert [(b.plane, b.conditions) for b in config.branches] == [
        *((plane, (0,)) for plane in PLANES),
        *((plane, (1,)) for plane in PLANES),
    ]
    second = loaded.features["4"].weights[4]
    assert second.any() if layers == 6 else not second.any()
    x, condition = torch.randn(1, 1, 8, 8, 16), torch.rand(1, 2, 8, 8, 16)
    assert loaded.eps(x, condition, 500).shape == x.shape


def test_two_views():
    state = state_of(two_view_keys())
    loaded = load_official(state).requires_grad_(False)
    assert [branch.plane for branch in loaded.config.branches] == ["coronal", "sagittal"]
    assert loaded.config.feature_kernel == 3
    wide = state[f"{ENSEMBLE}feature_extract_layer_3_10.weight"]
    assert torch.equal(loaded.features["1"].weights[1], wide)
    x, condition = torch.randn(1, 1, 8, 8, 16), torch.rand(1, 1, 8, 8, 16)
    assert loaded.eps(x, condition, 500).shape == x.shape


@pytest.mark.parametrize(
    ("inputs", "context", "count"), [(6, 0, 1), (7, 0, 2), (10, 2, 1), (15, 2, 2)], ids=str
)
def test_context_and_conditions_from_the_input_channels(inputs, context, count):
    config, _ = describe(slice_keys(inputs))
    assert (config.context, len(config.conditions)) == (context, count)
    assert config.branches[0].conditions == tuple(range(count))


def test_switches(golden, slice_state):
    x = golden["x"]
    loaded = load_official(slice_state, timesteps=2000).requires_grad_(False)
    table = paper_sampling().abar
    halved = NoiseLevel(torch.tensor([table[500]]), torch.tensor([500]))
    assert network_time(loaded.slice_networks["axial"].config, halved, True).tolist() == [250.0]
    plain = load_official(slice_state).requires_grad_(False)
    one, other = (m.eps(x[:, :1], x[:, 1:2], 500) for m in (loaded, plain))
    assert (one - other).abs().max() > 1e-2
    ordered, _ = describe(slice_keys(15), condition_order="slice")
    assert ordered.context_order == "slice"
    between, _ = describe(slice_keys(), factor=1, conditions=["t1"], target="t2", name="mine")
    assert (between.residual.base, between.degradation.kind) == ("identity", "none")
    assert (between.conditions, between.target, between.name) == (("t1",), "t2", "mine")
    three, _ = describe(slice_keys(8), context=1)
    assert (three.context, len(three.conditions)) == (1, 1)


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"timesteps": 500}, "timesteps is 1000 or 2000"),
        ({"strategy": "3d_feature"}, "unknown strategy '3d_feature'"),
        ({"strategy": "fuse"}, "not trained for strategy 'fuse'"),
        ({"condition_order": "slices"}, "did you mean 'slice'"),
        ({"context": 1}, "give the right context"),
        ({"conditions": ("t1", "t2")}, "has 1 conditions, 2 are named"),
        ({"factor": 0}, "factor is 1, or more"),
    ],
)
def test_wrong_switches(slice_state, switches, message):
    with pytest.raises(ScoreFusionError, match=message):
        load_official(slice_state, **switches)


@pytest.mark.parametrize(
    "name",
    [
        "denoise_fn.model_3D.middle_block.1.out_layers.3.bias",
        "denoise_fn.model_3D.input_blocks.6.0.op.weight",
        "denoise_fn.model2D_2.denoise_fn.cond_embed.2.weight",
        "denoise_fn.model2D_3.denoise_fn.input_blocks.0.0.weight",
        "denoise_fn.model2D_3.denoise_fn.output_blocks.5.1.out_layers.0.bias",
        "denoise_fn.feature_layer_2_4.weight",
        "denoise_fn.feature_extract_layer_3_10.bias",
    ],
)
def test_a_missing_weight_is_named(name):
    shapes = keys("small")
    del shapes[name]
    with pytest.raises(BadInput, match="lacks.*" + name.replace(".", r"\.")):
        describe(shapes)


def test_an_unexpected_or_misshaped_weight_is_named():
    with pytest.raises(BadInput, match=r"unexpected denoise_fn\.new\.weight"):
        describe(keys("small") | {"denoise_fn.new.weight": (3,)})
    name = "denoise_fn.feature_layer_2_4.weight"
    with pytest.raises(
        BadInput, match=r"feature_layer_2_4.weight \[32, 32, 4, 1, 1\] \(needed: \[32, 32, 1, 4, 1\]\)"
    ):
        describe(keys("small") | {name: (32, 32, 4, 1, 1)})
    with pytest.raises(BadInput, match="too few dimensions"):
        describe(keys("small") | {"denoise_fn.model_3D.time_embed.0.weight": (32,)})


def test_whole_networks_missing():
    shapes = {name: shape for name, shape in keys("small").items() if "model2D_2." not in name}
    with pytest.raises(BadInput, match=r"fuses 3 scores.*model2D_1, denoise_fn.model2D_3"):
        describe(shapes)
    only_fusion = {name: shape for name, shape in keys("small").items() if "model_3D" in name}
    with pytest.raises(BadInput, match="2D networks are none"):
        describe(only_fusion)
    with pytest.raises(BadInput, match="lacks denoise_fn.input_blocks.0.0.weight.*not a whole checkpoint"):
        describe({"layer1.0.conv1.weight": (64, 3, 7, 7)})


def test_another_schedule_is_refused(slice_state):
    state = state_of(keys("small"))
    assert load_official(ensemble_tables() | state).config.fusion is not None
    for tables in (ensemble_tables(2000), {"betas": torch.linspace(1e-6, 1e-2, 1000)}):
        with pytest.raises(BadInput, match="another noise schedule"):
            load_official(tables | state)
        assert load_official(tables | state, own_schedule=True).config.fusion is not None


def test_it_saves_and_loads_as_any_model(tmp_path, golden, model):
    folder = model.save_pretrained(tmp_path / "imported", card="# imported")
    again = ScoreFusion.from_pretrained(folder).requires_grad_(False)
    assert again.config == model.config
    x = golden["x"]
    assert error(again.eps(x[:, :1], x[:, 1:2], 20), golden["eps_3D_feature_t20"]) < TOLERANCE


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def write_bomb(file: Path) -> None:
    torch.save({"denoise_fn.out.2.bias": Bomb(file.with_name("boom"))}, file)


def write_old_bomb(file: Path) -> None:
    file.write_bytes(pickle.dumps({"model": Bomb(file.with_name("boom"))}, protocol=2))


def write_truncated(file: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, file)
    file.write_bytes(file.read_bytes()[:-500])


def write_absurd(file: Path) -> None:
    torch.save({name: torch.zeros(1).expand(shape) for name, shape in keys("full").items()}, file)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_bomb, "cannot be read as a checkpoint .*could run code"),
        (write_old_bomb, "cannot be read as a checkpoint"),
        (write_truncated, "cannot be read as a checkpoint"),
        (lambda file: file.write_bytes(b""), "is empty"),
        (lambda file: file.write_bytes(b"not a checkpoint at all"), "cannot be read as a checkpoint"),
        (lambda file: file.mkdir(), "is a folder"),
        (lambda file: None, "does not exist"),
        (lambda file: torch.save([torch.zeros(1)], file), "holds a list where named tensors"),
        (lambda file: torch.save({"a": 3}, file), "holds 'a' of type int"),
        (lambda file: torch.save({1: torch.zeros(1)}, file), "holds 1 of type Tensor"),
        (lambda file: torch.save({"a": torch.zeros(1, dtype=torch.int64)}, file), "not a dense floating"),
        (lambda file: torch.save({"a": torch.full((3,), torch.nan)}, file), "3 values that are not finite"),
        (write_absurd, "claims shape .* but stores only 4 bytes"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_damaged_and_hostile_files(tmp_path, write: Callable[[Path], Any], message):
    file = tmp_path / "model-1.pt"
    write(file)
    with pytest.raises(BadInput, match=message) as caught:
        load_official(file)
    assert str(caught.value).startswith(str(file))
    assert not (tmp_path / "boom").exists()
