"""Strategies from a shared start are those that the pipeline draws, whatever the size of the box."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from scorefusion.data import Box, prepare_conditions
from scorefusion.evaluate.cases import Where, find_cases
from scorefusion.evaluate.methods import model_methods
from scorefusion.evaluate.output import Store
from scorefusion.evaluate.run import Settings, evaluate
from scorefusion.evaluate.shared_start import SharedStart, strategy_runs
from scorefusion.models.config import TimeConfig, UNetConfig
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.models.table import table_for
from tests.evaluate.test_evaluate import contender, folder  # noqa: F401
from tests.evaluate.test_evaluate_case import case_of
from tests.support.drawing import drawn
from tests.support.tiny import tiny_config, tiny_model

STRATEGIES = ("alternate", "average", "fuse+features")


@pytest.fixture(scope="module")
def model() -> ScoreFusion:
    """Its networks take multiples of 8."""
    network = UNetConfig(
        widths=(8, 8), blocks=1, norm="channel", patch=4, time=TimeConfig(channels=8, hidden=8)
    )
    config = tiny_config(
        slice_networks={"slice": network}, fusion=network, feature_scales=(4, 8), strategies=STRATEGIES
    )
    assert config.multiple == 8
    return tiny_model(config)


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ((20, 20, 20), Box((0, 0, 0), (20, 20, 20))),
        ((24, 28, 20), Box((2, 4, 0), (22, 24, 20))),
    ],
    ids=["beyond the volume", "into the volume and beyond"],
)
def test_draws_what_the_pipeline_draws(model: ScoreFusion, shape: tuple[int, int, int], box: Box) -> None:
    coarse = torch.rand(1, 1, *(n // 2 for n in shape), generator=torch.Generator().manual_seed(0))
    prepared, table = prepare_conditions([coarse], model.config), table_for(model.config, steps=2)
    shared = SharedStart(model, prepared, box, seed=3)
    for run in strategy_runs(model.config):
        plain = drawn(model, prepared, box, table, strategy=run.strategy, planes=run.planes, seed=3)
        found = shared.draw(run, table)
        assert found.shape[2:] == box.size
        torch.testing.assert_close(
            found, plain, rtol=1e-5, atol=1e-5, msg=lambda text, n=run.name: f"{n}: {text}"
        )


def test_another_model_of_larger_patches(model: ScoreFusion, folder: Path, tmp_path: Path) -> None:  # noqa: F811
    """The first model's box is no multiple of the other's patches; the row has its size all the same."""
    main, other = contender(tiny_model()), contender(model, "other")
    where, size = Where((12, 10, 12)), (12, 10, 12)
    methods = [method for method in model_methods(other) if method.name == "other average"]
    subjects, store = find_cases(folder / "data", main.config, count=1), Store(tmp_path)
    settings = Settings(seed=3, denoise=False)
    results = evaluate(main, [other], methods, subjects, store, where=where, settings=settings)
    known = case_of(folder / "data", main.config, where)
    plain = drawn(model, known.prepared, known.box, methods[0].table, strategy="average", seed=3)
    found = store.volume(results.keys[0]["other average"])
    assert found.shape == size == known.box.size
    np.testing.assert_allclose(found, known.seen_by(model.config).volume(plain), atol=2e-3)
