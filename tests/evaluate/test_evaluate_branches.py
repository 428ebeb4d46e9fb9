"""Evaluation of a model of several conditions: the branches of each alone, beside all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scorefusion.evaluate.cases import find_cases
from scorefusion.evaluate.methods import check_names, model_methods
from scorefusion.evaluate.output import Store
from scorefusion.evaluate.run import Settings, evaluate, flop_of
from scorefusion.evaluate.shared_start import SharedStart
from tests.evaluate.test_evaluate import WHERE, contender, folder  # noqa: F401
from tests.evaluate.test_evaluate_case import BOTH, case_of
from tests.support.tiny import tiny_config, tiny_model


def test_branches_of_one_condition(folder: Path, tmp_path: Path) -> None:  # noqa: F811
    config = BOTH.model_copy(update={"strategies": ("single", "average", "fuse")})
    main = contender(tiny_model(config))
    methods = model_methods(main)
    names = [method.name for method in methods]
    assert names[4:6] == ["average [t1]", "average [t2]"] and "one-step average [t2]" in names
    only_t1 = contender(tiny_model(tiny_config(strategies=("average",))), "t1 alone")
    methods += model_methods(only_t1)
    check_names(methods)
    subjects = find_cases(folder / "data", config, count=1)
    results = evaluate(
        main, [only_t1], methods, subjects, Store(tmp_path), where=WHERE, settings=Settings(denoise=False)
    )
    record = results.records[0]
    # The same 2D network makes all branches, so those that see T1 are the model of T1 alone.
    assert record["average [t1]"]["psnr"] == pytest.approx(record["t1 alone"]["psnr"], abs=1e-5)
    assert len({round(record[name]["psnr"], 6) for name in record}) == len(methods) - 2
    step = flop_of(next(m for m in methods if m.name == "average"), (8, 10, 12), Settings())
    half = flop_of(next(m for m in methods if m.name == "average [t1]"), (8, 10, 12), Settings())
    assert half == pytest.approx(step / 2)


def test_averaging_branches_is_the_mean_of_their_outputs(folder: Path) -> None:  # noqa: F811
    """One evaluation is linear in the outputs: [t1] and [t2] average to all six."""
    main = contender(tiny_model(BOTH.model_copy(update={"strategies": ("average",)})))
    case = case_of(folder / "data", main.config, WHERE)
    start = SharedStart(main.model, case.prepared, case.box, seed=1)
    drawn = {
        m.name: start.draw(m.run, m.table) for m in model_methods(main) if m.run and m.kind == "one-step"
    }
    mean = (drawn["one-step average [t1]"] + drawn["one-step average [t2]"]) / 2
    torch.testing.assert_close(mean, drawn["one-step average"], rtol=1e-4, atol=1e-4)
