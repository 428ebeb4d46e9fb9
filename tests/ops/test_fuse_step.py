"""One solver step: every backend against the definition in float64, and noise that is the same bits."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scorefusion.degradations import Pooling, Projection
from scorefusion.diffusion.sample import sample
from scorefusion.diffusion.schedule import paper_sampling
from scorefusion.diffusion.solvers import make_table
from scorefusion.errors import ScoreFusionError
from scorefusion.ops import backends, normal
from scorefusion.ops.fuse_step import fuse_step
from scorefusion.ops.noise import noise_keys

BACKENDS = [
    "torch",
    pytest.param(
        "cpp", marks=pytest.mark.skipif(bool(backends.missing("cpp")), reason=str(backends.missing("cpp")))
    ),
]
needs_triton = pytest.mark.skipif(bool(backends.missing("triton")), reason=str(backends.missing("triton")))

# Sums of K products in float32 against float64; x' adds four terms of the same size. The scores' own
# rounding to 16 bits is in the oracle's input too, so it does not loosen anything.
TOLERANCE = {"rtol": 2e-6, "atol": 4e-6}

SEEDS = [-3, 2**40 + 1]
EVERYTHING = (1.2, -0.7, 0.6, 0.5, -0.3, 0.4)
CASES: dict[str, dict[str, Any]] = {
    "one voxel": {"shape": (1, 1, 1, 1, 1), "planes": "axx"},
    "one slice, no projection": {"shape": (1, 1, 1, 7, 9), "planes": "acs"},
    "axial only": {"shape": (1, 1, 4, 8, 12), "planes": "aa", "factor": (4, 4, 4)},
    "coronal only": {"shape": (1, 1, 4, 8, 12), "planes": "cc", "factor": (4, 4, 4)},
    "sagittal only": {"shape": (1, 1, 4, 8, 12), "planes": "ss", "factor": (4, 4, 4)},
    "batch, two tiles each way": {"shape": (2, 1, 2, 34, 66), "planes": "acs", "factor": (2, 2, 2)},
    "odd sizes, unaligned origin": {"shape": (2, 1, 3, 21, 67), "planes": "acs", "origin": (1, 2, 3)},
    "factor 3, last partial tile": {"shape": (1, 1, 3, 18, 66), "planes": "acs", "factor": (3, 3, 3)},
    "slices, measured": {"shape": (1, 1, 10, 6, 5), "planes": "ac", "factor": (5, 1, 1), "measured": True},
    "in-plane, measured": {"shape": (2, 1, 2, 6, 8), "planes": "as", "factor": (1, 2, 4), "measured": True},
    "blocks larger than a tile": {"shape": (1, 1, 2, 40, 140), "planes": "as", "factor": (2, 20, 70)},
    "six branches": {"shape": (1, 1, 4, 8, 8), "planes": "acsacs", "factor": (4, 4, 4)},
    "five branches, no maps": {"shape": (1, 1, 2, 5, 7), "planes": "acsac", "maps": False},
    "channels, no maps": {"shape": (2, 3, 2, 4, 6), "planes": "acs", "maps": False, "factor": (2, 2, 2)},
    "one branch": {"shape": (1, 1, 2, 4, 6), "planes": "s"},
    "odd strides": {"shape": (1, 1, 4, 6, 10), "planes": "xxx", "factor": (2, 2, 2), "measured": True},
    "no clamp": {"shape": (1, 1, 2, 4, 6), "planes": "acs", "clamp": None, "factor": (2, 2, 2)},
    "bfloat16": {"shape": (1, 1, 4, 20, 20), "planes": "acs", "factor": (4, 4, 4), "dtype": torch.bfloat16},
    "float16": {"shape": (1, 1, 4, 20, 20), "planes": "acs", "factor": (4, 4, 4), "dtype": torch.float16},
    "deterministic row": {"shape": (1, 1, 4, 8, 8), "planes": "acs", "row": (1.2, -0.7, 0.6, 0.5, 0.0, 0.0)},
    "last row": {"shape": (1, 1, 4, 8, 8), "planes": "acs", "row": (1.2, -0.7, 0.0, 1.0, 0.0, 0.0)},
}


def stack(plane: str, shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Return scores as a branch gives them, slice by slice; "x" is neither contiguous nor a stack."""
    b, c, d, h, w = shape
    if plane == "x":
        return (
            torch.randn(b, c, w, 2 * h, d, generator=generator).to(dtype)[:, :, :, ::2].permute(0, 1, 4, 3, 2)
        )
    made, axis = {
        "a": ((b, d, c, h, w), 2),
        "c": ((b, h, c, d, w), 3),
        "s": ((b, w, c, d, h), 4),
    }[plane]
    return torch.randn(made, generator=generator).to(dtype).movedim(1, axis)


