"""Counter-based noise: published vectors, moments, and the same bits for a voxel whatever surrounds it."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import textwrap
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from scorefusion.errors import ScoreFusionError
from scorefusion.ops import backends, normal
from scorefusion.ops.noise import noise_keys
from scorefusion.ops.reference import noise as reference

CPU_BACKENDS = [
    "torch",
    pytest.param(
        "cpp", marks=pytest.mark.skipif(bool(backends.missing("cpp")), reason=str(backends.missing("cpp")))
    ),
]
needs_triton = pytest.mark.skipif(bool(backends.missing("triton")), reason=str(backends.missing("triton")))

SHAPES = {
    "minimal": ((1, 1, 1, 1, 1), (0, 0, 0)),
    "odd": ((2, 3, 3, 5, 7), (1, 2, 3)),
    "aligned": ((1, 2, 2, 3, 8), (0, 1, 4)),
    "long row": ((1, 1, 1, 2, 600), (0, 0, 1)),
    "last voxel": ((1, 1, 1, 1, 5), (2**16 - 1, 2**16 - 1, 2**18 - 5)),
}


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.view(torch.int32), b.view(torch.int32))


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
    ids=["zeros", "ones", "pi digits"],
)
def test_published_philox_vectors(counter: list[int], key: list[int], expected: list[int]) -> None:
    """The philox4x32-10 lines of Random123's kat_vectors."""
    c0, c1, c2, c3 = (torch.tensor([word]) for word in counter)
    words = reference.philox((c0, c1, c2, c3), (torch.tensor([key[0]]), torch.tensor([key[1]])))
    assert [int(word) for word in words] == expected


def test_published_vector_reaches_the_voxels() -> None:
    """Counter and key of zeros: the first four voxels of seed 0, by textbook Box-Muller in float64."""
    words = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    expected = []
    for first, second in (words[:2], words[2:]):
        radius = math.sqrt(-2.0 * math.log((first + 0.5) / 2**32))
        angle = 2.0 * math.pi * second / 2**32
        expected += [radius * math.cos(angle), radius * math.sin(angle)]
    assert normal((1, 1, 1, 1, 4), [0], 0).flatten().tolist() == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_polynomials_are_accurate() -> None:
    words = torch.cat(
        (torch.randint(0, 2**32, (200_000,)), torch.tensor([0, 1, 2**32 - 1, 2**31, 2**30, 2**29]))
    )
    first, second = reference.box_muller(words, words.flip(0))
    u = (words.double() + 0.5) * 2.0**-32
    radius, angle = torch.sqrt(-2.0 * torch.log(u)), words.flip(0).double() * (2.0 * math.pi / 2**32)
    # Near u = 1 the float32 u itself is rounded by 3e-8, which moves the radius by up to 3.5e-4 there.
    tolerance = 1e-6 + torch.where(u > 0.999, 4e-4, 0.0)
    assert bool(((first - radius * torch.cos(angle)).abs() <= tolerance).all())
    assert bool(((second - radius * torch.sin(angle)).abs() <= tolerance).all())


def test_square_root_is_correctly_rounded() -> None:
    x = torch.rand(200_000) * 46.0
    assert np.array_equal(
        reference._sqrt(x).numpy(), np.sqrt(x.numpy().astype(np.float64)).astype(np.float32)
    )


@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_matches_reference(backend: str, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shape, origin = SHAPES[case]
    seeds = [-1, 2**63 + 12345][: shape[0]]
    expected = reference.normal(shape, seeds, 2**32 - 1, origin, 7, torch.device("cpu"))
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(math.nan))
    result = normal(shape, seeds, 2**32 - 1, origin=origin, sample=7, backend=backend)
    assert result.dtype == torch.float32 and result.is_contiguous()
    assert same_bits(result, expected)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_same_bits_whatever_the_crop(backend: str) -> None:
    whole = normal((1, 2, 9, 10, 19), [42], 3, origin=(5, 6, 7), backend=backend)
    for z, y, x, d, h, w in (
        (0, 0, 0, 9, 10, 19),
        (2, 3, 1, 4, 5, 6),
        (8, 9, 18, 1, 1, 1),
        (1, 1, 5, 3, 2, 13),
    ):
        crop = normal((1, 2, d, h, w), [42], 3, origin=(5 + z, 6 + y, 7 + x), backend=backend)
        assert same_bits(crop, whole[:, :, z : z + d, y : y + h, x : x + w].contiguous())


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_same_bits_whatever_the_batch_and_threads(backend: str) -> None:
    seeds = [3, -7, 2**40]
    batch = normal((3, 1, 16, 33, 61), seeds, 1, backend=backend)
    threads = torch.get_num_threads()
    try:
        for count, (item, seed) in enumerate(enumerate(seeds), start=1):
            torch.set_num_threads(count)
            assert same_bits(normal((1, 1, 16, 33, 61), [seed], 1, backend=backend), batch[item : item + 1])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_a_sample_for_each_item(backend: str) -> None:
    shape, seeds, samples = (2, 3, 5, 11), [3, 3, -7], range(2**32 - 3, 2**32)
    batch = normal((3, *shape), seeds, 4, origin=(1, 2, 3), sample=samples, backend=backend)
    for item, (seed, sample) in enumerate(zip(seeds, samples, strict=True)):
        one = normal((1, *shape), [seed], 4, origin=(1, 2, 3), sample=sample, backend="torch")
        assert same_bits(one, batch[item : item + 1])
    assert not same_bits(batch[:1], batch[1:2])


