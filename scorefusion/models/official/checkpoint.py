"""Read a checkpoint of the authors' code: its files, and the names of its tensors in ours."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scorefusion.diffusion.schedule import paper_sampling
from scorefusion.errors import BadInput, out_of_memory
from scorefusion.models.config import PLANES, TimeConfig, UNetConfig

State = dict[str, Tensor]
Source = str | os.PathLike[str] | Mapping[str, Any]


def read_state(source: Source, *, ema: bool = True, own_schedule: bool = False) -> tuple[State, str]:
    """Read a checkpoint, a file or its content: weights as float32 by the authors' names, and its label.

    ``ema`` takes the averaged weights of an ensemble file; ``own_schedule`` accepts another noise schedule.
    """
    if isinstance(source, Mapping):
        label, content = "checkpoint", source
    else:
        label, content = os.fspath(source), _load(Path(source))
    if "model" in content and isinstance(content["model"], Mapping):
        wanted = "ema" if ema else "model"
        if not isinstance(content.get(wanted), Mapping):
            fix = "Import the weights of the last step instead (ema=False, --no-ema)." if ema else ""
            raise BadInput(label, f"holds no {wanted!r} weights, only {', '.join(map(str, content))}", fix)
        content = content[wanted]
    state = {}
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            problem = f"holds {name!r} of type {type(value).__name__} where a named tensor is expected"
            raise BadInput(label, problem, "Give a file as the authors' code saves it.")
        if _TABLE.fullmatch(name):  # of the noise schedule: regenerated, not read
            if name in ("betas", "alphas_cumprod") and not own_schedule:
                _check_schedule(label, name, value)
            continue
        state[name] = _weight(label, name, value)
    return state, label


def _load(path: Path) -> Mapping[str, Any]:
    fix = "Give a .pth or .pt file as the authors' code saves it."
    if not path.is_file():
        raise BadInput(path, "is a folder" if path.is_dir() else "does not exist", fix)
    if path.stat().st_size == 0:
        raise BadInput(path, "is empty", fix)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile pickle can raise anything
        if out_of_memory(error):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if "weights only" in reason.lower() or "weights_only" in reason.lower():
            reason = "it holds something other than tensors, which is not loaded because it could run code"
        raise BadInput(path, f"cannot be read as a checkpoint ({reason})", fix) from None
    if not isinstance(content, Mapping):
        raise BadInput(path, f"holds a {type(content).__name__} where named tensors are expected", fix)
    return content


def _weight(label: str, name: str, value: Tensor) -> Tensor:
    problem = ""
    if value.layout != torch.strided or not value.is_floating_point():
        problem = f"is {value.dtype} {value.layout}, not a dense floating-point tensor"
    elif value.device.type != "cpu":
        problem = f"is on {value.device}, not on the CPU"
    elif value.numel() * value.element_size() > value.untyped_storage().nbytes():
        problem = f"claims shape {list(value.shape)} but stores only {value.untyped_storage().nbytes()} bytes"
    elif not torch.isfinite(value).all():
        problem = f"holds {int((~torch.isfinite(value)).sum())} values that are not finite"
    if problem:
        raise BadInput(label, f"tensor {name!r} {problem}", "The checkpoint is damaged.")
    return value.detach().to(torch.float32)


def _check_schedule(label: str, name: str, table: Tensor) -> None:
    abar = paper_sampling().abar
    found = table.detach().double().reshape(-1).cpu().numpy()
    found = np.cumprod(1.0 - found) if name == "betas" else found
    if found.shape != abar.shape or not np.allclose(found, abar, rtol=1e-2, atol=1e-6):
        raise BadInput(
            label,
            f"was trained with another noise schedule than betas 1e-4 to 0.09 in {abar.size} steps "
            f"({name!r} has {found.size} steps and ends at abar {found[-1] if found.size else 'nothing'})",
            "Pass own_schedule=True (--own-schedule) to import it and sample with those betas all the same.",
        )


Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

FUSION = "denoise_fn.model_3D."
VIEWS = dict(zip((1, 2, 3), PLANES, strict=True))  #: their view 1 fixes z, 2 fixes y and 3 fixes x.

#: their feature layer of each scale, for a view.
LAYERS = {
    8: "feature_layer_{}_1",
    4: "feature_layer_{}_4",
    2: "feature_layer_{}_7",
    1: "feature_extract_layer_{}_10",
}
_PARTS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "embed": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "skip": "skip_connection",
    "proj": "proj_out",
}
_TABLE = re.compile(
    r"(?:denoise_fn\.model(?:2D|_cond2)_\d\.)?"
    r"(?:gammas|betas|alphas_cumprod(?:_prev)?|sqrt_(?:(?:recip|recipm1|one_minus)_)?(?:gammas|alphas_cumprod)"
    r"|log_one_minus_alphas_cumprod|posterior_\w+|p2_loss_weight|loss_weight)"
)


def slice_prefix(view: int, second: bool = False) -> str:
    """Where an ensemble file keeps the 2D network of a view, for the first or the second condition."""
    return f"denoise_fn.{'model_cond2' if second else 'model2D'}_{view}.denoise_fn."


def unet_names(ours: str, prefix: str) -> str:
    """The authors' name of a U-Net's weight, such as ``decoder.2.1.conv1.weight``, in a network's place."""
    head, *rest = ours.split(".")
    kind = rest[-1]
    if head == "embed":
        embed = "time_embed" if prefix == FUSION else "cond_embed"
        return f"{prefix}{embed}.{rest[0]}.{kind}"
    if head in ("norm", "output"):
        return f"{prefix}out.{0 if head == 'norm' else 2}.{kind}"
    block = {"encoder": "input_blocks", "middle": "middle_block", "decoder": "output_blocks"}[head]
    if ours.startswith("encoder.0."):
        return f"{prefix}input_blocks.0.0.{kind}"
    place, part = ".".join(rest[:-2]), rest[-2]
    if head == "encoder":
        place += ".0"
        part = "op" if part == "conv" else part
    part = _PARTS.get(part, part)
    return f"{prefix}{block}.{place}.{part}.{kind}"