def arguments(
    shape: tuple[int, ...],
    planes: str,
    *,
    maps: bool = True,
    factor: tuple[int, int, int] = (1, 1, 1),
    measured: bool = False,
    clamp: float | None = 1.0,
    origin: tuple[int, int, int] = (0, 0, 0),
    row: tuple[float, ...] = EVERYTHING,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    g = torch.Generator().manual_seed(7)
    b, c, d, h, w = shape
    count = len(planes)
    coarse = [length // edge for length, edge in zip((d, h, w), factor, strict=True)]
    return {
        "scores": [stack(plane, shape, g, dtype) for plane in planes],
        "maps": torch.randn(b, count, d, h, w, generator=g).to(dtype) if maps else None,
        "base": [(k + 1) / count for k in range(count)],
        "gain": 0.8,
        "x_t": torch.randn(b, c, w, h, d, generator=g).transpose(2, 4),
        "x0_prev": torch.randn(shape, generator=g),
        "rows": torch.tensor([[0.0] * 6, list(row)]),
        "index": torch.tensor([1], dtype=torch.int32),
        "keys": noise_keys(SEEDS[:b], sample=5, origin=origin),
        "clamp": clamp,
        "factor": factor,
        "measured": torch.randn(b, c, *coarse[::-1], generator=g).transpose(2, 4) if measured else None,
    }


def exactly(given: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the step in float64."""
    wide = {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in given.items()
    }
    wide["scores"] = [score.double() for score in given["scores"]]
    return fuse_step(**wide, backend="torch")


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make new memory NaN, so that a voxel nobody writes shows."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(math.nan))


def check_case(name: str, backend: str) -> None:
    given = arguments(**CASES[name])
    results = fuse_step(**given, backend=backend)
    for result, expected in zip(results, exactly(given), strict=True):
        assert result.dtype == torch.float32 and result.is_contiguous()
        torch.testing.assert_close(result.double(), expected, **TOLERANCE)


def check_noise(backend: str) -> None:
    """A row of S = 1 alone must give the very bits of `normal`, whatever the place, width and factor."""
    for shape, origin, factor in (
        ((1, 1, 4, 4, 8), (0, 0, 0), (4, 4, 4)),
        ((2, 3, 2, 5, 67), (3, 1, 2), (1, 1, 1)),
        ((1, 1, 3, 6, 9), (1, 0, 5), (3, 3, 3)),
        ((1, 1, 2, 2, 130), (2**16 - 2, 2**16 - 2, 2**18 - 130), (1, 2, 2)),
    ):
        given = arguments(shape, "acs", maps=False, origin=origin, factor=factor, row=(0, 0, 0, 0, 0, 1))
        x_next, _ = fuse_step(**given, backend=backend)
        expected = normal(shape, SEEDS[: shape[0]], 2, origin=origin, sample=5, backend="torch")
        assert torch.equal(x_next.view(torch.int32), expected.view(torch.int32)), (shape, origin, factor)
    # Items that differ in seed, sample and place, aligned and not.
    keys = torch.tensor([[-1, 2**32 - 1, 0, 5, 4], [7, 0, 9, 0, 2**18 - 9], [2**62, 3, 1, 2, 3]])
    given = arguments((3, 2, 2, 3, 9), "acs", maps=False, row=(0, 0, 0, 0, 0, 1))
    x_next, _ = fuse_step(**{**given, "keys": keys}, backend=backend)
    for item, (seed, index, *origin) in enumerate(keys.tolist()):
        expected = normal((1, 2, 2, 3, 9), [seed], 2, origin=origin, sample=index, backend="torch")
        assert torch.equal(x_next[item : item + 1].view(torch.int32), expected.view(torch.int32)), item


def check_skipping(backend: str) -> None:
    """A zero coefficient keeps infinity and NaN out, and its neighbours in."""
    for row, poisoned in (
        ((1.2, -0.7, 0.6, 0.5, 0.0, 0.4), ("x0_prev",)),
        ((1.2, -0.7, 0.0, 1.0, 0.0, 0.0), ("x0_prev",)),
        ((1.2, -0.7, 0.6, 0.5, 0.3, 0.0), ()),
    ):
        given = arguments((1, 1, 4, 5, 9), "acs", row=row)
        expected = exactly(given)
        for name in poisoned:
            given[name] = torch.full_like(given[name], math.nan)
            given[name][..., ::2] = math.inf
        for result, wanted in zip(fuse_step(**given, backend=backend), expected, strict=True):
            torch.testing.assert_close(result.double(), wanted, **TOLERANCE)
    given = arguments((1, 1, 2, 3, 5), "acs")
    given["x_t"][0, 0, 1, 2, 3] = math.nan
    for result in fuse_step(**given, backend=backend):
        assert result.isnan().nonzero().tolist() == [[0, 0, 1, 2, 3]]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_matches_float64(backend: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    check_case(name, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_noise_is_the_same_bits(backend: str) -> None:
    check_noise(backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_coefficients_are_left_out(backend: str) -> None:
    check_skipping(backend)


@needs_triton
def test_triton_matches_float64() -> None:
    """In a process of its own, because TRITON_INTERPRET must be set before Triton is imported."""
    program = """
        import torch
        from tests.ops import test_fuse_step as own
        empty = torch.empty
        torch.empty = lambda *args, **kwargs: empty(*args, **kwargs).fill_(float("nan"))
        for name in own.CASES:
            try:
                own.check_case(name, "triton")
            except Exception as error:
                raise AssertionError(name) from error
        own.check_noise("triton")
        own.check_skipping("triton")
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
    """Two voxels by hand: m = (s1 + s2)/2 + w (s1 - s2) + 2 r, blocks of two along x, measured mean 1/4."""
    one = {"dtype": torch.float32}
    s1, s2 = torch.tensor([2.0, 4.0], **one), torch.tensor([0.0, 2.0], **one)
    w, r = torch.tensor([0.25, -0.5], **one), torch.tensor([0.125, 0.25], **one)
    volume = (1, 1, 1, 1, 2)
    # m = 1 + 0.5 + 0.25, 3 - 1 + 0.5 = 1.75, 2.5; x0 = 2 (1, 2) - m = 0.25, 1.5 -> clamped 0.25, 1.
    # Their mean 0.625 becomes 0.25: x0 = -0.125, 0.625; x' = 3 x_t + 4 x0 - (8, 16).
    x_next, x0 = fuse_step(
        [s1.reshape(volume), s2.reshape(volume)],
        torch.stack([w, r]).reshape(1, 2, 1, 1, 2),
        [0.5, 0.5],
        2.0,
        torch.tensor([1.0, 2.0]).reshape(volume),
        torch.tensor([8.0, 16.0]).reshape(volume),
        torch.tensor([[2.0, -1.0, 3.0, 4.0, -1.0, 0.0]]),
        torch.tensor(0, dtype=torch.int32),
        noise_keys([0]),
        clamp=1.0,
        factor=(1, 1, 2),
        measured=torch.tensor(0.25).reshape(1, 1, 1, 1, 1),
        backend=backend,
    )
    assert x0.flatten().tolist() == [-0.125, 0.625]
    assert x_next.flatten().tolist() == [3.0 - 0.5 - 8.0, 6.0 + 2.5 - 16.0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("solver", ["ddpm", "dpmpp_2m", "dpmpp_2m_sde"])
def test_is_the_sampling_loop(backend: str, solver: str) -> None:
    """Stepping through a table gives what `sample` gives, with its clamp, projection and noise."""
    table = make_table(solver, 6, schedule=paper_sampling(), start_abar=0.4)
    g = torch.Generator().manual_seed(1)
    shape, seeds, origin = (2, 1, 4, 6, 10), [11, -5], (1, 2, 3)
    target, measured = torch.randn(shape, generator=g), torch.randn((2, 1, 2, 3, 5), generator=g)
    expected = sample(
        lambda x_t, level: 0.3 * x_t + 0.1 * target,
        target,
        table,
        seeds=seeds,
        origin=origin,
        sample=2,
        clamp=1.0,
        project=Projection(Pooling(2), measured),
    )
    x = math.sqrt(1.0 - table.abar_start) * normal(shape, seeds, 0, origin=origin, sample=2)
    x0, rows = x, torch.tensor(table.rows[:, 2:]).float()
    for index in range(len(table)):
        x, x0 = fuse_step(
            [0.3 * x + 0.1 * target],
            None,
            [1.0],
            1.0,
            x,
            x0,
            rows,
            torch.tensor([index], dtype=torch.int32),
            noise_keys(seeds, sample=2, origin=origin),
            clamp=1.0,
            factor=(2, 2, 2),
            measured=measured,
            backend=backend,
        )
    # Six steps, each rounded in another order.
    torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-5)


def test_same_voxels_whatever_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    given = arguments((1, 1, 8, 40, 70), "acs", factor=(2, 2, 2))
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(fuse_step(**given)[0])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 1, 2, 2, 2), (1, 1, 0, 2, 2), (1, 1, 2, 2, 0)])
def test_empty(shape: tuple[int, ...], backend: str) -> None:
    for result in fuse_step(**arguments(shape, "acs"), backend=backend):
        assert result.shape == shape and result.dtype == torch.float32


