"""TensorRT engines of the 2D networks: build them, check that they fit, run them."""

from scorefusion.engine.tensorrt.build import build_engines
from scorefusion.engine.tensorrt.library import find_library, import_library
from scorefusion.engine.tensorrt.manifest import check_engines, read_manifest
from scorefusion.engine.tensorrt.runner import TensorRTRunner, load_engines, slabs_of

__all__ = [
    "TensorRTRunner",
    "build_engines",
    "check_engines",
    "find_library",
    "import_library",
    "load_engines",
    "read_manifest",
    "slabs_of",
]
