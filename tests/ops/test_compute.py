"""The choice of device and dtype: by the instruction set, then by measured time."""

from __future__ import annotations

import pytest
import torch

from scorefusion.errors import ScoreFusionError
from scorefusion.ops import device as compute


def timer(float32: float, **bfloat16: float) -> compute.Timer:
    kinds = dict(zip(compute.KINDS, ("conv2d", "conv3d", "matmul"), strict=True))
    return lambda kind, dtype: float32 if dtype == torch.float32 else bfloat16[kinds[kind]]


def test_without_instructions_nothing_is_timed() -> None:
    def never(kind: str, dtype: torch.dtype) -> float:
        raise AssertionError("timed")

    probe = compute.decide({"avx2", "avx512f"}, never)
    assert probe.dtype == torch.float32 and probe.seconds == {} and probe.instructions == ("avx2", "avx512f")


@pytest.mark.parametrize("flag", ["amx_bf16", "avx512_bf16", "bf16"])
def test_bfloat16_where_every_layer_is_clearly_faster(flag: str) -> None:
    probe = compute.decide({flag}, timer(4.0, conv2d=3.0, conv3d=1.0, matmul=2.0))
    assert probe.dtype == torch.bfloat16 and len(probe.seconds) == 3
    assert probe.reason == "bfloat16 is at least 1.3 times as fast"


@pytest.mark.parametrize("slow", ["conv2d", "conv3d", "matmul"])
def test_float32_where_one_layer_is_not(slow: str) -> None:
    times = {"conv2d": 1.0, "conv3d": 1.0, "matmul": 1.0, slow: 3.2}
    assert compute.decide({"amx_bf16"}, timer(4.0, **times)).dtype == torch.float32
    disaster = compute.decide({"amx_bf16"}, timer(1.0, conv2d=400.0, conv3d=0.1, matmul=0.1))
    assert disaster.dtype == torch.float32 and len(disaster.seconds) == 1


def test_the_real_probe_is_cached() -> None:
    compute.probe_cpu.cache_clear()
    first = compute.probe_cpu()
    assert compute.probe_cpu() is first
    assert compute.choose_dtype("auto", "cpu") == first.dtype
    has = {"amx_bf16", "avx512_bf16", "bf16"} & set(first.instructions)
    assert bool(first.seconds) == bool(has) and (has or first.dtype == torch.float32)


def test_instructions_agree_with_pytorch() -> None:
    capability = torch.backends.cpu.get_cpu_capability()
    if capability in ("AVX2", "AVX512"):
        assert "avx2" in compute.cpu_instructions()


@pytest.mark.parametrize(
    ("limit", "kept"),
    [
        ("", {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}),
        ("ALL", {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}),
        ("AVX512_CORE_AMX", {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}),
        ("AVX512_CORE_BF16", {"avx2", "avx512f", "avx512_bf16"}),
        ("AVX10_1_512", {"avx2", "avx512f", "avx512_bf16"}),
        ("AVX512_CORE_VNNI", {"avx2", "avx512f"}),
        ("avx512_core", {"avx2", "avx512f"}),
        ("AVX2_VNNI", {"avx2"}),
        ("AVX2", {"avx2"}),
        ("SSE41", {"avx2"}),
    ],
)
def test_what_onednn_is_held_to_counts(monkeypatch: pytest.MonkeyPatch, limit: str, kept: set[str]) -> None:
    """On a processor that has everything, as PyTorch describes it."""
    for question in ("_is_avx2_supported", "_is_avx512_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, question, lambda: True, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    found = compute.cpu_instructions() & {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}
    assert found == kept and compute.has_bfloat16(found) == bool(kept & {"avx512_bf16", "amx_bf16"})


def test_names() -> None:
    assert compute.choose_dtype("bfloat16") == torch.bfloat16
    assert compute.choose_device("cpu") == torch.device("cpu")
    assert compute.choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ScoreFusionError, match="unknown dtype 'bf16'; did you mean 'bfloat16'"):
        compute.choose_dtype("bf16")
    with pytest.raises(ScoreFusionError, match="unknown device 'cdua'; did you mean 'cuda'"):
        compute.choose_device("cdua")
    if not torch.cuda.is_available():
        with pytest.raises(ScoreFusionError, match="finds 0 cuda devices here; use --device cpu"):
            compute.choose_device("cuda")
