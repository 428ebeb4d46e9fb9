"""Degradations at work: projections, the engine's steps, and pipelines from image to image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor

from scorefusion.data import Box, prepare_conditions
from scorefusion.degradations import Inpainting, LowFrequencies, Operator, Pooling, Projection, SparseView
from scorefusion.diffusion.sample import sample
from scorefusion.engine.engine import Engine
from scorefusion.engine.planning.plan import plan
from scorefusion.errors import BadInput, ScoreFusionError
from scorefusion.evaluate.shared_start import SharedStart, strategy_runs
from scorefusion.models.config import ModelConfig
from scorefusion.models.table import table_for
from scorefusion.pipeline import Pipeline
from tests.support.tape_graphs import TapeGraphs
from tests.support.tiny import same_grid_config, tiny_config, tiny_image, tiny_model

KINDS: dict[str, dict[str, Any]] = {
    "blocks": {"kind": "block-mean", "factor": 2},
    "blocks of a plane": {"kind": "block-mean", "edges": (1, 2, 2)},
    "thick slices": {"kind": "thick-slices", "axis": "z", "thickness": 3},
    "slices with gaps": {"kind": "thick-slices", "axis": "y", "thickness": 2, "gap": 1},
    "k-space": {"kind": "k-space", "fraction": (1.0, 0.6, 0.6)},
    "lines in slices": {"kind": "cs-mri", "axis": "z", "acceleration": 2, "centre": 0.2},
    "lines in a volume": {"kind": "cs-mri", "acceleration": 3, "centre": 0.1},
    "sparse views": {"kind": "sparse-view", "views": 5},
    "holes": {"kind": "inpaint", "hole": 0.3, "holes": 2, "seed": 3},
}
SIZE = (6, 12, 12)


def config_of(name: str, **changes: Any) -> ModelConfig:
    base = "trilinear+consistency" if name in list(KINDS)[:4] else "identity"
    values = {"degradation": KINDS[name], "residual": {"base": base, "scale": 0.1}}
    return tiny_config(**{**values, **changes})


def operator_of(config: ModelConfig, size: tuple[int, int, int] = SIZE) -> Operator:
    operator = config.degradation.operator(size)
    assert operator is not None
    return operator


def volume(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(operator: Operator, x: Tensor, measured: Tensor) -> float:
    """Greatest difference as a share of the greatest measured number."""
    return float((operator.A(x) - measured).abs().max() / measured.abs().max())


EXACT = {name: 2e-2 if name == "sparse views" else 1e-5 for name in KINDS}
"""What is left of a measurement, as a share of it: a few iterations leave something of projections."""


@pytest.mark.parametrize("name", KINDS)
def test_a_projection_agrees_with_what_was_measured(name: str) -> None:
    operator = operator_of(config_of(name))
    if isinstance(operator, SparseView):
        operator.iterations = 300  # white noise is the worst case
    measured = operator.A(volume(2, 1, *SIZE).double())
    project = Projection(operator, measured)
    x = volume(2, 1, *SIZE, seed=1).double()
    once = project(x)
    assert error(operator, x, measured) > 0.3
    assert error(operator, once, measured) < 1e-6
    torch.testing.assert_close(project(once), once, rtol=0, atol=1e-4)
    of_zero = Projection(operator)(x)
    assert float(operator.A(of_zero).abs().max()) < 1e-5


class Plain:
    """The three functions of an operator and nothing else."""

    def __init__(self, operator: Operator) -> None:
        self.A, self.A_adjoint, self.A_dagger = operator.A, operator.A_adjoint, operator.A_dagger


@pytest.mark.parametrize("name", KINDS)
def test_the_engine_draws_what_the_sampler_draws(name: str) -> None:
    """With a solver that uses noise and the step before, whatever was measured."""
    config = config_of(name, sampling={"clamp": 1.0})
    model, condition = tiny_model(config), volume(1, 1, *SIZE).clamp(-1, 1)
    table = table_for(config, solver="dpmpp_2m_sde", steps=3)
    engine = Engine(model, plan(config, SIZE))
    for seed, given in ((3, True), (5, False)):
        measured = 0.1 * operator_of(config).A(volume(1, 1, *SIZE, seed=seed)) if given else None
        project = operator_of(config).project(measured)
        inputs = model.prepare(condition)
        expected = sample(
            lambda x, level, inputs=inputs: model.unfused(x, inputs, level, strategy="fuse+features"),
            condition, table, seeds=[seed], clamp=1.0, project=project,
        )  # fmt: skip
        engine.load(condition, project=project)
        torch.testing.assert_close(engine.run(table, [seed]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in KINDS if name != "sparse views"])
def test_a_projection_does_not_wait_for_the_device(name: str) -> None:
    """It can be captured as a graph. (The tape cannot record the sparse matrices of projections.)"""
    operator = operator_of(config_of(name))
    x = volume(1, 1, *SIZE)
    project = Projection(operator, operator.A(x))
    expected, graphs = project(x + 1), TapeGraphs()
    x.add_(1)
    replay = graphs.capture(lambda: x.copy_(project(x)), graphs.pool())
    replay()
    torch.testing.assert_close(x, expected)


def test_an_engine_goes_from_one_projection_to_another() -> None:
    """From replayed graphs, in which no projection but the one onto block means may be."""
    config = config_of("blocks")
    model, condition, table = tiny_model(config), volume(1, 1, *SIZE), table_for(config, steps=3)
    engine = Engine(model, plan(config, SIZE), graphs=TapeGraphs())
    measured, other = (operator_of(config).A(volume(1, 1, *SIZE, seed=n)) for n in (1, 2))
    drawn = []
    for project in (
        Projection(Pooling(2), measured),
        Projection(Plain(Pooling(2)), other),
        Projection(Plain(Pooling(2)), measured),
        Projection(Pooling(2), other),
    ):
        engine.load(condition, project=project)
        drawn.append(engine.run(table, [1]))
        captured = next(iter(engine.captured.values())).captured
        assert captured == (1 if project.blocks else 2)
    torch.testing.assert_close(drawn[2], drawn[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(drawn[3], drawn[1], rtol=1e-4, atol=1e-5)
    assert float((drawn[0] - drawn[1]).abs().max()) > 0.1
    with pytest.raises(ScoreFusionError, match="means of blocks"):
        engine.load(condition, project=Projection(Pooling((1, 2, 2))))


def image_of(config: ModelConfig, size: tuple[int, int, int] = SIZE) -> tuple[Any, np.ndarray]:
    """What a pipeline is given, made of a ball; (x, y, z) order, axes R, A, S."""
    truth = np.asarray(tiny_image(size[::-1]).dataobj).astype(np.float32)
    target = torch.from_numpy(truth.transpose(2, 1, 0).copy())[None, None]
    given = config.degradation.image(target)[0, 0].numpy().transpose(2, 1, 0)
    steps = [2.0 * n / m for n, m in zip(truth.shape, given.shape, strict=True)]
    return nib.Nifti1Image(given, np.diag([*steps, 1.0])), truth


@pytest.mark.parametrize("name", KINDS)
def test_from_image_to_image(name: str) -> None:
    config = config_of(name)
    image, truth = image_of(config)
    result = Pipeline(tiny_model(config), device="cpu")(image)
    assert result.volume.shape == truth.shape and np.isfinite(result.volume).all()
    np.testing.assert_allclose(result.affine[:3, :3], np.diag([2.0, 2.0, 2.0]), atol=1e-5)
    assert result.consistency_residual is not None
    assert result.consistency_residual.max < EXACT[name] * 1000
    assert 0 <= result.consistency_residual.mean <= result.consistency_residual.max
    # The networks are random, so the result is not the input: it differs where nothing was measured.
    ras = torch.from_numpy(result.volume.transpose(2, 1, 0).copy())[None, None]
    operator = operator_of(config)
    base = operator.A_dagger(operator.A(ras))
    assert float((ras - base).abs().max()) > 5


@pytest.mark.parametrize("name", ["blocks", "slices with gaps", "k-space", "holes"])
def test_without_consistency(name: str) -> None:
    config = config_of(name, sampling={"steps": 2, "consistency": False})
    image, _ = image_of(config)
    result = Pipeline(tiny_model(config), device="cpu")(image)
    assert result.consistency_residual is not None and result.consistency_residual.max > 5
    assert "measured" not in {buffer.name for buffer in plan(config, SIZE).buffers}


@pytest.mark.parametrize("name", KINDS)
def test_strategies_that_share_a_start(name: str) -> None:
    config = config_of(name)
    model, (image, _) = tiny_model(config), image_of(config)
    given = torch.from_numpy(image.get_fdata(dtype=np.float32).transpose(2, 1, 0).copy())[None, None]
    prepared, box = prepare_conditions([given], config), Box.whole(SIZE)
    shared = SharedStart(model, prepared, box, seed=2)
    for run in strategy_runs(config):
        residual = shared.draw(run, table_for(config, steps=2))
        whole = prepared.base + config.residual.scale * residual
        assert prepared.operator is not None
        assert error(prepared.operator, whole, prepared.operator.A(prepared.outside)) < EXACT[name], run.name


@pytest.mark.parametrize("base", ["nearest", "trilinear", "trilinear+consistency", "pseudo-inverse"])
@pytest.mark.parametrize("name", list(KINDS)[:4])
def test_every_base_is_made_consistent(name: str, base: str) -> None:
    config = config_of(name, residual={"base": base, "scale": 0.1})
    image, _ = image_of(config, (18, 24, 18))
    result = Pipeline(tiny_model(config), device="cpu")(image)
    assert result.consistency_residual is not None and result.consistency_residual.max < 0.01


@pytest.mark.parametrize("codes", ["LPS", "SAR", "PIR"])
def test_thick_slices_in_any_orientation(codes: str) -> None:
    config = config_of("slices with gaps")
    image, truth = image_of(config)
    pipeline = Pipeline(tiny_model(config), device="cpu")
    plain = pipeline(image)
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes)
    )
    turned = pipeline(image.as_reoriented(turn))
    assert "".join(nib.aff2axcodes(turned.affine)) == codes
    back = nib.as_closest_canonical(turned.image())
    np.testing.assert_array_equal(np.asarray(back.dataobj), plain.volume)
    np.testing.assert_allclose(back.affine, plain.affine, atol=1e-5)
    assert plain.factor == (1, 3, 1)
    np.testing.assert_allclose(plain.affine @ [0, 1, 0, 1], image.affine @ [0, 0, 0, 1], atol=1e-5)


def test_a_second_condition_on_either_grid() -> None:
    config = same_grid_config(
        degradation=KINDS["slices with gaps"], residual=tiny_config().residual, sampling={"steps": 2}
    )
    image, truth = image_of(config)
    fine = nib.Nifti1Image(truth, Pipeline(tiny_model(config), device="cpu")([image, image]).affine)
    assert Pipeline(tiny_model(config), device="cpu")([image, fine]).volume.shape == truth.shape
    with pytest.raises(BadInput, match="needs 12 × 12 × 6"):
        Pipeline(tiny_model(config), device="cpu")([image, tiny_image((12, 5, 6))])


def test_a_mask_says_what_is_missing(tmp_path: Path) -> None:
    config = config_of("holes")
    image, truth = image_of(config)
    mask = np.zeros(truth.shape, np.uint8)
    mask[3:7, 2:9, 1:4] = 1
    holed = truth.copy()
    holed[mask > 0] = 1e6  # what stands there must not matter
    pipeline = Pipeline(tiny_model(config), device="cpu")
    result = pipeline(nib.Nifti1Image(holed, image.affine), mask=nib.Nifti1Image(mask, image.affine))
    np.testing.assert_allclose(result.volume[mask == 0], truth[mask == 0], atol=0.01)
    assert result.volume[mask > 0].max() < 1e4
    with pytest.raises(ScoreFusionError, match="a mask is for a model that fills in"):
        Pipeline(tiny_model(), device="cpu")(tiny_image(), mask=nib.Nifti1Image(mask, image.affine))
    with pytest.raises(BadInput, match="voxels"):
        pipeline(image, mask=tiny_image())


class Physics(torch.nn.Module):
    """What an object of deepinv's looks like: the odd voxels of every row, scaled, and options to ignore."""

    def A(self, x: Tensor, **options: Any) -> Tensor:
        return 3 * x[..., 1::2]

    def A_adjoint(self, y: Tensor, **options: Any) -> Tensor:
        return 3 * torch.stack([torch.zeros_like(y), y], dim=-1).flatten(-2)

    def A_dagger(self, y: Tensor, **options: Any) -> Tensor:
        return self.A_adjoint(y) / 9