def test_keys_of_a_step() -> None:
    keys = noise_keys([-1, 2**64 - 1, 2**63, 5], sample=[0, 1, 2, 2**32 - 1], origin=(7, 8, 9))
    assert keys.dtype == torch.int64
    assert keys.tolist() == [
        [-1, 0, 7, 8, 9],
        [-1, 1, 7, 8, 9],
        [-(2**63), 2, 7, 8, 9],
        [5, 2**32 - 1, 7, 8, 9],
    ]
    assert noise_keys([]).shape == (0, 5)
    for wrong, message in (
        ({"seeds": [2**64]}, "a seed must be within"),
        ({"sample": [1, 2]}, "a sample for each of 1 items, or one; got 2"),
        ({"sample": -1}, "noise sample must be within"),
        ({"origin": (0, 0, -1)}, "none negative"),
    ):
        with pytest.raises(ScoreFusionError, match=message):
            noise_keys(**{"seeds": [0], **wrong})


def test_every_part_of_the_counter_matters() -> None:
    shape = (1, 2, 3, 4, 8)
    base = normal(shape, [1], 1)
    others = [
        normal(shape, [2], 1),
        normal(shape, [1 + 2**32], 1),
        normal(shape, [1], 2),
        normal(shape, [1], 1, sample=1),
        *(normal(shape, [1], 1, origin=origin) for origin in ((3, 0, 0), (0, 4, 0), (0, 0, 8))),
    ]
    for other in others:
        assert not bool((other == base).any())
    assert not bool((base[:, 0] == base[:, 1]).any())


def test_seeds_are_64_bits() -> None:
    shape = (1, 1, 2, 2, 4)
    assert same_bits(normal(shape, [-1], 0), normal(shape, [2**64 - 1], 0))
    assert same_bits(normal(shape, [-(2**63)], 0), normal(shape, [2**63], 0))
    assert not same_bits(normal(shape, [2**32], 0), normal(shape, [0], 0))


def test_is_standard_normal() -> None:
    """A million draws: moments within five standard errors, and a Kolmogorov-Smirnov test."""
    stats = pytest.importorskip("scipy.stats")
    z = normal((1, 1, 96, 112, 96), [2024], 0).flatten().double()
    n = z.numel()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((z**power).mean()) - moment) < 5.0 * math.sqrt(variance / n)
    assert stats.kstest(z.numpy(), "norm").pvalue > 1e-3
    assert 4.4 < float(z.abs().max()) < 6.8


def test_neighbours_and_steps_are_uncorrelated() -> None:
    a, b = (normal((1, 2, 32, 32, 64), [5], step)[0].double() for step in (0, 1))
    pairs = [(a, b), (a[0], a[1]), (a[..., 1:], a[..., :-1]), (a[..., 4:], a[..., :-4])]
    pairs += [(a[:, 1:], a[:, :-1]), (a[:, :, 1:], a[:, :, :-1])]
    for left, right in pairs:
        assert abs(float((left * right).mean())) < 5.0 / math.sqrt(left.numel())


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("shape", [(0, 1, 2, 2, 2), (1, 0, 2, 2, 2), (1, 1, 0, 2, 2), (1, 1, 2, 2, 0)])
def test_empty(shape: tuple[int, ...], backend: str) -> None:
    assert normal(shape, [0] * shape[0], 0, backend=backend).shape == shape


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": (1, 4, 4, 4)}, r"\[B, C, D, H, W\], got \[1, 4, 4, 4\]"),
        ({"seeds": [1, 2]}, "1 items, 2 seeds"),
        ({"seeds": [2**64]}, "a seed must be within"),
        ({"seeds": [-(2**63) - 1]}, "a seed must be within"),
        ({"step": -1}, "noise step must be within"),
        ({"step": 2**32}, "noise step must be within"),
        ({"sample": -1}, "noise sample must be within"),
        ({"origin": (0, -1, 0)}, "none negative"),
        ({"origin": (2**16 - 1, 0, 0)}, "z below 65536, but the box ends at 65537"),
        ({"origin": (0, 2**16, 0)}, "y below 65536"),
        ({"origin": (0, 0, 2**18 - 1)}, "x below 262144"),
        ({"shape": (1, 2**16 + 1, 1, 1, 1)}, "channel below 65536"),
        ({"backend": "opencl"}, "unknown backend 'opencl'"),
    ],
)
def test_rejects_bad_input(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"shape": (1, 1, 2, 2, 2), "seeds": [0], "step": 0, **changes}
    with pytest.raises(ScoreFusionError, match=message):
        normal(arguments.pop("shape"), arguments.pop("seeds"), arguments.pop("step"), **arguments)


