"""The fused score and its gradient in the maps: every backend against the definition in float64."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scorefusion.errors import ScoreFusionError
from scorefusion.ops import backends
from scorefusion.ops.fuse_scores import MAX_BRANCHES, fuse_scores

BACKENDS = [
    "torch",
    pytest.param(
        "cpp", marks=pytest.mark.skipif(bool(backends.missing("cpp")), reason=str(backends.missing("cpp")))
    ),
]
needs_triton = pytest.mark.skipif(bool(backends.missing("triton")), reason=str(backends.missing("triton")))

# Sums of up to 2 K products in float32 against float64; a gradient kept in 16 bits rounds to 2^-9 or 2^-11.
FORWARD = {"rtol": 2e-6, "atol": 4e-6}
BACKWARD = {
    torch.float32: {"rtol": 1e-6, "atol": 1e-6},
    torch.bfloat16: {"rtol": 2**-8, "atol": 1e-6},
    torch.float16: {"rtol": 2**-10, "atol": 1e-6},
}

CASES: dict[str, dict[str, Any]] = {
    "one voxel": {"shape": (1, 1, 1, 1, 1), "planes": "acs"},
    "one slice": {"shape": (1, 1, 1, 9, 7), "planes": "acs"},
    "axial": {"shape": (1, 1, 3, 5, 8), "planes": "aa"},
    "coronal": {"shape": (1, 1, 3, 5, 8), "planes": "cc"},
    "sagittal": {"shape": (1, 1, 3, 5, 8), "planes": "ss"},
    "whole tiles": {"shape": (1, 1, 2, 32, 64), "planes": "acs"},
    "odd sizes, batch": {"shape": (2, 1, 3, 19, 70), "planes": "acs"},
    "one more than a tile": {"shape": (1, 1, 1, 33, 65), "planes": "sac"},
    "one branch": {"shape": (1, 1, 2, 3, 5), "planes": "s"},
    "four branches": {"shape": (1, 1, 2, 3, 5), "planes": "acsa"},
    "five branches": {"shape": (2, 1, 2, 3, 5), "planes": "acsac"},
    "six branches": {"shape": (1, 1, 4, 17, 9), "planes": "acsacs"},
    "channels, no maps": {"shape": (2, 3, 2, 17, 5), "planes": "acs", "maps": False},
    "odd strides": {"shape": (2, 1, 3, 6, 10), "planes": "xx"},
    "bfloat16": {"shape": (1, 1, 3, 18, 20), "planes": "acs", "dtype": torch.bfloat16},
    "float16": {"shape": (1, 1, 3, 18, 20), "planes": "acs", "dtype": torch.float16},
    "float32 scores, bfloat16 maps": {
        "shape": (1, 1, 3, 18, 20),
        "planes": "acs",
        "map_dtype": torch.bfloat16,
    },
    "float16 scores, float32 maps": {
        "shape": (1, 1, 3, 18, 20),
        "planes": "acs",
        "dtype": torch.float16,
        "map_dtype": torch.float32,
    },
}


def stack(plane: str, shape: Sequence[int], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Return scores as a branch gives them, slice by slice; "x" is neither contiguous nor a stack."""
    b, c, d, h, w = shape
    if plane == "x":
        return (
            torch.randn(b, c, w, 2 * h, d, generator=generator).to(dtype)[:, :, :, ::2].permute(0, 1, 4, 3, 2)
        )
    made, axis = {"a": ((b, d, c, h, w), 2), "c": ((b, h, c, d, w), 3), "s": ((b, w, c, d, h), 4)}[plane]
    return torch.randn(made, generator=generator).to(dtype).movedim(1, axis)


def arguments(
    shape: Sequence[int],
    planes: str,
    maps: bool = True,
    dtype: torch.dtype = torch.float32,
    map_dtype: torch.dtype | None = None,
) -> tuple[list[Tensor], Tensor | None, list[float], float]:
    g = torch.Generator().manual_seed(3)
    b, _, d, h, w = shape
    count = len(planes)
    scores = [stack(plane, shape, g, dtype) for plane in planes]
    # Maps as a channels-last network gives them.
    given = torch.randn(b, d, h, w, count, generator=g).movedim(-1, 1).to(map_dtype or dtype)
    return scores, given if maps else None, [(k + 1) / count for k in range(count)], 0.8