@pytest.mark.parametrize("name", ["holes", "k-space"])
def test_an_object_that_stands_in(name: str) -> None:
    config, physics = config_of(name), Physics()
    image, truth = image_of(config)
    result = Pipeline(tiny_model(config), device="cpu")(
        nib.Nifti1Image(truth, image.affine), operator=physics
    )
    np.testing.assert_allclose(result.volume[1::2], truth[1::2], atol=0.01)
    assert result.consistency_residual is not None and result.consistency_residual.max < 0.05
    assert np.abs(result.volume[::2] - truth[::2]).max() > 5


def test_boxes_are_whole_where_voxels_are_mixed() -> None:
    config = config_of("lines in slices")
    given = torch.zeros(1, 1, 24, 40, 40)
    given[:, :, 10:14, 18:22, 18:22] = volume(4, 4, 4)
    prepared = prepare_conditions([given], config)
    assert prepared.projection(config, Box((2, 0, 0), (20, 40, 40))) is not None
    with pytest.raises(ScoreFusionError, match="must be whole"):
        prepared.projection(config, Box((2, 0, 4), (20, 40, 40)))
    holes = prepare_conditions([given], config_of("holes"))
    project = holes.projection(config_of("holes"), Box((2, 4, 6), (20, 30, 28)))
    assert project is not None and isinstance(holes.operator, Inpainting)
    inside = project.operator
    assert isinstance(inside, Inpainting) and torch.equal(
        inside.known, holes.operator.known[2:20, 4:30, 6:28]
    )


def test_noise_is_reproduced_too() -> None:
    config = LowFrequencies(fraction=0.5, noise=0.2)
    operator = config.operator(SIZE)
    assert operator is not None
    x = volume(1, 1, *SIZE)
    clean = config.model_copy(update={"noise": 0.0}).image(x)
    noisy = config.image(x, seed=1)
    assert error(operator, noisy, operator.A(clean)) > 0.01
    assert torch.equal(noisy, config.image(x, seed=1))
