"""A model as a MONAI bundle: a folder that ``python -m monai.bundle run`` runs beside scorefusion."""

from __future__ import annotations

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

SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
)
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
        (beside / "docs" / "README.md").write_text(_page(config, card), encoding="utf-8")
        for make in (metadata, inference):
            text = json.dumps(make(config), indent=2) + "\n"
            (beside / "configs" / f"{make.__name__}.json").write_text(text, encoding="utf-8")
    return target


def _check_names(file: Path, config: ModelConfig) -> None:
    """Refuse names that would be more than text in a bundle: MONAI evaluates ``$...`` as Python."""
    for name in (config.name, *config.conditions, config.target):
        if not _PLAIN.fullmatch(name):
            problem = f"has a name that a bundle cannot hold as plain text, {name!r}"
            raise BadInput(file, problem, "Use letters, digits, '_', '-', '+' and '.' in names.")


def inference(config: ModelConfig) -> dict[str, Any]:
    """``configs/inference.json``: every NIfTI file of ``dataset_dir`` translated into ``output_dir``."""
    load = {"keys": "@keys", "reader": "NibabelReader", "image_only": True, "ensure_channel_first": True}
    save: dict[str, Any] = {"keys": "pred", "output_dir": "@output_dir", "output_postfix": config.name}
    save |= {"separate_folder": False, "resample": False, "print_log": False}
    return {
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/data'",
        "output_dir": "$@bundle_root + '/eval'",
        "device": {"_target_": "scorefusion.ops.device.choose_device", "name": "auto"},
        **{name: declared(Machine, Options)[name].default for name in _OPTIONS},
        "keys": list(config.conditions),
        "data": _part("scorefusion.embed.monai.datalist", folder="@dataset_dir", keys="@keys"),
        "network_def": _part(
            "scorefusion.ScoreFusion.from_pretrained", model=f"$@bundle_root + '/models/{config.name}'"
        ),
        "preprocessing": _part("Compose", transforms=[_part("LoadImaged", **load)]),
        "dataset": _part("Dataset", data="@data", transform="@preprocessing"),
        "inferer": _part(
            "scorefusion.embed.monai.FusionInferer", **{name: f"@{name}" for name in ("device", *_OPTIONS)}
        ),
        "postprocessing": _part("Compose", transforms=[_part("SaveImaged", **save)]),
        "evaluator": _part(
            "scorefusion.embed.monai.Translations",
            dataset="@dataset",
            keys="@keys",
            network="@network_def",
            inferer="@inferer",
            postprocessing="@postprocessing",
        ),
        "run": ["$@evaluator.run()"],
    }


def _part(target: str, **arguments: Any) -> dict[str, Any]:
    """What MONAI makes by calling ``target``."""
    return {"_target_": target, **arguments}


def metadata(config: ModelConfig) -> dict[str, Any]:
    """``configs/metadata.json``, with the fields of MONAI's schema."""
    names, own = config.conditions, scorefusion.__version__
    image = {
        "type": "image",
        "format": "magnitude",
        "modality": "MR",
        "spatial_shape": ["*", "*", "*"],
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": False,
    }
    channels = {str(place): name for place, name in enumerate(names)}
    packages = {"scorefusion": own, "nibabel": _version("nibabel"), "safetensors": _version("safetensors")}
    return {
        "schema": SCHEMA,
        "version": own,
        "changelog": {own: f"exported by scorefusion {own}"},
        "monai_version": _version("monai", _MONAI),
        "pytorch_version": _version("torch"),
        "numpy_version": _version("numpy"),
        "required_packages_version": packages,
        "name": config.name,
        "task": f"Translation of {', '.join(names)} into {config.target}",
        "description": "A 3D diffusion model that fuses the scores of 2D ones; see docs/README.md.",
        **dict.fromkeys(("authorship", "copyright", "data_source"), "see docs/README.md"),
        "data_type": "nibabel",
        "image_classes": "one channel an image, any intensities",
        "pred_classes": f"one channel, {config.target}, in the units of the first image",
        "intended_use": "Research on image translation. Not for diagnosis.",
        "network_data_format": {
            "inputs": {"image": {**image, "num_channels": len(names), "channel_def": channels}},
            "outputs": {"pred": {**image, "num_channels": 1, "channel_def": {"0": config.target}}},
        },
    }


def _version(package: str, otherwise: str = "") -> str:
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return otherwise


def _page(config: ModelConfig, card: str) -> str:
    names = config.conditions
    layout = "NIfTI files" if len(names) == 1 else f"folders {', '.join(names)} with files of the same names"
    return f"""{card.rstrip()}

## Running this bundle

It needs `pip install 'scorefusion[monai]'`. From this folder:

```sh
python -m monai.bundle run --config_file configs/inference.json --meta_file configs/metadata.json \\
    --dataset_dir data --output_dir eval
```

`dataset_dir` holds {layout}; each is translated into `output_dir`. `--seed 1`, `--steps 3` and
`--dtype float32` are what they are to `scorefusion translate`.
"""
