"""A training step: the loss of its stage, the gradient, the update and the averaged weights."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

from scorefusion.diffusion.level import NoiseLevel
from scorefusion.errors import ScoreFusionError
from scorefusion.models.score_fusion import Inputs, ScoreFusion, Scores, network_time
from scorefusion.models.strategies import FUSE, VOLUME
from scorefusion.ops.device import choose_device, choose_dtype
from scorefusion.optional import need
from scorefusion.train.config import StageConfig, TrainConfig
from scorefusion.train.examples import CACHED, Batch, CropSampler, Draws, draw_box, step_seed, stream

if TYPE_CHECKING:
    from accelerate import Accelerator

PRECISIONS = {torch.float32: "no", torch.bfloat16: "bf16"}


def start(config: TrainConfig) -> Accelerator:
    """Join the other processes of the run, if there are any, and choose device and precision."""
    accelerate = need("accelerate", "training")
    device = choose_device(config.device)
    precision = PRECISIONS[choose_dtype(config.precision, device)]
    state = need("accelerate.state", "training").AcceleratorState
    if state._shared_state and state().mixed_precision != precision:
        state._reset_state()  # an earlier run of this program had another precision
    # PyTorch's remark on 1x1 convolutions, whose strides may be written in two ways
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    return accelerate.Accelerator(cpu=device.type == "cpu", mixed_precision=precision)


def is_first() -> bool:
    """Whether this process is the one of its run that writes and prints."""
    return os.environ.get("RANK", "0") == "0"


def my_share(stage: StageConfig, accelerator: Accelerator) -> range:
    """Which of a step's examples this process computes: as many as every other."""
    count = accelerator.num_processes
    if stage.batch % count:
        raise ScoreFusionError(
            f"{count} processes cannot share a batch of {stage.batch} in stage {stage.kind!r}; "
            f"make it a multiple of {count}"
        )
    each = stage.batch // count
    return range(accelerator.process_index * each, (accelerator.process_index + 1) * each)


class StageLoss(nn.Module):
    """The loss of a stage's batch, as a function of the weights that the stage trains.

    ``slices``: that of the 2D networks on 2.5D slices of every branch's plane. Otherwise that of the fusion
    network on 3D boxes, the 2D networks frozen: in a ``features`` stage the mean of the losses with and
    without the ensemble-2D-feature layers, for which the 2D networks run once; in a ``volume`` stage there
    are none.
    """

    def __init__(self, model: ScoreFusion, stage: StageConfig):
        super().__init__()
        self.model, self.stage = model, stage

    def forward(self, batch: Batch) -> Tensor:
        """A scalar, float32. ``batch`` is what :meth:`Draws.batch` gives, on the model's device."""
        return self._slices(batch) if self.stage.kind == "slices" else self._boxes(batch)

    def _slices(self, batch: Batch) -> Tensor:
        losses = []
        for name, network in self.model.slice_networks.items():
            keys = ("slab", "target", "abar", "label")
            slab, target, abar, label = (batch[f"{name}.{key}"] for key in keys)
            time = network_time(self.model.config.slice_networks[name], NoiseLevel.continuous(abar))
            losses.append(loss(network(slab, time, label=label), target, self.stage))
        return torch.stack(losses).mean()

    def _boxes(self, batch: Batch) -> Tensor:
        stage, target = self.stage, batch["target"]
        inputs, level = _inputs(batch), _level(batch)
        scores: Scores = ()
        totals: dict[int, Tensor] = {}
        if "score.0" in batch:
            scores = tuple(batch[f"score.{k}"] for k in range(len(self.model.config.branches)))
        elif stage.kind != "volume":
            features = stage.kind == "features"
            scores, totals = self.model.branch_outputs(batch["x"], inputs, level, features=features)
        strategy = VOLUME if stage.kind == "volume" else FUSE
        d, h, w = (slice(stage.margin, length - stage.margin) for length in inputs.size)
        losses = []
        for given in ({}, totals) if stage.kind == "features" else ({},):
            arguments = (batch["x"], inputs, level, scores, given, strategy)
            if stage.checkpointing:
                output = checkpoint(self.model.fuse, *arguments, use_reentrant=False)
            else:
                output = self.model.fuse(*arguments)
            losses.append(loss(output[:, :, d, h, w], target[:, :, d, h, w], stage))
        return torch.stack(losses).mean()


@dataclass
class CachedDraws(Draws):
    """Boxes of which a stage keeps ``stage.cached``, with what the 2D networks made of them.

    The 2D networks run once for each, one at a time, so what is kept does not depend on the batch.
    """

    #: makes the context that the 2D networks run in, on the device where they are
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext
    kept: dict[int, Batch] = field(default_factory=dict)

    def parts(self, step: int, index: int) -> list[Batch]:
        """One of the boxes that are kept, with ``score.K`` of each branch, on the model's device."""
        place = int(stream(self.seed, self.number, step, index).integers(self.stage.cached))
        if place not in self.kept:
            box = draw_box(self.model, self.crops, self.stage, stream(self.seed, self.number, CACHED, place))
            box = on_device(box, next(self.model.parameters()).device)
            with torch.no_grad(), self.autocast():
                scores, _ = self.model.branch_outputs(box["x"], _inputs(box), _level(box))
            self.kept[place] = box | {f"score.{k}": score for k, score in enumerate(scores)}
        return [self.kept[place]]


