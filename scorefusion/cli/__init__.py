"""The command line: ``scorefusion VERB``.

A verb is a module of this package with a function of the module's name, whose arguments Typer reads:
``cli/import_official.py`` is ``scorefusion import-official``. Its help is the function's docstring. It
imports PyTorch and the like inside the function, so that ``--help`` is quick. A module with verbs of its own,
``cli/engine.py``, has a Typer named ``program`` instead. A :class:`~scorefusion.errors.ScoreFusionError` is
printed in one line on standard error and ends the program with status 2.
"""

import importlib
import os
import pkgutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from scorefusion._version import __version__
from scorefusion.cli.console import note_lost_output, require_stdout, shield_standard_streams
from scorefusion.cli.options import Verb, expanded
from scorefusion.errors import ScoreFusionError, out_of_memory, shortage_of

_LESS = {
    "train": "Use smaller patches or batches in the configuration; see `scorefusion train --dry-run`.",
    "demo": "Choose a smaller --box, free some memory, or use a machine with more.",
    "evaluate": "Give smaller volumes, free some memory, or use a machine with more.",
    "tune": "Choose a smaller --box, free some memory, or use a machine with more.",
    "video": "Restore fewer frames (--frames); `scorefusion plan` says what is needed.",
}
"""What to do where memory runs out, by verb."""

_FIRST = ("translate", "demo", "train", "import-official", "denoise-error", "tune", "evaluate", "doctor")


class Verbs(TyperGroup):
    """The group of all verbs; turns an error that a user can cause into one line and status 2.

    An allocation that fails anywhere is such an error.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the options before the verb."""
        with _errors_in_one_line(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the verb."""
        with _errors_in_one_line(ctx):
            return super().invoke(ctx)


@contextmanager
def _errors_in_one_line(ctx: Any) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:  # a child process ended; Typer would exit without a message
        print(f"scorefusion: a process that does a part of the work has ended ({error})", file=sys.stderr)
        raise typer.Exit(2) from error
    except Exception as error:
        if not isinstance(error, ScoreFusionError):
            if not out_of_memory(error):
                raise
            verb = ctx.invoked_subcommand or "scorefusion"
            error = shortage_of(error, verb, fix=_LESS.get(verb, ""))
        print(f"scorefusion: {' '.join(str(error).split())}", file=sys.stderr)
        raise typer.Exit(2) from None


def build() -> typer.Typer:
    """Find the verbs and make the program."""
    program = typer.Typer(
        name="scorefusion",
        cls=Verbs,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    program.callback()(_program)
    verbs: dict[str, Any] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        if hasattr(module, "program"):
            program.add_typer(module.program, name=info.name.replace("_", "-"))
        if function := getattr(module, info.name, None):
            verbs[info.name.replace("_", "-")] = function
    for name in [*_FIRST, *sorted(verbs.keys() - set(_FIRST))]:
        program.command(name, cls=Verb)(expanded(verbs[name]))
    return program


def main() -> None:
    """Run the command line; the ``scorefusion`` script. Its streams may fail; see :mod:`.console`."""
    shield_standard_streams()
    wait_without_spinning()
    try:
        app()
    except SystemExit as end:
        if end.code in (None, 0, 1, 3):  # others are not of the work, or have said why
            note_lost_output()
        raise


def wait_without_spinning() -> None:
    """Let PyTorch's threads sleep while they wait, unless the environment says how they wait.

    A thread that spins on a core that another program also uses takes it from the thread it waits for. The
    OpenMP runtime reads this when PyTorch is imported, which must come later; processes that are started
    inherit it.
    """
    if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}:
        os.environ["OMP_WAIT_POLICY"] = "passive"


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"scorefusion {__version__}")
        require_stdout()
        raise typer.Exit


def _program(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Translate 3D medical images by fusing the scores of 2D diffusion models.

    \b
    Examples:
      scorefusion translate flair_5mm.nii.gz -o flair_iso.nii.gz
      scorefusion doctor
      scorefusion translate --help
    """


app = build()
