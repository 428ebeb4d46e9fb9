"""Displays, events and reports that fail: the work goes on, and the exit status is that of the work."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from scorefusion import Pipeline
from scorefusion.batch.items import Stopped
from scorefusion.batch.queue import merged_entries
from scorefusion.batch.session import Batch, Summary, translate_batch
from scorefusion.batch.worker import Work
from scorefusion.cli import app, batch_run, console
from scorefusion.cli.console import Shield
from tests.support.batches import names, translate, volumes, write_scan
from tests.support.forked_cli import STREAMS
from tests.support.tiny import write_tiny

ROOT = Path(__file__).parents[2]
COUNT = 4
QUICK = ("--steps", "1", "--strategy", "average", "--device", "cpu", "--dtype", "float32")
ERRORS = (
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    OSError(errno.EIO, os.strerror(errno.EIO)),
    BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)),
    BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)),
    UnicodeEncodeError("ascii", "×", 0, 1, "ordinal not in range(128)"),
    ValueError("I/O operation on closed file"),
)

Run = Callable[..., int]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, four scans, and what becomes of them undisturbed."""
    folder = tmp_path_factory.mktemp("reporting")
    write_tiny(folder)
    for number in range(COUNT):
        write_scan(folder / "in" / f"{number}.nii.gz", number)
    translate(folder / "tiny", folder / "in", "-o", folder / "whole", *QUICK[:4])
    return folder


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Run ``scorefusion`` in a process of its own with the streams named; its exit status."""
    if not Path("/dev/full").exists() or not hasattr(os, "fork"):
        pytest.skip("not run: this system has no /dev/full, or cannot fork")
    command, pipe = [sys.executable, str(ROOT / "tests/support/forked_cli.py")], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        stdin, answers = process.stdin, process.stdout

        def one(*args: object, stdout: object, stderr: object) -> int:
            case = {"args": [str(each) for each in args], "stdout": str(stdout), "stderr": str(stderr)}
            print(json.dumps(case), file=stdin, flush=True)
            return int(answers.readline())

        yield one
        stdin.close()


@pytest.fixture
def out(place: Path) -> Iterator[Path]:
    yield place / "out"
    shutil.rmtree(place / "out", ignore_errors=True)


@pytest.mark.parametrize("stderr", STREAMS)
def test_a_batch_goes_on_without_standard_error(run: Run, place: Path, out: Path, stderr: str) -> None:
    """A terminal that is gone or goes, a full disk, a closed descriptor, a pipe that nobody reads."""
    given = ("translate", place / "in", "-o", out, "--model", place / "tiny", *QUICK)
    assert run(*given, stdout=place / "stdout", stderr=stderr) == 0
    assert volumes(out) == volumes(place / "whole") and (out / "report.html").exists()
    assert (place / "stdout").read_text().endswith(f"{COUNT} translated, 0 there already, 0 failed\n")


@pytest.mark.parametrize("stdout", ["one line", "gone", "full", "closed"])
def test_a_batch_goes_on_without_its_events(run: Run, place: Path, out: Path, stdout: str) -> None:
    given = ("translate", place / "in", "-o", out, "--model", place / "tiny", *QUICK, "--json")
    assert run(*given, stdout=stdout, stderr=place / "stderr") == 0
    assert volumes(out) == volumes(place / "whole")
    lost = "scorefusion: standard output could not be written (No space left on device); the work went on "
    assert (place / "stderr").read_text() == ((lost + "without it\n") if stdout == "full" else "")


def test_a_batch_without_any_stream_still_counts_failures(run: Run, place: Path, out: Path) -> None:
    (place / "bad").mkdir()
    write_scan(place / "bad" / "a.nii.gz")
    (place / "bad" / "b.nii.gz").write_bytes(b"no image")
    given = ("translate", place / "bad", "-o", out, "--model", place / "tiny", *QUICK)
    assert run(*given, stdout="closed", stderr="closed") == 1
    assert [path for path in volumes(out)] == ["a.nii.gz"]
    states = {entry.name: entry.state for entry in merged_entries(out / ".scorefusion")[0]}
    assert states == {"a.nii.gz": "done", "b.nii.gz": "failed"}


@pytest.mark.parametrize("streams", [("full", "full"), ("closed", "closed"), ("terminal goes",) * 2])
def test_one_scan_is_written_without_any_stream(
    run: Run, place: Path, tmp_path: Path, streams: tuple[str, str]
) -> None:
    """The output is the same file, whose descriptor is never that of a closed stream."""
    given = ("translate", place / "in" / "0.nii.gz", "--model", place / "tiny", *QUICK)
    assert run(*given, "-o", tmp_path / "0.nii.gz", stdout=streams[0], stderr=streams[1]) == 0
    assert os.listdir(tmp_path) == ["0.nii.gz"]
    expected = Pipeline(place / "tiny", device="cpu", dtype="float32")(
        place / "in" / "0.nii.gz", steps=1, strategy="average"
    )
    expected.save(tmp_path / "expected.nii.gz")
    assert (tmp_path / "0.nii.gz").read_bytes() == (tmp_path / "expected.nii.gz").read_bytes()


@pytest.mark.parametrize(
    ("verb", "stdout", "status", "says"),
    [
        ("doctor", "full", 2, "No space left on device"),
        ("doctor", "closed", 2, "Bad file descriptor"),
        ("doctor", "gone", 141, ""),
        ("--version", "full", 2, "No space left on device"),
        ("plan", "full", 2, "No space left on device"),
        ("data", "gone", 141, ""),
    ],
)
def test_text_that_was_asked_for_is_not_lost_silently(
    run: Run, place: Path, tmp_path: Path, verb: str, stdout: str, status: int, says: str
) -> None:
    more = {
        "plan": ("--model", place / "tiny", "--shape", 16, 16, 16),
        "data": (place / "in" / "0.nii.gz", "-q"),
    }
    assert run(verb, *more.get(verb, ()), stdout=stdout, stderr=tmp_path / "stderr") == status
    line = f"scorefusion: standard output cannot be written ({says})\n" if says else ""
    assert (tmp_path / "stderr").read_text() == line


@pytest.mark.parametrize(
    ("environment", "stderr"),
    [
        ({"PYTHONIOENCODING": "ascii"}, "/dev/full"),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, os.devnull),
    ],
)
def test_streams_take_any_character(
    place: Path, tmp_path: Path, environment: dict[str, str], stderr: str
) -> None:
    """Real processes from start to end, the first with standard error on a full disk besides."""
    given = ["in.nii.gz", "-o", str(tmp_path / "tête ×.nii.gz"), "--model", "tiny", *QUICK]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with open(stderr if Path(stderr).exists() else os.devnull, "wb") as file:
        done = subprocess.run(
            [sys.executable, "-m", "scorefusion", "translate", *given],
            cwd=place,
            stdout=subprocess.PIPE,
            stderr=file,
            env=os.environ | {"PYTHONPATH": path} | environment,
        )
    assert done.returncode == 0 and b"14 ? 12 ? 10 voxels" in done.stdout, done.stdout
    assert os.listdir(tmp_path) == ["tête ×.nii.gz"]


class Broken(io.StringIO):
    """A stream that raises from its second write or from its second flush on."""

    def __init__(self, error: Exception, *, terminal: bool, at: str):
        super().__init__()
        self.failure, self.terminal, self.at, self.calls = error, terminal, at, 0

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        self._count("write")
        return super().write(text)

    def flush(self) -> None:
        self._count("flush")

    def _count(self, at: str) -> None:
        self.calls += at == self.at
        if self.calls > 1 and at == self.at:
            raise self.failure


@pytest.mark.parametrize("at", ["write", "flush"])
@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_displays_switch_themselves_off(
    monkeypatch: pytest.MonkeyPatch, error: Exception, terminal: bool, at: str
) -> None:
    """Bars, lines, stages and a batch's view; none raises, none leaves a thread with an error."""
    raised: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    monkeypatch.setenv("TERM", "xterm")
    for number in range(3):
        monkeypatch.setattr(sys, "stderr", Broken(error, terminal=terminal, at=at))
        if number == 0:
            with console.progress("working", every=0.0) as report:
                for done in range(1, 6):
                    report(done, 5)
        elif number == 1:
            with console.stages(console.stderr_console(), every=0.0) as show:
                for done in range(1, 6):
                    show("slices", done, 5, 0.5)
        else:
            with batch_run.view(every=0.0) as listener:
                for _ in range(5):
                    listener({"event": "note", "text": "×"})
                    listener({"event": "item-done", "name": "a", "warnings": []})
    assert raised == []


