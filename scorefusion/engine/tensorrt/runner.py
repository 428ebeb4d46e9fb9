"""2D networks as TensorRT engines, run on static buffers: nothing is copied but two numbers a slice.

Outputs and scratch are allocated when a size of slab is first met, so reserve every size before capturing a
CUDA graph.
"""

import itertools
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from scorefusion.engine.planning.plan import Plan
from scorefusion.engine.tensorrt.library import Library, logger, this_gpu
from scorefusion.engine.tensorrt.manifest import (
    Fitting,
    Profile,
    Shape,
    Watch,
    check_engines,
    require_precision,
)
from scorefusion.errors import BadInput, ScoreFusionError
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.models.unet import UNet

ALIGNMENT = 256


@dataclass
class _Binding:
    """One size of slab: its execution context and the memory bound to it, kept alive with it."""

    context: Any
    time: Tensor
    label: Tensor
    outputs: dict[str, Tensor]
    memory: tuple[Tensor, Tensor]
    slices: int = 0


class TensorRTRunner:
    """Runs an engine as a :class:`~.runners.Runner`.

    Each size of slab has an execution context of its own, since a CUDA graph holds one for good. They share
    scratch and outputs, so calls belong on one stream, and a call overwrites what the one before returned.

    Args:
        engine: a deserialised ``ICudaEngine``, made by :func:`.build.build_engines`.
        library: the TensorRT that deserialised it.
        scales: whose features the engine gives.
        dtype: of slices and outputs.
        profile: the slabs it takes.
        watch: called before each run, and raises if the engine is out of date.
    """

    name = "tensorrt"

    def __init__(
        self,
        engine: Any,
        library: Library,
        *,
        scales: Sequence[int],
        dtype: torch.dtype,
        profile: Profile,
        device: torch.device,
        watch: Callable[[], None] | None = None,
    ):
        self.watch = watch or (lambda: None)
        self.engine, self.library = engine, library
        self.scales, self.dtype, self.profile, self.device = tuple(scales), dtype, profile, device
        names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
        self.labelled = "label" in names
        self.channels = int(tuple(engine.get_tensor_shape("slices"))[-1])
        self._bindings: dict[Shape, _Binding] = {}
        self._scratch = self._outputs = torch.empty(0, dtype=torch.uint8, device=device)

    def __call__(self, cut: Tensor, time: Tensor, label: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """Run the network on a slab, on the current stream.

        Args:
            cut: ``[N, C, h, w]`` channels last, in the engine's precision.
            time: ``[N]``, any strides, as ``label``.

        Returns:
            The output ``[N, 1, h, w]``, and the features ``[N, width, h/s, w/s]`` by scale s: views of static
            buffers, channels last.
        """
        self.watch()
        self._check(cut)
        shape = (cut.shape[0], cut.shape[2], cut.shape[3])
        with torch.cuda.device_of(cut):  # TensorRT runs on the thread's current device
            binding = self._bindings.get(shape) or self._bind(shape)
            if binding.slices != cut.data_ptr():
                binding.slices = cut.data_ptr()
                self._must(binding.context.set_tensor_address("slices", binding.slices), "bind the slices")
            binding.time.copy_(time)
            if self.labelled:
                binding.label.copy_(label)
            self._must(binding.context.execute_async_v3(self._stream()), f"run a slab of {shape}")
        found = {name: value.permute(0, 3, 1, 2) for name, value in binding.outputs.items()}
        return found["output"], {scale: found[f"features_{scale}"] for scale in self.scales}

    def reserve(self, shapes: Iterable[Shape]) -> None:
        """Allocate what slabs of these sizes (slices, rows, columns) need; the largest first."""
        with torch.cuda.device_of(self._scratch):
            for shape in sorted(shapes, key=math.prod, reverse=True):
                if shape not in self._bindings:
                    self._bind(shape)

    def capturable(self) -> bool:
        """Whether every slab so far can go into a CUDA graph on the current stream.

        TensorRT-RTX is asked; TensorRT cannot be, and engines without control flow can.
        """
        asked = (getattr(it.context, "is_stream_capturable", None) for it in self._bindings.values())
        return all(ask is None or ask(self._stream()) for ask in asked)

    @property
    def bytes(self) -> int:
        """Of scratch and outputs."""
        return self._scratch.numel() + self._outputs.numel()

    def _check(self, cut: Tensor) -> None:
        last = cut.permute(0, 2, 3, 1) if cut.dim() == 4 else cut
        if cut.dim() != 4 or cut.shape[1] != self.channels or cut.dtype != self.dtype:
            got = f"got {list(cut.shape)} of {cut.dtype}"
            raise ScoreFusionError(f"the engine takes [N, {self.channels}, h, w] of {self.dtype}; {got}")
        if not last.is_contiguous() or cut.device != self.device:
            problem = f"the engine takes slices on {self.device} with channels last in memory"
            raise ScoreFusionError(f"{problem}; got strides {cut.stride()} on {cut.device}")

    def _bind(self, shape: Shape) -> _Binding:
        if not self.profile.holds(shape):
            raise ScoreFusionError(
                f"the engine takes {self.profile}; got {' × '.join(map(str, shape))}; use smaller slabs, or "
                "build with a larger --shape or --slab"
            )
        context = self._context()
        given = {"slices": (*shape, self.channels), "time": shape[:1], "label": shape[:1]}
        for name, lengths in given.items():
            if name != "label" or self.labelled:
                self._must(context.set_input_shape(name, lengths), f"take {name} {list(lengths)}")
        outputs, arena = self._carved(context)
        needed = max(int(context.update_device_memory_size_for_shapes()), ALIGNMENT)
        if self._scratch.numel() < needed:
            self._scratch = torch.empty(needed, dtype=torch.uint8, device=self.device)
        context.set_device_memory(self._scratch.data_ptr(), self._scratch.numel())
        time = torch.zeros(shape[0], dtype=torch.float32, device=self.device)
        label = torch.zeros(shape[0], dtype=torch.int64, device=self.device)
        binding = _Binding(context, time, label, outputs, (self._scratch, arena))
        bound = {"time": time, **outputs, **({"label": label} if self.labelled else {})}
        for name, tensor in bound.items():
            self._must(context.set_tensor_address(name, tensor.data_ptr()), f"bind {name}")
        self._bindings[shape] = binding
        return binding

    def _carved(self, context: Any) -> tuple[dict[str, Tensor], Tensor]:
        """The outputs for the shapes that a context was given, in memory that all sizes of slab share."""
        names = ["output", *(f"features_{scale}" for scale in self.scales)]
        sizes = [tuple(context.get_tensor_shape(name)) for name in names]
        taken = [math.prod(size) * self.dtype.itemsize for size in sizes]
        ends = [0, *itertools.accumulate(-(-length // ALIGNMENT) * ALIGNMENT for length in taken)]
        if self._outputs.numel() < ends[-1]:
            self._outputs = torch.empty(ends[-1], dtype=torch.uint8, device=self.device)
        arena = self._outputs
        pieces = (arena[place : place + length] for place, length in zip(ends, taken, strict=False))
        views = (piece.view(self.dtype).view(size) for piece, size in zip(pieces, sizes, strict=True))
        return dict(zip(names, views, strict=True)), arena

    def _context(self) -> Any:
        """An execution context without memory of its own; kernels are compiled for its shapes at once."""
        trt = self.library.module
        managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        kernels = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)
        if kernels is None:
            context = self.engine.create_execution_context(managed)
        else:
            config = self.engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(managed)
            config.dynamic_shapes_kernel_specialization_strategy = kernels.EAGER
            context = self.engine.create_execution_context(config)
        return self._must(context, "make an execution context")

    def _stream(self) -> int:
        return torch.cuda.current_stream(self.device).cuda_stream if self.device.type == "cuda" else 0

    def _must(self, result: Any, what: str) -> Any:
        if result is None or result is False:
            raise ScoreFusionError(f"{self.library.name} {self.library.version} could not {what}")
        return result


def slabs_of(plan: Plan) -> dict[str, set[Shape]]:
    """The slabs (slices, rows, columns) that each network is given in a step of a plan."""
    slabs: dict[str, set[Shape]] = {}
    for k, start, stop in plan.slabs(plan.branches):
        branch = plan.config.branches[k]
        shape = (plan.batch * (stop - start), *plan.slice_size(branch.plane))
        slabs.setdefault(branch.network, set()).add(shape)
    return slabs


def load_engines(
    folder: str | os.PathLike[str],
    model: ScoreFusion,
    *,
    shapes: Mapping[str, Iterable[Shape]] | None = None,
    device: torch.device | str = "cuda",
) -> dict[str, TensorRTRunner]:
    """Load a runner for each 2D network of a model, by name, once its engine is known to be this model's.

    Args:
        folder: that ``scorefusion engine build`` wrote.
        model: in the dtype that it computes in.
        shapes: slabs that each network will be given, from :func:`slabs_of`; memory is reserved for them.
        device: a CUDA device.

    Raises:
        BadInput: for engines that do not fit, each reason by name; see :func:`.manifest.check_engines`.
        ScoreFusionError: if there is no such GPU, or no TensorRT.
    """
    place = torch.device(device)
    if place.type != "cuda" or not torch.cuda.is_available():
        raise ScoreFusionError(
            f"{os.fspath(folder)}: TensorRT engines run on an NVIDIA GPU; the device is {place} and PyTorch "
            f"{torch.__version__} finds {torch.cuda.device_count()} GPUs here. Use --runner eager here."
        )
    if place.index is None:
        place = torch.device("cuda", torch.cuda.current_device())
    fits = check_engines(folder, model, shapes=shapes, gpu=this_gpu(place))
    with torch.cuda.device(place):
        return open_runners(fits, model, shapes=shapes, device=place)


def open_runners(
    fits: Fitting,
    model: ScoreFusion,
    *,
    shapes: Mapping[str, Iterable[Shape]] | None = None,
    device: torch.device,
) -> dict[str, TensorRTRunner]:
    """Deserialise engines that fit, on the current device; arguments as for :func:`load_engines`."""
    log, errors = logger(fits.library)
    runtime = fits.library.module.Runtime(log)
    runners = {}
    for name, network in model.slice_networks.items():
        entry = fits.manifest.networks[name]
        file = fits.folder / entry.file
        engine = runtime.deserialize_cuda_engine(file.read_bytes())
        if engine is None:
            said = "; ".join(dict.fromkeys(errors)) or "it does not say why"
            fix = f"Build again: {fits.manifest.command(fits.folder)}"
            raise BadInput(file, f"{fits.manifest.library} cannot load it ({said})", fix)
        runners[name] = TensorRTRunner(
            engine,
            fits.library,
            scales=entry.scales,
            dtype=require_precision(fits.manifest.precision),
            profile=entry.profile,
            device=device,
            watch=Watch(fits, name, cast(UNet, network), model.config.feature_scales),
        )
        runners[name].reserve((shapes or {}).get(name, ()))
    return runners
