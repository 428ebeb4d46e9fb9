"""How 2D networks run, by name: each draws what the eager one draws, and a wrong name is refused."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from scorefusion.engine.pool import EnginePool
from scorefusion.engine.prepack import packed_layers
from scorefusion.engine.runners import choose_runner
from scorefusion.errors import ScoreFusionError
from scorefusion.models.table import table_for
from tests.engine.test_engine import condition_of, model_of, preset


def drawn(runner: str) -> Tensor:
    model = model_of(preset("small"))
    pool = EnginePool(model, runner=runner)
    with pool.borrow((4, 8, 8), strategy="average") as engine:
        assert {each.name for each in engine.runners.values()} == {runner}
        if runner == "compile":
            assert not packed_layers(engine.model)
        engine.load(condition_of(model.config, (4, 8, 8)))
        return engine.run(table_for(model.config, steps=2), [0])


def test_compiled_draws_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced as torch.compile does, then run by PyTorch's own kernels: compiling takes a minute."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch.testing.assert_close(drawn("compile"), drawn("eager"), rtol=1e-4, atol=1e-5)


def test_names() -> None:
    assert choose_runner("auto", torch.device("cpu"))[0] == "eager"
    assert choose_runner("auto", torch.device("cuda"), engines=True)[0] == "tensorrt"
    with pytest.raises(ScoreFusionError, match="unknown runner 'tensort'.*'tensorrt'"):
        choose_runner("tensort", torch.device("cpu"))
    model = model_of(preset("small"))
    with (
        pytest.raises(ScoreFusionError, match="needs a folder of engines; make one with"),
        EnginePool(model, runner="tensorrt").borrow((4, 8, 8), strategy="average"),
    ):
        pass
