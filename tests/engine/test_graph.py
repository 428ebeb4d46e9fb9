"""Capturing a step and replaying it: the rules of CUDA graphs, kept by a stand-in."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from scorefusion.engine.graph import CapturedStep, CudaGraphs
from tests.support.tape_graphs import Still, TapeGraphs
from tests.support.toy_step import CPU, CUDA, Toy, captured, needs_cuda


def test_replays_are_the_eager_steps() -> None:
    toy, graphs = Toy(), TapeGraphs()
    step = captured(toy.step, graphs, state=toy.state, watch=toy.network.parameters)
    expected = toy.run(toy.step, (3, -4))
    assert step.prepare() and step.captured == 1 and step.reason is None
    assert torch.equal(toy.run(step, (3, -4)), expected)
    assert graphs.warmed == 2 and graphs.replayed == 3 and len(graphs.tapes) == 1


def test_the_first_step_captures_and_changes_nothing_but_once() -> None:
    toy = Toy()
    expected = toy.run(toy.step, (3, -4))
    step = captured(toy.step, None, state=toy.state)
    assert torch.equal(toy.run(step, (3, -4)), expected)


def test_seeds_and_weights_need_no_second_capture() -> None:
    toy, graphs = Toy(), TapeGraphs()
    step = captured(toy.step, graphs, state=toy.state, watch=toy.network.parameters)
    step.prepare()
    seen = []
    for turn, seeds in enumerate(((3, -4), (2**40, 5), (3, 5))):
        with torch.no_grad():
            toy.network.weight.copy_((0.3 * turn + 1) * toy.network.weight)
            toy.rows[0, 5] += 0.1
        assert not step.prepare()
        replayed = toy.run(step, seeds)
        assert torch.equal(replayed, toy.run(toy.step, seeds))
        seen.append(replayed)
    assert len(graphs.attempts) == 1
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])


def test_nothing_is_run_or_allocated_beside_the_replay() -> None:
    toy = Toy()
    step = captured(toy.step, None, state=toy.state)
    step.prepare()
    expected = toy.run(toy.step, (3, -4))
    toy.start((3, -4))
    with Still():
        for _ in range(3):
            step()
    assert torch.equal(toy.x, expected)


def test_a_number_of_the_host_is_stale() -> None:
    """What the stand-in is for: a step that reads its row's number on the host repeats the first row."""
    toy, row = Toy(), [0]

    def body() -> None:
        toy.index.fill_(row[0])
        toy.step()

    def by_host(step: Callable[[], object]) -> Tensor:
        toy.start((3, -4))
        for row[0] in range(3):
            step()
        return toy.x.clone()

    step = captured(body, None, state=toy.state)
    expected = by_host(body)
    assert not torch.equal(by_host(step), expected)
    step.reset()
    assert not torch.equal(by_host(step), expected)


def test_outputs_that_nothing_computes_are_not_numbers() -> None:
    """Capturing computes nothing, so memory that was made then holds nothing."""
    made, out = [torch.ones(3)], torch.zeros(3)

    def body() -> None:
        out.copy_(made[0] + 1.0)

    tapes = TapeGraphs()
    replay = tapes.capture(body, tapes.pool())
    assert torch.equal(out, torch.zeros(3))
    made[0].fill_(4.0)
    replay()
    assert torch.equal(out, torch.full((3,), 5.0))
    assert tapes.tapes[0].operations[0][3][0].tolist() == [5.0] * 3
    tapes.tapes[0].finish()
    assert tapes.tapes[0].operations[0][3][0].isnan().all()


def test_replaced_storage_is_captured_again() -> None:
    toy, graphs = Toy(), TapeGraphs()
    step = captured(toy.step, graphs, state=toy.state, watch=lambda: toy.network.parameters())
    stale = toy.run(step, (3, -4))
    toy.network.weight.data = 2.0 * toy.network.weight.data
    assert torch.equal(toy.run(step, (3, -4)), stale), "a captured address is still the old one"
    expected = toy.run(toy.step, (3, -4))
    assert not torch.equal(stale, expected)
    assert step.prepare() and len(graphs.tapes) == 2
    assert torch.equal(toy.run(step, (3, -4)), expected)
    toy.network.load_state_dict(
        {name: 3.0 * value for name, value in toy.network.state_dict().items()}, assign=True
    )
    expected = toy.run(toy.step, (3, -4))
    assert step.prepare() and len(graphs.tapes) == 3
    assert torch.equal(toy.run(step, (3, -4)), expected)
    assert not step.prepare()
    # Each capture has a pool of its own, and waits before the graphs before it are freed.
    assert len(set(map(id, graphs.attempts))) == 3 and graphs.waited == 5


