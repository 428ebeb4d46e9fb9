"""``scorefusion export-bundle``: a model folder in, a MONAI bundle out."""

from pathlib import Path
from typing import Annotated

from scorefusion.cli.options import ModelArgument, target


def export_bundle(
    model: ModelArgument,
    output: Annotated[Path, target("The bundle's folder; must be new.")],
) -> None:
    """Write a model as a MONAI bundle, for `python -m monai.bundle run` where scorefusion is installed.

    \b
    Examples:
      scorefusion export-bundle t1-sr4 -o bundles/t1-sr4
      cd bundles/t1-sr4 && python -m monai.bundle run --config_file configs/inference.json --dataset_dir scans
    """
    from scorefusion.embed.bundle import export_bundle

    folder = export_bundle(model, output)
    print(f"{folder}: run it from there with python -m monai.bundle run --config_file configs/inference.json")
