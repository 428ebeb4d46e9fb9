"""How a 2D network runs on a slab of slices: as it is, compiled, or as a TensorRT engine.

All are called alike, ``runner(cut, time, label)``, so an engine does not know which it has.
"""

import os
from collections.abc import Callable, Sequence
from typing import Literal, Protocol, cast

import torch
from torch import Tensor

from scorefusion.engine.planning.plan import Plan
from scorefusion.errors import ScoreFusionError, unknown_name
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.models.unet import UNet

RunnerName = Literal["eager", "compile", "tensorrt"]
RUNNERS: tuple[RunnerName, ...] = ("eager", "compile", "tensorrt")

Outputs = tuple[Tensor, dict[int, Tensor]]


class Runner(Protocol):
    """Runs one 2D network."""

    name: str  #: one of :data:`RUNNERS`

    def __call__(self, cut: Tensor, time: Tensor, label: Tensor) -> Outputs:
        """Run it on ``cut [N, C, h, w]``, channels last, in its dtype; float32 ``time``, int64 ``label [N]``.

        Returns the output ``[N, 1, h, w]`` and the features ``[N, width, h/s, w/s]`` by scale s, channels
        last. The next call may overwrite them.
        """
        ...

    def watch(self) -> None:
        """Make sure, before a sample is drawn, that the weights are those it runs with."""
        ...


class EagerRunner:
    """The network as PyTorch runs it."""

    name = "eager"

    def __init__(self, network: UNet, scales: Sequence[int]):
        self.network, self.scales = network, tuple(scales)
        self._run: Callable[..., Outputs] = network.forward_with_features

    def __call__(self, cut: Tensor, time: Tensor, label: Tensor) -> Outputs:
        """See :class:`Runner`."""
        return self._run(cut, time, self.scales, label=label)

    def watch(self) -> None:
        """It has the network itself."""


class CompiledRunner(EagerRunner):
    """The network through ``torch.compile``, once for each size of slab."""

    name = "compile"

    def __init__(self, network: UNet, scales: Sequence[int]):
        super().__init__(network, scales)
        self._run = torch.compile(self._run, dynamic=False)


def make_runners(
    name: str, model: ScoreFusion, plan: Plan, *, engines: str | os.PathLike[str] | None = None
) -> dict[str, Runner]:
    """A runner for each 2D network of a model in the dtype it computes in; ``engines`` for ``tensorrt``."""
    if name == "tensorrt":
        if engines is None:
            raise ScoreFusionError(
                "runner 'tensorrt' needs a folder of engines; make one with "
                f"`scorefusion engine build {model.config.name} -o FOLDER` and give it as engines"
            )
        from scorefusion.engine.tensorrt.runner import load_engines, slabs_of

        device = next(model.parameters()).device
        return dict(load_engines(engines, model, shapes=slabs_of(plan), device=device))
    kind = CompiledRunner if name == "compile" else EagerRunner
    return {key: kind(cast(UNet, network), plan.scales) for key, network in model.slice_networks.items()}


def choose_runner(name: str, device: torch.device, *, engines: bool = False) -> tuple[RunnerName, str]:
    """Which runner to use, and why: one of :data:`RUNNERS`, or by ``auto``; ``engines``: if there are any."""
    if name != "auto":
        if name not in RUNNERS:
            raise unknown_name("runner", name, ("auto", *RUNNERS))
        return name, "asked for"
    if device.type == "cuda" and engines:
        return "tensorrt", "a folder of TensorRT engines was given"
    if device.type == "cpu":
        return "eager", "on a CPU nearly all the time is in convolutions, which compiling leaves as they are"
    return "eager", "no TensorRT engines were given"
