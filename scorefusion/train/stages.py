"""What a training step minimises: the loss of each stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scorefusion.diffusion.level import NoiseLevel
from scorefusion.errors import ScoreFusionError
from scorefusion.models.score_fusion import Inputs, ScoreFusion, network_time, no_scores
from scorefusion.train.config import StageConfig
from scorefusion.train.crops import CropSampler
from scorefusion.train.draws import CACHED, Batch, Draws, draw_box, stream


class StageLoss(nn.Module):
    """The loss of a stage's batch, as a function of the weights that the stage trains.

    ``slices``: that of the 2D networks on 2.5D slices of every branch's plane. Otherwise that of the fusion
    network on 3D boxes, the 2D networks frozen: in a ``features`` stage the mean of the losses with and
    without the ensemble-2D-feature layers, for which the 2D networks run once; in a ``volume`` stage there
    are none.

    Args:
        model: whose.
        stage: which.
    """

    def __init__(self, model: ScoreFusion, stage: StageConfig):
        super().__init__()
        self.model, self.stage = model, stage

    def forward(self, batch: Batch) -> Tensor:
        """A scalar, float32. ``batch`` is what :meth:`Draws.batch` gives, on the model's device."""
        if self.stage.kind == "slices":
            return self._slices(batch)
        return self._boxes(batch)

    def _slices(self, batch: Batch) -> Tensor:
        networks, losses = self.model.slice_networks, []
        for name, network in networks.items():
            slab, target, abar, label = (
                batch[f"{name}.{key}"] for key in ("slab", "target", "abar", "label")
            )
            time = network_time(self.model.config.slice_networks[name], NoiseLevel.continuous(abar))
            losses.append(loss(network(slab, time, label=label), target, self.stage))
        return torch.stack(losses).mean()

    def _boxes(self, batch: Batch) -> Tensor:
        stage, target = self.stage, batch["target"]
        inputs, level = _inputs(batch), _level(batch)
        totals: dict[int, Tensor] = {}
        if stage.kind == "volume":
            scores = no_scores(self.model, batch["x"])
        elif "score.0" in batch:
            scores = tuple(batch[f"score.{k}"] for k in range(len(self.model.config.branches)))
        else:
            scores, totals = self.model.branch_outputs(
                batch["x"], inputs, level, features=stage.kind == "features"
            )
        compute: Callable[..., Tensor] = (
            self.model.predict_volume if stage.kind == "volume" else self.model.fuse
        )
        d, h, w = (slice(stage.margin, length - stage.margin) for length in inputs.size)
        losses = []
        for given in ({}, totals) if stage.kind == "features" else ({},):
            arguments = (batch["x"], inputs, level, scores, given)
            if stage.checkpointing:
                output = checkpoint(compute, *arguments, use_reentrant=False)
            else:
                output = compute(*arguments)
            losses.append(loss(output[:, :, d, h, w], target[:, :, d, h, w], stage))
        return torch.stack(losses).mean()


class CachedDraws(Draws):
    """Boxes of which a stage keeps ``stage.cached``, with what the 2D networks made of them.

    The 2D networks run once for each, one at a time, so what is kept does not depend on the batch.

    Args:
        model: its 2D networks run, on the device where it is.
        crops: as for :class:`Draws`.
        stage: as for :class:`Draws`.
        seed: of the run.
        number: of the stage.
        autocast: makes the context that networks run in.
    """

    def __init__(
        self,
        model: ScoreFusion,
        crops: CropSampler,
        stage: StageConfig,
        *,
        seed: int = 0,
        number: int = 0,
        autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
    ):
        super().__init__(model, crops, stage, seed=seed, number=number)
        self.autocast = autocast
        self.kept: dict[int, Batch] = {}

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
    """The parameters that a stage trains.

    Raises:
        ScoreFusionError: if the model has no network of that kind.
    """
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
