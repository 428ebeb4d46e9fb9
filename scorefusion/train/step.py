"""One training step: examples, loss, gradient, update, average."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.train.config import StageConfig, TrainConfig
from scorefusion.train.crops import CropSampler
from scorefusion.train.devices import my_share
from scorefusion.train.draws import Batch, Draws, step_seed
from scorefusion.train.stages import CachedDraws, StageLoss, on_device, trained_parameters

if TYPE_CHECKING:
    from accelerate import Accelerator


class Stepper:
    """The steps of a stage; each is a function of its number and of the weights alone.

    Args:
        config: the run.
        number: which of its stages.
        accelerator: where it runs.
        model: trained in place.
        average: its averaged twin, changed in place.
        crops: where volumes come from.
        optimiser: the state of an optimiser to go on with.
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
        self.optimiser = torch.optim.Adam(
            self.parameters, lr=stage.learning_rate, betas=(0.9, 0.99), fused=True
        )
        if optimiser is not None:
            self.optimiser.load_state_dict(optimiser)
        if stage.kind != "slices":
            model.slice_networks.eval()
        self.loss = accelerator.prepare_model(StageLoss(model, stage))
        options: dict[str, Any] = {"seed": config.seed, "number": number}
        if stage.cached:
            options["autocast"] = accelerator.autocast
        self.draws: Draws = (CachedDraws if stage.cached else Draws)(model, crops, stage, **options)
        self.workers = 0 if stage.cached else _workers(config, accelerator)

    def batches(self, first: int) -> Iterator[Batch]:
        """This process's share of the examples of each step from ``first`` on, on its device."""
        shares: Iterable[Batch] = (
            self.draws.batch(step, self.mine) for step in range(first, self.stage.steps)
        )
        if self.workers:
            shares = DataLoader(
                _Shares(self, first), batch_size=None, num_workers=self.workers,
                pin_memory=self.accelerator.device.type == "cuda",
            )  # fmt: skip
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


class _Shares(Dataset[Batch]):
    """A stage's steps from one on, as processes that draw ahead read them."""

    def __init__(self, stepper: Stepper, first: int):
        self.draws, self.mine = stepper.draws, stepper.mine
        self.first, self.count = first, stepper.stage.steps - first

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> Batch:
        return self.draws.batch(self.first + place, self.mine)


def _workers(config: TrainConfig, accelerator: Accelerator) -> int:
    if config.workers is not None:
        return config.workers
    return min(4, (os.cpu_count() or 1) - 1) if accelerator.device.type == "cuda" else 0


def learning_rate(stage: StageConfig, step: int) -> float:
    """Linear warm-up, then a cosine down to a hundredth."""
    if step < stage.warmup:
        return stage.learning_rate * (step + 1) / stage.warmup
    done = (step - stage.warmup) / max(stage.steps - stage.warmup, 1)
    return stage.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))
