"""A step over static buffers as a CUDA graph: captured once, replayed for every step, seed and weight.

Whatever changes from step to step (the solver's row, seeds, volumes, weights) is read from tensors that stay
where they are. `torch.cuda.CUDAGraph` is used through `CudaGraphs`, so capture can be tested without a GPU.
"""

import contextlib
import functools
import gc
import itertools
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scorefusion.errors import out_of_memory

Body = Callable[[], object]

_capturing = threading.Lock()


class Segment(NamedTuple):
    """A part of a step."""

    name: str  #: for the warning
    run: Body  #: takes and returns nothing; it reads and writes static buffers
    #: False for what may refuse capture, such as a TensorRT engine; it then runs eagerly between graphs of
    #: the parts around it
    capturable: bool = True
    #: True for what reads more than static buffers, so that a graph of it would be out of date; it is never
    #: captured
    live: bool = False


class CudaGraphs:
    """PyTorch's graphs of a CUDA device: one side stream, which warms up and captures.

    The stream is one because libraries keep handles and workspaces for each stream, and making them while
    capturing is an error. Capture minds only this thread (`thread_local`): others may allocate meanwhile. But
    to wait for the whole device is an error while anyone captures, so only streams are waited for here, and
    `torch.cuda.graph`, which waits for the device, is not used. The device is made the current one wherever a
    body or a graph runs: the calling thread's may be another.
    """

    def __init__(self, device: torch.device):
        self.device = device

    @functools.cached_property
    def stream(self) -> torch.cuda.Stream:
        """The side stream."""
        return torch.cuda.Stream(self.device)

    def pool(self) -> Any:
        """Return a private memory pool that nothing has used."""
        return torch.cuda.graph_pool_handle()

    def aside(self, body: Body) -> None:
        """Run `body` on the stream that captures, in order with the current stream."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.device(self.device), torch.cuda.stream(self.stream):
            body()
        current.wait_stream(self.stream)

    def capture(self, body: Body, pool: Any) -> Body:
        """Record what `body` launches, with memory from the pool; return what replays it.

        What it did that cannot be captured is raised, with the current stream as before.
        """
        gc.collect()  # a graph destroyed by the collector within the capture would invalidate it
        graph = torch.cuda.CUDAGraph()
        with _capturing, torch.cuda.device(self.device), torch.cuda.stream(self.stream):
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                body()
            except BaseException:
                with contextlib.suppress(RuntimeError):
                    graph.capture_end()  # which says that the capture is invalid
                raise
            graph.capture_end()
        return graph.replay

    def synchronize(self) -> None:
        """Wait for what this thread launched."""
        torch.cuda.current_stream(self.device).synchronize()
        self.stream.synchronize()


class CapturedStep:
    """Replays a step that was captured as a CUDA graph; runs it eagerly where capture is refused.

    The whole body is tried first, or the parts of it between live segments. If one is refused and consists of
    segments, each run of capturable ones becomes a graph and the others run eagerly in between; else it runs
    eagerly. One warning says what and why.

    Args:
        body: a function of static buffers, or the segments of one, in order. It must neither wait for the
            device nor keep a tensor that it made.
        device: where it runs; only on CUDA is anything captured.
        state: the buffers that the body changes and reads again in the next step. Warming up runs the body,
            so they are put back each time.
        watch: returns the tensors whose addresses are in the graph and that others own, such as a model's
            parameters. Written in place they need nothing; where one is in another place, :meth:`prepare`
            captures again.
        warmup: runs before the capture: kernels are compiled, libraries and workspaces made. At least 1.
        graphs: shared with other steps, or standing in for `CudaGraphs`.

    Attributes:
        captured: how many graphs a step consists of; 0 where it runs eagerly or was not prepared yet.
        reason: why part of it runs eagerly, or None.
    """

    def __init__(
        self,
        body: Body | Sequence[Segment],
        *,
        device: torch.device,
        state: Sequence[Tensor] = (),
        watch: Callable[[], Iterable[Tensor]] | None = None,
        warmup: int = 2,
        graphs: CudaGraphs | None = None,
    ):
        self.segments = (Segment("the step", body),) if callable(body) else tuple(body)
        self.state, self.warmup = tuple(state), max(1, warmup)
        self._watch = watch or tuple
        self._graphs = CudaGraphs(device) if graphs is None and device.type == "cuda" else graphs
        self.captured, self.reason = 0, None if self._graphs is not None else f"the device is {device.type}"
        self._calls: list[Body] = []
        self._addresses: list[tuple[object, ...]] = []
        self._warned = False

    def __call__(self) -> None:
        """Run a step; the first captures it."""
        if not self._calls:
            self.prepare()
        for call in self._calls:
            call()

    @torch.no_grad()
    def prepare(self) -> bool:
        """Capture the step unless that was done and all tensors are where they were; say whether it did.

        Call it before a series of steps, when the buffers are ready for the first: warming up runs that step.
        If nothing has changed it costs a comparison of addresses.

        Raises:
            Exception: what the body raises when it warms up, and where memory runs out.
        """
        tensors = itertools.chain(self.state, self._watch())  # a captured launch has their addresses
        addresses: list[tuple[object, ...]] = [
            (it.data_ptr(), it.dtype, it.shape, it.stride()) for it in tensors
        ]
        if self._calls and addresses == self._addresses:
            return False
        self.reset()
        if self._graphs is None:
            calls: list[Body] = [_together(self.segments)]
        else:
            saved = [tensor.clone() for tensor in self.state]
            try:
                for _ in range(self.warmup):
                    self._graphs.aside(_together(self.segments))
                    self._put_back(saved)
                self._graphs.synchronize()
                calls = self._capture(self._graphs)
            finally:
                self._put_back(saved)
        self._calls, self._addresses = calls, addresses
        return True

    def reset(self) -> None:
        """Forget the graphs and free their memory; the next step captures again."""
        if self._calls and self._graphs is not None:
            self._graphs.synchronize()
        self._calls, self.captured = [], 0

    def _put_back(self, saved: Sequence[Tensor]) -> None:
        for tensor, value in zip(self.state, saved, strict=True):
            tensor.copy_(value)

    def _capture(self, graphs: CudaGraphs) -> list[Body]:
        """Graphs and functions in turn."""
        calls: list[Body] = []
        eager: list[str] = []
        why = ""
        for live, group in itertools.groupby(self.segments, lambda segment: segment.live):
            part = tuple(group)
            if live:
                calls.append(_together(part))
                continue
            whole, refusal = _try(graphs, part, graphs.pool())
            if whole is not None:
                self.captured += 1
                calls.append(whole)
                continue
            why = why or refusal
            more, names = self._capture_runs(graphs, part)
            calls += more
            eager += names
        if not eager:
            self.reason = None
            return calls
        if not self.captured:
            calls, eager = [_together(self.segments)], ["all of it"]
        self.reason = f"{', '.join(dict.fromkeys(eager))}: {why}"
        if not self._warned:
            warnings.warn(
                f"a CUDA graph of the step was refused, so part of it runs eagerly: {self.reason}",
                RuntimeWarning,
                stacklevel=4,
            )
            self._warned = True
        return calls

    def _capture_runs(self, graphs: CudaGraphs, part: Sequence[Segment]) -> tuple[list[Body], list[str]]:
        """A graph for each run of capturable segments; also the names of those that run eagerly."""
        calls: list[Body] = []
        eager: list[str] = []
        pool = graphs.pool()
        runs = [tuple(run) for _, run in itertools.groupby(part, lambda segment: segment.capturable)]
        for run in runs:
            replay = None
            if len(runs) > 1 and run[0].capturable:
                replay, _ = _try(graphs, run, pool)
            if replay is None:
                eager += [segment.name for segment in run]
                # Nothing is known of the pool of a refused capture.
                pool = graphs.pool() if run[0].capturable else pool
            self.captured += replay is not None
            calls.append(replay or _together(run))
        return calls, eager


def _try(graphs: CudaGraphs, segments: Sequence[Segment], pool: Any) -> tuple[Body | None, str]:
    """Return what replays the segments, or None and why they cannot be captured."""
    try:
        return graphs.capture(_together(segments), pool), ""
    except Exception as error:
        first: BaseException = error
        while first.__context__ is not None:
            first = first.__context__
        if out_of_memory(first):
            raise
        return None, f"{type(first).__name__}: {str(first).strip().splitlines()[0] if str(first) else ''}"


def _together(segments: Sequence[Segment]) -> Body:
    """The segments as one function."""

    def run() -> None:
        for segment in segments:
            segment.run()

    return run