def test_a_character_that_an_encoding_lacks_is_replaced() -> None:
    buffer = io.BytesIO()
    stream = Shield(io.TextIOWrapper(buffer, encoding="ascii"))
    print("4 × 4", "\udce9", file=stream, flush=True)
    assert buffer.getvalue() == b"4 ? 4 ?\n" and stream.error is None
    Console(file=stream, width=40).rule("×")
    assert stream.error is None and b"?" in buffer.getvalue()


def test_a_callers_exception_stays_the_callers(place: Path) -> None:
    def callback(done: int, total: int) -> None:
        raise BrokenPipeError(errno.EPIPE, "mine")

    pipeline = Pipeline(place / "tiny", device="cpu", dtype="float32")
    with pytest.raises(BrokenPipeError, match="mine"):
        pipeline(place / "in.nii.gz", steps=1, callback=callback)


def test_a_broken_pipe_of_the_work_is_not_silent(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    monkeypatch.setattr("scorefusion.pipeline.pipeline.Pipeline.__call__", broken)
    given = ["translate", str(place / "in.nii.gz"), "-o", str(tmp_path / "a.nii")]
    done = CliRunner().invoke(app, [*given, "--model", str(place / "tiny"), *QUICK])
    assert done.exit_code == 2
    assert done.stderr.startswith("scorefusion: a process that does a part of the work has ended (")


def batch(place: Path, out: Path, listener: Callable[[dict[str, Any]], None] | None = None) -> Summary:
    work = Work(str(place / "tiny"), {"steps": 1, "strategy": "average"}, device="cpu", dtype="float32")
    return translate_batch(Batch((place / "in",), out, work), listener=listener)


@pytest.mark.parametrize(
    ("last", "error"),
    [("started", OSError("gone")), ("item-started", BrokenPipeError()), ("item-done", KeyError("name"))],
)
def test_a_listener_that_raises_hears_no_more(place: Path, out: Path, last: str, error: Exception) -> None:
    heard: list[str] = []

    def listener(event: dict[str, Any]) -> None:
        heard.append(event["event"])
        if event["event"] == last:
            raise error

    summary = batch(place, out, listener)
    assert (summary.done, summary.failed, summary.left, summary.stopped) == (COUNT, 0, 0, None)
    assert heard[-1] == last and heard.count(last) == 1 and volumes(out) == volumes(place / "whole")
    (problem,) = summary.unreported
    assert problem.startswith(f"no event after '{last}' was passed on (")


def test_a_listener_may_stop_a_batch(place: Path, out: Path) -> None:
    def listener(event: dict[str, Any]) -> None:
        if event["event"] == "item-started":
            raise Stopped("enough")

    summary = batch(place, out, listener)
    assert summary.stopped is not None and summary.stopped.reason == "enough" and summary.done < COUNT


def test_a_report_that_cannot_be_written(place: Path, out: Path) -> None:
    """The outputs are there, status 0, one line says why; ``--report-only`` says it in one line, too."""
    (out / "report.html").mkdir(parents=True)
    given = ["translate", str(place / "in"), "-o", str(out), "--model", str(place / "tiny"), *QUICK]
    done = CliRunner().invoke(app, [*given, "--json"])
    assert done.exit_code == 0, (done.output, done.exception)
    finished = json.loads(done.stdout.splitlines()[-1])
    assert (finished["state"], finished["done"]) == ("complete", COUNT)
    assert volumes(out) == volumes(place / "whole")
    (line,) = done.stderr.splitlines()
    assert line == f"scorefusion: {finished['unreported'][0]}"
    assert f"{out / 'report.html'}: could not be written (Is a directory)" in line
    again = CliRunner().invoke(app, [*given, "--report-only"])
    assert again.exit_code == 2 and "could not be written (Is a directory)" in again.stderr
    (out / "report.html").rmdir()
    assert CliRunner().invoke(app, [*given, "--report-only"]).exit_code == 0


def test_a_report_that_cannot_be_made(place: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong in it, while the batch runs as well as at its end."""

    def broken(*_: object, **__: object) -> str:
        raise RuntimeError("no page")

    monkeypatch.setattr("scorefusion.batch.report.report_page", broken)
    monkeypatch.setattr("scorefusion.batch.report.EVERY", 0.0)
    raised: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    summary = batch(place, out)
    assert (summary.done, summary.failed, raised) == (COUNT, 0, [])
    assert summary.unreported == ("the report was not written (no page); --report-only writes it again",)


@pytest.mark.parametrize("error", [OSError("encoder error -2"), MemoryError(), ValueError("no plane")])
def test_thumbnails_that_cannot_be_drawn(
    place: Path, out: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("scorefusion.batch.thumbnails.pair", broken)
    events = translate(place / "tiny", place / "in", "-o", out, *QUICK[:4])
    assert len(names(events, "item-done")) == COUNT and volumes(out) == volumes(place / "whole")
    done = next(event for event in events if event["event"] == "item-done")
    text = str(error) or "MemoryError"
    assert f"its thumbnails could not be drawn ({text})" in done["warnings"]
    assert (out / "report.html").exists()


def test_what_goes_with_a_volume_is_each_tried(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A figure that cannot be drawn costs neither the volumes nor the summary, and is an error."""

    def broken(*_: object) -> None:
        raise RuntimeError("no font")

    monkeypatch.setattr("scorefusion.pipeline.translation.Translation.figure", broken)
    files = {option: str(tmp_path / name) for option, name in (("-o", "a.nii"), ("--spread", "sd.nii"))}
    figure = str(tmp_path / "a.png")
    given = [each for pair in files.items() for each in pair] + ["--figure", figure, "--samples", "2"]
    model = ["--model", str(place / "tiny"), *QUICK]
    done = CliRunner().invoke(app, ["translate", str(place / "in.nii.gz"), *given, *model])
    assert done.exit_code == 2 and sorted(os.listdir(tmp_path)) == ["a.nii", "sd.nii"]
    assert "14 × 12 × 10 voxels" in done.stdout
    said = f"scorefusion: {files['-o']} was written; {figure}: could not be written (no font)"
    assert done.stderr.splitlines()[-1] == said
