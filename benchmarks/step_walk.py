"""A denoising step walked on fake CUDA tensors: each operation's kernels, bytes and FLOP, without a GPU.

    steps = walk(preset("t1-sr4"), (96, 112, 96), pixels=2**20)
    sum(len(call.kernels) for call in steps.calls)      # launches of a step

Rules of counting: views and allocations are free; a convolution with a bias is two kernels, since PyTorch
adds the bias after cuDNN; this project's operations are the Triton launches that they make; any other
operation is one. Each kernel reads each input element once (of an expanded tensor, of its memory) and writes
each output element once. FLOP are those of products (a multiply-add is two), as PyTorch counts them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from benchmarks.fake_cuda import FakeEngine, Indexing, implementation
from scorefusion.engine.planning.plan import Plan
from scorefusion.kernels.launch import recording
from scorefusion.models.config import ModelConfig
from scorefusion.ops.backends import use_backend

if TYPE_CHECKING:
    from benchmarks.evidence.machine_code import Source
    from scorefusion.kernels.launch import Launch

CAPABILITY = 90
"""The architecture that kernels are configured for, as 10 times the compute capability."""

FREE = frozenset(
    "view _unsafe_view reshape permute transpose expand slice select unsqueeze squeeze split chunk alias "
    "split_with_sizes detach unbind t movedim as_strided narrow unfold _reshape_alias lift_fresh device "
    "empty empty_strided empty_like new_empty new_empty_strided".split()
)
"""Operations that launch nothing."""

GROUPS = {
    "add": "additions", "add_": "additions",
    "copy_": "copies and casts", "_to_copy": "copies and casts", "clone": "copies and casts",
    "avg_pool2d": "resampling", "avg_pool3d": "resampling",
    "upsample_nearest2d": "resampling", "upsample_nearest3d": "resampling",
    "pixel_unshuffle": "folding", "pixel_shuffle": "folding",
    "gather_slices_into": "gather_slices", "fuse_step_into": "fuse_step",
    "ensemble_features_": "ensemble_features", "norm_act": "norm_act",
    "_scaled_dot_product_flash_attention": "attention",
    "_scaled_dot_product_efficient_attention": "attention",
}  # fmt: skip
SMALL = "small kernels"
"""Group of what moves less than 128 KiB and is not of another group: embeddings, sinusoids, numbers."""


@dataclass(frozen=True)
class Spec:
    """A tensor's shape, strides and dtype."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> Spec:
        """Describe a tensor."""
        return cls(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)

    @property
    def bytes(self) -> int:
        """Bytes of memory that its elements occupy, each place once."""
        places = math.prod(n for n, stride in zip(self.shape, self.stride, strict=True) if stride or n == 0)
        return places * self.dtype.itemsize

    def __str__(self) -> str:
        """Shape and dtype, such as ``96x48x56x48 bfloat16``."""
        return f"{'x'.join(map(str, self.shape)) or 'number'} {str(self.dtype).removeprefix('torch.')}"


@dataclass(frozen=True)
class Program:
    """How a Triton launch is cut.

    Attributes:
        kernel: name of the function.
        grid: programs along each axis.
        warps: of each program.
        serial: iterations, one after another, of the longest program's loop over tiles.
        key: of the compilation, equal for equal ones; empty in Triton's interpreter, which compiles nothing.
        source: what is compiled; None likewise.
    """

    kernel: str
    grid: tuple[int, ...]
    warps: int
    serial: int
    key: str
    source: Source | None = field(default=None, compare=False, repr=False)

    @property
    def programs(self) -> int:
        """All programs of the grid."""
        return math.prod(self.grid)


@dataclass(frozen=True)
class Kernel:
    """One launch: its group, bytes read and written, FLOP, and how it is cut if it is Triton's."""

    group: str
    read: int
    written: int
    flop: int = 0
    program: Program | None = None

    @property
    def bytes(self) -> int:
        """Bytes read and written."""
        return self.read + self.written


