"""What goes wrong around a batch: disks, signals, memory; nothing is half-written, and all can be resumed."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scorefusion.batch.items import Item
from scorefusion.batch.session import Batch, Summary, translate_batch
from scorefusion.batch.worker import Work, Worker
from tests.support.batches import Events, names, nobody, translate, volumes, write_model, write_scan
from tests.support.waiting import PATIENCE, until

COUNT = 8
QUICK = ("--steps", "1", "--strategy", "average")
CHOICES = {"steps": 1, "strategy": "average"}


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder that everybody may read: a model, eight scans, and what becomes of them undisturbed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        write_model(folder / "tiny")
        for number in range(COUNT):
            write_scan(folder / "in" / f"{number}.nii.gz", number)
        translate(folder / "tiny", folder / "in", "-o", folder / "whole", *QUICK)
        yield folder


@pytest.fixture
def out(place: Path) -> Iterator[Path]:
    folder = place / "out"
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def run(place: Path, out: Path, listener: Callable[[dict[str, Any]], None] | None = None) -> Summary:
    work = Work(str(place / "tiny"), CHOICES, device="cpu", dtype="float32")
    return translate_batch(Batch((place / "in",), out, work), listener=listener)


def check_whole(place: Path, out: Path) -> None:
    """What is there under a final name is right, and nothing else is there."""
    whole, here = volumes(place / "whole"), volumes(out)
    assert set(here) <= set(whole) and all(here[name] == whole[name] for name in here)


def remove_hidden(out: Path) -> None:
    """Remove what another writer had under way when it lost the folder or the right to remove it."""
    for hidden in out.glob(".*.nii.gz"):
        hidden.unlink()


def check_resumed(place: Path, out: Path) -> None:
    check_whole(place, out)
    kept = len(volumes(out))
    summary = run(place, out)
    assert (summary.done + summary.kept, summary.failed) == (COUNT, 0) and summary.kept <= kept
    assert volumes(out) == volumes(place / "whole")


@pytest.mark.parametrize("code", ["ENOSPC", "EDQUOT", "EROFS", "EIO", "EACCES"])
def test_a_disk_that_takes_no_more(
    place: Path, out: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    """The system's error at the third output ends the run at once: status 3, no item blamed."""
    calls, sync = [], os.fsync

    def failing(file: int) -> None:
        calls.append(file)
        if len(calls) >= 3:
            raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))
        sync(file)

    monkeypatch.setattr(os, "fsync", failing)
    events = translate(place / "tiny", place / "in", "-o", out, *QUICK, code=3)
    monkeypatch.undo()
    last = events[-1]
    assert last["state"] == "stopped" and os.strerror(getattr(errno, code)) in last["reason"]
    assert last["failed"] == 0 and last["done"] == 2 and last["left"] == COUNT - 2
    assert len(names(events, "item-started")) <= 6
    check_resumed(place, out)


def mounted(folder: Path, options: str) -> bool:
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0


def test_a_real_disk_that_is_full(place: Path, out: Path) -> None:
    if not mounted(out, "size=2m"):
        pytest.skip("needs root and the right to mount")
    try:

        def fill(event: dict[str, Any]) -> None:
            if event["event"] == "item-done":
                free = os.statvfs(out).f_bavail * os.statvfs(out).f_frsize
                (out / "filler").write_bytes(bytes(max(0, free - 4096)))

        summary = run(place, out, fill)
        assert summary.failed == 0 and summary.stopped is not None and summary.left > 0
        (out / "filler").unlink()
        check_resumed(place, out)
    finally:
        subprocess.run(["umount", str(out)], check=False)


def test_the_folder_of_the_outputs_vanishes(place: Path, out: Path) -> None:
    elsewhere = place / "elsewhere"

    def move(event: dict[str, Any]) -> None:
        if event["event"] == "item-done" and out.exists():
            out.rename(elsewhere)

    summary = run(place, out, move)
    assert summary.stopped is not None and "cannot be written" in str(summary.stopped)
    assert summary.failed == 0 and summary.left > 0 and not out.exists()
    elsewhere.rename(out)
    remove_hidden(out)
    check_resumed(place, out)


def test_the_right_to_write_is_lost(place: Path) -> None:
    owned = place / "owned"
    owned.mkdir()
    owned.chmod(0o777)
    out = owned / "out"

    def lose(event: dict[str, Any]) -> None:
        if event["event"] == "item-done":
            out.chmod(0o555)

    with nobody():
        summary = run(place, out, lose)
        assert summary.stopped is not None and "Permission denied" in str(summary.stopped)
        assert summary.failed == 0 and summary.left > 0
        out.chmod(0o755)
        remove_hidden(out)
        check_resumed(place, out)
    shutil.rmtree(owned)