def by_formula(scores: list[Tensor], maps: Tensor | None, base: list[float], gain: float) -> Tensor:
    """Return the paper's sum, in float64, with none of the package's code."""
    wide, count = [score.double() for score in scores], len(scores)
    if maps is None:
        return sum(weight * score for weight, score in zip(base, wide, strict=True))
    w = maps.double()[:, :, None]
    total = (base[-1] - w[:, : count - 1].sum(1)) * wide[-1] + gain * w[:, -1]
    return total + sum((base[k] + w[:, k]) * wide[k] for k in range(count - 1))


def check_case(name: str, backend: str) -> None:
    scores, maps, base, gain = arguments(**CASES[name])
    result = fuse_scores(scores, maps, base, gain, backend=backend)
    assert result.dtype == torch.float32 and result.is_contiguous()
    torch.testing.assert_close(result.double(), by_formula(scores, maps, base, gain), **FORWARD)
    if maps is None:
        return
    # An incoming gradient of odd strides, as an expanded or permuted loss would give.
    grad = torch.randn(result.shape[::-1], generator=torch.Generator().manual_seed(4)).permute(4, 3, 2, 1, 0)
    own, exact = maps.clone().requires_grad_(), maps.double().requires_grad_()
    (found,) = torch.autograd.grad(fuse_scores(scores, own, base, gain, backend=backend), own, grad)
    (expected,) = torch.autograd.grad(by_formula(scores, exact, base, gain), exact, grad.double())
    assert found.dtype == maps.dtype
    torch.testing.assert_close(found.double(), expected, **BACKWARD[maps.dtype])


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make new memory NaN, so that a voxel nobody writes shows."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(math.nan))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_matches_float64(backend: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    check_case(name, backend)


@needs_triton
def test_triton_matches_float64() -> None:
    """In a process of its own, because TRITON_INTERPRET must be set before Triton is imported."""
    program = """
        import torch
        from tests.ops import test_fuse_scores as own
        empty = torch.empty
        torch.empty = lambda *args, **kwargs: empty(*args, **kwargs).fill_(float("nan"))
        for name in own.CASES:
            try:
                own.check_case(name, "triton")
            except Exception as error:
                raise AssertionError(name) from error
        print("all match")
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "all match"


@pytest.mark.parametrize("backend", BACKENDS)
def test_known_values(backend: str) -> None:
    """Scores 2, 4, 8, base 1/4, 1/4, 1/2, weights 1, -1, residual 3 at gain 2."""
    scores = [torch.full((1, 1, 1, 1, 1), value) for value in (2.0, 4.0, 8.0)]
    base = [0.25, 0.25, 0.5]
    assert fuse_scores(scores, None, base, backend=backend).item() == 0.5 + 1.0 + 4.0
    maps = torch.tensor([1.0, -1.0, 3.0]).reshape(1, 3, 1, 1, 1).requires_grad_()
    # 5.5 + 1 (2 - 8) - 1 (4 - 8) + 2 · 3
    result = fuse_scores(scores, maps, base, 2.0, backend=backend)
    assert result.item() == 5.5 - 6.0 + 4.0 + 6.0
    assert torch.autograd.grad(result.sum(), maps)[0].flatten().tolist() == [-6.0, -4.0, 2.0]


def test_same_voxels_whatever_the_threads() -> None:
    given = arguments((1, 1, 8, 40, 70), "acs")
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(fuse_scores(*given))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 1, 2, 2, 2), (1, 1, 0, 2, 2), (1, 1, 2, 0, 2), (1, 1, 2, 2, 0)])
def test_empty(shape: tuple[int, ...], backend: str) -> None:
    scores, maps, base, gain = arguments(shape, "acs")
    assert maps is not None
    maps.requires_grad_()
    result = fuse_scores(scores, maps, base, gain, backend=backend)
    assert result.shape == shape and result.dtype == torch.float32
    result.sum().backward()
    assert maps.grad is not None and maps.grad.shape == maps.shape


def test_opcheck() -> None:
    scores, maps, base, gain = arguments((2, 1, 2, 4, 6), "acs")
    assert maps is not None
    operation = torch.ops.scorefusion.fuse_scores.default
    torch.library.opcheck(operation, (scores, maps.contiguous().requires_grad_(), base, gain, None))
    torch.library.opcheck(operation, (scores, None, base, gain, None))
    torch.library.opcheck(
        torch.ops.scorefusion.fuse_scores_backward.default, (torch.randn(2, 1, 2, 4, 6), scores, gain, None)
    )


def test_gradcheck() -> None:
    """Of the maps alone, by the operation's own backward, and of everything, through the reference."""
    scores, maps, base, gain = arguments((1, 1, 2, 2, 3), "acs")
    assert maps is not None
    wide = [score.double() for score in scores]
    exact = maps.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda given: fuse_scores(wide, given, base, gain), [exact])
    everything = [*(score.requires_grad_() for score in wide), exact]
    assert torch.autograd.gradcheck(
        lambda *given: fuse_scores(list(given[:-1]), given[-1], base, gain), everything
    )


