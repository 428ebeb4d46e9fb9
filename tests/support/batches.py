"""Folders of small scans, and batches of them through the command line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from typer.testing import CliRunner, Result

from scorefusion.cli import app
from scorefusion.models.config import ModelConfig
from tests.support.tiny import AFFINE, tiny_model

Events = list[dict[str, Any]]


def write_scan(path: Path, seed: int = 0, shape: tuple[int, int, int] = (7, 6, 5)) -> Path:
    """A file of random voxels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).integers(0, 1000, shape).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, AFFINE), path)
    return path


def write_model(folder: Path, config: ModelConfig | None = None) -> Path:
    """A tiny model."""
    return tiny_model(config).save_pretrained(folder, card="# tiny\n\nRandom weights, for tests.")


def _run(model: Path, *arguments: str | Path) -> Result:
    machine = ("--device", "cpu", "--dtype", "float32")
    return CliRunner().invoke(app, ["translate", *map(str, arguments), "--model", str(model), *machine])


def translate(model: Path, *arguments: str | Path, code: int | None = 0) -> Events:
    """Run ``scorefusion translate --json`` in this process; its events."""
    result = _run(model, *arguments, "--json")
    assert code is None or result.exit_code == code, (result.exit_code, result.output, result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


def refused(model: Path, *arguments: str | Path) -> str:
    """Run it; it must not start. The line that says why."""
    result = _run(model, *arguments)
    assert result.exit_code == 2 and result.stdout == "", (result.exit_code, result.output)
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("scorefusion: "), result.stderr
    return lines[0]


@contextmanager
def nobody() -> Iterator[None]:
    """Do without root's right to read and write everything."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def names(events: Events, kind: str) -> list[str]:
    """The items that events of a kind are about, sorted."""
    return sorted(event["name"] for event in events if event["event"] == kind)


def volumes(folder: Path) -> dict[str, bytes]:
    """The bytes of all that a batch wrote, but its books, by path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".scorefusion" not in path.parts and path.name != "report.html"
    }
