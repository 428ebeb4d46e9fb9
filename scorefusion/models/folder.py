"""A model on disk: a folder with ``config.json``, ``model.safetensors`` and a model card, ``README.md``."""

import json
import os
import stat
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from scorefusion.errors import BadInput, ScoreFusionError, unknown_name
from scorefusion.io.atomic import written_beside
from scorefusion.io.placeholders import check_fetched
from scorefusion.models.config import ModelConfig, read_config
from scorefusion.models.features import FeatureLayer

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
Model = TypeVar("Model", bound=nn.Module)
ASSETS = Path(__file__).parent.parent / "assets"
AUTO, FOR_THICK_SLICES = "auto", "brain-iso"
PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
USE_SAFETENSORS = (
    "Pickled checkpoints can run code and are not loaded: use `scorefusion import-official` for one of the "
    "authors' code, or convert yours to safetensors."
)


def bundled_models() -> list[str]:
    """The names of the models that come with the package."""
    return sorted(config.parent.name for config in ASSETS.glob(f"*/{CONFIG}"))


def summary(folder: Path) -> list[str]:
    """Return what a card says first: the paragraphs of its opening quotation, without Markdown's signs."""
    text = (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).is_file() else ""
    lines = [line[1:].strip() for line in text.splitlines() if line.startswith(">")]
    paragraphs = "\n".join(lines).replace("**", "").replace("`", "").split("\n\n")
    return [" ".join(paragraph.split()) for paragraph in paragraphs if paragraph.strip()]


def save_folder(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    folder: str | os.PathLike[str],
    *,
    card: str,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a model's configuration, weights and card; see :meth:`ScoreFusion.save_pretrained`."""
    target = Path(folder)
    state = {name: _stored(name, tensor, dtype) for name, tensor in weights.items()}
    try:
        new = not target.exists()
        target.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            stack.callback(_remove_empty, target, new)
            file, readme, described = (
                stack.enter_context(written_beside(target / name)) for name in (WEIGHTS, CARD, CONFIG)
            )
            described.write_text(_json(config), encoding="utf-8")
            readme.write_text(card.rstrip() + "\n", encoding="utf-8")
            save_file(state, file, metadata={"format": "pt"})
            file.chmod(stat.S_IMODE(readme.stat().st_mode))  # safetensors' own is 0600
    except OSError as error:
        raise BadInput(target, f"cannot be written ({error.strerror})", "Choose another folder.") from None
    return target


def _remove_empty(folder: Path, new: bool) -> None:
    """Remove a new folder that nothing was written into."""
    if new and not any(folder.iterdir()):
        folder.rmdir()


def load_weights(
    folder: Path, expected: Mapping[str, tuple[int, ...]], *, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Read the weights of a folder from :func:`find_folder` as float32, of the expected shapes by name."""
    weights = folder / WEIGHTS
    check_fetched(weights)
    _refuse_pickle(folder, weights)
    try:
        with safe_open(weights, framework="pt") as file:
            stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
            check_tensors(weights, expected, stored)
            return {name: file.get_tensor(name).to(device, torch.float32) for name in expected}
    except SafetensorError as error:
        raise BadInput(weights, f"is damaged or not a safetensors file ({error})", USE_SAFETENSORS) from None
    except OSError as error:
        raise BadInput(weights, f"cannot be read ({error})", "Give a model folder.") from None


def write_config(config: ModelConfig, folder: str | os.PathLike[str]) -> Path:
    """Replace and return a model folder's ``config.json``; the weights and the card stay."""
    file = Path(folder) / CONFIG
    with written_beside(file) as beside:
        beside.write_text(_json(config), encoding="utf-8")
    return file


def load_config(model: str | os.PathLike[str]) -> ModelConfig:
    """Read the configuration of a model folder, or of a bundled model by name."""
    return read_config(ModelConfig, find_folder(model) / CONFIG)


def check_folder(folder: str | os.PathLike[str]) -> None:
    """Find out whether a model folder can be written, before there is something to write."""
    target = Path(folder)
    nearest = next(path for path in (target, *target.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        what = "cannot be written to" if nearest.is_dir() else "is a file"
        raise BadInput(target, f"cannot be written ({nearest} {what})", "Choose another folder.")


def check_tensors(
    file: str | os.PathLike[str],
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    fix: str = "The weights are not of this configuration.",
) -> None:
    """Compare names and shapes of tensors with what a model needs."""
    problems = []
    if missing := sorted(expected.keys() - found.keys()):
        problems.append(f"lacks {_listed(missing)}")
    if extra := sorted(found.keys() - expected.keys()):
        problems.append(f"holds unexpected {_listed(extra)}")
    wrong = sorted(name for name in expected.keys() & found.keys() if expected[name] != found[name])
    if wrong:
        shapes = [f"{name} {list(found[name])} (needed: {list(expected[name])})" for name in wrong]
        problems.append(f"holds the wrong shape for {_listed(shapes)}")
    if problems:
        raise BadInput(file, "; ".join(problems), fix)


def channels_last(model: Model) -> Model:
    """Lay out a model's weights as the kernels read them, channels last, in place; return the model."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            memory = torch.channels_last if isinstance(module, nn.Conv2d) else torch.channels_last_3d
            module.weight.data = module.weight.data.contiguous(memory_format=memory)
        elif isinstance(module, FeatureLayer) and module.kernel == 1:
            for weight in module.weights:
                weight.data = weight.data.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    return model


def _json(config: ModelConfig) -> str:
    return json.dumps(config.model_dump(mode="json"), indent=2) + "\n"


def _stored(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    tensor = tensor.detach().cpu().contiguous()
    if dtype is None or not tensor.is_floating_point():
        return tensor
    small = tensor.to(dtype)
    if not torch.isfinite(small).all():
        raise ScoreFusionError(f"tensor {name!r} holds values that {dtype} cannot; store it as torch.float32")
    return small


def find_folder(model: str | os.PathLike[str]) -> Path:
    """The folder of a model, or of a bundled model by name; ``auto`` is that of thick slices."""
    model = FOR_THICK_SLICES if model == AUTO else model
    folder = Path(model)
    if folder.suffix in PICKLED and not folder.is_dir():
        raise BadInput(folder, "is a pickled checkpoint where a model folder is expected", USE_SAFETENSORS)
    if isinstance(model, str) and "/" not in model and os.sep not in model:
        names = bundled_models()
        if model in names:
            return ASSETS / model
        if not folder.exists():
            raise unknown_name("model", model, names)
    if folder.is_file():
        raise BadInput(folder, "is a file where a folder is expected", f"Give the one that holds {CONFIG}.")
    check_fetched(folder / CONFIG)
    if not (folder / CONFIG).is_file():
        problem = f"holds no {CONFIG}" if folder.is_dir() else "does not exist"
        raise BadInput(folder, problem, f"Give a model folder, or one of {', '.join(bundled_models())}.")
    return folder


def _refuse_pickle(folder: Path, weights: Path) -> None:
    if not weights.is_file():
        pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
        if pickled:
            problem = f"is a pickled checkpoint where {WEIGHTS} is expected"
            raise BadInput(folder / pickled[0], problem, USE_SAFETENSORS)
        raise BadInput(weights, "does not exist", f"A model folder holds {CONFIG} and {WEIGHTS}.")
    with weights.open("rb") as file:
        start = file.read(8)
    header = int.from_bytes(start, "little")
    if start.startswith(b"PK") or (start.startswith(b"\x80") and header > weights.stat().st_size):
        raise BadInput(weights, "is a pickled checkpoint where safetensors is expected", USE_SAFETENSORS)


def _listed(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