@dataclass(frozen=True)
class Call:
    """One operation of a step.

    Attributes:
        name: of the operation, such as ``aten::convolution``.
        function: the operation's overload.
        args: its arguments, each tensor as a :class:`Spec`.
        kwargs: likewise.
        outputs: specs of the tensors that it returns.
        kernels: what it launches.
    """

    name: str
    function: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[Spec, ...]
    kernels: tuple[Kernel, ...]

    @functools.cached_property
    def key(self) -> str:
        """The operation with all its arguments, as text; equal for equal calls."""
        return repr((self.name, self.args, dict(self.kwargs)))

    @property
    def inputs(self) -> list[Spec]:
        """Specs among its arguments, in order."""
        return [leaf for leaf in tree_leaves((self.args, dict(self.kwargs))) if isinstance(leaf, Spec)]


@dataclass
class Step:
    """A walked step: its plan, and its calls in order."""

    plan: Plan
    calls: list[Call] = field(default_factory=list)

    @property
    def kernels(self) -> list[Kernel]:
        """All launches in order."""
        return [kernel for call in self.calls for kernel in call.kernels]


def walk(
    config: ModelConfig,
    size: Sequence[int],
    *,
    dtype: torch.dtype = torch.bfloat16,
    pixels: int | None = None,
    **options: Any,
) -> Step:
    """Walk a step of an engine.

    Args:
        config: of the model.
        size: (z, y, x) of the volume.
        dtype: of the networks.
        pixels: that a 2D network is given at once; of :func:`scorefusion.engine.planning.plan.plan` if None.
        options: more of :func:`scorefusion.engine.planning.plan.plan`, such as ``strategy``.

    Raises:
        ScoreFusionError: where Triton is not installed, and for sizes and options that have no plan.
    """
    if pixels is not None:
        options["pixels"] = pixels
    fake = FakeEngine(config, size, dtype=dtype, **options)
    step = Step(fake.engine.plan)
    with use_backend("triton"), _Attention():
        fake.run(_Walk(step.calls))
    return step


class _Attention(TorchFunctionMode):
    """Let attention be the one fused kernel that it is on CUDA; without a driver PyTorch takes it apart."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        if args[0].dtype == torch.float32:
            return torch.ops.aten._scaled_dot_product_efficient_attention(*args, None, False)[0]
        return torch.ops.aten._scaled_dot_product_flash_attention(*args)[0]


class _Walk(TorchDispatchMode):
    """Lists every operation that launches something."""

    def __init__(self, calls: list[Call]):
        super().__init__()
        self.calls = calls
        self._known: dict[str, tuple[Kernel, ...]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        result = _interpolated(func, args) if name.startswith("aten::upsample") else func(*args, **kwargs)
        if name == "aten::convolution":
            result = _as_cudnn_lays_out(result, *args[:2])
        if func.namespace == "prim" or name.split("::")[1] in FREE:
            return result
        specs, named = tree_map_only(Tensor, Spec.of, (tuple(args), dict(kwargs)))
        outputs = tuple(Spec.of(leaf) for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        call = Call(name, func, specs, named, outputs, ())
        if call.key not in self._known:
            found = _own(func, args, kwargs) if func.namespace == "scorefusion" else _pytorch(call, result)
            self._known[call.key] = tuple(found)
        self.calls.append(Call(name, func, specs, named, outputs, self._known[call.key]))
        return result


def _as_cudnn_lays_out(result: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Return a convolution's result in channels-last memory where cuDNN gives it so.

    It does if the input or the weight is; without cuDNN PyTorch supposes another library, which never does.
    """
    last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    if last in (suggest_memory_format(x), suggest_memory_format(weight)):
        return torch.empty_like(result, memory_format=last)
    return result


def _interpolated(func: Any, args: tuple[Any, ...]) -> Tensor:
    """Return an interpolation's result, laid out as its input; PyTorch's own fake form needs a driver."""
    specs = tree_map_only(Tensor, Spec.of, args)
    with unset_fake_temporarily():
        shape = func(*_shaped(specs)).shape
    memory = suggest_memory_format(args[0])
    return torch.empty(shape, dtype=args[0].dtype, device=args[0].device, memory_format=memory)