def test_an_output_that_alone_cannot_be_written(place: Path, out: Path) -> None:
    """A folder of its name, and a file where a folder is needed, are those items' own failures."""
    (out / "3.nii.gz").mkdir(parents=True)
    events = translate(place / "tiny", place / "in", "-o", out, *QUICK, code=1)
    assert names(events, "item-failed") == ["3.nii.gz"] and len(names(events, "item-done")) == COUNT - 1
    assert "Is a directory" in next(event["error"] for event in events if event["event"] == "item-failed")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_ends_a_run_in_order(place: Path, out: Path, number: signal.Signals) -> None:
    """What is being written is finished, the draw is given up, the status is the shell's for the signal."""

    def interrupt() -> None:
        until(lambda: len(list(out.glob("*.nii.gz"))) >= 2, pause=0.001)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    events = translate(place / "tiny", place / "in", "-o", out, *QUICK, code=128 + number)
    thread.join()
    last = events[-1]
    assert last["state"] == "stopped" and number.name in last["reason"] and last["left"] > 0
    assert len(volumes(out)) == last["done"] >= 2
    check_resumed(place, out)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_second_signal_ends_it_at_once(place: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawing = out.parent / "drawing"
    child = os.fork()
    if not child:
        monkeypatch.setattr(Worker, "draw", lambda *arguments: (drawing.touch(), time.sleep(PATIENCE)))
        translate(place / "tiny", place / "in", "-o", out, *QUICK, code=None)
        os._exit(0)
    until(drawing.exists)

    def status() -> int | None:
        os.kill(child, signal.SIGINT)
        ended, status = os.waitpid(child, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if ended else None

    assert until(status, pause=0.1) == 130
    check_resumed(place, out)


def exhausted(kind: str) -> Exception:
    import torch

    return {
        "MemoryError": MemoryError(),
        "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        "CPU": RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate"),
    }[kind]


@pytest.mark.parametrize("kind", ["MemoryError", "CUDA", "CPU"])
def test_memory_that_runs_out(place: Path, out: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """While drawing or reading: once more with half as much at once, then that item fails, alone."""
    draw, read, tries = Worker.draw, Worker.read, []

    def short(self: Worker, ready: Any, callback: Any = None) -> Any:
        name = ready.item.name
        tries.append((name, self.settings.batch))
        if name == "5.nii.gz" or name == "2.nii.gz" and [each for each, _ in tries].count(name) == 1:
            raise exhausted(kind)
        return draw(self, ready, callback)

    def short_read(self: Worker, item: Any, identity: Any) -> Any:
        tries.append(("read", item.name))
        if item.name == "7.nii.gz" or item.name == "6.nii.gz" and tries.count(("read", item.name)) == 1:
            raise exhausted(kind)
        return read(self, item, identity)

    monkeypatch.setattr(Worker, "draw", short)
    monkeypatch.setattr(Worker, "read", short_read)
    events = translate(place / "tiny", place / "in", "-o", out, *QUICK, "--batch", "4", code=1)
    assert names(events, "item-failed") == ["5.nii.gz", "7.nii.gz"]
    first, second = (batch for name, batch in tries if name == "2.nii.gz")
    assert second == first // 2
    assert len([name for name, _ in tries if name == "5.nii.gz"]) == 2
    monkeypatch.undo()
    check_resumed(place, out)


def test_fewer_samples_at_once_are_said(place: Path, out: Path) -> None:
    """Sums are rounded otherwise then, so it is no secret."""
    work = Work(str(place / "tiny"), {**CHOICES, "samples": 4, "batch": 4}, device="cpu", dtype="float32")
    worker, item = Worker(work), Item("a", (place / "in" / "0.nii.gz",), out / "a.nii.gz")
    assert worker.translate(item).warnings == ()
    worker.relieve()
    assert worker.translate(item).warnings == ("memory ran out: 2 samples at once, not 4; equal to rounding",)


def test_an_input_that_changes_while_it_is_read(
    place: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scorefusion.pipeline import Pipeline

    read = Pipeline.read

    def slow(self: Pipeline, images: Any, settings: Any, **options: Any) -> Any:
        found = read(self, images, settings, **options)
        if images[0].name == "4.nii.gz":
            os.utime(images[0], ns=(1, time.monotonic_ns()))
        return found

    monkeypatch.setattr(Pipeline, "read", slow)
    events: Events = translate(place / "tiny", place / "in", "-o", out, *QUICK, code=1)
    (failed,) = (event for event in events if event["event"] == "item-failed")
    assert failed["name"] == "4.nii.gz" and "changed while it was read" in failed["error"]
    monkeypatch.undo()
    check_resumed(place, out)


def test_leftovers_of_a_kill_are_removed_and_nothing_else(place: Path, out: Path) -> None:
    out.mkdir()
    for name in (".01234567.3.nii.gz", ".89abcdef.3_sd.nii.gz"):
        (out / name).write_bytes(b"half")
    for name in (".01234567.mine.nii.gz", ".hidden", ".0123456.3.nii.gz"):
        (out / name).write_bytes(b"mine")
    run(place, out)
    assert sorted(path.name for path in out.iterdir() if path.is_file() and path.name.startswith(".")) == [
        ".0123456.3.nii.gz",
        ".01234567.mine.nii.gz",
        ".hidden",
    ]
