"""Read checkpoints of the authors' code and convert them into ScoreFusion models with their cards."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from scorefusion.degradations import BlockMean, Nothing
from scorefusion.diffusion.schedule import paper_sampling
from scorefusion.errors import BadInput, ScoreFusionError, out_of_memory, unknown_name
from scorefusion.models.config import (
    PLANES,
    BranchConfig,
    DomainConfig,
    ModelConfig,
    Plane,
    ResidualConfig,
    SamplingConfig,
    TimeConfig,
    UNetConfig,
)
from scorefusion.models.domain import canonical, is_known, made_for
from scorefusion.models.folder import channels_last, check_tensors
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.models.strategies import ALTERNATE, AVERAGE, FUSE, FUSE_FEATURES, SINGLE, require_strategy

State = dict[str, Tensor]
Source = str | os.PathLike[str] | Mapping[str, Any]
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
THEIR_STRATEGIES = {"2D": "single", "merge": "average", "3D": "fuse", "3D_feature": "fuse+features"}
_FIX = "It is not a whole checkpoint of the authors' code, of the two kinds that can be imported."
COMMON = 5  #: input channels of a 2D network that are not conditions: x, y, z, mask and x_t.


def load_official(
    source: Source | Mapping[str, Source],
    *,
    strategy: str | None = None,
    ema: bool = True,
    plane: str = "axial",
    timesteps: int = 1000,
    condition_order: str = "modality",
    context: int | None = None,
    factor: int = 4,
    conditions: Sequence[str] | None = None,
    target: str = "target",
    name: str = "official",
    own_schedule: bool = False,
) -> ScoreFusion:
    """Load a checkpoint of the authors' code: in evaluation mode, their sampler the model's default.

    Args:
        source: the file, or the state it holds; or 2D files by plane, ``{"axial": file, "coronal": file}``,
            for averaging or alternating planes without a 3D network.
        strategy: what the model does by default: one of ours, or theirs (2D, merge, 3D, 3D_feature); the best
            that the file has weights for when None. Their ``2D`` is view 3, the sagittal plane.
        ema: of an ensemble file take the averaged weights (of 2D networks these are a file of their own).
        plane: the plane that a 2D file was trained on, which the file does not say.
        timesteps: their ``--timesteps``. With 2000 their code tells the 2D networks t/2 in place of abar.
        condition_order: channels of several conditions with neighbours: ``modality`` as their training has
            them, ``slice`` as their inference has them.
        context: neighbouring slices on either side that the 2D networks see; inferred when None (2 where the
            channels are a multiple of five, else 0).
        factor: the input's block-mean factor for super-resolution; 1 for a translation between modalities,
            whose residual is added to the first condition.
        conditions: what the condition channels are called; ``input``, ``input2``, ... when None.
        target: what the output is called.
        name: the model's name.
        own_schedule: accept a file trained with another noise schedule than betas 1e-4 to 0.09 in 1000 steps,
            and sample with that one all the same.

    Raises:
        BadInput: for a file that cannot be read or is of neither kind, and for missing, unexpected or
            mis-shaped weights, each named.
        ScoreFusionError: for an unknown strategy or plane, or switches that contradict the file.
    """
    if timesteps not in (1000, 2000):
        raise ScoreFusionError(f"timesteps is 1000 or 2000 (their --timesteps), got {timesteps}")
    if condition_order not in ("modality", "slice"):
        raise unknown_name("condition order", condition_order, ("modality", "slice"))
    if factor < 1:
        raise ScoreFusionError(f"factor is 1, or more for super-resolution, got {factor}")
    sources: Mapping[str, Any] = {plane: source}
    if isinstance(source, Mapping) and set(source) & set(PLANES):
        sources = source
    state: State = {}
    labels = []
    for where, item in sources.items():
        if where not in PLANES:
            raise unknown_name("plane", where, PLANES)
        found, label = read_state(item, ema=ema, own_schedule=own_schedule)
        tag = f"{where}:" if len(sources) > 1 else ""
        state.update({tag + key: value for key, value in found.items()})
        labels.append(label)
    config, origins = describe(
        {key: tuple(value.shape) for key, value in state.items()},
        label=", ".join(labels),
        planes=[where for where in PLANES if where in sources],
        strategy=strategy,
        halved_slice_time=timesteps == 2000,
        condition_order=condition_order,
        context=context,
        factor=factor,
        conditions=conditions,
        target=target,
        name=name,
    )
    with torch.device("meta"):
        model = ScoreFusion(config)
    weights = {}
    for ours, parameter in model.state_dict().items():
        total = torch.zeros(parameter.shape)
        for theirs in origins[ours]:
            total += state[theirs].reshape(parameter.shape)
        weights[ours] = total
    model.load_state_dict(weights, assign=True)
    return channels_last(model).eval()


def describe(
    shapes: Shapes,
    *,
    label: str = "checkpoint",
    planes: Sequence[Plane] = ("axial",),
    **switches: Any,
) -> tuple[ModelConfig, dict[str, list[str]]]:
    """Infer a model from the names and shapes of a checkpoint's weights; options as of :func:`load_official`.

    Returns the configuration, and for each weight of the model those of the checkpoint that it is the sum of.
    With several 2D files the names begin with ``plane:``.
    """
    try:
        networks = _networks(shapes, planes)
        config = _configuration(shapes, networks, **switches)
        with torch.device("meta"):
            expected = ScoreFusion(config).state_dict()
    except ScoreFusionError:
        raise
    except ValidationError as error:
        reasons = "; ".join(item["msg"] for item in error.errors())
        raise BadInput(label, f"does not make a model: {reasons}", _FIX) from None
    except KeyError as error:
        raise BadInput(label, f"lacks {error.args[0]}", _FIX) from None
    except IndexError:
        raise BadInput(label, "holds a weight with too few dimensions", _FIX) from None
    except ValueError as error:
        raise BadInput(label, f"does not make a model: {error}", _FIX) from None
    prefixes = {network.name: network.prefix for network in networks}
    views = {
        k: network.view
        for k, network in enumerate(networks)
        if config.feature_scales and (not network.second or _has_layers(shapes, network.view))
    }
    origins = {ours: official_names(ours, prefixes, views) for ours in expected}
    needed = {
        theirs: _their_shape(ours, tuple(tensor.shape), config)
        for ours, tensor in expected.items()
        for theirs in origins[ours]
    }
    check_tensors(label, needed, dict(shapes), fix=_FIX)
    return config, origins


class _Network(NamedTuple):
    """A 2D network of the checkpoint: name here, plane, place in the file, number of its feature layers."""

    name: str
    plane: Plane
    prefix: str
    view: int
    second: bool


def _networks(shapes: Shapes, planes: Sequence[Plane]) -> list[_Network]:
    """The 2D networks of an ensemble, or those of 2D files."""
    if not any(key.startswith((FUSION, "denoise_fn.model2D_")) for key in shapes):
        tags = [f"{plane}:" if len(planes) > 1 else "" for plane in planes]
        pairs = zip(planes, tags, strict=True)
        return [_Network(plane, plane, f"{tag}denoise_fn.", 0, False) for plane, tag in pairs]
    found = []
    for second in (False, True):
        for view, plane in VIEWS.items():
            prefix = f"denoise_fn.{'model_cond2' if second else 'model2D'}_{view}.denoise_fn."
            if any(key.startswith(prefix) for key in shapes):
                number = view + 3 * second
                found.append(_Network(f"{plane}2" if second else plane, plane, prefix, number, second))
    return found


def _configuration(
    shapes: Shapes,
    networks: list[_Network],
    *,
    strategy: str | None = None,
    halved_slice_time: bool = False,
    condition_order: Literal["modality", "slice"] = "modality",
    context: int | None = None,
    factor: int = 4,
    conditions: Sequence[str] | None = None,
    target: str = "target",
    name: str = "official",
) -> ModelConfig:
    """Put a configuration together from the shapes and the switches."""
    seen = {n.name: shapes[f"{n.prefix}input_blocks.0.0.weight"][1] - COMMON for n in networks}
    if context is None:
        context = 2 if all(channels % 5 == 0 for channels in seen.values()) else 0
    group = {key: channels / (2 * context + 1) for key, channels in seen.items()}
    for key, count in group.items():
        if count < 1 or count != int(count):
            raise ScoreFusionError(
                f"the {key} network has {seen[key] + COMMON} input channels, which are not position, mask, "
                f"x_t and whole conditions of {2 * context + 1} slices; give the right context"
            )
    fusion = infer_unet(shapes, FUSION) if any(key.startswith(FUSION) for key in shapes) else None
    total = int(max(group.values(), default=0))
    if fusion is not None:
        channels = shapes[f"{FUSION}input_blocks.0.0.weight"][1]
        scores = shapes[f"{FUSION}out.2.weight"][0]
        if scores != len(networks):
            have = ", ".join(network.prefix.removesuffix(".denoise_fn.") for network in networks)
            raise ValueError(f"its 3D network fuses {scores} scores and its 2D networks are {have or 'none'}")
        total = channels - COMMON - len(networks)
        if total < max(group.values()):
            raise ScoreFusionError(
                f"the 3D network has {channels} input channels, too few for x_t, position, mask, "
                f"{int(max(group.values()))} conditions and {len(networks)} scores"
            )
    names = tuple(conditions or ("input", *(f"input{k}" for k in range(2, total + 1))))
    if len(names) != total:
        raise ScoreFusionError(
            f"the checkpoint has {total} conditions, {len(names)} are named: {', '.join(names)}"
        )
    branches = []
    for network in networks:
        count = int(group[network.name])
        sees = range(total - count, total) if network.second else range(count)
        branches.append(BranchConfig(plane=network.plane, conditions=tuple(sees), network=network.name))
    layers = fusion is not None and any(_has_layers(shapes, network.view) for network in networks)
    several = len({network.plane for network in networks}) > 1
    kinds = [SINGLE, *([ALTERNATE, AVERAGE] if several else [])]
    kinds += [FUSE] * (fusion is not None) + [FUSE_FEATURES] * layers
    strategies = tuple(kind.name for kind in kinds)  # what the file has weights for, best last
    chosen = THEIR_STRATEGIES.get(strategy, strategy) if strategy else strategies[-1]
    # The two-view class has 3x3x3 layers at scale 1.
    wide = layers and shapes[f"denoise_fn.{LAYERS[1].format(networks[0].view)}.weight"][2:] == (3, 3, 3)
    config = ModelConfig(
        name=name,
        target=target,
        halved_slice_time=halved_slice_time,
        context_order=condition_order,
        conditions=names,
        prediction="eps",
        context=context,
        branches=tuple(branches),
        base_weights=(0.3334, 0.3333, 0.3333) if fusion is not None and len(networks) == 3 else None,
        slice_networks={network.name: infer_unet(shapes, network.prefix) for network in networks},
        fusion=fusion,
        feature_scales=tuple(LAYERS) if layers else (),
        feature_kernel=3 if wide else 1,
        strategies=strategies,
        residual=ResidualConfig(base="nearest" if factor > 1 else "identity", scale=2.0),
        degradation=BlockMean(factor=factor) if factor > 1 else Nothing(),
        sampling=SamplingConfig(
            single_plane="sagittal" if fusion is not None else None,
            solver="official",
            steps=50,
            schedule="paper",
            clamp=1.0,
        ),
        domain={each: DomainConfig(contrasts=(canonical(each),)) for each in names if is_known(each)},
    )
    sampling = config.sampling.model_copy(update={"strategy": require_strategy(chosen, config).name})
    return config.model_copy(update={"sampling": sampling})


def _has_layers(shapes: Shapes, view: int) -> bool:
    return any(f"denoise_fn.{layer.format(view)}.weight" in shapes for layer in LAYERS.values())


def _their_shape(ours: str, shape: Shape, config: ModelConfig) -> Shape:
    """The shape that a weight has in the checkpoint: feature layers are 3D convolutions there."""
    if not (ours.startswith("features.") and len(shape) == 3):
        return shape
    plane = config.branches[int(ours.rsplit(".", 1)[1])].plane
    length = [1, 1, 1]
    length[PLANES.index(plane)] = shape[2]
    return (shape[0], shape[1], *length)


def official_card(model: ScoreFusion, files: Sequence[str]) -> str:
    """Markdown that says where a model came from and what is not known about it.

    Args:
        model: what :func:`load_official` returned.
        files: names of the checkpoint's files.
    """
    config = model.config
    widths = {f"2D ({name})": network.widths for name, network in config.slice_networks.items()}
    if config.fusion is not None:
        widths["3D"] = config.fusion.widths
    task = (
        f"{config.degradation.factors[0]}× super-resolution from block means"
        if config.degradation.measures
        else "translation between images on one grid"
    )
    lines = [
        f"# {config.name}",
        "",
        f"Imported from {', '.join(f'`{file}`' for file in files)}, trained with the authors' code of "
        "Score-Fusion (Zhu et al., ICML 2025, arXiv 2501.07430).",
        "",
        f"* Task: {task}; from {', '.join(config.conditions)} to {config.target}.",
        f"* Strategies: {', '.join(config.strategies)}; {config.sampling.strategy} by default.",
        f"* Sampler: {config.sampling.solver}, {config.sampling.steps} steps.",
        *(f"* {name} U-Net widths: {', '.join(map(str, width))}." for name, width in widths.items()),
        "",
        made_for(config),
        "The checkpoint does not say what data it was trained on, how well it does, or under which licence "
        "it may be used: ask who trained it. It is not a medical device.",
    ]
    return "\n".join(lines) + "\n"


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
