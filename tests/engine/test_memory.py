"""What a function takes, measured on meta tensors: against counting by hand, and against this process."""

from __future__ import annotations

import statistics
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from scorefusion.engine.planning.memory import measure
from scorefusion.models import by_depth
from scorefusion.models.config import TimeConfig, UNetConfig
from scorefusion.models.presets import preset
from scorefusion.models.unet import UNet
from scorefusion.ops.ensemble_features import ensemble_features

TIME = TimeConfig(channels=8, hidden=16)


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def test_a_tensor_counts_until_its_last_view_is_gone():
    x = empty(1000)

    def function():
        a = x + 1  # 4000 bytes
        b = a[:500].view(50, 10)
        del a
        c = b.to(torch.float64)  # 4000 more, which is the peak
        del b
        return c.sum()

    usage = measure(function)
    assert usage.peak_bytes == 8000 and usage.result_bytes == 8
    assert [(held.bytes, held.shape) for held in usage.held] == [(4000, (1000,)), (4000, (50, 10))]
    assert "_to_copy" in usage.operation


def test_inputs_and_what_is_done_in_place_do_not_count():
    x = empty(100)
    assert measure(lambda: x.add_(1).mul_(2).view(10, 10)).peak_bytes == 0


def test_pooling_in_3d_makes_its_input_contiguous():
    x = empty(1, 8, 8, 8, 8).contiguous(memory_format=torch.channels_last_3d)
    assert measure(lambda: F.avg_pool3d(x, 2)).peak_bytes == 4 * (8 * 8**3 + 8 * 4**3)


def test_flop():
    image, kernel = empty(2, 3, 8, 8), empty(5, 3, 3, 3)
    assert measure(lambda: F.conv2d(image, kernel, padding=1)).flop == 2 * 2 * 5 * 3 * 9 * 64
    assert measure(lambda: F.linear(empty(7, 11), empty(13, 11), empty(13))).flop == 2 * 7 * 11 * 13
    query = empty(2, 4, 100, 16)
    attention = measure(lambda: F.scaled_dot_product_attention(query, query, query))
    assert attention.flop == 2 * (2 * 2 * 4 * 100 * 100 * 16)
    assert attention.peak_bytes == query.numel() * 4  # the matrix of weights is never whole
    total, features = empty(2, 6, 4, 4, 4), empty(2 * 8, 5, 4, 4)
    added = measure(lambda: ensemble_features(total, features, empty(6, 5, 2), "axial", 0))
    assert added.flop == 2 * total.numel() * 5 * 2


@pytest.mark.parametrize("norm", ["group", "channel"])
@pytest.mark.parametrize("resample", ["conv", "res"])
def test_a_large_volume_by_depth_has_the_same_numbers(monkeypatch, norm, resample):
    config = UNetConfig(widths=(8, 16), blocks=1, groups=4, norm=norm, resample=resample, time=TIME)
    network = UNet(3, 3, 2, config).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2 + 0.05
    x = torch.randn(2, 3, 12, 8, 8, generator=generator) + 3.0
    time = torch.tensor([0.1, 0.7])
    with torch.no_grad():
        whole = network(x, time)
        rows = []
        pieces = by_depth._pieces
        monkeypatch.setattr(by_depth, "_pieces", lambda *args: rows.append(args) or pieces(*args))
        monkeypatch.setattr(by_depth, "LARGE", 1)
        for piece in (1, 20_000):
            monkeypatch.setattr(by_depth, "PIECE", piece)
            torch.testing.assert_close(network(x, time), whole, rtol=1e-5, atol=1e-5)
        assert rows
    assert network(x, time).requires_grad


