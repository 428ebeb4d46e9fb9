"""Packages that only some functions need, imported when these are called."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from scorefusion.errors import ScoreFusionError

EXTRA = {
    "accelerate": "train",
    "backports": "zstd",
    "imageio_ffmpeg": "video",
    "matplotlib": "train",
    "monai": "monai",
    "nipype": "nipype",
    "onnx": "tensorrt",
    "onnxscript": "tensorrt",
    "psutil": "train",
    "pydicom": "dicom",
    "ray": "ray",
    "scipy": "train",
    "skimage": "train",
}
"""The extra of this package that brings each optional module."""


def need(module: str, purpose: str) -> Any:
    """Import and return an optional module, such as ``scipy.ndimage``."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        top = module.split(".")[0]
        problem = f"{purpose} needs {top}, which cannot be imported ({error})"
        raise ScoreFusionError(f"{problem}; pip install 'scorefusion[{EXTRA[top]}]'") from None


def lazily(package: str, modules: Mapping[str, str]) -> tuple[list[str], Callable[[str], Any]]:
    """Return a package's ``__all__``, and the ``__getattr__`` that imports a name when it is first used.

    ``modules`` has the names that each of its modules exports, with spaces between them.
    """
    homes = {name: module for module, names in modules.items() for name in names.split()}

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)

    return sorted(homes), get
