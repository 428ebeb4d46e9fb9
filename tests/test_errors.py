"""Messages a user reads."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from scorefusion.errors import BadInput, ScoreFusionError, unknown_name


def test_bad_input_names_file_problem_and_fix() -> None:
    error = BadInput(Path("a/b.nii.gz"), "the file is empty.", "Copy it again.")
    assert str(error) == f"{Path('a/b.nii.gz')}: the file is empty. Copy it again."
    assert isinstance(error, ScoreFusionError) and isinstance(error, ValueError)
    assert str(BadInput("x", "is 2D")) == "x: is 2D." and BadInput(file="x", problem="is 2D").file == "x"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("ddmi", "ddim"),
        ("DDIM", "ddim"),
        ("dpm", "ddpm"),
        ("dpmpp2m", "dpmpp_2m"),
        ("eulr", "euler"),
        ("zzz", None),
    ],
)
def test_unknown_name_finds_the_nearest(name: str, nearest: str | None) -> None:
    message = str(unknown_name("solver", name, ("dpmpp_2m", "ddpm", "ddim", "euler")))
    hint = "" if nearest is None else f" did you mean '{nearest}'?"
    assert message == f"unknown solver '{name}';{hint} valid: ddim, ddpm, dpmpp_2m, euler"
