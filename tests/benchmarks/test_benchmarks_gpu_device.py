"""The device that benchmarks.gpu measures: kernel names, nvidia-smi, events and graphs, with CUDA faked."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.gpu.device import Cuda, read_sample
from benchmarks.gpu.steps import kernels_of, kind_of
from tests.support.waiting import until


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("_norm_act_layer_kernel", "norm_act"),
        ("_gather_slices_kernel", "gather_slices"),
        ("_ensemble_features_kernel", "ensemble_features"),
        ("_fuse_step_kernel", "fuse_step"),
        (
            "sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x64x64",
            "convolutions",
        ),
        ("void cutlass__5x_cudnn::Kernel<cutlass_tensorop_bf16_s16816fprop_optimized>", "convolutions"),
        ("nvjet_hsh_64x8_64x16_4x1_v_bz_TNT", "matrix products"),
        ("sm80_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x32", "matrix products"),
        ("cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16_16x16_128x2_tn_align8", "matrix products"),
        (
            "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>",
            "elementwise",
        ),
        (
            "void at::native::(anonymous namespace)::upsample_nearest2d_nhwc_out_frame<c10::BFloat16>",
            "resampling",
        ),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        ("pytorch_flash::flash_fwd_kernel", "attention"),
        ("triton_poi_fused_add_0", "Inductor"),
        ("triton_red_fused__norm_act_x", "Inductor"),
        ("void at::native::reduce_kernel<512, 1>", "others"),
    ],
)
def test_groups_of_kernels(kernel: str, kind: str) -> None:
    assert kind_of(kernel) == kind


def test_rows_of_the_profiler_about_itself_do_not_count() -> None:
    device, host = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU
    rows = [
        ("_norm_act_rows_kernel", 3, 30.0, device),
        ("_gather_slices_kernel", 1, 50.0, device),
        ("Activity Buffer Request", 1, 2000.0, device),
        ("Lazy Function Loading", 4, 900.0, device),
        ("cudaLaunchKernel", 4, 70.0, host),
    ]
    events = [
        SimpleNamespace(key=key, count=count, self_device_time_total=us, device_type=kind)
        for key, count, us, kind in rows
    ]
    groups = {"gather_slices": {"launches": 1, "us": 50.0}, "norm_act": {"launches": 3, "us": 30.0}}
    assert kernels_of(events, cuda=True) == (4, groups)


def test_what_nvidia_smi_says() -> None:
    assert read_sample("1980, 2619, 311.42, 41, 97\n") == {
        "SM clock, MHz": 1980.0,
        "memory clock, MHz": 2619.0,
        "power, W": 311.42,
        "temperature, °C": 41.0,
        "utilisation, %": 97.0,
    }
    assert read_sample("1980, [N/A], 70.1, 41, 0") == {
        "SM clock, MHz": 1980.0, "power, W": 70.1, "temperature, °C": 41.0, "utilisation, %": 0.0,
    }  # fmt: skip
    assert read_sample("") is None and read_sample("No devices were found") is None


class FakeCuda:
    """Stands in for what `Cuda` uses of torch.cuda."""

    def __init__(self, patch: pytest.MonkeyPatch, refuse: bool = False):
        self.log: list[str] = []
        fake = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                fake.log.append("record")

            def synchronize(self) -> None:
                fake.log.append("wait")

            def elapsed_time(self, end: Event) -> float:
                return 8.0

        class Graph:
            def capture_begin(self, capture_error_mode: str) -> None:
                fake.log.append("begin")

            def capture_end(self) -> None:
                fake.log.append("end")
                if refuse:
                    raise RuntimeError("capture was invalidated")

            def replay(self) -> None:
                fake.log.append("replay")

        stream = SimpleNamespace(wait_stream=lambda other: None)
        properties = SimpleNamespace(
            name="a GPU", L2_cache_size=50 << 20, multi_processor_count=132, major=9, minor=0,
            total_memory=1 << 37, uuid="1234",
        )  # fmt: skip

        class Entered:
            def __enter__(self) -> None:
                fake.log.append("enter")

            def __exit__(self, *raised: object) -> None:
                fake.log.append("leave")

        for name, value in {
            "set_device": lambda place: None,
            "get_device_properties": lambda place: properties,
            "Stream": lambda place: stream,
            "current_stream": lambda place: stream,
            "stream": lambda chosen: Entered(),
            "Event": Event,
            "CUDAGraph": Graph,
            "synchronize": lambda place: fake.log.append("synchronize"),
            "memory_reserved": lambda place: 17 << 30,
            "empty_cache": lambda: fake.log.append("empty"),
            "reset_peak_memory_stats": lambda place: None,
            "max_memory_allocated": lambda place: 5,
            "max_memory_reserved": lambda place: 7,
        }.items():
            patch.setattr(torch.cuda, name, value)


def test_a_cuda_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events around replays of a graph; what cannot be captured runs as it is."""
    fake = FakeCuda(monkeypatch)
    device = Cuda(1)
    assert device.place == torch.device("cuda:1") and device.l2 == 50 << 20
    replay, captured = device.graph(lambda: fake.log.append("body"))
    assert captured
    assert fake.log == [
        "empty",
        "enter",
        "body",
        "leave",
        "synchronize",
        "enter",
        "begin",
        "body",
        "end",
        "leave",
    ]
    fake.log.clear()
    assert device.seconds(replay, 4) == pytest.approx(0.002)
    assert fake.log == ["record", *["replay"] * 4, "record", "wait"]
    assert device.peak() == {"allocated": 5, "reserved": 7}
    device.forget_peak()
    about = device.about()
    assert about["capability"] == "9.0" and about["multiprocessors"] == 132
    refusing = FakeCuda(monkeypatch, refuse=True)
    body, captured = Cuda(0).graph(lambda: refusing.log.append("body"))
    body()
    assert not captured and refusing.log[-1] == "body" and "replay" not in refusing.log


def test_a_cuda_device_is_sampled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """nvidia-smi is asked about this device alone, and of no setting; without it there is no sample."""
    FakeCuda(monkeypatch)
    program = tmp_path / "nvidia-smi"
    lines = [
        "#!/bin/sh",
        f'echo "$@" >> {tmp_path}/asked',
        f'case "$*" in *loop*) echo 50; echo 70; touch {tmp_path}/said; exec sleep 30;; esac',
        "echo 1500, 2600, 300.5, 40, 90",
    ]
    program.write_text("\n".join(lines) + "\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    device = Cuda(0)
    sample = device.sample()
    assert sample is not None and sample["power, W"] == 300.5
    with device.watched() as busy:
        until((tmp_path / "said").exists)
    assert busy == [50.0, 70.0]
    asked = (tmp_path / "asked").read_text()
    assert "-i GPU-1234" in asked
    options = set(re.findall(r"--[a-z-]+", asked))
    assert options <= {"--query-gpu", "--format", "--loop-ms"}
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert device.sample() is None
