"""A loss or gradient that is not finite: batch and weights are kept, and computed again to say why."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from scorefusion.errors import BadInput, ScoreFusionError, out_of_memory
from scorefusion.io.atomic import written_beside
from scorefusion.models.config import ModelConfig, parse
from scorefusion.models.folder import channels_last
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.train.config import StageConfig
from scorefusion.train.examples import Batch, Draws, step_seed
from scorefusion.train.step import StageLoss, trained_parameters

if TYPE_CHECKING:
    from scorefusion.train.loop import Run

WEIGHTS = "weights."


@dataclass(frozen=True)
class Replay:
    """What a step gives in float32 on the CPU."""

    loss: float  #: the stage's loss
    norm: float  #: of the gradients together
    batch: tuple[str, ...]  #: names of the batch's tensors that are not finite
    weights: tuple[str, ...]  #: names of the weights that are not
    layer: str | None  #: the first layer whose output is not finite, though its batch and weights are
    gradients: tuple[str, ...]  #: names of the weights whose gradients are not finite

    @property
    def reason(self) -> str:
        """What the replay shows, without a full stop."""
        if self.batch:
            return f"the batch itself is not finite ({', '.join(self.batch[:3])})"
        if self.weights:
            return f"{len(self.weights)} weights are not finite ({', '.join(self.weights[:3])}, ...)"
        if self.layer or self.gradients:
            where = f"the output of {self.layer}" if self.layer else f"the gradient of {self.gradients[0]}"
            return f"{where} is not finite in float32 either"
        return f"in float32 the loss is {self.loss:.4g} and the gradient norm {self.norm:.4g}"

    @property
    def fix(self) -> str:
        """What to do about it."""
        if self.batch:
            return "Check the volumes of the run, or weaken augment."
        if self.weights or self.layer or self.gradients:
            return "Lower the stage's learning_rate, or give it a longer warmup, in a new folder."
        return "Set precision to float32, in a new folder."


def not_finite(run: Run, draws: Draws, loss: float, norm: float) -> ScoreFusionError:
    """Keep ``nan-STAGE-STEP.safetensors``, the whole step's batch and the weights, and return the error."""
    state, stage = run.state, run.config.stages[run.state.stage]
    what = f"stage {stage.kind!r} has loss {loss:g} and gradient norm {norm:g} at step {state.step}"
    if run.journal is None:  # the first process keeps what all computed, and must not be stopped meanwhile
        run.accelerator.wait_for_everyone()
        return ScoreFusionError(what)
    file = run.folder / f"nan-{state.stage + 1}-{state.step:06d}.safetensors"
    tensors = draws.batch(state.step, range(stage.batch))
    tensors |= {WEIGHTS + name: tensor for name, tensor in run.model.state_dict().items()}
    about = {
        "seed": run.config.seed,
        "stage": state.stage,
        "step": state.step,
        "loss": str(loss),
        "gradient_norm": str(norm),
        "precision": run.accelerator.mixed_precision,
        "dropout_seed": step_seed(run.config.seed, state.stage, state.step),
        "replay": f"scorefusion train {run.folder / 'config.json'} --replay {file}",
        "of": stage.model_dump(mode="json"),
        "model": run.model.config.model_dump(mode="json"),
    }
    with written_beside(file) as beside:
        save_file({name: each.detach().cpu().contiguous() for name, each in tensors.items()}, beside)
    with written_beside(file.with_suffix(".json")) as beside:
        beside.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    found = replay(file)
    run.accelerator.wait_for_everyone()
    return BadInput(file, f"holds the batch that stopped the run: {what}; {found.reason}", found.fix)


def replay(file: Path) -> Replay:
    """Compute a step that was kept again, in float32 on the CPU.

    Args:
        file: ``nan-STAGE-STEP.safetensors``, with the ``.json`` beside it.

    Raises:
        BadInput: if either cannot be read.
    """
    try:
        tensors = load_file(file)
        about = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
        stage = parse(StageConfig, about["of"], file.with_suffix(".json"))
        model = ScoreFusion(parse(ModelConfig, about["model"], file.with_suffix(".json")))
        weights = {n.removeprefix(WEIGHTS): t for n, t in tensors.items() if n.startswith(WEIGHTS)}
        model.load_state_dict(weights)
        batch = {name: tensor for name, tensor in tensors.items() if not name.startswith(WEIGHTS)}
        torch.manual_seed(about["dropout_seed"])
        return _examine(channels_last(model), stage, batch)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if out_of_memory(error):
            raise
        problem = f"cannot be computed again ({' '.join(str(error).split())[:200]})"
        raise BadInput(file, problem, "Name a nan-*.safetensors with its .json beside it.") from None


def _examine(model: ScoreFusion, stage: StageConfig, batch: Batch) -> Replay:
    model.train().requires_grad_(False)
    trained = {id(parameter.requires_grad_()) for parameter in trained_parameters(model, stage)}
    if stage.kind != "slices":
        model.slice_networks.eval()
    first: list[str] = []

    def watch(name: str) -> Any:
        def look(module: nn.Module, given: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not torch.isfinite(output).all():
                first.append(name)

        return look

    hooks = [part.register_forward_hook(watch(name)) for name, part in model.named_modules() if name]
    loss = StageLoss(model, stage)(batch)
    for hook in hooks:
        hook.remove()
    loss.backward()
    gradients = {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if id(parameter) in trained and parameter.grad is not None
    }
    return Replay(
        loss=loss.item(),
        norm=float(torch.stack([gradient.norm() for gradient in gradients.values()]).norm()),
        batch=_not_finite(batch.items()),
        weights=_not_finite(model.named_parameters()),
        layer=first[0] if first else None,
        gradients=_not_finite(gradients.items()),
    )


def _not_finite(tensors: Iterable[tuple[str, Tensor]]) -> tuple[str, ...]:
    return tuple(name for name, tensor in tensors if not torch.isfinite(tensor).all())
