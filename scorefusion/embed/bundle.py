"""A model as a MONAI bundle: a folder that ``python -m monai.bundle run`` runs beside scorefusion."""

import json
import os
import re
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import scorefusion
from scorefusion.errors import BadInput
from scorefusion.io import folder_written_beside
from scorefusion.models.config import ModelConfig
from scorefusion.models.folder import CARD, CONFIG, WEIGHTS, find_folder, load_config
from scorefusion.pipeline import Machine, Options, declared

_PLAIN = re.compile(r"\w[\w.+-]*")
_OPTIONS = ("dtype", "seed", "steps")
"""Options of a translation that a bundle's command line can change, besides the device."""
_MONAI = "1.3.0"
"""What is written where MONAI is not installed: the oldest that the configuration is for."""


def export_bundle(model: str | os.PathLike[str], folder: str | os.PathLike[str]) -> Path:
    """Write a model as a MONAI bundle: configurations, the model folder, and a page that describes it.

    Args:
        model: a bundled model's name, or a model folder.
        folder: the bundle; must not exist, or be empty.

    Returns:
        The folder.

    Raises:
        ScoreFusionError: for an unknown name.
        BadInput: for a broken model folder, one whose names MONAI would run as code, or a target folder that
            is in use or cannot be written.
    """
    source, target = find_folder(model), Path(folder)
    config = load_config(model)
    _check_names(source / CONFIG, config)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BadInput(target, "is there already", "Name a new folder for the bundle.")
    with folder_written_beside(target) as beside:
        own = beside / "models" / config.name
        for part in (beside / "configs", beside / "docs", own):
            part.mkdir(parents=True)
        for name in (CONFIG, WEIGHTS, CARD):
            if (source / name).exists():
                shutil.copyfile(source / name, own / name)
        card = f"# {config.name}\n"
        if (source / CARD).exists():
            card = (source / CARD).read_text(encoding="utf-8")
        page = f"{card.rstrip()}\n\n{_template('README.md', config)}"
        (beside / "docs" / "README.md").write_text(page, encoding="utf-8")
        for name, content in (("metadata", metadata(config)), ("inference", inference(config))):
            text = json.dumps(content, indent=2) + "\n"
            (beside / "configs" / f"{name}.json").write_text(text, encoding="utf-8")
    return target


def _check_names(file: Path, config: ModelConfig) -> None:
    """Refuse names that would be more than text in a bundle: MONAI evaluates ``$...`` as Python."""
    for name in (config.name, *config.conditions, config.target):
        if not _PLAIN.fullmatch(name):
            problem = f"has a name that a bundle cannot hold as plain text, {name!r}"
            raise BadInput(file, problem, "Use letters, digits, '_', '-', '+' and '.' in names.")


def inference(config: ModelConfig) -> dict[str, Any]:
    """``configs/inference.json``: every NIfTI file of ``dataset_dir`` translated into ``output_dir``."""
    defaults = {name: declared(Machine, Options)[name].default for name in _OPTIONS}
    return json.loads(_template("inference.json", config)) | defaults | {"keys": list(config.conditions)}


def metadata(config: ModelConfig) -> dict[str, Any]:
    """``configs/metadata.json``, with the fields of MONAI's schema."""
    content = json.loads(_template("metadata.json", config))
    channels = {str(place): name for place, name in enumerate(config.conditions)}
    image = content["network_data_format"]["inputs"]["image"]
    image |= {"num_channels": len(channels), "channel_def": channels}
    own = {name: _version(name) for name in ("nibabel", "safetensors")}
    return content | {
        "monai_version": _version("monai", _MONAI),
        "pytorch_version": _version("torch"),
        "numpy_version": _version("numpy"),
        "required_packages_version": {"scorefusion": scorefusion.__version__, **own},
    }


def _template(name: str, config: ModelConfig) -> str:
    """The text of a template with what the model says in it; its names are plain text."""
    names = config.conditions
    layout = "NIfTI files" if len(names) == 1 else f"folders {', '.join(names)} with files of the same names"
    text = (Path(__file__).parent / "monai_bundle" / name).read_text(encoding="utf-8")
    for key, value in {
        "model": config.name,
        "target": config.target,
        "conditions": ", ".join(names),
        "layout": layout,
        "version": scorefusion.__version__,
    }.items():
        text = text.replace(f"{{{key}}}", value)
    return text


def _version(package: str, otherwise: str = "") -> str:
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return otherwise
