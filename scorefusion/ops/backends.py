"""The backends of operations, how operations are registered, and the one place where a backend is chosen.

    torch    the PyTorch reference; any device
    cpp      the C++ extension scorefusion._C; CPU tensors
    triton   the Triton kernels scorefusion.kernels; CUDA tensors, or CPU ones with TRITON_INTERPRET=1
    cuda     the CUDA extension scorefusion._cuda, for CUDA without Triton; CUDA tensors

Who decides, in order: the call's own `backend=`, the innermost `use_backend(...)`, the environment variable
SCOREFUSION_BACKEND, and otherwise the device: the first of BACKENDS that runs there, else torch. A backend
that was asked for and cannot run is an error that says why; it is never silently replaced.
"""

import contextlib
import functools
import importlib
import importlib.util
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scorefusion.errors import ScoreFusionError, unknown_name


@dataclass(frozen=True)
class Backend:
    """What a backend needs."""

    device: str  #: type of the devices whose tensors it takes; empty for all
    modules: Mapping[str, str]  #: what it imports, with what to say where a module is missing
    #: of the tensors that it takes; empty for all
    dtypes: Collection[torch.dtype] = frozenset((torch.float32, torch.bfloat16, torch.float16))


_UNBUILT = "the {} extension is not built ({{}}); install scorefusion where there is {}"
BACKENDS = {
    "torch": Backend("", {}, ()),
    "cpp": Backend("cpu", {"scorefusion._C": _UNBUILT.format("C++", "a compiler")}),
    "triton": Backend(
        "cuda",
        {
            "triton": "triton is not installed; pip install 'scorefusion[triton]'",
            "scorefusion.kernels": "scorefusion.kernels is not installed; pip install scorefusion, "
            "do not run it in place",
        },
    ),
    "cuda": Backend("cuda", {"scorefusion._cuda": _UNBUILT.format("CUDA", "nvcc")}),
}
VARIABLE = "SCOREFUSION_BACKEND"
CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
View = tuple[int, int, tuple[int, ...], tuple[int, ...]]

_asked: ContextVar[str | None] = ContextVar("scorefusion_backend", default=None)


