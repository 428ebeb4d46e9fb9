"""A batch of 200 scans, 20 of them bad, killed ten times: what is left is what an undisturbed run leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support.bad_scans import BAD
from tests.support.batches import names, translate, volumes, write_model, write_scan
from tests.support.killed_batches import QUICK

ROOT = Path(__file__).parents[2]
KILLS, GOOD_ONES, BAD_ONES = 10, 180, 20

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not hasattr(os, "fork") or not Path("/proc/self/statm").exists(), reason="needs Linux"
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("killed")


@pytest.fixture(scope="module")
def kinds(folder: Path) -> dict[str, str]:
    """What is wrong with each bad scan, by name."""
    for number in range(GOOD_ONES):
        shape = (5, 6, 7) if number % 10 == 0 else (7, 6, 5)
        write_scan(folder / "in" / f"good{number:03d}.nii.gz", number, shape)
    wrong = {}
    for number in range(BAD_ONES):
        kind = list(BAD)[number % len(BAD)]
        ending, write, problem = BAD[kind]
        name = f"bad{number:02d}-{kind}{ending}"
        write(folder / "in" / name)
        wrong[name] = problem
    return wrong


@pytest.fixture(scope="module")
def seen(folder: Path, kinds: dict[str, str]) -> dict[str, Any]:
    model = write_model(folder / "tiny")
    program = [sys.executable, str(ROOT / "tests/support/killed_batches.py"), str(KILLS), "7", str(model)]
    run = subprocess.run(
        [*program, str(folder / "in"), str(folder / "whole"), str(folder / "out")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout)


def test_the_outputs_are_those_of_an_undisturbed_run(folder: Path, seen: dict[str, Any]) -> None:
    whole, killed = volumes(folder / "whole"), volumes(folder / "out")
    assert len(whole) == GOOD_ONES and killed == whole
    last = seen["logs"][-1][-1]
    assert last["event"] == "finished" and last["done"] + last["kept"] == GOOD_ONES and last["left"] == 0


def test_nothing_was_ever_half_written(folder: Path, seen: dict[str, Any]) -> None:
    """Under no final name was there, after any kill, another file than the right one; no leftovers remain."""
    assert seen["half"] == []
    assert [path.name for path in (folder / "out").iterdir() if path.name.startswith(".")] == [".scorefusion"]


def test_every_failure_is_named(kinds: dict[str, str], seen: dict[str, Any]) -> None:
    for log in (seen["logs"][0], seen["logs"][-1]):
        failed = {event["name"]: event for event in log if event["event"] == "item-failed"}
        assert sorted(failed) == sorted(kinds)
        for name, problem in kinds.items():
            assert problem in failed[name]["error"] and failed[name]["fix"], failed[name]


def test_no_work_was_repeated_but_what_was_in_flight(seen: dict[str, Any]) -> None:
    """An item is drawn again only if a kill came before it was told as done; that is a handful each time."""
    done: set[str] = set()
    draws: Counter[str] = Counter()
    assert len(seen["logs"]) == 1 + KILLS + 1
    for log in seen["logs"][1:]:
        started = names(log, "item-started")
        assert not done & set(started)
        draws.update(started)
        done |= set(names(log, "item-done"))
        # One being drawn, two waiting to be written, one written but not yet told.
        assert len(started) - len(names(log, "item-done")) <= 4
    assert sum(draws.values()) - GOOD_ONES <= 4 * KILLS and len(draws) == GOOD_ONES
    assert sum(bool(names(log, "item-done")) for log in seen["logs"][1:]) >= KILLS - 2


def test_memory_is_flat(seen: dict[str, Any]) -> None:
    """Over the last three quarters of the undisturbed run the process does not grow by 20 MB."""
    memory = [(count, size) for count, size in seen["memory"] if size]
    total = max(count for count, _ in memory)
    early = max(size for count, size in memory if count <= total / 4)
    assert max(size for _, size in memory) < early + 20, memory[:: len(memory) // 20 or 1]


def test_a_run_after_it_has_nothing_to_do(folder: Path, seen: dict[str, Any]) -> None:
    events = translate(folder / "tiny", folder / "in", "-o", folder / "out", *QUICK, code=1)
    assert len(names(events, "item-kept")) == GOOD_ONES and not names(events, "item-started")
