"""Every option of a translation, declared once.

The command line, :meth:`scorefusion.Pipeline.__call__`, :class:`.settings.Settings`, the nipype interface and
the identity of a batch's outputs derive from the three tables below. The command line reads them when it
starts, so this module imports nothing slow, and types that are slow to import stand in quotes.
"""

import inspect
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ForwardRef, TypedDict, TypeVar

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import torch

    from scorefusion.degradations import Operator
    from scorefusion.io import Affine, Image
    from scorefusion.models.config import Plane

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Option:
    """One option; its entry in a table gives its name and its type."""

    default: Any  #: its value where it is not given
    help: str  #: what it does, for ``--help``, docstrings and nipype
    flag: str = ""  #: its name on the command line, where that is not its own
    cli: Any = None  #: its type on the command line, where that is another
    otherwise: str = ""  #: what None stands for, in words
    off: str = ""  #: for an option that is true by default, whose flag turns it off: what the flag does
    python: bool = False  #: whether only Python has it, not the command line
    bits: bool = True  #: whether it decides the bits of a result
    choices: tuple[str, ...] = ()  #: all values it may have, where they are fixed
    least: int | None = None  #: the least value of a number


OWN = "the model's own"
_TAKERS: dict[type, str] = {}  #: what takes each table, for messages
_DTYPES = ("auto", "float32", "bfloat16", "float16")
# fmt: off


class Options(TypedDict, total=False):
    """How an image is translated: what :class:`.settings.Settings` checks and fills in."""

    strategy: Annotated[str | None, Option(
        None, "How scores are fused: {strategies}.", otherwise=OWN)]
    planes: Annotated["Sequence[Plane] | None", Option(
        None, "For single and alternate: axial, coronal or sagittal; may be repeated.",
        flag="--plane", cli=list[str] | None)]
    solver: Annotated[str | None, Option(None, "The solver: {solvers}.", otherwise=OWN)]
    steps: Annotated[int | None, Option(None, "Number of noise levels.", otherwise=OWN, least=1)]
    eta: Annotated[float | None, Option(None, "Fresh noise that ddim and dpmpp_2m_sde add.")]
    start_abar: Annotated[float | None, Option(
        None, "Start late, at this cumulative alpha between 0 and 1.")]
    samples: Annotated[int, Option(
        1, "Draw several and average them; their standard deviation is the spread.", least=1)]
    seed: Annotated[int, Option(
        0, "Seed of the noise. The same seed gives the same volume on the same machine.")]
    batch: Annotated[int, Option(
        1, "Samples drawn at once: more memory, the same result to rounding.", bits=False, least=1)]
    disagreement: Annotated[bool, Option(
        False, "Also give the standard deviation over the planes of the predicted clean volume at the last "
        "noise level (file _planes), for strategies that run every plane.", bits=False)]
    crop: Annotated[bool, Option(
        True, "Compute only in a box around the foreground; the result elsewhere is the base.",
        flag="--whole", off="Compute everywhere, not only around the foreground.")]
    nan: Annotated[str, Option(
        "error", "NaN and infinite voxels: error, or zero to count them as 0.", choices=("error", "zero"))]
    assume_affine: Annotated[bool, Option(
        False,
        "Accept an image without orientation: take pixdim and RAS axes, or for an array the identity.")]
    output_dtype: Annotated[str, Option(
        "float32", "What is saved: float32, or input for the type and scaling of the input.",
        choices=("float32", "input"))]
    max_voxels: Annotated[int, Option(
        2**30, "Refuse larger volumes, in and out.", bits=False, least=1)]
    clip: Annotated[str, Option(
        "none", "none, or input for a result within the range of the input's values. Block means stay; "
        "detail may rightly be brighter than the block that holds it.", choices=("none", "input"))]
    thickness: Annotated[float | None, Option(
        None, "Of thick slices: how thick one is, in mm; else as the header or the BIDS sidecar says.",
        otherwise="the header's")]
    gap: Annotated[float | None, Option(None, "Of thick slices, instead: the gap between two, in mm.")]
    profile: Annotated[str | None, Option(
        None, "Of thick slices: box, or gaussian with the thickness as full width at half maximum.",
        choices=("box", "gaussian"), otherwise="box")]
    spacing: Annotated[float | None, Option(
        None, "Of thick slices: about how far apart the result's slices are to be, in mm.",
        otherwise="as in plane")]
    strict: Annotated[bool, Option(
        False, "Refuse an input that the model was not made for, instead of a warning.", bits=False)]