def test_elsewhere_a_step_runs_as_it_is() -> None:
    toy = Toy()
    step = CapturedStep(toy.step, device=CPU, state=toy.state)
    assert torch.equal(toy.run(step, (3, -4)), toy.run(toy.step, (3, -4)))
    assert step.captured == 0 and step.reason == "the device is cpu"


def test_pytorch_is_called_as_it_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments fit PyTorch's signatures, streams nest, and the first error is the reason."""
    log: list[str] = []

    class Stream:
        def __init__(self, name: object) -> None:
            self.name = str(name)

        def wait_stream(self, other: Stream) -> None:
            log.append(f"{self.name} waits for {other.name}")

        def synchronize(self) -> None:
            log.append(f"wait for {self.name}")

    class Context:
        def __init__(self, name: str) -> None:
            self.name = name

        def __enter__(self) -> None:
            log.append(f"enter {self.name}")

        def __exit__(self, *raised: object) -> None:
            log.append(f"leave {self.name}")

    signature = inspect.signature(torch.cuda.CUDAGraph.capture_begin)

    class Graph:
        def capture_begin(self, *args: Any, **kwargs: Any) -> None:
            bound = signature.bind(self, *args, **kwargs).arguments
            assert bound["pool"] == "pool" and bound["capture_error_mode"] == "thread_local"
            log.append("begin")

        def capture_end(self) -> None:
            log.append("end")
            if "refused" in log:
                raise RuntimeError("operation failed due to a previous error during capture")

        def replay(self) -> None:
            log.append("replay")

    for name, value in {
        "Stream": Stream,
        "current_stream": lambda device: Stream("current"),
        "device": lambda device: Context(f"device {device}"),
        "stream": lambda stream: Context(f"stream {stream.name}"),
        "CUDAGraph": Graph,
        "graph_pool_handle": lambda: "pool",
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    graphs = CudaGraphs(torch.device("cuda:0"))
    step = CapturedStep(lambda: log.append("body"), device=graphs.device, graphs=graphs, warmup=1)
    step()
    enter, leave = (
        ["enter device cuda:0", "enter stream cuda:0"],
        ["leave stream cuda:0", "leave device cuda:0"],
    )
    waits = ["current waits for cuda:0", "wait for current", "wait for cuda:0"]
    inside = [*enter, "begin", "body", "end", *leave]
    assert log == ["cuda:0 waits for current", *enter, "body", *leave, *waits, *inside, "replay"]
    log.clear()

    def refuses() -> None:
        if "begin" in log:
            log.append("refused")
            raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors")

    step = CapturedStep(refuses, device=graphs.device, graphs=graphs, warmup=1)
    with pytest.warns(
        RuntimeWarning, match="all of it: RuntimeError: operation not permitted when .* capturing$"
    ):
        step.prepare()
    assert log[-3:] == ["end", *leave]


@needs_cuda
@pytest.mark.gpu
def test_on_a_gpu() -> None:
    toy = Toy(CUDA)
    step = CapturedStep(toy.step, device=CUDA, state=toy.state, watch=lambda: toy.network.parameters())
    expected = toy.run(toy.step, (3, -4))
    assert step.prepare() and step.captured == 1
    torch.testing.assert_close(toy.run(step, (3, -4)), expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        toy.network.weight.mul_(1.5)
    assert not step.prepare()
    expected = toy.run(toy.step, (8, 9))
    torch.testing.assert_close(toy.run(step, (8, 9)), expected, rtol=1e-5, atol=1e-5)
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    for _ in range(5):
        toy.index.zero_()
        step()
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
    toy.network.weight.data = 2.0 * toy.network.weight.data
    expected = toy.run(toy.step, (3, -4))
    assert step.prepare()
    torch.testing.assert_close(toy.run(step, (3, -4)), expected, rtol=1e-5, atol=1e-5)