def trained_parameters(model: ScoreFusion, stage: StageConfig) -> Iterator[nn.Parameter]:
    """The parameters that a stage trains."""
    if stage.kind == "slices":
        yield from model.slice_networks.parameters()
        return
    if model.fusion is None or (stage.kind == "features" and not model.features):
        raise ScoreFusionError(f"model {model.config.name!r} has nothing that a {stage.kind!r} stage trains")
    yield from model.fusion.parameters()
    if stage.kind == "features":
        yield from model.features.parameters()


def loss(output: Tensor, target: Tensor, stage: StageConfig) -> Tensor:
    """``l1·mean|d| + l2·mean(d²)`` in float32."""
    difference = output.float() - target.float()
    total = stage.l2 * difference.square().mean()
    return total + stage.l1 * difference.abs().mean() if stage.l1 else total


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The same batch, moved."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def _inputs(batch: Batch) -> Inputs:
    d, h, w = batch["target"].shape[2:]
    return Inputs(batch["condition"], batch.get("common"), (d, h, w))


def _level(batch: Batch) -> NoiseLevel:
    return NoiseLevel(batch["abar"], batch["t"])


class Stepper:
    """The steps of stage ``number``; each is a function of its own number and of the weights alone.

    The model and its averaged twin are changed in place; ``optimiser`` is the state of one to go on with.
    """

    def __init__(
        self,
        config: TrainConfig,
        number: int,
        accelerator: Accelerator,
        model: ScoreFusion,
        average: ScoreFusion,
        crops: CropSampler,
        optimiser: dict[str, Any] | None = None,
    ):
        stage = config.stages[number]
        self.stage, self.number, self.seed, self.accelerator = stage, number, config.seed, accelerator
        self.mine = my_share(stage, accelerator)
        model.train().requires_grad_(False)
        self.parameters: list[Tensor] = [each.requires_grad_() for each in trained_parameters(model, stage)]
        self.averages: list[Tensor] = list(trained_parameters(average, stage))
        rates: dict[str, Any] = {"lr": stage.learning_rate, "betas": (0.9, 0.99)}
        self.optimiser = torch.optim.Adam(self.parameters, **rates, fused=True)
        if optimiser is not None:
            self.optimiser.load_state_dict(optimiser)
        if stage.kind != "slices":
            model.slice_networks.eval()
        self.loss = accelerator.prepare_model(StageLoss(model, stage))
        options: dict[str, Any] = {"seed": config.seed, "number": number}
        if stage.cached:
            options["autocast"] = accelerator.autocast
        self.draws: Draws = (CachedDraws if stage.cached else Draws)(model, crops, stage, **options)
        spare = min(4, (os.cpu_count() or 1) - 1) if accelerator.device.type == "cuda" else 0
        self.workers = 0 if stage.cached else spare if config.workers is None else config.workers

    def batches(self, first: int) -> Iterator[Batch]:
        """This process's share of the examples of each step from ``first`` on, on its device."""
        steps = range(first, self.stage.steps)
        shares: Iterable[Batch] = (self.draws.batch(step, self.mine) for step in steps)
        if self.workers:
            shares = DataLoader(
                _Shares(self.draws, self.mine),
                sampler=steps,
                batch_size=None,
                num_workers=self.workers,
                pin_memory=self.accelerator.device.type == "cuda",
            )
        for batch in shares:
            yield on_device(batch, self.accelerator.device)

    def gradient(self, step: int, batch: Batch) -> tuple[float, float]:
        """Compute the gradient, clipped, over all processes; the step's loss and the gradient's norm."""
        torch.manual_seed(step_seed(self.seed, self.number, step, self.accelerator.process_index))
        self.optimiser.zero_grad(set_to_none=True)
        loss = self.loss(batch)
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(self.parameters, self.stage.clip)
        return float(self.accelerator.reduce(loss.detach(), "mean")), float(norm)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Change the weights by the gradient, and their average by the weights."""
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.stage, step)
        self.optimiser.step()
        decay = min(self.stage.ema, (2 + step) / (11 + step))
        torch._foreach_lerp_(self.averages, self.parameters, 1 - decay)


@dataclass
class _Shares(Dataset[Batch]):
    """A process's examples by step, as processes that draw ahead read them."""

    draws: Draws
    mine: range

    def __getitem__(self, step: int) -> Batch:
        return self.draws.batch(step, self.mine)


def learning_rate(stage: StageConfig, step: int) -> float:
    """Linear warm-up, then a cosine down to a hundredth."""
    if step < stage.warmup:
        return stage.learning_rate * (step + 1) / stage.warmup
    done = (step - stage.warmup) / max(stage.steps - stage.warmup, 1)
    return stage.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))