def _pytorch(call: Call, result: Any) -> list[Kernel]:
    """Kernels of one of PyTorch's operations."""
    name = call.name.split("::")[1]
    written = sum(spec.bytes for spec in call.outputs)
    counter = flop_registry.get(call.function.overloadpacket)
    if name == "convolution":
        x, weight, bias = call.args[:3]
        assert counter is not None
        flop = int(counter(*_shaped(call.args), out_val=result))
        extent = "x".join(map(str, weight.shape[2:]))
        kernels = [Kernel(f"convolution {extent}", x.bytes + weight.bytes, written, flop)]
        return kernels + ([Kernel("biases", written + bias.bytes, written)] if bias is not None else [])
    inputs = [leaf for leaf in tree_leaves((call.args, _without_out(call.kwargs))) if isinstance(leaf, Spec)]
    read = sum(spec.bytes for spec in (inputs[1:] if name == "copy_" else inputs))
    flop = int(counter(*_shaped(call.args), out_val=result)) if counter is not None else 0
    small = read + written < 1 << 17
    return [Kernel(SMALL if small else GROUPS.get(name, "other PyTorch kernels"), read, written, flop)]


def _own(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Kernel]:
    """Kernels of one of this project's operations: what its implementation launches."""
    with Indexing(), recording(CAPABILITY) as launches:
        implementation(func)(*args, **kwargs)
    name = func._schema.name.split("::")[1]
    return [_launched(GROUPS.get(name, name), launch) for launch in launches]


def _launched(group: str, launch: Launch) -> Kernel:
    name = launch.kernel.__name__
    given = dict(zip(launch.kernel.arg_names, launch.arguments, strict=False))
    distinct = {id(leaf): Spec.of(leaf) for leaf in tree_leaves(launch.arguments) if isinstance(leaf, Tensor)}
    outputs = list(distinct.values())[: _WRITTEN.get(name, 1)]
    read = sum(spec.bytes for spec in list(distinct.values())[len(outputs) :])
    written, flop = sum(spec.bytes for spec in outputs), 0
    if name == "_gather_slices_kernel":
        read = _gathered(given, launch.keywords)
    if name == "_ensemble_features_kernel":
        features, weight = given["features_ptr"], given["weight_ptr"]
        flop = 2 * features.numel() * weight.shape[0]
        written = features.numel() // weight.shape[1] * weight.shape[0] // weight.shape[2]
        written *= given["total_ptr"].element_size()
        read = written + Spec.of(features).bytes + Spec.of(weight).bytes
    source = _source(launch)
    program = Program(
        name,
        launch.grid,
        launch.config.num_warps,
        _serial(given, launch),
        "" if source is None else source.key,
        source,
    )
    return Kernel(group, read, written, flop, program)


_WRITTEN = {"_fuse_step_kernel": 2, "_norm_act_partial_kernel": 2}
"""How many of the first tensors a kernel writes, where it is not one."""


def _gathered(given: Mapping[str, Any], constants: Mapping[str, Any]) -> int:
    """Bytes of the slices that a slab is cut from: those of the conditions with their neighbours."""
    slices, count = given["slices"], given["count"]
    near = min(count + 2 * constants["CONTEXT"], slices)
    parts = [(given["x_ptr"], constants["NOISY"], count), (given["condition_ptr"], constants["SEEN"], near)]
    parts.append((given["common_ptr"], constants["SHARED"], count))
    return sum(
        tensor.element_size() * tensor.shape[0] * channels * math.prod(tensor.shape[2:]) // slices * some
        for tensor, channels, some in parts
    )


def _serial(given: Mapping[str, Any], launch: Launch) -> int:
    """Iterations of the loop over tiles: at most STEPS, fewer where a grid of one program has fewer tiles."""
    constants = launch.keywords
    if "STEPS" not in constants:
        return 1
    rows = constants.get("BLOCK_V") or max(constants["TILE"] // constants["BLOCK_C"], 1)
    return min(constants["STEPS"], -(-given.get("places", given.get("voxels", 0)) // rows))


def _source(launch: Launch) -> Source | None:
    """The compilation that a launch needs."""
    from benchmarks.evidence.machine_code import source_of
    from scorefusion.ops.backends import interpreting

    if interpreting():
        return None
    with unset_fake_temporarily():
        arguments = tree_map_only(
            Tensor,
            lambda fake: torch.empty_strided(fake.shape, fake.stride(), dtype=fake.dtype, device="meta"),
            launch.arguments,
        )
        return source_of(replace(launch, arguments=arguments), CAPABILITY)


def _without_out(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name != "out"}


def _shaped(args: tuple[Any, ...]) -> Any:
    """Arguments with each spec as a tensor on the meta device, which PyTorch's FLOP formulas accept."""
    return tree_map_only(Spec, lambda spec: torch.empty(spec.shape, dtype=spec.dtype, device="meta"), args)