def infer_unet(shapes: Shapes, prefix: str) -> UNetConfig:
    """Read a U-Net's widths and options off the shapes of the weights that begin with ``prefix``."""
    fusion = prefix == FUSION
    place = re.compile(rf"{re.escape(prefix)}input_blocks\.(\d+)\.")
    count = len({found[1] for name in shapes if (found := place.match(name))})
    if not count:
        raise KeyError(f"{prefix}input_blocks.0.0.weight")
    ups = [i for i in range(count) if _has(shapes, f"{prefix}output_blocks.{i}.1.")]
    blocks = ups[0] if ups else count - 1
    if blocks < 1 or count % (blocks + 1) or ups != list(range(blocks, count - 1, blocks + 1)):
        raise ValueError(
            f"{prefix}: {count} input blocks with up-sampling at output blocks {ups} are not whole levels"
        )
    firsts = range(1, count, blocks + 1)
    widths = tuple(shapes[f"{prefix}input_blocks.{i}.0.out_layers.3.weight"][0] for i in firsts)
    told = shapes[f"{prefix}{'time_embed' if fusion else 'cond_embed'}.0.weight"]
    middle = f"{prefix}middle_block.0."
    film = shapes[f"{middle}emb_layers.1.weight"][0] == 2 * shapes[f"{middle}out_layers.3.weight"][0]
    return UNetConfig(
        widths=widths,
        blocks=blocks,
        conditioning="film" if film else "add",
        attention=f"{prefix}middle_block.1.qkv.weight" in shapes,
        resample="conv" if _has(shapes, f"{prefix}input_blocks.{blocks + 1}.0.op.") else "res",
        edges="replicate" if fusion else "zeros",
        time=TimeConfig(
            value="step" if fusion else "abar",
            channels=told[1],
            hidden=told[0],
            max_period=1e3 if fusion else 1e4,
        ),
    )


def official_names(ours: str, prefixes: Mapping[str, str], views: Mapping[int, int]) -> list[str]:
    """The authors' weights that make up one of ours; several are summed, none means zero.

    ``prefixes``: place in the file of each slice network. ``views``: number of the feature layers, by branch.
    """
    part, rest = ours.split(".", 1)
    if part == "fusion":
        return [unet_names(rest, FUSION)]
    if part == "slice_networks":
        network, rest = rest.split(".", 1)
        return [unet_names(rest, prefixes[network])]
    scale, kind, *branch = rest.split(".")
    layer = "denoise_fn." + LAYERS[int(scale)]
    if kind == "bias":
        return [f"{layer.format(view)}.bias" for view in views.values()]
    view = views.get(int(branch[0]))
    return [] if view is None else [f"{layer.format(view)}.weight"]


def _has(shapes: Shapes, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in shapes)