def test_backend_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, both = torch.device("cpu"), ("torch", "cpp")
    monkeypatch.delenv(backends.VARIABLE, raising=False)
    monkeypatch.setattr(
        backends, "_missing", lambda name: None if name != "triton" else "triton is not installed"
    )
    assert backends.choose("noise", cpu, None, both) == "cpp"
    assert backends.choose("noise", cpu, None, ("torch",)) == "torch"
    assert backends.choose("noise", torch.device("cuda"), None, ("torch", "cpp", "triton")) == "torch"
    monkeypatch.setenv(backends.VARIABLE, "torch")
    assert backends.choose("noise", cpu, None, both) == "torch"
    with backends.use_backend("cpp"):
        assert backends.choose("noise", cpu, None, both) == "cpp"
        assert backends.choose("noise", cpu, "torch", both) == "torch"
    assert backends.choose("noise", cpu, None, both) == "torch"


def test_impossible_backend_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, every = torch.device("cpu"), ("torch", "cpp", "triton")
    monkeypatch.setattr(
        backends, "_missing", lambda name: "the C++ extension is not built" if name == "cpp" else None
    )
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(
        ScoreFusionError, match="the call asks for backend 'cpp', but the C\\+\\+ extension is not"
    ):
        backends.choose("noise", cpu, "cpp", every)
    with pytest.raises(ScoreFusionError, match="needs tensors on cuda, and these are on cpu"):
        backends.choose("noise", cpu, "triton", every)
    monkeypatch.setenv(backends.VARIABLE, "cpp")
    with pytest.raises(
        ScoreFusionError, match="SCOREFUSION_BACKEND asks for backend 'cpp', but fuse has no cpp"
    ):
        backends.choose("fuse", cpu, None, ("torch",))
    with pytest.raises(ScoreFusionError, match="did you mean 'triton'"), backends.use_backend("trition"):
        pass


@needs_triton
def test_triton_gives_the_same_bits() -> None:
    """In a process of its own, because TRITON_INTERPRET must be set before Triton is imported."""
    program = """
        import torch
        from scorefusion.ops import normal
        samples = [2**31, 2**32 - 1]
        for (shape, origin), step in zip(SHAPES.values(), (0, 1, 16, 2**31, 2**32 - 1)):
            seeds = [-1, 2**63 + 12345][: shape[0]]
            keys = {"origin": origin, "sample": samples[: shape[0]]}
            expected = normal(shape, seeds, step, **keys, backend="torch")
            empty = torch.empty
            torch.empty = lambda *args, **kwargs: empty(*args, **kwargs).fill_(float("nan"))
            result = normal(shape, seeds, step, **keys, backend="triton")
            torch.empty = empty
            assert torch.equal(result.view(torch.int32), expected.view(torch.int32)), (shape, origin)
        print("same bits")
    """
    code = f"SHAPES = {SHAPES!r}\n" + textwrap.dedent(program)
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "same bits"


@needs_triton
@pytest.mark.parametrize("capability", [80, 90, 100, 120])
def test_triton_compiles_for_each_gpu(capability: int, tmp_path: Any) -> None:
    """Machine code made without a GPU: no spills, nothing fused, whole groups stored 16 bytes at a time."""
    if backends.interpreting():
        pytest.skip("TRITON_INTERPRET replaces the compiler")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from scorefusion.kernels import noise as kernel

    tools = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin")
    names = kernel._noise_kernel.arg_names
    for aligned, ones in (
        (True, ()),
        (True, ("channels", "depth")),
        (False, ("height", "width", "groups", "blocks")),
    ):
        constants = {**kernel.CONFIGS[0].constants, "ALIGNED": aligned, **dict.fromkeys(ones, 1)}
        signature = {name: "constexpr" if name in constants else "i32" for name in names}
        signature |= {"out_ptr": "*fp32", "keys_ptr": "*i32"}
        source = ASTSource(
            kernel._noise_kernel,
            signature,
            {(names.index(name),): value for name, value in constants.items()},
            {(0,): [["tt.divisibility", 16]], (1,): [["tt.divisibility", 16]]},
        )
        options = {"num_warps": kernel.CONFIGS[0].num_warps, "enable_fp_fusion": False}
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        ptx = compiled.asm["ptx"]
        assert "fma.rn.f32" not in ptx and "sqrt.rn.f32" in ptx
        assert ("st.global.v4.b32" in ptx) == aligned
        cubin = tmp_path / "noise.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage = subprocess.run(
            [f"{tools}/cuobjdump", "-res-usage", cubin], capture_output=True, text=True
        ).stdout
        assert "STACK:0" in usage and "LOCAL:0" in usage
        sass = subprocess.run([f"{tools}/nvdisasm", cubin], capture_output=True, text=True).stdout
        assert "EXIT" in sass and "LDL" not in sass and "STL" not in sass
