"""The C++ loops that exist once for each instruction set: every copy that this processor can run."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from scorefusion.ops import backends

pytestmark = pytest.mark.skipif(bool(backends.missing("cpp")), reason=str(backends.missing("cpp")))

PROGRAM = """
    import torch
    from scorefusion.ops.ensemble_features import ensemble_features
    from scorefusion.ops.norm_act import norm_act

    torch.manual_seed(0)
    for dtype, tolerance in ((torch.float32, 2e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)):
        x, other = (torch.randn(2, n, 7, 9).to(dtype) for n in (19, 29))
        weight, bias, scale, shift = torch.randn(48), torch.randn(48), torch.randn(2, 48), torch.randn(2, 48)
        for groups in (None, 6):
            given = dict(groups=groups, weight=weight, bias=bias, scale=scale, shift=shift, pad=1)
            found = norm_act(x, other, **given, backend="cpp")
            wanted = norm_act(x.float(), other.float(), **given, backend="torch")
            torch.testing.assert_close(found.float(), wanted, rtol=tolerance, atol=tolerance)
            leaves, upstream = [leaf.requires_grad_() for leaf in (x, other, weight, scale)], found
            found = torch.autograd.grad(norm_act(x, other, **given, backend="cpp"), leaves, upstream)
            wanted = norm_act(x.float(), other.float(), **given, backend="torch")
            wanted = torch.autograd.grad(wanted, leaves, upstream.float())
            for one, other_one in zip(found, wanted):
                unit = float(other_one.abs().max())
                torch.testing.assert_close(one.float(), other_one.float(), rtol=0, atol=tolerance * unit)
            x, other, weight, scale = (leaf.detach() for leaf in leaves)
        features, weight = torch.randn(4, 37, 5, 6).to(dtype), torch.randn(41, 37, 2)
        totals = [torch.zeros(1, 41, 2, 5, 6) for _ in range(2)]
        ensemble_features(totals[0], features, weight, "axial", 0, backend="cpp")
        ensemble_features(totals[1], features.float(), weight.to(dtype).float(), "axial", 0, backend="torch")
        torch.testing.assert_close(*totals, rtol=1e-4, atol=1e-4)
"""


@pytest.mark.parametrize("instructions", ["baseline", "avx2", "avx512", "all"])
def test_every_copy_of_the_loops(instructions: str) -> None:
    """A set that this processor lacks is left at the best it has."""
    environment = {**os.environ, "SCOREFUSION_CPU": instructions}
    code = textwrap.dedent(PROGRAM)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
