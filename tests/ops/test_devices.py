"""Work is launched on the device of its tensors, whatever the thread's current device: two devices, faked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.evidence.catalogue import cases_of, stems
from benchmarks.fake_cuda import FakeEngine, Implementations, Indexing, Runtime
from scorefusion.engine.graph import CudaGraphs
from scorefusion.engine.tensorrt.runner import TensorRTRunner
from scorefusion.models.presets import preset
from scorefusion.models.table import table_for
from scorefusion.ops import backends
from scorefusion.ops.noise import normal

pytestmark = [
    pytest.mark.skipif(bool(backends.missing("triton")), reason=str(backends.missing("triton"))),
    pytest.mark.skipif(
        torch.cuda.device_count() == 1, reason="PyTorch fakes no second device next to a real one"
    ),
]
BOTH = [(0, 1), (1, 0)]


def misplaced(runtime: Runtime, index: int) -> list[Any]:
    """Launches that were made on another device than that of their tensors."""
    device = torch.device("cuda", index)
    return [launch for launch in runtime.launches if launch[1] != index or launch[2] != {device}]


@pytest.mark.parametrize(("current", "index"), BOTH)
@pytest.mark.parametrize("stem", stems())
def test_every_kernel(stem: str, current: int, index: int) -> None:
    """Every launcher, with each of its configurations."""
    runtime = Runtime(current)
    with runtime.installed(), FakeTensorMode(), Indexing():
        for case in cases_of(stem, f"cuda:{index}"):
            for config in case.configs:
                case.run(config)
            assert {name for name, _, _ in runtime.launches} >= case.work.keys()
    assert not misplaced(runtime, index) and runtime.current == current


@pytest.mark.parametrize(("current", "index"), BOTH)
def test_the_first_noise(current: int, index: int) -> None:
    runtime = Runtime(current)
    with runtime.installed(), FakeTensorMode(), Indexing():
        noise = normal((2, 1, 3, 5, 7), [1, 2], 0, device=f"cuda:{index}")
    assert noise.device == torch.device("cuda", index)
    assert [name for name, _, _ in runtime.launches] == ["_noise_kernel"] and not misplaced(runtime, index)


@pytest.mark.parametrize(
    ("name", "size", "strategy", "current", "index"),
    [
        ("small", (8, 8, 12), "fuse+features", 0, 1),
        ("small", (8, 8, 8), "average", 1, 0),
        ("small", (8, 8, 8), "fuse+features", 1, 1),
        ("t1-sr4", (16, 16, 24), "fuse", 0, 1),
        ("paper", (16, 24, 32), "fuse+features", 0, 1),
    ],
)
def test_a_whole_sample(
    name: str, size: tuple[int, int, int], strategy: str, current: int, index: int
) -> None:
    """From an engine's start through a step, all of this project's kernels."""
    config, runtime = preset(name), Runtime(current)
    with runtime.installed():
        fake = FakeEngine(config, size, device=torch.device("cuda", index), strategy=strategy)
        table = table_for(config)
        with fake.active(), Implementations():
            fake.engine.start(table, [7])
        fake.run(Implementations())
    kernels = {name for name, _, _ in runtime.launches}
    expected = {"_noise_kernel", "_gather_slices_kernel", "_fuse_step_kernel"}
    assert kernels >= expected | ({"_ensemble_features_kernel"} if strategy == "fuse+features" else set())
    assert any(name.startswith("_norm_act") for name in kernels)
    assert not misplaced(runtime, index) and runtime.current == current


def test_a_launch_that_fails_leaves_the_current_device() -> None:
    runtime = Runtime(0)
    with runtime.installed(), FakeTensorMode(), Indexing():
        out = torch.empty(1, 1, 4, 4, 4, device="cuda:1")
        with pytest.raises(ValueError, match="stop"), torch.cuda.device_of(out):
            assert runtime.current == 1
            raise ValueError("stop")
    assert runtime.current == 0


@pytest.mark.parametrize("current", [0, 1])
def test_a_graph_is_made_on_its_device(monkeypatch: pytest.MonkeyPatch, current: int) -> None:
    """The body that warms up and the one that is captured see the graph's device as the current one."""
    runtime, seen = Runtime(current), []

    class Stream:
        def __init__(self, device: torch.device) -> None:
            self.device = device

        def wait_stream(self, other: Stream) -> None:
            assert self.device == other.device

        def synchronize(self) -> None:
            seen.append(("waited", self.device.index))

        def __enter__(self) -> None:
            seen.append(("stream", runtime.current))

        def __exit__(self, *raised: object) -> None:
            pass

    class Graph:
        def capture_begin(self, **named: Any) -> None:
            seen.append(("begin", runtime.current))

        def capture_end(self) -> None:
            seen.append(("end", runtime.current))

        def replay(self) -> None:
            pass

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    with runtime.installed():
        graphs = CudaGraphs(torch.device("cuda", 1))
        graphs.aside(lambda: seen.append(("warm", runtime.current)))
        graphs.capture(lambda: seen.append(("captured", runtime.current)), None)
        graphs.synchronize()
    assert {index for _, index in seen} == {1} and runtime.current == current
    assert [what for what, _ in seen] == [
        "stream",
        "warm",
        "stream",
        "begin",
        "captured",
        "end",
        "waited",
        "waited",
    ]


@pytest.mark.parametrize("current", [0, 1])
def test_a_tensorrt_engine_runs_on_its_device(monkeypatch: pytest.MonkeyPatch, current: int) -> None:
    """TensorRT takes the thread's current device, when it runs and when it reserves memory."""
    runtime, seen = Runtime(current), []
    runner = TensorRTRunner.__new__(TensorRTRunner)

    def run(stream: int) -> bool:
        seen.append(("run", runtime.current))
        return True

    binding = SimpleNamespace(
        slices=5, time=torch.zeros(2), outputs={"output": torch.zeros(2, 4, 4, 1)},
        context=SimpleNamespace(execute_async_v3=run),
    )  # fmt: skip

    def bind(runner: TensorRTRunner, shape: tuple[int, ...]) -> Any:
        seen.append(("bind", runtime.current))
        return binding

    on_one: dict[str, Any] = {"is_cuda": True, "get_device": lambda: 1}
    runner.watch, runner.labelled, runner.scales, runner._bindings = (lambda: None), False, (), {}
    runner._scratch = SimpleNamespace(**on_one)  # type: ignore[assignment]
    monkeypatch.setattr(TensorRTRunner, "_check", lambda runner, cut: None)
    monkeypatch.setattr(TensorRTRunner, "_bind", bind)
    monkeypatch.setattr(TensorRTRunner, "_stream", lambda runner: 0)
    cut: Any = SimpleNamespace(shape=(2, 3, 4, 4), data_ptr=lambda: 5, **on_one)
    with runtime.installed():
        runner.reserve([(2, 4, 4)])
        runner(cut, torch.ones(2), torch.ones(2))
    assert seen == [("bind", 1), ("bind", 1), ("run", 1)] and runtime.current == current
