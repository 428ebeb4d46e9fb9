"""Every option is declared once: what derives from the declaration has it, and nothing else declares many."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import typing
from pathlib import Path
from typing import Annotated, Any

import pytest
from typer.main import get_command

from scorefusion import cli
from scorefusion.cli import app, options
from scorefusion.errors import ScoreFusionError
from scorefusion.io import nifti
from scorefusion.io.header import MAX_VOXELS
from scorefusion.ops.device import DTYPES
from scorefusion.pipeline import (
    CallOptions,
    Machine,
    Options,
    Pipeline,
    Settings,
    declared,
    documented,
    filled,
)
from tests.support.tiny import tiny_config, tiny_image, tiny_model

PACKAGE = Path(__file__).parents[2] / "scorefusion"


def test_the_call_and_the_constructor_name_every_option() -> None:
    for function, table in ((Pipeline.__call__, CallOptions), (Pipeline.__init__, Machine)):
        named = list(inspect.signature(function).parameters.values())[2:]
        options = declared(table)
        assert [each.name for each in named] == list(options)
        assert [each.default for each in named] == [option.default for option in options.values()]
        assert all(f"{name}: " in (function.__doc__ or "") for name in options)
        assert "{" not in (function.__doc__ or "")


def test_the_command_line_has_every_option_with_its_default() -> None:
    params = {param.name: param for param in get_command(app).commands["translate"].params}
    for name, option in declared(CallOptions, Machine).items():
        if option.python:
            assert name not in params
        elif option.off:
            assert params[option.flag.strip("-")].default is False
        else:
            assert params[option.flag.strip("-") or name].default == option.default


def test_settings_hold_every_option() -> None:
    settings = Settings(tiny_config(), samples=2, planes=["axial"], strategy="single")
    assert (settings.samples, settings.planes, settings.strategy) == (2, ("axial",), "single")
    assert settings.changed(batch=2).batch == 2 and settings.batch == 1
    with pytest.raises(ScoreFusionError, match="samples and batch"):
        settings.changed(batch=0)
    with pytest.raises(
        TypeError, match=r"^Settings.__init__\(\) got an unexpected keyword argument 'sample'$"
    ):
        filled(Options, {"sample": 3})


def test_an_unknown_option_is_refused_as_python_does() -> None:
    pipeline = Pipeline(tiny_model(), device="cpu")
    with pytest.raises(
        TypeError, match=r"^Pipeline.__call__\(\) got an unexpected keyword argument 'stepz'$"
    ):
        pipeline(tiny_image(), stepz=3)  # type: ignore[call-arg]
    with pytest.raises(
        TypeError, match=r"^Pipeline.__init__\(\) got an unexpected keyword argument 'devise'$"
    ):
        Pipeline(tiny_model(), devise="cpu")  # type: ignore[call-arg]


def test_a_parameter_that_may_be_none_keeps_its_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.10's ``get_type_hints`` wraps the annotation of a parameter whose default is None."""

    def of_python_3_10(thing: Any, **how: Any) -> dict[str, Any]:
        hints = typing.get_type_hints(thing, **how)
        own = inspect.signature(thing).parameters if inspect.isfunction(thing) else {}
        return hints | {name: hints[name] | None for name in own if own[name].default is None}

    monkeypatch.setattr(options, "get_type_hints", of_python_3_10)
    verbs = []
    for info in pkgutil.iter_modules(cli.__path__):
        module = importlib.import_module(f"scorefusion.cli.{info.name}")
        verbs += [getattr(module, info.name)] if hasattr(module, info.name) else []
    assert len(verbs) > 10
    for verb in verbs:
        for own in inspect.signature(options.expanded(verb)).parameters.values():
            assert typing.get_origin(own.annotation) is Annotated, f"{verb.__name__}: {own}"


def test_the_identity_is_what_decides_the_bits() -> None:
    """A key more or less makes every batch that was made before anew."""
    identity = Settings(tiny_config()).identity
    assert list(identity) == [
        "strategy", "planes", "samples", "seed", "crop", "nan", "assume_affine", "output_dtype", "clip",
        "solver", "table",
    ]  # fmt: skip
    for name, value in (("batch", 3), ("strict", True), ("max_voxels", 10**6)):
        assert Settings(tiny_config(), **{name: value}).identity == identity  # type: ignore[arg-type]
    for name, value in (("seed", 1), ("crop", False), ("clip", "input"), ("steps", 5), ("eta", 0.5)):
        assert Settings(tiny_config(), **{name: value}).identity != identity  # type: ignore[arg-type]


def test_values_that_are_fixed_are_those_of_what_takes_them() -> None:
    options = declared(Options, Machine)
    assert options["nan"].choices == nifti.NAN_CHOICES
    assert options["output_dtype"].choices == nifti.OUTPUT_DTYPES
    assert options["max_voxels"].default == MAX_VOXELS
    assert options["dtype"].choices == ("auto", *DTYPES)


def test_a_function_is_documented() -> None:
    @documented(Machine)
    def function(image: str, **machine: Any) -> None:
        """Do something.

        Args:
            image: where.
            {options}
        """

    assert list(inspect.signature(function).parameters)[:3] == ["image", "device", "dtype"]
    assert "    max_memory: The most memory" in (function.__doc__ or "")


def test_no_public_function_declares_more_than_twelve_parameters() -> None:
    """What derives from a table or a dataclass counts as one; an operation's parameters are its schema."""
    many = []
    for file in sorted(PACKAGE.rglob("*.py")):
        if file.relative_to(PACKAGE).parts[0] in ("ops", "kernels"):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef):
                continue
            if not node.name.startswith("_") or node.name in ("__init__", "__call__"):
                own = node.args
                names = [each.arg for each in (*own.posonlyargs, *own.args, *own.kwonlyargs)]
                count = len([name for name in names if name not in ("self", "cls")])
                if count + bool(own.vararg) + bool(own.kwarg) > 12:
                    many.append(f"{file.relative_to(PACKAGE)}: {node.name} has {count}")
    assert many == []
