"""What a caller has set for its own PyTorch code, put aside while the pipeline computes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Compute as if the caller had set nothing: keep its autocast, inference mode and default device out.

    All three belong to the calling thread and are as before when the block ends. Of a caller that set none
    nothing is touched. Autocast would compute in another dtype than was asked for, buffers made in inference
    mode could not be written outside it, and a default device would put new tensors elsewhere.
    """
    with contextlib.ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield
