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
from scorefusion.io.atomic import folder_written_beside
from scorefusion.models.config import ModelConfig
from scorefusion.models.folder import CARD, CONFIG, WEIGHTS, find_folder, load_config

SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
)
_PLAIN = re.compile(r"\w[\w.+-]*")
_MONAI = "1.3.0"
"""What is written where MONAI is not installed: the oldest that the configuration is for."""


def export_bundle(model: str | os.PathLike[str], folder: str | os.PathLike[str]) -> Path:
    """Write a model as a MONAI bundle: configs, the model folder with its safetensors, and a page on it.

    Args:
        model: a bundled model's name, or a model folder.
        folder: where to; must not be there, or be empty.

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
        card = (
            (source / CARD).read_text(encoding="utf-8") if (source / CARD).exists() else f"# {config.name}\n"
        )
        (beside / "docs" / "README.md").write_text(_page(config, card), encoding="utf-8")
        for stem, content in (("metadata", metadata(config)), ("inference", inference(config))):
            (beside / "configs" / f"{stem}.json").write_text(
                json.dumps(content, indent=2) + "\n", encoding="utf-8"
            )
    return target


def _check_names(file: Path, config: ModelConfig) -> None:
    """Refuse names that would be more than text in a bundle: MONAI evaluates ``$...`` as Python."""
    for name in (config.name, *config.conditions, config.target):
        if not _PLAIN.fullmatch(name):
            problem = f"has a name that a bundle cannot hold as plain text, {name!r}"
            raise BadInput(file, problem, "Use letters, digits, '_', '-', '+' and '.' in names.")


def inference(config: ModelConfig) -> dict[str, Any]:
    """``configs/inference.json``: every NIfTI file of ``dataset_dir`` translated into ``output_dir``."""
    return {
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/data'",
        "output_dir": "$@bundle_root + '/eval'",
        "device": {"_target_": "scorefusion.ops.device.choose_device", "name": "auto"},
        "dtype": "auto",
        "seed": 0,
        "steps": None,
        "keys": list(config.conditions),
        "data": {
            "_target_": "scorefusion.embed.monai.datalist",
            "folder": "@dataset_dir",
            "keys": "@keys",
        },
        "network_def": {
            "_target_": "scorefusion.ScoreFusion.from_pretrained",
            "model": f"$@bundle_root + '/models/{config.name}'",
        },
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "LoadImaged",
                    "keys": "@keys",
                    "reader": "NibabelReader",
                    "image_only": True,
                    "ensure_channel_first": True,
                }
            ],
        },
        "dataset": {"_target_": "Dataset", "data": "@data", "transform": "@preprocessing"},
        "inferer": {
            "_target_": "scorefusion.embed.monai.FusionInferer",
            "device": "@device",
            "dtype": "@dtype",
            "seed": "@seed",
            "steps": "@steps",
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "output_dir": "@output_dir",
                    "output_postfix": config.name,
                    "separate_folder": False,
                    "resample": False,
                    "print_log": False,
                }
            ],
        },
        "evaluator": {
            "_target_": "scorefusion.embed.monai.Translations",
            "dataset": "@dataset",
            "keys": "@keys",
            "network": "@network_def",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
        },
        "run": ["$@evaluator.run()"],
    }


def metadata(config: ModelConfig) -> dict[str, Any]:
    """``configs/metadata.json``, with the fields of MONAI's schema."""
    names = config.conditions
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
    return {
        "schema": SCHEMA,
        "version": scorefusion.__version__,
        "changelog": {scorefusion.__version__: f"exported by scorefusion {scorefusion.__version__}"},
        "monai_version": _version("monai", _MONAI),
        "pytorch_version": _version("torch"),
        "numpy_version": _version("numpy"),
        "required_packages_version": {
            "scorefusion": scorefusion.__version__,
            "nibabel": _version("nibabel"),
            "safetensors": _version("safetensors"),
        },
        "name": config.name,
        "task": f"Translation of {', '.join(names)} into {config.target}",
        "description": "A 3D diffusion model that fuses the scores of 2D ones; see docs/README.md.",
        "authorship": "see docs/README.md",
        "copyright": "see docs/README.md",
        "data_source": "see docs/README.md",
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