def operation(schema: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that registers a function with PyTorch as `torch.ops.scorefusion.<name>`.

    The schema is its whole signature, "name(Tensor x, str? backend) -> Tensor", with `Tensor(a!)` for what is
    changed; `fake` gives results of the same shapes and dtypes without their values.
    """
    name, _, signature = schema.partition("(")
    changed = re.findall(r"Tensor\(\w!\) (\w+)", schema)

    def register(function: Callable[..., Any]) -> Any:
        library: Any = torch.library
        registered = library.custom_op(
            f"scorefusion::{name}", function, mutates_args=changed, schema=f"({signature}"
        )
        registered.register_fake(fake)
        return registered

    return register


def implementation(
    op: str,
    tensors: Iterable[Tensor | None],
    backend: str | None,
    implementations: Mapping[str, Callable[..., Any]],
) -> Callable[..., Any]:
    """Return the implementation, one per backend, to run an operation on some tensors with; see `choose`."""
    given = [tensor for tensor in tensors if tensor is not None]
    dtypes = [tensor.dtype for tensor in given]
    return implementations[choose(op, given[0].device, backend, implementations, dtypes)]


def definition(function: Callable[..., Tensor]) -> Callable[..., None]:
    """Return an implementation that writes what a definition returns into its first argument."""

    def write(out: Tensor, *arguments: Any) -> None:
        out.copy_(function(*arguments))

    return write


def kernel(module: str, name: str) -> Callable[..., None]:
    """Return the launcher `name` of `scorefusion.kernels.<module>`, imported when it is called."""

    def launch(*arguments: Any) -> None:
        getattr(importlib.import_module(f"scorefusion.kernels.{module}"), name)(*arguments)

    return launch


def cpp(name: str, *arguments: Any) -> Any:
    """Call a function of the C++ extension, which takes PyTorch's number of threads last."""
    return getattr(importlib.import_module("scorefusion._C"), name)(*arguments, torch.get_num_threads())


def unfit(op: str, needed: str, got: object) -> ScoreFusionError:
    """Return (not raise) the error of an operation that was given something else than it needs."""
    return ScoreFusionError(f"{op} needs {needed}; got {got}")


def needs_torch(op: str, tensor: Tensor, backend: str | None) -> None:
    """Raise if another backend was asked for than PyTorch, the only one that has `op`."""
    choose(op, tensor.device, backend, ("torch",))


def view(tensor: Tensor | None) -> View | None:
    """Describe a tensor to the extensions: address, dtype code, sizes, strides; the caller keeps it alive."""
    if tensor is None:
        return None
    return tensor.data_ptr(), CODES[tensor.dtype], tuple(tensor.shape), tensor.stride()


def views(*tensors: Tensor | None) -> list[View | None]:
    """Describe several tensors to the extensions."""
    return [view(tensor) for tensor in tensors]


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Use one backend inside a `with` block, in this thread or task.

    Raises:
        ScoreFusionError: for an unknown backend; whether it can run is checked at each call.
    """
    token = _asked.set(_known(name))
    try:
        yield
    finally:
        _asked.reset(token)


def missing(name: str) -> str | None:
    """Return why a backend is not on this machine, or None if it is.

    Whether it takes a given tensor is another matter: see `choose`.
    """
    return _missing(_known(name))


def outdated() -> str | None:
    """Return why the C++ extension lacks an operation, or None; an editable install keeps what it built."""
    if missing("cpp") or hasattr(importlib.import_module("scorefusion._C"), "pointwise"):
        return None
    return "the C++ extension was built from older sources; install scorefusion again"


def choose(
    op: str,
    device: torch.device,
    backend: str | None,
    implemented: Collection[str],
    dtypes: Iterable[torch.dtype] = (),
) -> str:
    """Return the backend to run an operation with, of those that have it, for tensors of a device and dtypes.

    `backend` is what the call asked for. Only PyTorch computes in others than float32, bfloat16 and float16.
    """
    for name, asker in (
        (backend, "the call"),
        (_asked.get(), "use_backend"),
        (os.environ.get(VARIABLE) or None, VARIABLE),
    ):
        if name is not None:
            reason = _obstacle(op, _known(name), device, implemented, dtypes)
            if reason is not None:
                raise ScoreFusionError(f"{asker} asks for backend '{name}', but {reason}")
            return name
    for name, known in BACKENDS.items():
        if known.device == device.type and _obstacle(op, name, device, implemented, dtypes) is None:
            return name
    return "torch"


def interpreting() -> bool:
    """Return whether Triton kernels run in its interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def _known(name: str) -> str:
    if name not in BACKENDS:
        raise unknown_name("backend", name, tuple(BACKENDS))
    return name


def _obstacle(
    op: str, name: str, device: torch.device, implemented: Collection[str], dtypes: Iterable[torch.dtype]
) -> str | None:
    """Return why an operation cannot run there, or None."""
    if name not in implemented:
        return f"{op} has no {name} implementation; it has {', '.join(implemented)}"
    reason = _missing(name) or (outdated() if name == "cpp" and op == "pointwise" else None)
    if reason is not None:
        return reason
    backend = BACKENDS[name]
    if backend.device and backend.device != device.type:
        devices = [backend.device, *(["cpu"] if name == "triton" and interpreting() else [])]
        if device.type not in devices:
            hint = " (or set TRITON_INTERPRET=1 before starting, for tests)" if name == "triton" else ""
            return f"it needs tensors on {' or '.join(devices)}, and these are on {device.type}{hint}"
    for dtype in dtypes if backend.dtypes else ():
        if dtype not in backend.dtypes:
            return f"it has no {str(dtype).removeprefix('torch.')} form; torch has"
    return None


@functools.cache
def _missing(name: str) -> str | None:
    """Return why a backend is not installed, or None; looked up once. Triton is found, not imported."""
    for module, message in BACKENDS[name].modules.items():
        if name == "triton":
            if importlib.util.find_spec(module) is None:
                return message
            continue
        try:
            importlib.import_module(module)
        except ImportError as error:
            return message.format(error)
    return None