def test_the_fusion_networks_peak(monkeypatch):
    """In full-resolution tensors of 64 channels: 3 skips, 2 of input, 1 convolved, 1 normalised, pieces."""
    with torch.device("meta"):
        network = UNet(3, 9, 3, preset("paper").fusion).eval().bfloat16()
    size = (32, 64, 64)
    unit = 64 * 32 * 64 * 64 * 2
    x, time = empty(1, 9, *size, dtype=torch.bfloat16), empty(1)
    assert measure(lambda: network(x, time)).peak_bytes < 9.1 * unit
    monkeypatch.setattr(by_depth, "LARGE", unit)
    monkeypatch.setattr(by_depth, "PIECE", unit // 8)
    usage = measure(lambda: network(x, time))
    assert 6.0 * unit < usage.peak_bytes < 7.05 * unit


REAL = """
import resource, sys, torch
from scorefusion.engine.planning.memory import measure, return_freed_memory
from scorefusion.models.score_fusion import ScoreFusion
torch.set_num_threads(1)

def case(device):
    model = ScoreFusion.from_pretrained("t1-sr4").to(device)
    network = model.slice_networks["slice"].to(getattr(torch, sys.argv[1]))
    cut = torch.zeros(8, 6, 96, 96, device=device, dtype=next(network.parameters()).dtype)
    cut = cut.contiguous(memory_format=torch.channels_last)
    time, label = torch.zeros(8, device=device), torch.zeros(8, dtype=torch.long, device=device)
    return lambda: network.forward_with_features(cut, time, (2, 4), label=label)

def fits(size):
    with open("/proc/self/status") as file:
        held = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (held + int(size), resource.RLIM_INFINITY))
    try:
        run()
    except (MemoryError, RuntimeError):
        return False
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY,) * 2)
    return True

return_freed_memory()
planned = measure(case("meta")).peak_bytes
run = case("cpu")
with torch.no_grad():
    run()
    print(planned, *(factor for factor in (1.1, 1.1, 0.9) if fits(factor * planned)))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Linux's")
@pytest.mark.parametrize("dtype", ["float32"])
def test_the_peak_is_that_of_a_process(dtype):
    """A process that may have a tenth more than planned runs, one that may have a tenth less does not.

    By the system's own limit, since resident memory depends on what else the machine does. The second run
    is held to it: in the first PyTorch compiles its convolutions (about 20 MB). What the C library's heap
    happens to hold free is not counted, so in one process of some six a tenth less is enough: of four, one
    must show that it is not.
    """
    found = []
    for _ in range(4):
        result = subprocess.run(
            [sys.executable, "-c", REAL, dtype],
            capture_output=True, text=True, check=True,
            env={"OMP_NUM_THREADS": "1", "PATH": ""},
        )  # fmt: skip
        planned, *enough = (float(word) for word in result.stdout.split())
        assert planned > 2e7 and enough[:2] == [1.1, 1.1]
        found.append(enough[2:])
        if not enough[2:]:
            break
    assert [] in found


STILL = """
import resource, sys, torch
from scorefusion.engine.planning.memory import keep_freed_memory
from scorefusion.engine.planning.plan import plan
from scorefusion.engine.pool import EnginePool
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.models.table import table_for

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

assert keep_freed_memory() or sys.platform != "linux"
pool = EnginePool(ScoreFusion.from_pretrained("t1-sr4"))
with pool.borrow((32, 48, 48), strategy="fuse+features") as engine:
    engine.load(torch.zeros(1, 1, 32, 48, 48))
    engine.start(table_for(engine.plan.config, steps=14), [0])
    found = []
    for _ in range(14):
        before = faults()
        engine.step()
        found.append(faults() - before)
print(*found)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator is Linux's")
def test_steps_after_the_first_ask_the_system_for_nothing():
    """Not a page of new memory is touched: what the first steps took is used again.

    Blocks are cut to their alignment, so the heap may still grow a little in a few steps more.
    """
    run = subprocess.run([sys.executable, "-c", STILL], capture_output=True, text=True, check=True)
    first, *later = (int(word) for word in run.stdout.split())
    assert first > 20 and statistics.median(later[6:]) < 20
