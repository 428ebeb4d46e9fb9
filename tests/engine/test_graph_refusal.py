"""What cannot be captured: it is found, said once, and the step runs all the same."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from scorefusion.engine.graph import CapturedStep
from tests.support.tape_graphs import Refused, TapeGraphs
from tests.support.toy_step import CUDA, Split, Toy, captured, needs_cuda


def test_a_whole_of_segments_is_one_graph() -> None:
    toy, graphs = Split(), TapeGraphs()
    step = captured(toy.segments, graphs, state=toy.state)
    expected = toy.run(toy.step, (3, -4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(toy.run(step, (3, -4)), expected)
    assert step.captured == 1 and len(graphs.tapes) == 1


def test_graphs_around_what_refuses() -> None:
    toy, graphs = Split(), TapeGraphs(refuse="convolution")
    step = captured(toy.segments, graphs, state=toy.state)
    expected = toy.run(toy.step, (3, -4))
    with pytest.warns(
        RuntimeWarning, match="engine: Refused: operation not permitted .* convolution"
    ) as warned:
        first = toy.run(step, (3, -4))
    assert torch.equal(first, expected) and torch.equal(toy.run(step, (8, 9)), toy.run(toy.step, (8, 9)))
    assert len(warned) == 1 and step.captured == 2 and graphs.replayed == 12
    # The refused capture's pool is not used again; the two graphs, replayed in order, share one.
    whole, before, after = graphs.attempts
    assert whole is not before and before is after


def test_a_capturable_part_that_refuses_runs_too() -> None:
    calls = [0]

    def engine(x: Tensor) -> Tensor:
        calls[0] += 1
        return 0.3 * x

    toy, graphs = Split(engine), TapeGraphs(refuse="round")
    step = captured(toy.segments, graphs, state=toy.state)
    expected = toy.run(toy.step, (3, -4))
    with pytest.warns(RuntimeWarning, match="gather, round, engine: Refused: .*round"):
        step.prepare()
    calls[0] = 0
    assert torch.equal(toy.run(step, (3, -4)), expected)
    assert step.captured == 1 and calls == [3]


def test_warns_once_in_all() -> None:
    toy = Split()
    step = captured(toy.step, TapeGraphs(refuse="convolution"), state=toy.state, watch=toy.network.parameters)
    with pytest.warns(RuntimeWarning, match="all of it: Refused"):
        step.prepare()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        toy.network.weight.data = 2.0 * toy.network.weight.data
        assert step.prepare()
        assert torch.equal(toy.run(step, (3, -4)), toy.run(toy.step, (3, -4)))


@pytest.mark.parametrize(
    "error",
    [MemoryError("no room"), torch.OutOfMemoryError("no room"), RuntimeError("out of memory: no room")],
)
@pytest.mark.parametrize("when", ["warming up", "capturing"])
def test_running_out_of_memory_is_the_callers(error: Exception, when: str) -> None:
    toy, graphs = Toy(), TapeGraphs()
    toy.start((3, -4))
    before = [tensor.clone() for tensor in toy.state]

    def body() -> None:
        toy.step()
        if when == "warming up" or graphs.warmed == 2 and torch._C._len_torch_dispatch_stack():
            raise error

    step = captured(body, graphs, state=toy.state)
    with pytest.raises(type(error), match="no room"):
        step.prepare()
    assert all(torch.equal(tensor, kept) for tensor, kept in zip(toy.state, before, strict=True))
    assert step.captured == 0 and step.reason is None


def test_an_error_of_the_step_is_no_refusal() -> None:
    def body() -> None:
        raise ValueError("a mistake")

    with pytest.raises(ValueError, match="a mistake"):
        captured(body, None).prepare()


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (lambda x: x.sum().item(), "reads a tensor's number on the host"),
        (lambda x: bool(x.mean() > 0), "reads a tensor's number on the host"),
        (lambda x: x[torch.tensor(1)], "from numbers on the host"),
        (lambda x: x.cpu(), "cpu copies a tensor to the host"),
        (lambda x: x.to("cpu"), "to copies a tensor to the host"),
        (lambda x: x.tolist(), "tolist copies a tensor to the host"),
        (lambda x: x.detach().numpy(), "numpy copies a tensor to the host"),
        (lambda x: (x > 0).nonzero(), "a size that depends on values"),
        (lambda x: x[x > 0], "by a mask makes a size"),
        (lambda x: x + torch.tensor(2.0), "makes a tensor from numbers on the host"),
        (lambda x: torch.equal(x, x), "compares tensors on the host"),
    ],
    ids=["item", "if", "number", "cpu", "to", "tolist", "numpy", "nonzero", "mask", "tensor", "equal"],
)
def test_a_planted_wait_is_refused(plant: Callable[[Tensor], object], message: str) -> None:
    toy = Toy()

    def body() -> None:
        plant(toy.x)
        toy.step()

    expected = toy.run(toy.step, (3, -4))
    step = captured(body, None, state=toy.state)
    with pytest.warns(RuntimeWarning, match=message) as warned:
        first = toy.run(step, (3, -4))
    again = toy.run(step, (3, -4))
    assert len(warned) == 1 and step.captured == 0 and step.reason is not None and message in step.reason
    assert torch.equal(first, expected) and torch.equal(again, expected)


def test_a_tensor_that_outlives_the_capture_is_refused() -> None:
    toy, kept = Toy(), list[Tensor]()

    def body() -> None:
        kept[:] = [toy.x + 1]
        toy.step()

    with pytest.warns(RuntimeWarning, match="add.Tensor made within the capture is still held after it"):
        captured(body, None, state=toy.state).prepare()
    assert len(kept) == 1


def test_the_stand_in_is_a_refusal_of_its_own() -> None:
    with pytest.raises(Refused):
        tapes = TapeGraphs()
        tapes.capture(lambda: torch.ones(2).sum().item(), tapes.pool())


@needs_cuda
@pytest.mark.gpu
def test_refusal_on_a_gpu() -> None:
    toy = Toy(CUDA)

    def body() -> None:
        toy.x.sum().item()
        toy.step()

    expected = toy.run(body, (3, -4))
    step = CapturedStep(body, device=CUDA, state=toy.state)
    current = torch.cuda.current_stream()
    with pytest.warns(RuntimeWarning, match="all of it"):
        first = toy.run(step, (3, -4))
    assert torch.cuda.current_stream() == current
    torch.testing.assert_close(first, expected, rtol=1e-5, atol=1e-5)