class CallOptions(Options, total=False):
    """What :meth:`scorefusion.Pipeline.__call__` takes beside the images."""

    affine: Annotated["Affine | Sequence[Affine] | None", Option(
        None, "Of arrays and tensors: [4, 4], (i, j, k) to RAS+ millimetres, or one per image.", python=True)]
    mask: Annotated["Image | None", Option(
        None, "For a model that fills in: an image that is not 0 where voxels are missing.", cli=Path | None)]
    operator: Annotated["Operator | None", Option(
        None, "What was measured, instead of config.degradation: an object with A, A_adjoint and A_dagger as "
        "deepinv's physics have. Everything is computed, as for crop=False.", python=True)]
    callback: Annotated["Callable[[int, int], None] | None", Option(
        None, "Called with (evaluations done, evaluations in all) in the calling thread; raise "
        "scorefusion.Cancelled in it to cancel.", python=True, bits=False)]


class Machine(TypedDict, total=False):
    """Where and in what a model computes."""

    device: Annotated["str | torch.device", Option(
        "auto", "Where to compute: auto (CUDA where there is a device), cpu, cuda, cuda:1, mps.", cli=str)]
    dtype: Annotated[str, Option(
        "auto", "What the networks compute in: auto (what is fast here), float32, bfloat16 or float16. The "
        "volume being sampled is always float32.", choices=_DTYPES)]
    runner: Annotated[str, Option(
        "auto", "How the 2D networks run: eager, compile, tensorrt, or auto, which is TensorRT on CUDA where "
        "engines are given and else eager.")]
    engines: Annotated["str | os.PathLike[str] | None", Option(
        None, "TensorRT engines of this model from `scorefusion engine build`.", cli=Path | None)]
    max_memory: Annotated["str | int | None", Option(
        None, "The most memory to use, such as 9GB; what the machine has left limits it as well.",
        cli=str | None, otherwise="no limit")]


# fmt: on
def declared(*tables: type) -> dict[str, Option]:
    """Return the options of tables by name, in their order."""
    return {name: entry.__metadata__[0] for table in tables for name, entry in table.__annotations__.items()}


def described(text: str) -> str:
    """Return a help text with the names that registries hold now filled in."""
    if "{strategies}" in text:
        from scorefusion.models.strategies import names_text

        text = text.replace("{strategies}", names_text())
    if "{solvers}" in text:
        from scorefusion.diffusion.solvers import SOLVERS

        text = text.replace("{solvers}", f"{', '.join(SOLVERS[:-1])} or {SOLVERS[-1]}")
    return text


def type_of(table: type, name: str, *, cli: bool = False) -> Any:
    """Return an option's type: in Python, as text where it is slow to import, or on the command line."""
    entry = table.__annotations__[name]
    if cli and entry.__metadata__[0].cli is not None:
        return entry.__metadata__[0].cli
    kind = entry.__origin__
    return kind.__forward_arg__ if isinstance(kind, ForwardRef) else kind


def filled(table: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a table's options: those given, and the defaults of the others.

    Raises:
        TypeError: for a name that is none of the table's.
    """
    options = declared(table)
    for name in given:
        if name not in options:
            taker = _TAKERS.get(table, table.__name__)
            raise TypeError(f"{taker}() got an unexpected keyword argument '{name}'")
    return {name: given.get(name, option.default) for name, option in options.items()}


def documented(table: type) -> Callable[[Function], Function]:
    """Name the options in the signature of a function that takes ``**options``, and in its docstring."""

    def decorate(function: Function) -> Function:
        _TAKERS.setdefault(table, function.__qualname__)
        signature = inspect.signature(function)
        own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
        named = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=option.default, annotation=type_of(table, name)
            )
            for name, option in declared(table).items()
        ]
        function.__signature__ = signature.replace(parameters=[*own, *named])  # type: ignore[attr-defined]
        texts = (f"{name}: {described(option.help)}" for name, option in declared(table).items())
        lines = "\n".join(
            textwrap.fill(text, 100, initial_indent=" " * 4, subsequent_indent=" " * 8) for text in texts
        )
        function.__doc__ = inspect.cleandoc(function.__doc__ or "").replace("    {options}", lines)
        return function

    return decorate
