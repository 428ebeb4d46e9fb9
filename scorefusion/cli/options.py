"""Options that several verbs share, and groups of options that a verb takes as one value.

A parameter of a verb whose type is a dataclass of options, or one of the tables of
:mod:`scorefusion.pipeline.options`, stands for all of its options on the command line::

    def demo(where: Place, machine: Device, quiet: Quiet = False) -> None: ...
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints, is_typeddict

import typer
from typer.core import TyperCommand

from scorefusion.errors import ScoreFusionError
from scorefusion.pipeline import OWN, Machine, Option, declared, described, type_of

if TYPE_CHECKING:
    from scorefusion.pipeline import Pipeline

Triple = tuple[int, int, int]
SHARES = "three shares such as 0.6,0.1,0.3"
Parts = tuple[list[inspect.Parameter], Callable[[Mapping[str, Any]], Any]]

_MODEL = "A bundled model's name (`scorefusion models` lists them), or a model folder."
Model = Annotated[str, typer.Option(help=_MODEL)]
ModelArgument = Annotated[str, typer.Argument(help=_MODEL, show_default=False)]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress; print results and errors only.")]


def argument(text: str, metavar: str) -> Any:
    """An argument that a verb must be given."""
    return typer.Argument(metavar=metavar, help=text, show_default=False)


def target(text: str) -> Any:
    """The option ``--output``, or ``-o``, of a verb that must be given one."""
    return typer.Option("--output", "-o", help=text, show_default=False)


Target = Annotated[Path, target("What to write.")]


def opt(text: str, default: Any = None, *flags: str, shown: str | bool = True) -> Any:
    """A field of a dataclass of options.

    Args:
        text: its help.
        default: its value where it is not given.
        flags: its names, where they are not ``--`` and the field's.
        shown: what ``--help`` says of the default: it, nothing, or these words.
    """
    return dataclasses.field(default=default, metadata={"flags": flags, "help": text, "show_default": shown})


class Only(tuple[str, ...]):
    """The options of a table that a verb takes, in ``Annotated[Table, Only(...)]``."""

    def __new__(cls, *names: str) -> Only:
        """The options of these names."""
        return super().__new__(cls, names)


Device = Annotated[Machine, Only("device", "dtype")]


def loaded(model: str, machine: Machine) -> Pipeline:
    """Return a pipeline of a model; without --max-memory, what it frees is kept for what comes next."""
    from scorefusion.engine.planning.memory import keep_freed_memory
    from scorefusion.pipeline import Pipeline

    if machine.get("max_memory") is None:
        keep_freed_memory()
    return Pipeline(model, **machine)


def parse_box(text: str) -> tuple[Triple, Triple | None]:
    """Read ``SIZE`` or ``SIZE@START``, three whole numbers (z, y, x) each."""
    size, at, start = text.partition("@")
    try:
        z, y, x = (int(number) for number in size.split(","))
        dz, dy, dx = (int(number) for number in start.split(",")) if at else (0, 0, 0)
    except ValueError:
        problem = f"--box needs Z,Y,X or Z,Y,X@Z,Y,X, whole numbers, such as 80,96,96; got '{text}'"
        raise ScoreFusionError(problem) from None
    return (z, y, x), (dz, dy, dx) if at else None


def cut(box: str, coarsen: int) -> dict[str, Any]:
    """Return the part of a true volume that ``--box`` and ``--coarsen`` say, as cases are made of it."""
    size, start = parse_box(box)
    return {"coarsen": coarsen, "size": size, "start": start}


def numbers(option: str, text: str | None, *, signed: bool = False, kind: str = "") -> list[float] | None:
    """Read numbers with commas between them, positive unless ``signed``; None where nothing was given.

    An error says that ``kind`` is needed.
    """
    if text is None:
        return None
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or (min(values) <= 0 and not signed):
        kind = kind or f"{'numbers' if signed else 'positive numbers'} with commas between them"
        raise ScoreFusionError(f"{option} needs {kind}; got '{text}'")
    return values


class Verb(TyperCommand):
    """A verb whose help lists the names that registries hold."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        for param in self.params:
            if text := getattr(param, "help", None):
                param.help = described(text)  # type: ignore[attr-defined]
        super().format_help(ctx, formatter)


@dataclasses.dataclass
class Levels:
    """Noise levels; None for the model's own."""

    sigma_min: float | None = opt("Where the noise ends.", shown=OWN)
    sigma_max: float | None = opt("Where the noise begins.", shown=OWN)
    rho: float | None = opt("How noise levels crowd at the clean end.", shown=OWN)


@dataclasses.dataclass
class Place:
    """Where in a true volume."""

    box: str = opt("Size of the box, Z,Y,X voxels, in the middle of the head; or SIZE@START.", "80,96,96")
    coarsen: int = opt("Average N x N x N voxels of the data first; the truth is then coarser.", 1)


def expanded(function: Callable[..., None]) -> Callable[..., None]:
    """Return a verb whose groups of options stand one by one in its signature, as Typer reads it."""
    flat: list[inspect.Parameter] = []
    makers: dict[str, Callable[[Mapping[str, Any]], Any]] = {}
    for name, own in inspect.signature(function, eval_str=True).parameters.items():
        parameters, makers[name] = _parts(own.annotation, own)
        flat += parameters

    @functools.wraps(function)
    def call(**given: Any) -> None:
        function(**{name: make(given) for name, make in makers.items()})

    signature = inspect.Signature(flat)
    call.__signature__ = signature  # type: ignore[attr-defined]
    call.__annotations__ = {name: each.annotation for name, each in signature.parameters.items()}
    return call


def _parts(hint: Any, own: inspect.Parameter) -> Parts:
    """The parameters that a verb's parameter stands for, and what makes its value of theirs."""
    kind, *notes = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    make: Any = kind
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind, include_extras=True)
        fields = [_of_field(each, hints[each.name]) for each in dataclasses.fields(kind)]
        return fields, lambda given: make(**{each.name: given[each.name] for each in fields})
    if not is_typeddict(kind):
        return [own.replace(annotation=hint, kind=own.KEYWORD_ONLY)], lambda given: given[own.name]
    only = next((note for note in notes if isinstance(note, Only)), declared(kind))
    options = {name: option for name, option in declared(kind).items() if name in only and not option.python}
    names = {name: option.flag.strip("-") or name for name, option in options.items()}
    parameters = [
        _of_option(names[name], type_of(kind, name, cli=True), option) for name, option in options.items()
    ]
    return parameters, lambda given: {
        name: not given[names[name]] if option.off else given[names[name]] for name, option in options.items()
    }


def _of_field(field: dataclasses.Field[Any], kind: Any) -> inspect.Parameter:
    """The command-line parameter of a field that :func:`opt` made."""
    how = dict(field.metadata)
    flags = how.pop("flags") or (_flag(field.name),) * (kind is bool)
    return _parameter(field.name, kind, field.default, *flags, **how)


def _of_option(name: str, kind: Any, option: Option) -> inspect.Parameter:
    """The command-line parameter of an option that is declared for Python."""
    text, default = (option.off, False) if option.off else (option.help, option.default)
    shown = option.otherwise or (default is not None and kind is not bool)
    return _parameter(name, kind, default, _flag(name), help=text, show_default=shown)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _parameter(name: str, kind: Any, default: Any, *flags: str, **how: Any) -> inspect.Parameter:
    note = Annotated[kind, typer.Option(*flags, **how)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=note)
