"""What a batch shows: lines with rate and time left, one live line on a terminal, little when quiet."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from scorefusion.batch.run import Event
from scorefusion.cli import batch_run
from scorefusion.cli.batch_run import view

START: Event = {
    "event": "started", "items": 5, "todo": 4, "shard": "1/2", "device": "cpu", "dtype": "float32",
}  # fmt: skip
EVENTS: list[Event] = [
    START,
    {"event": "item-kept", "name": "a", "output": "a"},
    {"event": "item-started", "name": "b", "inputs": []},
    {"event": "item-done", "name": "b", "output": "b"},
    {"event": "note", "text": "beware"},
    {"event": "item-failed", "name": "c [red]", "error": "c.nii: is broken", "fix": "Mend it."},
    {"event": "item-done", "name": "d", "output": "d"},
    {"event": "finished", "state": "complete"},
]


def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock is ten seconds after the last."""
    ticks = iter(range(0, 10_000, 10))
    monkeypatch.setattr(batch_run.time, "monotonic", lambda: next(ticks))


def test_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch)
    with view() as listener:
        for event in EVENTS:
            listener(event)
    shown = capsys.readouterr()
    lines = shown.err.splitlines()
    assert shown.out == "" and lines[0] == "5 items, 4 to do, shard 1/2, on cpu in float32"
    assert "note: beware" in lines and "failed: c [red]: c.nii: is broken. Mend it." in lines
    assert lines[-1].startswith("translating: 4 of 5: 2 done, 1 failed, 1 there already, ")
    assert "/min, about " in lines[-1] and lines[-1].endswith(" left")


def test_one_item_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    with view() as listener:
        listener({**EVENTS[0], "items": 1, "todo": 1})
    assert capsys.readouterr().err.startswith("1 item, 1 to do")


def test_quiet_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    with view(quiet=True) as listener:
        for event in EVENTS:
            listener(event)
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "failed: c [red]: c.nii: is broken. Mend it.\n")
    with view(as_json=True) as listener:
        for event in EVENTS:
            listener(event)
    shown = capsys.readouterr()
    assert [json.loads(line) for line in shown.out.splitlines()] == EVENTS and shown.err == ""


def test_one_live_line_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(
        "rich.console.Console", lambda stderr: Console(file=screen, force_terminal=True, width=120)
    )
    with view() as listener:
        for event in EVENTS:
            listener(event)
    text = screen.getvalue()
    assert (
        "failed: c [red]: c.nii: is broken. Mend it." in text and "2 done, 1 failed, 1 there already" in text
    )
    assert "4/5" in text
