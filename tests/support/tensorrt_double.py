"""What a TensorRT engine does to its caller, without a GPU: it reads and writes where it was told.

`Engine` and `Context` have the methods of `ICudaEngine` and `IExecutionContext` that the runner calls. They
note each call, and compute with ONNX Runtime from the addresses bound to the inputs into those bound to the
outputs.
"""

from __future__ import annotations

import ctypes
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

from scorefusion.engine.tensorrt.build import SliceNetwork
from scorefusion.engine.tensorrt.library import Library

TYPES = {"time": np.float32, "label": np.int64}


class Strategy:
    USER_MANAGED = "user managed"


class Kernels:
    EAGER = "eager"


MODULE = SimpleNamespace(
    ExecutionContextAllocationStrategy=Strategy, DynamicShapesKernelSpecializationStrategy=Kernels
)
LIBRARY = Library("tensorrt_double", "1.0", MODULE)


class RuntimeConfig:
    """Takes what it is told."""

    dynamic_shapes_kernel_specialization_strategy = ""
    memory = ""

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.memory = strategy


class Engine:
    """A deserialised engine of a network."""

    def __init__(self, wrapped: SliceNetwork, file: bytes):
        self.wrapped = wrapped
        self.session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        self.names = [*wrapped.input_names, *wrapped.output_names]
        self.num_io_tensors = len(self.names)
        self.contexts: list[Context] = []

    def get_tensor_name(self, number: int) -> str:
        return self.names[number]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, -1, -1, self.wrapped.channels) if name == "slices" else (-1,)

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig()

    def create_execution_context(self, config: RuntimeConfig) -> Context:
        assert config.memory == Strategy.USER_MANAGED
        assert config.dynamic_shapes_kernel_specialization_strategy == Kernels.EAGER
        self.contexts.append(Context(self))
        return self.contexts[-1]


class Context:
    """One of its execution contexts."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.calls: list[tuple[Any, ...]] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.scratch = (0, 0)
        self.works = True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.calls.append(("set_input_shape", name, shape))
        self.shapes[name] = shape
        return name in self.engine.names

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        n, h, w, _ = self.shapes["slices"]
        if name == "output":
            return n, h, w, 1
        config, scale = self.engine.wrapped.network.config, int(name.removeprefix("features_"))
        return n, h // scale, w // scale, config.widths[config.scales.index(scale)]

    def update_device_memory_size_for_shapes(self) -> int:
        return 64 * math.prod(self.shapes["slices"])

    def set_device_memory(self, memory: int, size: int) -> None:
        self.calls.append(("set_device_memory", memory, size))
        assert memory and size >= self.update_device_memory_size_for_shapes()

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.calls.append(("set_tensor_address", name, memory))
        self.addresses[name] = memory
        return name in self.engine.names and memory % 16 == 0

    def is_stream_capturable(self, stream: int) -> bool:
        return self.works

    def execute_async_v3(self, stream: int) -> bool:
        self.calls.append(("execute_async_v3", stream))
        given = {name: self._at(name) for name in self.engine.wrapped.input_names}
        for name, value in zip(
            self.engine.wrapped.output_names, self.engine.session.run(None, given), strict=True
        ):
            self._at(name)[...] = value
        return self.works

    def _at(self, name: str) -> Any:
        """The array at the address bound to an input or output."""
        shape = self.shapes[name] if name in self.shapes else self.get_tensor_shape(name)
        kind = np.dtype(TYPES.get(name, np.float32))
        memory = (ctypes.c_byte * (math.prod(shape) * kind.itemsize)).from_address(self.addresses[name])
        return np.frombuffer(memory, dtype=kind).reshape(shape)
