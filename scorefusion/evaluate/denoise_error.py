"""The denoising error of each strategy at each noise level.

It shows what fusing gains, where PSNR hides it: a better denoiser's samples are sharper, which costs PSNR.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scorefusion.diffusion.level import NoiseLevel, add_noise, prediction_coefficients
from scorefusion.diffusion.schedule import sigma_to_abar
from scorefusion.evaluate.output import grid
from scorefusion.models import ScoreFusion
from scorefusion.models.strategies import AVERAGE, PAPER_ORDER, SINGLE, STRATEGIES, strategies_of
from scorefusion.ops import fuse_scores, normal

SIGMAS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)


@dataclass(frozen=True)
class DenoisingErrors:
    """Mean squared errors of the denoised residual."""

    sigmas: tuple[float, ...]  #: noise levels, sqrt((1 - abar) / abar), with the residual's unit the model's
    errors: dict[str, tuple[float, ...]]  #: by strategy and level; ``single`` is the mean over the planes

    def ratio(self, strategy: str, other: str) -> float:
        """Geometric mean over the levels of the error of ``strategy`` over that of ``other``."""
        return float(np.exp(np.mean(np.log(np.array(self.errors[strategy]) / np.array(self.errors[other])))))

    def table(self) -> str:
        """Markdown with one row per strategy, one column per noise level, and ratios of geometric means."""
        rows = [[name, *(f"{value:.4f}" for value in values)] for name, values in self.errors.items()]
        table = grid(["sigma", *(f"{sigma:g}" for sigma in self.sigmas)], rows)
        order = [name for name in PAPER_ORDER if name in self.errors]
        ratios = [f"{b} / {a}: {self.ratio(b, a):.3f}" for a, b in zip(order, order[1:], strict=False)]
        return f"{table}\n\ngeometric means: {', '.join(ratios)}"


@torch.no_grad()
def denoising_errors(
    model: ScoreFusion,
    residual: Tensor,
    condition: Tensor,
    *,
    sigmas: Sequence[float] = SIGMAS,
    origin: Sequence[int] = (0, 0, 0),
    full: Sequence[int] | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> DenoisingErrors:
    """Return the squared error of every strategy's estimate of a known residual at each noise level.

    The strategies a model was trained for are measured, and every branch by itself. The true residual
    ``[1, 1, D, H, W]`` is in the model's unit, the condition ``[1, C, D, H, W]``; ``origin`` (z, y, x) is the
    box's in the whole volume of size ``full``. ``progress`` is called with (levels done, levels).
    """
    config, inputs = model.config, model.prepare(condition, origin=origin, full=full)
    noise = normal(residual.shape, [seed], 0, origin=origin, device=residual.device)
    found: dict[str, list[float]] = {}
    d, h, w = inputs.size
    several = len(config.branches) > len({branch.plane for branch in config.branches})
    names = [
        f"{SINGLE} {branch.plane}"
        + (f" {'+'.join(config.conditions[i] for i in branch.conditions)}" * several)
        for branch in config.branches
    ]
    together = [STRATEGIES[name] for name in strategies_of(config)]
    together = [s for s in together if not s.takes_planes and (model.features or not s.takes_features)]
    seen = dict.fromkeys(branch.conditions for branch in config.branches) if several else {}
    for done, sigma in enumerate(sigmas, start=1):
        abar = float(sigma_to_abar(sigma))
        level = NoiseLevel.of(abar, -1, 1, residual.device)
        p, q = prediction_coefficients(config.prediction, abar, config.sigma_data)
        noisy = add_noise(residual, noise, level.abar)
        x = model.seen(noisy, level)
        scores, totals = model.branch_outputs(x, inputs, level, features=bool(model.features))

        def error(output: Tensor, p: float = p, q: float = q, noisy: Tensor = noisy) -> float:
            clean = p * noisy + q * output[:, :, :d, :h, :w].float()
            return (clean - residual).double().square().mean().item()

        outputs = dict(zip(names, scores, strict=True))
        if scores:
            outputs[AVERAGE.name] = fuse_scores(*AVERAGE.fuse(config, scores, None))
        for conditions in seen:
            some = [s for s, b in zip(scores, config.branches, strict=True) if b.conditions == conditions]
            name = f"{AVERAGE} [{'+'.join(config.conditions[i] for i in conditions)}]"
            outputs[name] = fuse_scores(*AVERAGE.fuse(config, some, None))
        for strategy in together:
            some = [scores[k] for k in strategy.branches(config)[0]]
            maps = None
            if strategy.runs_volume:
                given = totals if strategy.takes_features else {}
                maps = model.fusion_maps(x, inputs, level, tuple(some), given)
            outputs[strategy.name] = fuse_scores(*strategy.fuse(config, some, maps))
        row = {name: error(output) for name, output in outputs.items()}
        if scores:
            row = {SINGLE.name: float(np.mean([row[name] for name in names]))} | row
        for name, value in row.items():
            found.setdefault(name, []).append(value)
        if progress:
            progress(done, len(sigmas))
    return DenoisingErrors(tuple(sigmas), {name: tuple(values) for name, values in found.items()})