def test_opcheck() -> None:
    given = arguments((2, 1, 2, 4, 6), "acs", factor=(2, 2, 2), measured=True)
    torch.library.opcheck(torch.ops.scorefusion.fuse_step.default, (*given.values(), None))
    out = torch.zeros(2, *given["x_t"].shape).unbind()
    torch.library.opcheck(torch.ops.scorefusion.fuse_step_into.default, (*out, *given.values(), None))


def test_gradcheck() -> None:
    """Through the reference; the clamp is wide so that nothing sits on its corner."""
    given = arguments((1, 1, 2, 2, 2), "acs", factor=(2, 1, 1), measured=True, clamp=50.0)
    names = ("maps", "x_t", "x0_prev", "measured")

    def run(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        changed = {**given, **dict(zip(names, tensors[3:], strict=True))}
        return fuse_step(**{**changed, "scores": list(tensors[:3]), "rows": given["rows"].double()})

    inputs = [tensor.double() for tensor in (*given["scores"], *(given[name] for name in names))]
    assert torch.autograd.gradcheck(run, [tensor.requires_grad_() for tensor in inputs])


def test_gradient_with_another_backend_says_why() -> None:
    given = arguments((1, 1, 2, 2, 2), "acs")
    given["x_t"].requires_grad_()
    with pytest.raises(ScoreFusionError, match="fuse_step with gradients has no cpp implementation"):
        fuse_step(**given, backend="cpp")


def replaced(name: str, change: Any) -> dict[str, Any]:
    given = arguments((2, 1, 4, 4, 6), "acs")
    return {**given, name: change(given[name])}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("scores", lambda s: [*s[:2], s[2][..., :-1]], r"of one shape; got \[\[2, 1, 4, 4, 6\]"),
        ("scores", lambda s: [*s[:2], s[2].half()], "one floating dtype and device; got torch.fl"),
        ("scores", lambda scores: scores[:2], "got 2 scores and 3 weights"),
        ("maps", lambda maps: maps[:, :2], r"needs maps \[2, 3, 4, 4, 6\] for 3 .* got \[2, 2, 4, 4, 6\]"),
        ("maps", lambda maps: maps.to("meta"), "floating maps on cpu; got torch.float32 on meta"),
        ("x_t", lambda x: x[:, :, 1:], r"x_t of the scores' shape \[2, 1, 4, 4, 6\]; got \[2, 1, 3, 4, 6\]"),
        ("x_t", lambda x: x.to("meta"), "needs x_t on cpu; it is on meta"),
        ("x0_prev", lambda x: x.double(), "got torch.float32 and torch.float64"),
        ("x0_prev", lambda x: x[:1], r"x0_prev of the scores' shape"),
        (
            "rows",
            lambda rows: rows[:, :5],
            r"rows \[n, 6\] \(P, Q, A, B, C, S\) in torch.float32; got \[2, 5\]",
        ),
        ("rows", lambda rows: rows.double(), "in torch.float32; got .* in torch.float64"),
        ("rows", lambda rows: rows.to("meta"), "needs rows on cpu; it is on meta"),
        ("index", lambda index: index.long(), r"int32 index of one element; got \[1\] in torch.int64"),
        ("index", lambda index: index + 1, "has 2 rows, from 0; got index 2"),
        ("index", lambda index: index - 2, "got index -1"),
        (
            "keys",
            lambda k: k[:1],
            r"int64 keys \[2, 5\] \(seed, sample, z, y, x\); got \[1, 5\] in torch.int64",
        ),
        ("keys", lambda keys: keys.int(), "got .* in torch.int32"),
        ("keys", lambda keys: keys.to("meta"), "needs keys on cpu; it is on meta"),
        ("keys", lambda keys: keys + 2**18, "fuse_step counts z below 65536, but the box ends at 262148"),
        ("keys", lambda keys: keys - 6, r"fuse_step sample must be within \[0, 2\^32\), got -1"),
        ("keys", lambda keys: keys - 1, "fuse_step origin must be .*, none negative, got"),
        ("clamp", lambda clamp: 0.0, "a positive clamp or None; got 0.0"),
        ("factor", lambda factor: (4, 4), r"three edges of at least 1; got \[4, 4\]"),
        ("factor", lambda factor: (4, 4, 4), "4 x 4 x 6 voxels is not a whole number of 4 x 4 x 4 blocks"),
        ("measured", lambda measured: torch.zeros(2, 1, 4, 4, 6), "with a factor above 1 only"),
    ],
)
def test_rejects_bad_input(name: str, change: Any, message: str) -> None:
    with pytest.raises(ScoreFusionError, match=message):
        fuse_step(**replaced(name, change))


def test_rejects_bad_measured() -> None:
    given = arguments((2, 1, 4, 4, 6), "acs", factor=(2, 2, 2), measured=True)
    with pytest.raises(ScoreFusionError, match=r"needs measured \[2, 1, 2, 2, 3\]; got \[2, 1, 2, 2, 2\]"):
        fuse_step(**{**given, "measured": given["measured"][..., :2]})
    with pytest.raises(ScoreFusionError, match="measured means on cpu; got torch.int64 on cpu"):
        fuse_step(**{**given, "measured": given["measured"].long()})


def test_rejects_float64_elsewhere() -> None:
    given = arguments((1, 1, 2, 2, 2), "acs")
    given["scores"] = [score.double() for score in given["scores"]]
    with pytest.raises(ScoreFusionError, match="no float64 form; torch has"):
        fuse_step(**given, backend="cpp")