def test_gradient_of_scores_with_another_backend_says_why() -> None:
    scores, maps, base, gain = arguments((1, 1, 2, 2, 2), "acs")
    scores[0] = scores[0].requires_grad_()
    with pytest.raises(ScoreFusionError, match="gradients of the scores has no cpp implementation"):
        fuse_scores(scores, maps, base, gain, backend="cpp")


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        (0, lambda scores: [], f"needs 1 to {MAX_BRANCHES} scores and a base weight for each; got 0 scores"),
        (0, lambda scores: scores[:2], "got 2 scores and 3 weights"),
        (
            0,
            lambda scores: [score[0] for score in scores],
            r"scores \[B, C, D, H, W\] of one shape; got \[\[1",
        ),
        (0, lambda scores: [*scores[:2], scores[2][:, :, 1:]], r"of one shape; got .*\[2, 1, 3, 4, 6\]\]"),
        (0, lambda scores: [*scores[:2], scores[2].half()], "got torch.float16 on cpu, torch.float32 on cpu"),
        (
            0,
            lambda scores: [*scores[:2], scores[2].to("meta")],
            "got torch.float32 on cpu, torch.float32 on met",
        ),
        (
            0,
            lambda scores: [score.int() for score in scores],
            "one floating dtype and device; got torch.int32",
        ),
        (
            0,
            lambda scores: [score.expand(2, 2, 4, 4, 6) for score in scores],
            "for 3 one-channel scores; got .* 2 c",
        ),
        (1, lambda maps: maps[:, 1:], r"needs maps \[2, 3, 4, 4, 6\] for 3 .*; got \[2, 2, 4, 4, 6\]"),
        (1, lambda maps: maps.to("meta"), "floating maps on cpu; got torch.float32 on meta"),
        (1, lambda maps: maps.int(), "floating maps on cpu; got torch.int32 on cpu"),
        (2, lambda base: base[:2], "got 3 scores and 2 weights"),
    ],
)
def test_rejects_bad_input(place: int, change: Any, message: str) -> None:
    given: list[Any] = list(arguments((2, 1, 4, 4, 6), "acs"))
    given[place] = change(given[place])
    with pytest.raises(ScoreFusionError, match=message):
        fuse_scores(*given)


def test_rejects_float64_elsewhere() -> None:
    scores, maps, base, gain = arguments((1, 1, 2, 2, 2), "acs")
    with pytest.raises(ScoreFusionError, match="no float64 form; torch has"):
        fuse_scores([score.double() for score in scores], maps, base, gain, backend="cpp")
