"""Operations that write into tensors given to them, so that a step allocates nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from scorefusion.errors import ScoreFusionError
from scorefusion.ops.fuse_step import fuse_step
from scorefusion.ops.gather_slices import gather_slices
from scorefusion.ops.reference.planes import AXIS
from tests.ops.test_fuse_step import BACKENDS, arguments
from tests.ops.test_gather_slices import SLABS, volumes


@pytest.mark.parametrize("backend", BACKENDS)
def test_fuse_step(backend: str) -> None:
    given = arguments((2, 1, 2, 4, 6), "acs", factor=(2, 2, 2), measured=True)
    out = torch.full((2, *given["x_t"].shape), math.nan).unbind()
    results = fuse_step(**given, out=out, backend=backend)
    for result, place, expected in zip(results, out, fuse_step(**given, backend=backend), strict=True):
        assert result is place and torch.equal(result, expected)
    for wrong, message in (
        ((out[0], given["x0_prev"]), "cannot write over what it reads"),
        ((out[0], out[0]), "cannot write over what it reads"),
        ((out[0], out[1].double()), "out of two tensors .* in torch.float32 on cpu; got .* in torch.float64"),
        ((out[0][:1], out[1]), r"out of two tensors \[2, .*got \[1, "),
        ((out[0].mT.contiguous().mT, out[1]), "contiguous out; got strides"),
    ):
        with pytest.raises(ScoreFusionError, match=message):
            fuse_step(**given, out=wrong, backend=backend)
    given["x_t"].requires_grad_()
    with pytest.raises(ScoreFusionError, match="no gradient where it writes into out"):
        fuse_step(**given, out=out)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("plane", AXIS)
def test_gather_slices(backend: str, plane: str) -> None:
    x_t, condition, common = volumes(SLABS["odd"])
    arguments: dict[str, Any] = {"context": 2, "dtype": torch.bfloat16, "backend": backend}
    expected = gather_slices(x_t, condition, common, plane, 1, 4, **arguments)
    out = torch.full_like(expected, math.nan)
    assert gather_slices(x_t, condition, common, plane, 1, 4, out=out, **arguments) is out
    torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)
    with pytest.raises(ScoreFusionError, match=r"needs out \[.*bfloat16 on cpu; got .*bfloat16"):
        gather_slices(x_t, condition, common, plane, 1, 5, out=out, **arguments)
    with pytest.raises(ScoreFusionError, match="needs out .*float32"):
        gather_slices(x_t, condition, common, plane, 1, 4, out=out, **{**arguments, "dtype": torch.float32})
    with pytest.raises(ScoreFusionError, match="channels last"):
        gather_slices(x_t, condition, common, plane, 1, 4, out=out.contiguous(), **arguments)
    with pytest.raises(ScoreFusionError, match="no gradient where it writes"):
        gather_slices(x_t.requires_grad_(), condition, common, plane, 1, 4, out=out, **arguments)
